"""Synthetic data: comparing texts, provenance, each kind's prompts and parser, settings and seeds."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.corpus.fold import row_key
from luthier.errors import DataError, RecipeError
from luthier.generation.sampling import Sampling
from luthier.recipe.synthetic import Columns, Examples, Paraphrases, Preferences, Questions
from luthier.records import (
    Conversation,
    Document,
    Instruction,
    Labelled,
    Message,
    Preference,
    Prompt,
    Source,
)
from luthier.synthetic.base import Asking, Reply, first_text, joint_source, marked, tidy, user
from luthier.synthetic.kinds import (
    ColumnsKind,
    ExamplesKind,
    Labelling,
    ParaphrasesKind,
    PreferencesKind,
    QuestionsKind,
    kinds_of,
)
from luthier.synthetic.kinds.questions import PAIR
from luthier.synthetic.seeds import read_seeds
from luthier.synthetic.settings import load_synthetic, parse_synthetic
from luthier.synthetic.texts import (
    Similar,
    copied_share,
    jaccard,
    leaks,
    numbers,
    refuses,
    shingles,
    supported_share,
    token_f1,
)

WARM = Sampling(temperature=0.8, seed=4)
ASKING = Asking(WARM, 60)
EXAMPLE = Path(__file__).parent.parent / "examples" / "synthetic"
PASSAGE = "The old mill at Tarnow burned down in 1874. Its owner, Ida Berg, built a bakery of brick in the same place."
DOCUMENT = Document(PASSAGE, Source("a.txt", 7, licence="CC0-1.0", group="mill"), "The mill")
NOTHING = {"inputs": [{"path": "seeds.jsonl"}]}


def row(text: str, label: str, line: int = 1, **known) -> Labelled:
    return Labelled(text, label, Source("rows.jsonl", line, **known), row_key(text, label))


def question_of(kind, job, text: str, reason: str = "stop"):
    return kind.parse(job, [Reply(text, reason)])


# --- texts ---------------------------------------------------------------------------------------------


def test_supported_share_by_hand():
    """Content words of the answer: ida, berg, build (of builds), stone, bakery; the passage has all but stone."""
    assert supported_share("Ida Berg builds a stone bakery.", PASSAGE.replace("built", "build")) == 4 / 5
    assert supported_share("It was the", PASSAGE) == 0.0
    assert supported_share("", PASSAGE) == 0.0


def test_token_f1_by_hand():
    """Shared: the, mill (2). 3 and 4 words: 2 * 2 / 7."""
    assert token_f1("The mill burned", "the mill stood there") == pytest.approx(4 / 7)
    assert token_f1("a", "b") == token_f1("", "b") == 0.0


def test_jaccard_and_nearest_by_hand():
    """a-b-c, b-c-d against b-c-d, c-d-e: one of three."""
    assert jaccard(shingles("a b c d"), shingles("B, c d e!")) == pytest.approx(1 / 3)
    seen = Similar(["a b c d", "x y", "b c d e f"])
    assert seen.nearest("b c d e") == (2, pytest.approx(2 / 3))
    assert seen.nearest("X y.") == (1, 1.0)
    assert seen.nearest("q r s") == (-1, 0.0)


@given(st.lists(st.text("ab ", max_size=12), max_size=6), st.text("ab ", max_size=12))
def test_nearest_is_the_best_of_all(texts, wanted):
    place, similarity = Similar(texts).nearest(wanted)
    every = [jaccard(shingles(text), shingles(wanted)) for text in texts]
    assert similarity == pytest.approx(max(every, default=0.0))
    assert place == (every.index(max(every)) if similarity else -1)


def test_copied_share_sees_pieces_of_several_texts():
    sources = ["the lamp hums when it is dimmed", "the zip broke on the second day"]
    assert copied_share("the lamp hums when it is dimmed", sources) == 1.0
    assert copied_share("the zip broke on the first day", sources) == pytest.approx(3 / 5)
    assert copied_share("the zip broke on the first day", ()) == 0.0


def test_numbers_agree_across_spellings():
    assert numbers("2,500 people, 3.5 % and 1'000'000 in 1874.") == {"2500", "3.5", "1000000", "1874"}
    assert numbers("1, 2 or 3") == {"1", "2", "3"}


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I have no taste.",
        "I’m sorry, but I can’t help with that.",
        "I cannot assist with this request.",
        "Please provide the text you want rewritten.",
    ],
)
def test_refusals_are_seen(text):
    assert refuses(text)


@pytest.mark.parametrize(
    "text", ["I am sorry I missed your call.", "The airline cannot assist him.", "She works as an aide.", PASSAGE]
)
def test_ordinary_sentences_are_no_refusals(text):
    assert not refuses(text)


def test_leaked_prompts_are_seen():
    instruction = "Rewrite the text in other words and keep all names."
    assert leaks("So: rewrite the text, in other words!", instruction, 6)
    assert not leaks("He had to rewrite the text in other ways.", instruction, 6)
    assert leaks("fine <|im_end|>", instruction, 6)
    assert leaks("Keep all names", "keep all names", 6)
    assert not leaks("anything", "", 6)


def test_tidy_takes_off_what_models_put_around_a_text():
    assert tidy('Rewritten text: "The mill burned."') == "The mill burned."
    assert tidy("2. The mill burned.") == "The mill burned."
    assert tidy('"No," he said, "never."') == '"No," he said, "never."'
    assert tidy("Note: bring 3 keys") == "Note: bring 3 keys"


def test_first_text_is_whole_or_a_problem():
    assert first_text(Reply("The mill burned.\n\nThis is a paraphrase.")) == "The mill burned."
    assert first_text(Reply("1. The mill burned.\n2. The bakery stood.")) == "The mill burned."
    assert first_text(Reply("The mill burned.\n\nAnd th", "length")) == "The mill burned."
    assert first_text(Reply("The mill bur", "length")).reason == "cut_off"
    assert first_text(Reply(" \n")).reason == "empty_reply"
    assert first_text(Reply("The original text is too long.")).reason == "chatter"
    assert first_text(Reply("Here is a new version:\n\nThe mill burned.")) == "The mill burned."


# --- provenance ----------------------------------------------------------------------------------------


def test_the_mark_stays_and_rows_of_one_seed_share_a_group():
    assert marked(DOCUMENT.source, "m", "questions") == Source(
        "a.txt", 7, licence="CC0-1.0", group="mill", synthetic="m/questions"
    )
    once = marked(Source("a.txt", 7), "m", "questions")
    assert once.group == "a.txt:7"
    assert marked(once, "n", "paraphrases").synthetic == "m/questions > n/paraphrases"


def test_licences_of_several_seeds_are_joined_and_unknown_stays_unknown():
    one, other, none = (Source("a", i, licence=name) for i, name in enumerate(["MIT", "CC0-1.0", None], start=1))
    assert joint_source([one, other]).licence == "CC0-1.0 AND MIT"
    assert joint_source([one, one]).licence == "MIT"
    assert joint_source([one, none]).licence is None


# --- kinds ---------------------------------------------------------------------------------------------


def test_questions_from_a_document():
    kind = QuestionsKind(Questions(per_seed=2), ASKING)
    jobs = kind.jobs([DOCUMENT, row("x", "A")])
    assert len(jobs) == 2
    assert jobs[0].requests[0].key != jobs[1].requests[0].key
    assert jobs[0].requests[0].prompt_key == jobs[1].requests[0].prompt_key  # computed once
    assert jobs[0].requests[0].messages[-1].content.endswith(f"Title: The mill\nPassage: {PASSAGE}")
    record = question_of(kind, jobs[0], "**Question:** Who built the bakery?\n**Answer:** Ida Berg built the bakery.")
    assert record == Instruction("Who built the bakery?", PASSAGE, "Ida Berg built the bakery.", DOCUMENT.source)
    same_line = question_of(kind, jobs[0], "Question: When did it burn? Answer: The mill burned down in 1874.")
    assert same_line.response == "The mill burned down in 1874."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Who built it? Ida Berg.", "bad_format"),
        ("Question: Who?", "bad_format"),
        ("Question: Who?\nAnswer: Ida Berg.\nQuestion: When?\nAnswer: 1874.", "bad_format"),
        ("Question: Who?\nAnswer: A French carpenter with a famous name.", "not_supported"),
        ("Question: When?\nAnswer: The old mill burned down in 1875.", "not_supported"),
    ],
)
def test_questions_that_are_dropped(text, reason):
    kind = QuestionsKind(Questions(), ASKING)
    assert question_of(kind, kind.jobs([DOCUMENT])[0], text).reason == reason


def test_a_cut_off_pair_is_dropped_and_long_passages_end_with_a_sentence():
    kind = QuestionsKind(Questions(most_passage_words=20), ASKING)
    job = kind.jobs([DOCUMENT])[0]
    assert question_of(kind, job, "Question: Who?\nAnswer: Ida B", "length").reason == "cut_off"
    words = " ".join(f"w{i}" for i in range(14)) + ". " + " ".join(f"v{i}" for i in range(30))
    long = kind.jobs([Document(words, DOCUMENT.source)])[0]
    assert long.passage.endswith("w13.")


def test_the_same_question_asked_again_must_get_the_same_answer():
    kind = QuestionsKind(Questions(round_trip_f1=0.5), ASKING)
    job = kind.jobs([DOCUMENT])[0]
    record = Instruction("Who built the bakery?", PASSAGE, "Ida Berg built it.", DOCUMENT.source)
    asked = kind.check(job, record)
    assert asked.sampling.temperature == 0
    assert "Who built the bakery?" in asked.messages[0].content
    assert kind.judge(job, record, Reply("It was built by Ida Berg.")) is None
    assert kind.judge(job, record, Reply("A carpenter.")).reason == "answer_not_confirmed"
    assert QuestionsKind(Questions(), ASKING).check(job, record) is None


def test_a_worked_example_is_shown_unless_another_language_is_set():
    shown, asked = QuestionsKind(Questions(), ASKING).jobs([DOCUMENT])[0].requests[0].messages[1:]
    assert PAIR.search(shown.content)
    french = QuestionsKind(Questions(), Asking(WARM, 60, "French")).jobs([DOCUMENT])[0].requests[0].messages
    assert len(french) == 1
    assert french[0].content.partition("\n\n")[0].endswith("Write in French.")
    assert french[0].content.partition("\n\n")[2] == asked.content.partition("\n\n")[2]


def test_paraphrases_keep_label_and_numbers():
    kind = ParaphrasesKind(Paraphrases(), ASKING, Labelling(("A", "B"), None, ASKING))
    job = kind.jobs([row("The mill burned in 1874.", "A", 3), DOCUMENT])[0]
    record = question_of(kind, job, "In 1874 fire took the mill.")
    assert (record.text, record.label, record.source.line) == ("In 1874 fire took the mill.", "A", 3)
    assert record.key == row_key(record.text, "A")
    assert question_of(kind, job, "Fire took the mill.").detail == "numbers are lost or new: 1874."
    assert kind.check(job, record) is None
    assert kind.judge(job, record, None) is None


def test_the_writer_labels_its_own_text_without_examples():
    labelling = Labelling(("ARTS", "ARTS & CULTURE", "SPORTS"), None, ASKING)
    kind = ParaphrasesKind(Paraphrases(round_trip=True), ASKING, labelling)
    job = kind.jobs([row("A painter.", "ARTS & CULTURE")])[0]
    record = question_of(kind, job, "Somebody who paints.")
    assert "ARTS, ARTS & CULTURE, SPORTS" in kind.check(job, record).messages[0].content
    assert kind.judge(job, record, Reply("Arts and Culture.\nBecause ...")) is None
    assert kind.judge(job, record, Reply("Arts")).detail == (
        'asked for "ARTS & CULTURE", but the text alone is given "ARTS".'
    )
    assert kind.judge(job, record, Reply("Sports or arts")).detail.endswith("given no label.")
    assert kind.judge(job, record, Reply("", "error", "HTTP 500")).reason == "check_failed"


def test_a_classifier_labels_instead():
    labelling = Labelling(("A", "B"), lambda texts: ["B" for _ in texts], ASKING)
    kind = ParaphrasesKind(Paraphrases(round_trip=True), ASKING, labelling)
    a, b = kind.jobs([row("A painter.", "A"), row("A goal.", "B")])
    assert kind.check(a, question_of(kind, a, "One who paints.")) is None
    assert kind.judge(a, question_of(kind, a, "One who paints."), None).reason == "label_not_confirmed"
    assert kind.judge(b, question_of(kind, b, "One more goal."), None) is None


def test_rare_labels_get_jobs_and_examples_follow_the_seed():
    rows = [row(f"text {i}", "A", i, licence="MIT") for i in range(6)] + [row("rare", "B", 9, licence="CC0-1.0")]
    settings = Examples(target=4, shots=3, attempts=1.5)

    def jobs(seed):
        return ExamplesKind(settings, ASKING, Labelling(("A", "B"), None, ASKING), seed).jobs(rows)

    assert Counter(job.label for job in jobs(0)) == {"B": 5}  # 3 missing, 1.5 tries each, rounded up
    assert jobs(0) == jobs(0)
    kind = ExamplesKind(Examples(target=9, shots=3, attempts=1), ASKING, Labelling((), None, ASKING), 0)
    first, second, third = (job for job in kind.jobs(rows) if job.label == "A")
    assert len({first.not_to_copy, second.not_to_copy, third.not_to_copy}) > 1
    assert len(set(first.not_to_copy)) == 3
    other = ExamplesKind(Examples(target=9, shots=3, attempts=1), ASKING, Labelling((), None, ASKING), 1)
    assert [j.not_to_copy for j in kind.jobs(rows)] != [j.not_to_copy for j in other.jobs(rows)]
    assert kind.quota(rows) == {"A": 3, "B": 8}
    turns = first.requests[0].messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3 + ["user"]
    assert tuple(turn.content for turn in turns[1::2]) == first.not_to_copy
    assert "category A" in turns[0].content
    assert "category A" in turns[-1].content


def test_preferences_by_design_keep_both_wishes_out_of_the_record():
    kind = PreferencesKind(Preferences(), ASKING)
    prompt = (Message("system", "Be brief."), Message("user", "Why does bread rise?"))
    job = kind.jobs([Prompt(prompt, Source("p", 1)), row("x", "A")])[0]
    good, bad = (request.messages[-1].content for request in job.requests)
    assert good.startswith("Why does bread rise?\n\nAnswer correctly")
    assert bad.startswith("Why does bread rise?\n\nAnswer badly")
    record = kind.parse(job, [Reply("Yeast makes gas."), Reply("Things happen.")])
    assert record == Preference(
        prompt, (Message("assistant", "Yeast makes gas."),), (Message("assistant", "Things happen."),), Source("p", 1)
    )
    assert kind.name == "preferences-by-design"
    assert kind.parse(job, [Reply("Same."), Reply("Same. ")]).reason == "no_difference"
    assert kind.parse(job, [Reply("Same."), Reply("Not d", "length")]).reason == "cut_off"


def test_preferences_by_reference_choose_the_closer_sample():
    kind = PreferencesKind(Preferences(decide="reference", other_temperature=1.5), ASKING)
    seeds = [Instruction("Why?", "", "Yeast makes gas.", Source("p", 1)), Prompt(user("Why?"), Source("p", 2))]
    (job,) = kind.jobs(seeds)
    assert [request.sampling.temperature for request in job.requests] == [0.8, 1.5]
    assert job.requests[0].messages == job.requests[1].messages == user("Why?")
    record = kind.parse(job, [Reply("No idea."), Reply("Gas of yeast.")])
    assert record.chosen[0].content == "Gas of yeast."
    assert kind.parse(job, [Reply("No."), Reply("Never.")]).detail == "the answers score 0.00 and 0.00."
    assert kind.name == "preferences-by-reference"


def test_preferences_by_a_callers_score():
    kind = PreferencesKind(Preferences(), ASKING, score=lambda job, answer: -len(answer))
    talk = Conversation((Message("user", "Why?"), Message("assistant", "So.")), Source("c", 1))
    (job,) = kind.jobs([talk])
    assert kind.parse(job, [Reply("A long one."), Reply("Short.")]).chosen[0].content == "Short."
    assert kind.name == "preferences-by-score"


def table(path: Path, **settings) -> Columns:
    path.write_text("name,colour,price,text,shop\nLinde,red,32,,north\nOsk,blue,59,has one,south\nKim,,7,,\n")
    return Columns(path=str(path), **settings)


def test_texts_for_the_rows_of_a_table(tmp_path):
    columns = table(tmp_path / "t.csv", must_mention=["name"], min_supported_share=0.5, licence="MIT")
    seeds = read_seeds(parse_synthetic({"columns": columns.model_dump()})).table
    assert [seed.text for seed in seeds] == ["name: Linde\ncolour: red\nprice: 32\nshop: north", "name: Kim\nprice: 7"]
    kind = ColumnsKind(columns, ASKING)
    job = kind.jobs(seeds)[0]
    record = question_of(kind, job, "The red Linde costs 32.")
    assert record == Instruction(
        "Write a short description from the facts below.", seeds[0].text, "The red Linde costs 32.",
        Source("t.csv", 2, licence="MIT"),
    )  # fmt: skip
    assert question_of(kind, job, "The red one costs 32.").detail == 'the text does not mention "name".'
    assert question_of(kind, job, "The red Linde costs 33.").reason == "not_supported"
    assert question_of(kind, job, "Linde is a beloved beach destination.").reason == "not_supported"


def test_a_label_column_makes_labelled_rows(tmp_path):
    columns = table(tmp_path / "t.csv", label="shop", use=["name", "price"])
    seeds = read_seeds(parse_synthetic({"columns": columns.model_dump()}))
    assert seeds.unreadable == {"empty_label": 1}
    kind = ColumnsKind(columns, ASKING)
    record = question_of(kind, kind.jobs(seeds.table)[0], "Linde, price 32.")
    assert (record.text, record.label) == ("Linde, price 32.", "north")


def test_an_unknown_column_is_named(tmp_path):
    columns = table(tmp_path / "t.csv", must_mention=["nam"])
    with pytest.raises(DataError) as caught:
        read_seeds(parse_synthetic({"columns": columns.model_dump()}))
    assert str(caught.value) == (
        't.csv line 2: no column "nam". Did you mean "name"? The row has: name, colour, price, text, shop.'
    )


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "data.synthetic.give at least one kind: questions, paraphrases, preferences, examples, columns."),
        ({"questions": {}}, "data.synthetic.inputs: name the files of the seeds."),
        ({"question": {}, **NOTHING}, 'data.synthetic.question: unknown key. Did you mean "questions"?'),
        (
            {"questions": {}, **NOTHING, "writer": {"engine": "endpoint"}},
            "data.synthetic.writer.base_url: give the server's address, such as http://localhost:8000/v1.",
        ),
        (
            {"questions": {}, **NOTHING, "writer": {"engine": "endpoint", "base_url": "https://me:pw@host/v1"}},
            "data.synthetic.writer.base_url: holds a name or password; put the key into an environment variable.",
        ),
        (
            {"questions": {}, **NOTHING, "writer": {"key_variable": "KEY"}},
            "data.synthetic.writer: base_url and key_variable belong to engine: endpoint.",
        ),
        (
            {"questions": {}, **NOTHING, "filters": {"min_words": 9, "max_words": 3}},
            "data.synthetic.filters: min_words is more than max_words.",
        ),
        (
            {"questions": {}, **NOTHING, "steps": {"chunking": {"max_tokens": 9}}},
            "data.synthetic.steps.chunking: generated records are not cut; leave max_tokens at 0.",
        ),
    ],
)
def test_wrong_settings_say_what_to_do(values, problem):
    with pytest.raises(RecipeError) as caught:
        parse_synthetic(values)
    assert problem in caught.value.problems


def test_settings_of_a_recipe_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  synthetic:\n    inputs: [{path: a.jsonl}]\n    paraphrases: {}\n")
    settings = load_synthetic(recipe, ["data.synthetic.draws.temperature=0.3"])
    assert settings.inputs[0].path == str(tmp_path / "a.jsonl")
    assert settings.draws.temperature == 0.3
    recipe.write_text("data: {}\n")
    with pytest.raises(RecipeError, match=r"has no section data\.synthetic with the key inputs"):
        load_synthetic(recipe)


def test_seeds_of_the_example_recipe():
    settings = load_synthetic(EXAMPLE / "recipe.yaml")
    seeds = read_seeds(settings)
    assert Counter(type(record) for record in seeds.records) == {Document: 4, Labelled: 9, Instruction: 4}
    assert len(seeds.table) == 4
    assert seeds.unreadable == {}
    assert {record.source.licence for record in [*seeds.records, *seeds.table]} == {"CC0-1.0"}
    assert seeds.records[4].source.file == "messages.jsonl"
    kinds = [kind.name for kind in kinds_of(settings, seeds.records) if kind.jobs([*seeds.records, *seeds.table])]
    assert kinds == ["questions", "paraphrases", "preferences-by-reference", "examples", "columns"]


def test_unreadable_seeds_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "A"}\n{"text": "tw\n{"text": "", "label": "A"}\n')
    settings = parse_synthetic({"paraphrases": {}, "inputs": [{"path": str(tmp_path / "a.jsonl"), "label": "label"}]})
    seeds = read_seeds(settings)
    assert [record.text for record in seeds.records] == ["one"]
    assert sum(seeds.unreadable.values()) == 2
