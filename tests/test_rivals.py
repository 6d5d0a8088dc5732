"""The plain models beside a head: what they answer, how they are counted, and what a run says of them."""

import json

import numpy as np
import pytest
import yaml
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from luthier.errors import DataError, RunError
from luthier.evaluation.held_out import ratio
from luthier.evaluation.rivals import rivals_beside, rivals_of
from luthier.evaluation.word_rivals import features, lexicon_tags, shape, usual_tags
from luthier.methods.base import Example
from luthier.methods.heads import ClassifyHead, MultiLabelHead, OrdinalHead, RegressHead, TagHead
from luthier.methods.sft import LabelSft
from luthier.recipe.methods import MultiLabel, Ordinal, Tag
from luthier.records import Labelled, Sequence, Source, Tagged
from luthier.stages import load_head, train
from luthier.stages.beside import verdict_beside

SOURCE = Source("rows.jsonl", 1)
SPORTS = ["a goal won", "the goal of the team", "the match", "a goal in the match", "team and match", "the team won"]
LAWS = ["a vote", "the senate and the law", "a new law", "the vote on a law", "senate passed", "law of the senate"]


def labelled(text: str, label: object) -> Labelled:
    return Labelled(text, str(label), SOURCE, f"{text} {label}")


def tagged(words: str, tags: str) -> Tagged:
    return Tagged(tuple(words.split()), tuple(tags.split()), SOURCE)


def examples(golds) -> list[Example]:
    return [Example((Sequence((0,), reads=((0, 1),) * spans),), gold) for gold, spans in golds]


def beside(method, train_rows, validation, test, gold) -> dict[str, dict[str, float]]:
    """Each rival's figures; one span a row."""
    rows = {"train": train_rows, "validation": validation, "test": test}
    viewed = {name: examples([(gold(row), 1) for row in part]) for name, part in rows.items()}
    found = rivals_beside(method, rows, viewed)
    return {rival.name: {name: ratio(*sums) for name, sums in rival.figures.items()} for rival in found}


# --- texts -------------------------------------------------------------------------------------------------------


def test_majority_and_logistic_regression_beside_a_classifier():
    """Without validation rows the first strength counts: scikit-learn's own default, on the same features."""
    rows = [labelled(t, "s") for t in SPORTS[:5]] + [labelled(t, "l") for t in LAWS[:3]]
    test = [labelled(SPORTS[5], "s"), labelled(LAWS[3], "l"), labelled(LAWS[4], "l"), labelled("a song", "new")]
    method = ClassifyHead().fitted(rows)
    index = {label: i for i, label in enumerate(method.labels)}
    found = beside(method, rows, [], test, lambda row: (index.get(row.label, -1),))
    assert found["majority"] == {"accuracy": 0.25}, "s of four rows; a label that is new is wrong"
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, strip_accents="unicode")
    model = LogisticRegression(max_iter=2000).fit(
        vectorizer.fit_transform([r.text for r in rows]), [r.label for r in rows]
    )
    said = model.predict(vectorizer.transform([r.text for r in test]))
    assert found["tfidf"] == {"accuracy": np.mean([s == r.label for s, r in zip(said, test, strict=True)])}


def test_the_strength_is_chosen_on_validation_and_said():
    rows = [labelled(t, "s") for t in SPORTS[:4]] + [labelled(t, "l") for t in LAWS[:4]]
    held = [labelled(SPORTS[4], "s"), labelled(LAWS[4], "l")]
    method = ClassifyHead().fitted(rows)
    viewed = {name: examples([((method.labels.index(r.label),), 1) for r in part]) for name, part in
              {"train": rows, "validation": held, "test": held}.items()}  # fmt: skip
    found = rivals_beside(method, {"train": rows, "validation": held, "test": held}, viewed)
    assert (
        found[-1].about == "TF-IDF of words and word pairs, logistic regression (strength 1, chosen on validation rows)"
    )
    assert found[0].about == "always the commonest label"


