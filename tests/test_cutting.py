"""Rows that are too long: cut to their beginning where that is wanted, and only training rows."""

import json

import pytest

import luthier
from luthier.methods.base import Example
from luthier.recipe.stages import load_stages
from luthier.records import Sequence
from luthier.stages.cutting import cut


def answer(tokens: tuple[int, ...], start: int, **more) -> Sequence:
    targets = tuple(range(start, len(tokens)))
    return Sequence(tokens, targets, tuple(float(index) for index in targets), **more)


def test_a_short_example_stays_what_it_is():
    example = Example((answer((1, 2, 3), 1),))
    assert cut(example, 3) is example


def test_targets_keep_their_weights_and_what_they_ask_for():
    sequence = answer((5, 6, 7, 8, 9), 2, wanted=(70, 80, 90), temperatures=(1.0, 2.0, 3.0), role=1, group=4)
    (found,) = cut(Example((sequence,)), 4).sequences
    assert found == Sequence(
        (5, 6, 7, 8), (2, 3), (2.0, 3.0), wanted=(70, 80), temperatures=(1.0, 2.0), role=1, group=4
    )


def test_what_is_left_must_teach_something():
    prompt_only = Example((answer((1, 2, 3, 4), 3),))
    assert cut(prompt_only, 3) is None
    pair = Example((answer((1, 2, 3, 4), 1), answer((1, 2, 3, 5), 1)))
    assert cut(pair, 3) is None, "both answers are the same as far as they are read"
    assert [len(part.tokens) for part in cut(Example((answer((1, 2, 3, 4), 1), answer((1, 5), 1))), 3).sequences] == [
        3,
        2,
    ]


def test_a_head_reads_what_is_left_of_its_text():
    (found,) = cut(Example((Sequence((1, 2, 3, 4, 5), reads=((1, 5),)),)), 3).sequences
    assert found.reads == ((1, 3),)
    words = Example((Sequence((1, 2, 3, 4, 5), reads=((1, 2), (4, 5))),), gold=(0.0, 1.0))
    assert cut(words, 3) is None, "each word has its own answer"


def test_training_rows_are_cut_and_held_out_ones_dropped(tiny_path, tmp_path):
    rows = [{"prompt": f"text {n}", "completion": " goal vote" * (40 if n % 2 else 2)} for n in range(24)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "model": str(tiny_path), "precision": "float32", "judge": {"resamples": 200},
        "stages": [{"method": "sft", "data": {"train": str(file), "max_tokens": 64, "too_long": "cut",
                                              "max_dropped_share": 0.9},
                    "tune": {"epochs": 0.5, "adapter": {"rank": 2, "alpha": 4}, "memory": {"predict": False}}}],
    }  # fmt: skip
    result = luthier.train(recipe, tmp_path / "run")
    (stage,) = result["stages"]
    notes = stage["ledger"]["notes"]
    num_cut = int(next(note for note in notes if "data.too_long" in note).split()[0])
    kept, dropped = stage["ledger"]["kept"], stage["ledger"]["reasons"]
    assert num_cut > 0 and kept["train"] + sum(dropped.get("train", {}).values()) == stage["ledger"]["rows_in"]["train"]
    assert "too_long" not in dropped.get("train", {})
    assert dropped["test"]["too_long"] + kept["test"] == stage["ledger"]["rows_in"]["test"]


@pytest.mark.parametrize("wrong", ["shorten", True])
def test_other_words_are_refused(wrong):
    with pytest.raises(luthier.RecipeError, match="too_long"):
        load_stages({"stages": [{"method": "sft", "data": {"train": "a.jsonl", "too_long": wrong}}]})
