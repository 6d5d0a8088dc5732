"""Arms of `luthier run` on texts that have nothing to count: they answer, and say what they did."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from luthier.evaluation.arms import VARIANTS, PromptArm, Rows, Tfidf
from luthier.evaluation.arms.prompted import Scorer, Variant, in_shares, spread
from luthier.evaluation.scoring import Scores
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Ask
from luthier.recipe.run import Task
from luthier.records import Labelled, Source
from tiny import tiny_tokenizer

LABELS = ["A", "B"]


def prompt() -> ClassifyPrompt:
    return ClassifyPrompt(Task(labels=LABELS), Layout(tiny_tokenizer()))


def rows_of(texts: list[str], labels: str = "AB") -> Rows:
    made = [Labelled(text, labels[i % len(labels)], Source("rows.jsonl", i), f"{i}") for i, text in enumerate(texts)]
    return Rows(tuple(made), tuple(made[:4]), tuple(made[:6]))


def answered(rows: Rows) -> tuple[list[str | None], str]:
    found = Tfidf().run(rows, prompt(), Ask(), 0, lambda done, total: None)
    return [prediction.label for prediction in found.predictions], found.chosen


def test_texts_without_words_are_counted_by_characters():
    """One letter each, which is no word to scikit-learn; it tells the labels apart."""
    given, chosen = answered(rows_of(["x", "y"] * 6))
    assert given == ["A", "B"] * 3
    assert chosen.endswith("; of characters, since no training text has a word of two letters or more")
    assert "of characters" not in answered(rows_of(["goal", "law"] * 6))[1]


@pytest.mark.parametrize(
    ("texts", "labels", "chosen"),
    [
        (["goal", "law"] * 6, "A", 'always "A": the training rows have one label only'),
        ([""] * 11, "AAB", 'always "A": the training texts are empty'),
    ],
)
def test_where_nothing_can_be_told_apart_it_is_the_majority(texts, labels, chosen):
    assert answered(rows_of(texts, labels)) == (["A"] * 6, chosen)


def test_without_a_word_to_look_for_examples_come_in_a_seeded_order():
    """Stop words are not looked for; a text without a known word gets the same rows, whatever it is."""
    rows = rows_of(["the", "of", "and", "in", "by", "to"] * 2)
    (variant,) = VARIANTS["retrieval"](rows, prompt(), Ask(neighbours=[3]), 5)
    assert variant.name == "3 training rows, none of which has a word that BM25 counts, as examples"
    order = np.random.default_rng([5, 29]).permutation(12)[:3][::-1]
    wanted = [(rows.train[int(i)].text, rows.train[int(i)].label) for i in order]
    assert variant.shots(["the", "goal"]) == [wanted, wanted]
    (other,) = VARIANTS["retrieval"](rows, prompt(), Ask(neighbours=[3]), 6)
    assert other.shots(["the"]) != [wanted]


def test_a_text_that_shares_no_word_gets_the_seeded_order_too():
    rows = rows_of(["goal team", "senate law", "museum song", "match vote"])
    (variant,) = VARIANTS["retrieval"](rows, prompt(), Ask(neighbours=[1]), 5)
    first = rows.train[int(np.random.default_rng([5, 29]).permutation(4)[0])]
    assert variant.name == "1 nearest training rows as examples"
    assert variant.shots(["a law", "painter"]) == [[("senate law", "B")], [(first.text, first.label)]]


def labelled(shares: dict[str, int], name: str) -> tuple[Labelled, ...]:
    rows = [label for label, count in shares.items() for _ in range(count)]
    return tuple(Labelled(f"{name}{i}", label, Source(name, i), f"{name}{i}") for i, label in enumerate(rows))


def test_ways_are_chosen_on_rows_with_the_labels_shares():
    """What is best where every label is as frequent is not best by the accuracy that the test reports."""
    rows = labelled({"A": 180, "B": 20}, "v")
    for seed in range(5):
        counts = Counter(row.label for row in in_shares(rows, 64, seed))
        assert counts["A"] + counts["B"] == 64 and counts["B"] in (6, 7)
    assert sorted(row.key for row in in_shares(rows, 500, 0)) == sorted(row.key for row in rows)
    assert in_shares(rows, 64, 0) == in_shares(rows, 64, 0) != in_shares(rows, 64, 1)
    assert Counter(row.label for row in spread(rows, 8, 0)) == {"A": 4, "B": 4}


def test_a_calibration_by_what_has_no_content_takes_the_mean_of_probabilities():
    """(0.9, 0.1), (0.5, 0.5) and (1/3, 2/3) over the labels are 0.578 and 0.422; their geometric mean is 0.595."""
    table = {"N/A": [0.09, 0.01], "[MASK]": [0.5, 0.5], "...": [0.01, 0.02]}

    class Fixed(Scorer):
        def score(self, texts, report=None):
            return Scores(np.log([table.get(text, [0.3, 0.7]) for text in texts]), np.array([1, 1]), 1, None)

    scorer = Fixed(None, "grouped", Variant("", prompt()), 1)
    scorer.measure(labelled({"A": 1, "B": 3}, "v"), lambda done, total: None)
    mean = (0.9 + 0.5 + 1 / 3) / 3
    assert np.exp(scorer.constants["contextual calibration"]) == pytest.approx([mean, 1 - mean])


def test_retrieval_answers_with_validation_rows_where_the_tuned_arm_learns_them():
    """But while it is chosen no validation row is an example, or it would find itself."""
    rows = Rows(labelled({"A": 3, "B": 3}, "train"), labelled({"A": 4}, "valid"), labelled({"A": 2}, "test"))
    (variant,) = VARIANTS["retrieval"](rows, prompt(), Ask(neighbours=[6]), 0)
    asked = [row.text for row in rows.validation]
    assert all(text.startswith("train") for row in variant.shots(asked) for text, _ in row)
    arms = [PromptArm("retrieval", None, "grouped", VARIANTS["retrieval"], refit) for refit in (False, True)]
    plain, refitted = (arm.answering(variant) for arm in arms)
    assert plain is variant
    assert [row[-1] for row in refitted.shots(asked)] == [(text, "A") for text in asked]
    assert refitted.name == "6 nearest training and validation rows as examples"
    (fixed, *_) = VARIANTS["few_shot"](rows, prompt(), Ask(shots=[2]), 0)
    assert arms[1].answering(fixed) is fixed


def test_tfidf_learns_validation_rows_where_the_tuned_arm_does():
    rows = rows_of(["goal", "law"] * 6)
    rows = replace(rows, validation=tuple(replace(row, text="song") for row in rows.validation if row.label == "B"))
    rows = replace(rows, test=(replace(rows.test[0], text="song"),))
    given = [Tfidf(refit).run(rows, prompt(), Ask(), 0, lambda done, total: None) for refit in (True, False)]
    assert [arm.predictions[0].probabilities[1] > 0.6 for arm in given] == [True, False]
    assert [arm.chosen.endswith(", refitted on training and validation rows") for arm in given] == [True, False]