def test_sets_grades_and_numbers_have_rivals_that_learn():
    """Each rival finds what a word says, and beats its constant."""
    texts = [(t, 0) for t in SPORTS] + [(t, 2) for t in LAWS]
    test = [("the goal", 0), ("the law", 2)]
    sets = [labelled(t, "law,always" if v else "always") for t, v in texts]
    method = MultiLabelHead(settings=MultiLabel()).fitted(sets)
    found = beside(method, sets, [], [labelled(t, "law,always" if v else "always") for t, v in test], method.gold)
    assert found == {"tfidf": {"micro_f1": 1.0, "exact_match": 1.0}}, "a label that all rows have is sure"
    graded = [labelled(t, v) for t, v in texts]
    method = OrdinalHead(settings=Ordinal(labels=["0", "1", "2"]))
    found = beside(method, graded, graded, [labelled(t, v) for t, v in test], lambda row: (float(row.label),))
    assert found["median"] == {"distance": 1.0, "accuracy": 0.0}, "of as many 0 as 2: 1"
    assert found["tfidf"]["distance"] < 1.0
    method = RegressHead().fitted(graded)
    gold = lambda row: ((float(row.label) - method.mean) / method.deviation,)  # noqa: E731
    found = beside(method, graded, graded, [labelled(t, v) for t, v in test], gold)
    assert list(found) == ["tfidf"] and found["tfidf"]["unexplained"] < 0.7
    assert found["tfidf"]["absolute_error"] == pytest.approx(np.sqrt(found["tfidf"]["squared_error"]), rel=0.2)


def test_other_methods_have_no_rivals():
    assert rivals_of(LabelSft()) == []


def test_texts_without_words_have_no_rival_of_words():
    """The classifier keeps the majority, the regression has none; what is left out is said."""
    rows = [labelled(chr(0x1F600 + i), i % 2) for i in range(8)]
    told = "the rival tfidf is left out: none of 8 training texts has a word of two letters or more."
    for method, names in ((ClassifyHead().fitted(rows), ["majority"]), (RegressHead().fitted(rows), []),
                          (MultiLabelHead().fitted(rows), []), (OrdinalHead(settings=Ordinal(labels=["0", "1"])), ["median"])):  # fmt: skip
        said: list[str] = []
        viewed = {"train": [], "validation": [], "test": examples([((0.0,), 1)] * 8)}
        if isinstance(method, MultiLabelHead):
            viewed["test"] = examples([(method.gold(row), 1) for row in rows])
        found = rivals_beside(method, {"train": rows, "validation": [], "test": rows}, viewed, said.append)
        assert [rival.name for rival in found] == names and said == [told], method.name


def test_rows_of_one_label_leave_the_regression_out():
    """Over-long rows may have had the others."""
    rows = [labelled(text, "s") for text in SPORTS]
    method = ClassifyHead().fitted([*rows, labelled("a law", "l")])
    said: list[str] = []
    viewed = {"train": [], "validation": [], "test": examples([((1,), 1)] * 6)}
    found = rivals_beside(method, {"train": rows, "validation": [], "test": rows}, viewed, said.append)
    assert [rival.name for rival in found] == ["majority"]
    assert said == ["the rival tfidf is left out: its 6 training rows have no two labels."]


# --- words -------------------------------------------------------------------------------------------------------


def said(method: TagHead, outputs) -> list[str]:
    return [method.tags[i] for i in outputs.argmax(1)]


def test_a_lexicon_takes_the_longest_match_and_leaves_out_what_is_mostly_none():
    """`renal failure` is found as one, whatever its case; `pain` is an entity at one of three places: not in it."""
    rows = [
        tagged("renal failure and failure", "B-D I-D O B-D"), tagged("Pain", "B-D"), tagged("no pain , pain", "O O O O"),
        tagged("aspirin", "B-C"),
    ]  # fmt: skip
    method = TagHead().fitted(rows)
    (found,) = lexicon_tags(method, rows, 0.0)([tagged("Renal failure , pain , Aspirin failure", "O O O O O O O")])
    assert said(method, found) == ["B-D", "I-D", "O", "O", "O", "B-C", "B-D"]


