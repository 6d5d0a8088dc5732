"""Arms of `luthier run` on texts that have nothing to count: they answer, and say what they did."""

import numpy as np
import pytest

from luthier.evaluation.arms import VARIANTS, Rows, Tfidf
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
