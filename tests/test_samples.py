"""What a model says before and after a stage: which prompts are asked, once, and what is kept of the answers."""

import json
from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.progress import Silent
from luthier.prompts import Dialogue, Layout
from luthier.recipe.stages import parse_stages
from luthier.records import Completion, Conversation, Message, Preference, Prompt, Ranking, Rating, Source
from luthier.stages import load, train
from luthier.stages.samples import sample_of
from test_stages import talk_row, write_lines
from tiny import tiny_tokenizer

HERE = Source("a.jsonl", 1)
ASK, TOLD = Message("user", "Team ?"), Message("assistant", "goal")


def recipe_of(model: Path, folder: Path, stage: dict, **judge) -> object:
    """One stage on 24 conversations, six of them held out."""
    rows = write_lines(folder / "talks.jsonl", [talk_row(n) for n in range(24)])
    data = {"train": rows, "test_share": 0.25, "validation_share": 0.1}
    tune = {"batch_size": 8, "epochs": 1, "adapter": {"rank": 2, "alpha": 4}}
    values = {"model": str(model), "precision": "float32", "judge": {"resamples": 200, **judge}}
    return parse_stages({**values, "stages": [{"data": data, "tune": tune, **stage}]})


def test_held_out_prompts_are_answered_before_and_after(tiny_path, tmp_path):
    """As `luthier answer` says afterwards; the prompts are held-out ones, with the answer of their row."""
    result = train(recipe_of(tiny_path, tmp_path, {"method": "sft"}, samples=2), tmp_path / "run")
    samples = result["stages"][0]["samples"]
    assert len(samples) == 2
    rows = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in map(talk_row, range(24))}
    for one in samples:
        (turn,) = one["prompt"]
        assert one["reference"] == rows[turn["content"]] and one["task"] is None
        assert set(one["before"]) == set(one["after"]) == {"text", "finished"}
    asked = [one["prompt"] for one in samples]
    replies = load(tmp_path / "run").answer(asked, max_tokens=64)
    assert [reply.text for reply in replies] == [one["after"]["text"] for one in samples]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the model says" in page and asked[0][0]["content"] in page


class PowerFails(Silent):
    """Ends the training after its first step."""

    def update(self, done: int, total: int, note: str = "") -> None:
        if note.startswith("loss"):
            raise RuntimeError("the power fails")


def test_answers_before_are_not_asked_for_again_when_a_training_goes_on(tiny_path, tmp_path):
    """The first call ends in the training; the second finds its answers, and asks only after the training."""
    recipe = recipe_of(tiny_path, tmp_path, {"method": "sft"}, samples=1)
    with pytest.raises(RuntimeError, match="the power fails"):
        train(recipe, tmp_path / "run", listener=PowerFails())
    (kept,) = (tmp_path / "run").glob("stages/*/samples.json")
    stored = json.loads(kept.read_text())
    stored["before"][0]["said"]["text"] = "said by the first call"
    kept.write_text(json.dumps(stored))
    (sample,) = train(recipe, tmp_path / "run")["stages"][0]["samples"]
    assert sample["before"]["text"] == "said by the first call" != sample["after"]["text"]


def test_nothing_is_asked_where_none_is_wanted(tiny_path, tmp_path):
    result = train(recipe_of(tiny_path, tmp_path, {"method": "sft"}, samples=0), tmp_path / "run")
    assert result["stages"][0]["samples"] == [] and not list((tmp_path / "run").glob("stages/*/samples.json"))
    assert "What the model says" not in (tmp_path / "run" / "report.html").read_text()


def test_each_task_that_writes_is_asked_and_a_head_is_not(tiny_path, tmp_path):
    rows = [{"text": f"{word} number {n}", "label": word} for n in range(20) for word in ("goal", "vote")]
    labels = write_lines(tmp_path / "labels.jsonl", rows)
    talks = write_lines(tmp_path / "talks.jsonl", [talk_row(n) for n in range(24)])
    stage = {
        "tasks": {"say": {"method": "sft", "data": {"train": talks, "test_share": 0.25}},
                  "sort": {"method": "classify", "data": {"train": labels}}},
        "tune": {"batch_size": 8, "epochs": 1, "adapter": {"rank": 2, "alpha": 4}},
    }  # fmt: skip
    values = {"model": str(tiny_path), "precision": "float32", "judge": {"resamples": 200}, "stages": [stage]}
    (value,) = train(parse_stages(values), tmp_path / "run")["stages"]
    assert [one["task"] for one in value["samples"]] == ["say"] * 3


def test_a_number_of_samples_has_bounds(tiny_path, tmp_path):
    with pytest.raises(RecipeError, match=r"judge\.samples: input should be less than or equal to 100"):
        recipe_of(tiny_path, tmp_path, {"method": "sft"}, samples=101)


@pytest.mark.parametrize(
    ("row", "turns", "reference"),
    [
        (Conversation((ASK, TOLD, ASK, Message("assistant", "won")), HERE), (ASK, TOLD, ASK), "won"),
        (Completion("Team ?", "goal", HERE), (ASK,), "goal"),
        (Rating((ASK,), "law", True, HERE), (ASK,), "law"),
        (Rating((ASK,), "law", False, HERE), (ASK,), None),
        (Prompt((ASK,), HERE), (ASK,), None),
        (Preference((ASK,), (TOLD,), (Message("assistant", "law"),), HERE), (ASK,), "goal"),
        (Ranking((ASK,), ("goal", "law"), HERE), (ASK,), "goal"),
        (Conversation((ASK, Message("tool", "7"), TOLD), HERE), None, None),
        (Completion(" ", "goal", HERE), None, None),
    ],
)
def test_what_a_row_asks_and_answers(row, turns, reference):
    """Nothing where no user's turn comes before the answer."""
    found = sample_of(Dialogue(Layout(tiny_tokenizer())), row)
    assert (found is None) == (turns is None)
    if found is not None:
        assert ([turn.content for turn in found.turns], found.reference) == (
            [turn.content for turn in turns],
            reference,
        )