def test_each_word_has_its_usual_tag_and_a_new_one_that_of_rare_words():
    rows = [
        tagged("the goal", "D N"),
        tagged("the run", "D V"),
        tagged("the run", "D N"),
        tagged("the run vote", "D V N"),
    ]
    method = TagHead(settings=Tag(scheme="plain")).fitted(rows)
    (found,) = usual_tags(method, rows, 0.0)([tagged("the run law", "D V N")])
    assert said(method, found) == ["D", "V", "N"]


def test_a_tag_that_the_method_has_not_is_said_as_o():
    """It can come from validation rows, on which rivals are fitted again."""
    method = TagHead().fitted([tagged("a b", "B-C O")])
    (found,) = usual_tags(method, [tagged("x", "B-new")], 0.0)([tagged("x", "O")])
    assert said(method, found) == ["O"]


def test_what_a_crf_sees():
    assert shape("Selegiline-2x") == "Xx-9x" and shape("") == ""
    first, second = features(("IDR", "tests"))
    assert {"word=idr", "word+1=tests", "word-1=<edge>", "shape=X", "shape+1=x", "end2=dr"} <= set(first)
    assert {"word=tests", "word-1=idr", "start3=tes", "word+1=<edge>"} <= set(second)


def test_a_crf_generalises_to_new_words():
    """By the word before: what follows `of` is an entity. The lexicon cannot know the new ones."""
    pytest.importorskip("pycrfsuite")
    rows = [tagged(f"signs of w{i} were seen", "O O B-D O O") for i in range(12)]
    test = [tagged(f"signs of z{i} were seen", "O O B-D O O") for i in range(3)]
    method = TagHead().fitted(rows)
    viewed = {name: examples([(tuple(float(method.tags.index(t)) for t in row.tags), 5) for row in part]) for name, part in
              {"train": rows, "validation": rows[:2], "test": test}.items()}  # fmt: skip
    found = {
        r.name: r.figures for r in rivals_beside(method, {"train": rows, "validation": rows[:2], "test": test}, viewed)
    }
    assert list(found) == ["lexicon", "crf"], "the strongest last"
    assert ratio(*found["crf"]["entity_f1"]) == 1.0 and ratio(*found["lexicon"]["entity_f1"]) == 0.0


# --- in a run ----------------------------------------------------------------------------------------------------


