"""Written answers: what is counted as right, and where an answer ends."""

import pytest

from families import tiny_model
from luthier.evaluation import written
from luthier.generation.engine import end_tokens
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Task
from luthier.records import Labelled, Source
from tiny import CHATML, END_OF_TEXT, TURN_END, tiny_tokenizer

LABELS = ["SPORTS", "POLITICS"]
TEXT_ENDS, TURN_ENDS = 0, 2  # ids of END_OF_TEXT and TURN_END in tests/tiny.py


def prompt_with(template: str | None = CHATML, end: str = END_OF_TEXT) -> ClassifyPrompt:
    tokenizer = tiny_tokenizer(template)
    tokenizer.eos_token = end
    return ClassifyPrompt(Task(labels=LABELS), Layout(tokenizer))


def model_that_ends_with(tokens):
    model = tiny_model("llama")
    model.generation_config.eos_token_id = tokens
    return model


def test_only_the_gold_label_is_right_and_every_reply_is_counted(monkeypatch):
    """Eighteen rows, more than are asked at once: of each three one right, one wrong, one that says nothing."""
    prompt = prompt_with()
    replies = ["Sports", "Politics.", "I would need to see the whole text first"] * 6
    rows = [Labelled(f"text {i}", "SPORTS", Source("r", i), f"{i}") for i in range(18)]
    saying = iter(replies)

    def generate(model, prompts, max_tokens, stop, backend):
        return [prompt.layout.tokenizer(next(saying))["input_ids"] for _ in prompts]

    monkeypatch.setattr(written, "generate", generate)
    told = []
    found = written.write_answers(model_that_ends_with(2), "grouped", prompt, rows, lambda *done: told.append(done))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert (found["n"], found["outcomes"]) == (18, {"answered": 12, "parse_failed": 6})
    assert told == [(16, 18), (18, 18)]
    assert len(found["examples"]) == 12
    assert found["examples"][1] == {
        "text": "text 1", "reply": "Politics.", "outcome": "answered", "label": "POLITICS", "gold": "SPORTS"
    }  # fmt: skip


def test_an_answer_ends_where_the_turn_does_and_where_the_model_says():
    """The template's turn does not end with the tokenizer's end-of-text; 7 and 8 are the model's own."""
    assert written.stop_tokens(model_that_ends_with([7, 8]), prompt_with()) == {TEXT_ENDS, TURN_ENDS, 7, 8}
    assert written.stop_tokens(model_that_ends_with(7), prompt_with(end=TURN_END)) == {TURN_ENDS, 7}
    assert written.stop_tokens(model_that_ends_with(None), prompt_with(None)) == {TEXT_ENDS}


def test_a_models_own_ends_are_none_one_or_several():
    assert [end_tokens(model_that_ends_with(tokens)) for tokens in (None, 0, [1, 2])] == [set(), {0}, {1, 2}]