def run_of(tmp_path, tiny_path, method, rows, test, **data):
    for name, part in (("train", rows), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    stage = {
        "method": method, "data": {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl"), **data},
        "tune": {"epochs": 1, "adapter": {"rank": 2}},
    }  # fmt: skip
    recipe = {"name": "x", "model": str(tiny_path), "stages": [stage], "judge": {"resamples": 200}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(recipe))
    return train(tmp_path / "x.yaml", tmp_path / "run")


def test_a_run_of_tags_shows_its_rivals_and_what_was_left_out(tiny_path, tmp_path):
    """A row of the shape that people have (two texts), one that is too long, one with an unknown tag."""
    rows = [{"text": f"the goal of team{i} won", "tags": "O O O B-T O"} for i in range(30)]
    test = [
        {"text": "a goal of team3 won", "tags": "O O O B-T O"}, {"text": "the law", "tags": "O B-L"},
        {"text": "team " * 60, "tags": "O " * 60}, {"text": "the team", "tags": "O N"},
    ]  # fmt: skip
    result = run_of(tmp_path, tiny_path, "tag", rows, test, max_tokens=40)
    (stage,) = result["stages"]
    assert stage["rivals"][0]["name"] == "lexicon"
    figure = stage["figures"]["entity_f1"]
    assert figure["rivals"]["lexicon"]["value"] == pytest.approx(2 / 3), "team3 found; the L missed"
    strongest = stage["rivals"][-1]["name"]
    assert figure["rival"] == figure["rivals"][strongest] and 0 <= figure["gain_p"] <= 1
    assert figure["gain"]["value"] == pytest.approx(figure["after"]["value"] - figure["rival"]["value"])
    assert f"of {strongest} on 2 held-out rows" in result["verdict"]
    ledger = stage["ledger"]
    assert ledger["reasons"]["test"] == {"bad_tag": 1, "too_long": 1}
    assert ledger["kept"]["test"] == 2 and ledger["rows_in"]["test"] == 4
    assert 'test: 1 labels of 3 rows are in no training row ("B-L"): all wrong.' in ledger["notes"]
    stored = json.loads((tmp_path / "run" / "stages" / "01-tag" / "adapter" / "method.json").read_text())
    assert stored["method"] == "tag" and stored["tags"] == ["B-T", "O"] and stored["settings"]["reads"] == "last"


@pytest.mark.parametrize(
    ("gain", "p", "n", "higher", "word"),
    [((0.2, 0.1, 0.3), 0.04, 9, True, "better"), ((-0.2, -0.3, -0.1), 0.04, 9, False, "better"),
     ((-0.2, -0.3, -0.1), 0.04, 9, True, "worse"), ((0.2, -0.1, 0.5), 0.04, 9, True, "no difference shown"),
     ((-0.2, -0.3, -0.1), 0.0625, 9, True, "no difference shown"), ((1.2, 1.2, 1.2), 1.0, 1, False, "too few rows"),
     ((0.2, 0.1, 0.3), 0.0625, 5, True, "too few rows"), ((0.2, 0.1, 0.3), 0.03125, 6, True, "better")],
)  # fmt: skip
def test_the_verdict_is_beside_the_rival(gain, p, n, higher, word):
    """Interval and p; five rows give no p below 2 / 2^5 = 0.0625, six one of 0.03125."""
    found = {
        "after": {"value": 0.7},
        "rival": {"value": 0.5},
        "gain": dict(zip(("value", "low", "high"), gain, strict=True)),
        "gain_p": p,
        "n": n,
    }
    said = verdict_beside("entity_f1", higher, found, "crf", 0.95)
    assert said == (
        f"{word}: entity f1 0.7 beside 0.5 of crf on {n} held-out rows, difference {gain[0]:+.4g} "
        f"[{gain[1]:+.4g}, {gain[2]:+.4g}], p = {p:.3f}."
    )


def test_a_run_on_texts_without_words_says_which_rival_is_missing(tiny_path, tmp_path):
    rows = [{"text": chr(0x1F600 + i), "label": "ab"[i % 2]} for i in range(24)]
    (stage,) = run_of(tmp_path, tiny_path, "classify", rows[:16], rows[16:])["stages"]
    assert [rival["name"] for rival in stage["rivals"]] == ["majority"] and "of majority on 8" in stage["verdict"]
    (note,) = stage["ledger"]["notes"]
    assert note.startswith("the rival tfidf is left out: none of ")


# --- a trained head answers --------------------------------------------------------------------------------------


def test_a_finished_head_answers_as_it_was_tested(tiny_path, tmp_path, luthier):
    """The labels it gives to the test texts are those that its accuracy was counted from; on the command line too."""
    rows = [{"text": t, "label": "s"} for t in SPORTS] + [{"text": t, "label": "l"} for t in LAWS]
    test = [{"text": f"{t} today", "label": "s"} for t in SPORTS] + [{"text": f"{t} today", "label": "l"} for t in LAWS]
    result = run_of(tmp_path, tiny_path, "classify", rows, test)
    found = load_head(tmp_path / "run").predict([row["text"] for row in test])
    right = [answer["label"] == row["label"] for answer, row in zip(found, test, strict=True)]
    assert np.mean(right) == pytest.approx(result["stages"][0]["figures"]["accuracy"]["after"]["value"])
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1.0) for answer in found)
    code, out, _ = luthier("predict", tmp_path / "run", "--text", test[0]["text"], "--text", test[7]["text"])
    assert (code, out) == (0, f"{found[0]['label']}\t{test[0]['text']}\n{found[7]['label']}\t{test[7]['text']}\n")
    code, out, _ = luthier("predict", tmp_path / "run", "--text", test[0]["text"], "--json")
    assert json.loads(out)[0]["label"] == found[0]["label"] and json.loads(out)[0]["text"] == test[0]["text"]


@pytest.mark.parametrize(
    ("method", "labels", "key"),
    [({"kind": "ordinal", "labels": ["0", "1", "2"]}, "012", "label"), ("regress", "123", "number"),
     ({"kind": "multilabel", "separator": "+"}, ["a+b", "a", "none"], "labels")],
)  # fmt: skip
def test_every_head_is_restored_with_what_it_had_learnt(method, labels, key, tiny_path, tmp_path):
    """The saved head, its thresholds or its scale give the figure that the run has counted."""
    texts = SPORTS + LAWS
    rows = [{"text": t, "label": labels[i % 3]} for i, t in enumerate(texts)]
    test = [{"text": f"{t} now", "label": labels[i % 3]} for i, t in enumerate(texts)]
    (stage,) = run_of(tmp_path, tiny_path, method, rows, test)["stages"]
    head = load_head(tmp_path / "run")
    found = [answer[key] for answer in head.predict([row["text"] for row in test])]
    if key == "number":
        errors = [abs(number - float(row["label"])) for number, row in zip(found, test, strict=True)]
        assert np.mean(errors) == pytest.approx(stage["figures"]["absolute_error"]["after"]["value"], rel=1e-4)
    elif key == "label":
        away = [abs(int(label) - int(row["label"])) for label, row in zip(found, test, strict=True)]
        assert np.mean(away) == pytest.approx(stage["figures"]["distance"]["after"]["value"])
    else:
        gold = [set() if row["label"] == "none" else set(row["label"].split("+")) for row in test]
        exact = np.mean([set(labels) == wanted for labels, wanted in zip(found, gold, strict=True)])
        assert exact == pytest.approx(stage["figures"]["exact_match"]["after"]["value"])


def test_a_tagger_answers_and_what_cannot_be_asked_is_said(tiny_path, tmp_path, luthier):
    rows = [{"text": f"the goal of team{i} won", "tags": "O O O B-T O"} for i in range(12)]
    run_of(tmp_path, tiny_path, "tag", rows, [{"text": "a goal of team3 won", "tags": "O O O B-T O"}])
    head = load_head(tmp_path / "run", "tag")
    (answer,) = head.predict(["the goal of team1"])
    assert len(answer["tags"]) == 4 and set(answer["tags"]) <= {"O", "B-T"}
    assert head.predict([]) == []
    with pytest.raises(DataError, match="^text 2: it has 601 tokens; the model reads 512. Give it in parts.$"):
        head.predict(["a goal", "a" + " goal" * 600])
    with pytest.raises(
        DataError, match="^text 1: the tokenizer leaves it, or one of its words, without a token. Mend it.$"
    ):
        head.predict([" "])
    with pytest.raises(RunError, match='no stage "tags"; there is tag. Did you mean "tag"'):
        load_head(tmp_path / "run", "tags")
    (tmp_path / "run" / "stages" / "01-tag" / "adapter" / "method.json").write_text("{")
    with pytest.raises(RunError, match="method.json: missing, damaged or from another version. Run the recipe again.$"):
        load_head(tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    result["stages"][0]["method"] = "sft"
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    code, _, told = luthier("predict", tmp_path / "run", "--text", "a")
    assert (
        code == 1
        and "no stage has a head to label texts with. A model that writes is asked by `luthier answer`" in told
    )
