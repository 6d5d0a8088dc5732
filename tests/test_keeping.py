"""What keeps earlier tasks: penalties, Fisher information, replay, heads, and the matrix of all tasks' scores."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.corpus.wire import key_of
from luthier.errors import DataError, RecipeError, RunError
from luthier.files import sha256
from luthier.methods import HeadMethod
from luthier.methods.base import make_batch
from luthier.models import load_model
from luthier.progress import Silent
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Lora, Training
from luthier.recipe.stages import TrainRecipe, parse_stages
from luthier.stages import train
from luthier.stages.chain import Left
from luthier.stages.keeping import lost, matrix, note
from luthier.stages.run import Stages
from luthier.stopped import Stopped
from luthier.training.anchor import (
    adapter_parameters,
    anchored_penalty,
    fisher_diagonal,
    hold_adapter,
    hold_update,
    update_penalty,
)
from luthier.training.course import Course
from luthier.training.learner import load_learner, new_learner
from luthier.training.loop import train as train_loop
from luthier.training.step import one_step
from test_training import ROWS, TASK

# --- the penalties ----------------------------------------------------------------------------------------------------


def test_anchored_penalty_by_hand():
    """theta - theta* = (1, -2) and (3,). L2 at strength 2: 1 + 4 + 9 = 14. With F = (1, 0.5) and (0,): 1 + 2 = 3."""
    values = {"a": torch.tensor([1.5, 0.0], requires_grad=True), "b": torch.tensor([[4.0]], requires_grad=True)}
    start = {"a": torch.tensor([0.5, 2.0]), "b": torch.tensor([[1.0]])}
    assert float(anchored_penalty(values, start, None, 2.0).detach()) == 14.0
    importance = {"a": torch.tensor([1.0, 0.5]), "b": torch.tensor([[0.0]])}
    held = anchored_penalty(values, start, importance, 2.0)
    assert float(held.detach()) == 3.0 and held.dtype == torch.float64
    held.backward()  # strength F (theta - theta*)
    assert values["a"].grad.tolist() == [2.0, -2.0] and values["b"].grad.tolist() == [[0.0]]
    assert float(anchored_penalty(start, start, importance, 2.0)) == 0.0


def test_update_penalty_is_the_norm_of_the_change_of_the_weights():
    """Against ||s B A||^2 formed outright, its gradient by differences; by hand (2 * 3 * (1, 2))^2 / 2 = 90."""
    by_hand = [(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), 2.0)]
    assert float(update_penalty(by_hand, 1.0)) == 90.0
    draw = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(2, 5, generator=draw, dtype=torch.float64, requires_grad=True),
         torch.randn(4, 2, generator=draw, dtype=torch.float64, requires_grad=True), scale)
        for scale in (0.5, 3.0)
    ]  # fmt: skip
    wanted = sum((scale * b @ a).square().sum() for a, b, scale in factors) * 0.35
    torch.testing.assert_close(update_penalty(factors, 0.7), wanted, rtol=1e-12, atol=0)
    tensors = [tensor for a, b, _ in factors for tensor in (a, b)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: update_penalty([(a, b, 0.5), (c, d, 3.0)], 0.7), tensors)


class Heads:
    """A learner with a head of three labels, off its start, and six rows."""

    def __init__(self, model_path: Path):
        loaded = load_model(str(model_path))
        torch.manual_seed(6)
        self.learner = new_learner(loaded, Lora(rank=2, alpha=4.0), 3, "auto", {"main": torch.nn.Linear(32, 3)})
        self.rows = HeadMethod().view(ClassifyPrompt(TASK, Layout(loaded.tokenizer)), ROWS[:6])

    def moved(self) -> "Heads":
        with torch.no_grad():
            draw = torch.Generator().manual_seed(1)
            for parameter in adapter_parameters(self.learner).values():
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
        return self


def test_both_penalties_are_zero_where_a_stage_starts(tiny_path):
    """A fresh adapter changes no weight; a continued one stands where it was. Heads are not held."""
    fresh = Heads(tiny_path)
    held = hold_update(fresh.learner, 3.0)
    layers = {name.rpartition(".lora_")[0] for name in adapter_parameters(fresh.learner)}
    assert float(held().detach()) == 0.0 and len(held.factors) == len(layers) == 14
    moved = fresh.moved()
    assert float(held().detach()) > 0.0
    anchored = hold_adapter(moved.learner, 3.0)
    assert float(anchored().detach()) == 0.0
    assert not any(name.startswith("heads.") for name in anchored.parameters)
    with torch.no_grad():
        next(iter(adapter_parameters(moved.learner).values())).view(-1)[0].add_(2.0)
    assert float(anchored().detach()) == pytest.approx(6.0, rel=1e-6)


@pytest.mark.parametrize("most", [16, 4096])
def test_a_penalty_counts_once_a_step(most, tiny_path):
    """Six micro-batches or one: plain descent at rate 1 moves by the data's gradient and strength F (theta - theta*)."""
    heads = Heads(tiny_path)
    start = {name: p.detach().clone() for name, p in adapter_parameters(heads.learner).items()}
    importance = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(2)) for name, value in start.items()
    }
    anchored = hold_adapter(heads.learner, 5.0, importance)
    parameters = heads.moved().learner.trained()
    logprobs_BL = torch.log_softmax(heads.learner(make_batch(heads.rows)).logits_PL, 1)
    loss = -torch.stack([logprobs_BL[i, int(row.gold[0])] for i, row in enumerate(heads.rows)]).mean()
    data = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    wanted = {name: g + 5.0 * importance[name] * (before[name] - start[name]) if name in start else g
              for name, g in data.items()}  # fmt: skip
    term = sum(2.5 * (importance[name] * (before[name] - start[name]).square()).sum() for name in start)
    optimizer = torch.optim.SGD([{"params": list(parameters.values()), "peak": 1.0}], lr=1.0)
    tune = Training(micro_batch_tokens=most, clip_norm=0.0)
    done = one_step(heads.learner, HeadMethod(), heads.rows, optimizer, 1.0, tune, 0, anchored)
    assert done.penalty == pytest.approx(float(term), rel=1e-5)
    assert done.loss == pytest.approx(float(loss.detach()) + float(term), rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(before[name] - parameters[name].detach(), gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_fisher_information_is_the_mean_of_the_rows_squared_gradients(tiny_path):
    """Row by row from log-softmax; the learner keeps no gradient of it."""
    heads = Heads(tiny_path).moved()
    parameters = adapter_parameters(heads.learner)
    wanted = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in heads.rows:
        nll = -torch.log_softmax(heads.learner(make_batch([row])).logits_PL, 1)[0, int(row.gold[0])]
        for held, gradient in zip(wanted.values(), torch.autograd.grad(nll, list(parameters.values())), strict=True):
            held += gradient.square() / len(heads.rows)
    found = fisher_diagonal(heads.learner, HeadMethod(), heads.rows, 4096)
    assert found.keys() == wanted.keys() and all(p.grad is None for p in heads.learner.parameters())
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-9, msg=name)


def test_a_held_training_resumes_exactly(tiny_path, tmp_path):
    """The anchor is where the stage started, not where it was stopped."""
    tune = Training(epochs=3, batch_size=3, learning_rate=1e-2, checkpoints={"every": 2})
    ends = []
    for cut in (False, True):
        folder = tmp_path / str(cut)
        for _ in range(1 + cut):
            heads = Heads(tiny_path)

            def report(progress, folder=folder, cut=cut):
                if cut and progress.step == 3 and not (folder / "seen").exists():
                    (folder / "seen").touch()
                    os.kill(os.getpid(), signal.SIGTERM)

            course = Course(penalty=hold_adapter(heads.learner, 10.0))
            try:
                history = train_loop(
                    heads.learner, HeadMethod(), heads.rows, [], tune, 1, folder, report, course=course
                )
            except Stopped:
                assert cut
        ends.append((sha256(folder / "best" / "adapter_model.safetensors"), history.train))
    assert ends[0] == ends[1]
    assert [entry["penalty"] > 0 for entry in ends[0][1]] == [False, *[True] * 5]


# --- two tasks that disturb each other --------------------------------------------------------------------------------

HOT, COLD = (" goal", " team", " match"), (" vote", " law", " senate")
TUNE = {"epochs": 6, "batch_size": 8, "learning_rate": 5e-3, "adapter": {"rank": 4}}


def recipe_of(model: Path, stages: list[dict]) -> TrainRecipe:
    """With few resamples, which the intervals of these tests can bear."""
    return parse_stages({"model": str(model), "stages": stages, "precision": "float32", "judge": {"resamples": 200}})


def rows_file(path: Path, opening: str, answers: tuple[str, str]) -> str:
    """Sixty prompts of two words each, answered by one word or the other."""
    draw = np.random.default_rng(1)
    rows = [
        {"prompt": f"{opening}:{''.join(draw.choice((HOT, COLD)[i % 2], 2))} {i}", "completion": answers[i % 2]}
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Pair:
    """Two stages that answer the same words the other way round, told apart by the first word of the prompt."""

    def __init__(self, model: Path, folder: Path):
        self.model, self.folder = model, folder
        data = {"validation_share": 0.0, "test_share": 0.2}
        self.stages = [
            {"name": name, "method": "sft", "prompt": {"layout": "plain"}, "tune": TUNE,
             "data": {"train": rows_file(folder / f"{name}.jsonl", opening, answers), **data}}
            for name, opening, answers in
            (("first", "Text", (" Sports", " Politics")), ("second", "Classify", (" Politics", " Sports")))
        ]  # fmt: skip

    def run(self, name: str, start: str, **keep) -> dict:
        """The result with `keep` in the second stage. The first is done once."""
        out = self.folder / name
        if name != "plain" and not out.exists():
            shutil.copytree(self.folder / "plain", out)
        stages = [self.stages[0], {**self.stages[1], "start": start, "keep": keep}]
        return train(recipe_of(self.model, stages), out)


@pytest.fixture(scope="module")
def pair(tiny_path, tmp_path_factory):
    found = Pair(tiny_path, tmp_path_factory.mktemp("pair"))
    found.plain = found.run("plain", "continue")
    return found


def bits(result: dict) -> tuple[float, float]:
    """Bits per byte of both tasks after the second stage."""
    return tuple(cell["value"] for cell in result["matrix"]["rows"][-1]["scores"])


def test_without_keeping_the_first_task_is_forgotten(pair):
    """The matrix says so, with an interval that is all on one side; the first stage's own score is its diagonal."""
    found = pair.plain["matrix"]
    first, second = found["columns"]
    assert [row["stage"] for row in found["rows"]] == ["first", "second"]
    assert found["rows"][0]["scores"][1] is None and "backward_transfer" not in second
    own = pair.plain["stages"][0]["figures"]["bits_per_byte"]["after"]
    assert {side: found["rows"][0]["scores"][0][side] for side in ("value", "low", "high")} == own
    moved = first["backward_transfer"]
    gap = found["rows"][1]["scores"][0]["value"] - own["value"]
    assert moved["value"] == pytest.approx(-gap) and first["forgetting"] == pytest.approx(gap)
    assert gap > 0.4 and moved["high"] < -0.2
    assert found["mean"] == {"bits_per_byte": {"backward_transfer": moved["value"], "forgetting": first["forgetting"]}}
    assert found["notes"][0].startswith("first: forgotten since its own stage; bits per byte changed by +0.")
    page = (pair.folder / "plain" / "report.html").read_text()
    assert "Every task after every stage" in page and "first: forgotten" in page


@pytest.mark.parametrize(
    ("name", "start", "keep", "kept"),
    [
        ("replay", "continue", {"replay_share": 0.5}, 0.9),
        ("l2", "continue", {"penalty": "l2", "strength": 10}, 0.6),
        ("ewc", "continue", {"penalty": "ewc", "strength": 30000}, 0.8),
        ("update", "stack", {"penalty": "l2", "strength": 0.5}, 0.4),
    ],
)
def test_each_way_of_keeping_forgets_less_and_still_learns(name, start, keep, kept, pair):
    """At least the share `kept` of the loss is spared, and the second task comes most of its way."""
    result = pair.run(name, start, **keep)
    first, second = bits(result)
    own = pair.plain["stages"][0]["figures"]["bits_per_byte"]["after"]["value"]
    assert first - own < (1 - kept) * (bits(pair.plain)[0] - own), (first, own, bits(pair.plain))
    before = result["stages"][1]["figures"]["bits_per_byte"]["before"]["value"]
    assert before > 2.0 and second < 0.75, (before, second)
    curve = result["stages"][1]["training"]["curve"]["train"]
    assert all(("penalty" in entry) == ("penalty" in keep) for entry in curve)
    steps = {"replay": 72}.get(name, 36)  # 48 rows, six times, and as many replayed
    assert result["stages"][1]["training"]["steps"] == steps
    if name == "ewc":
        fisher = load_file(
            pair.folder / "ewc" / "stages" / "01-first" / "fisher" / "01-first-256" / "fisher.safetensors"
        )
        assert all((value >= 0).all() for value in fisher.values()) and sum(v.sum() for v in fisher.values()) > 0


def test_a_changed_way_of_keeping_trains_only_its_stage_again(pair):
    stamp = (pair.folder / "plain" / "stages" / "01-first.json").read_bytes()
    again = pair.run("plain", "continue")
    assert again["matrix"] == pair.plain["matrix"]
    assert (pair.folder / "plain" / "stages" / "01-first.json").read_bytes() == stamp


# --- heads of earlier stages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_heads_of_earlier_stages_are_kept_and_trained_only_where_replayed(share, tiny_path, tmp_path):
    """A stage of labels, one of other labels, one of text: three heads' worth of answers in the last adapter."""
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice((HOT, COLD)[i % 2], 3)) + f" {i}" for i in range(30)]
    files = {}
    for name, labels in (("one", ("x", "y")), ("two", ("p", "q"))):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(
            "".join(json.dumps({"text": t, "label": labels[i % 2]}) + "\n" for i, t in enumerate(texts))
        )
    tune = {"epochs": 1, "batch_size": 8, "evaluate_every": 9, "adapter": {"rank": 2}}
    stages = [
        {"name": "v.1", "method": "classify", "data": {"train": str(files["one"])}, "tune": tune},
        {"name": "two", "method": "classify", "data": {"train": str(files["two"])}, "tune": tune, "start": "continue",
         "keep": {"replay_share": share}},
        {"name": "third", "method": "clm", "data": {"train": str(files["two"])}, "tune": tune, "start": "merge"},
    ]  # fmt: skip
    result = train(recipe_of(tiny_path, stages), tmp_path / "run")
    saved = [load_file(Path(stage["adapter"]) / "head.safetensors") for stage in result["stages"]]
    assert saved[0].keys() == {"main.weight", "main.bias"}
    assert saved[1].keys() == {"main.weight", "main.bias", "v:1/main.weight", "v:1/main.bias"}
    assert saved[2].keys() == {f"{key}.{part}" for key in ("v:1/main", "two/main") for part in ("weight", "bias")}
    assert torch.equal(saved[1]["v:1/main.weight"], saved[0]["main.weight"]) == (share == 0.0)
    assert torch.equal(saved[2]["two/main.weight"], saved[1]["main.weight"]), "replayed by no later stage"
    scores = [[cell and cell["n"] for cell in row["scores"]] for row in result["matrix"]["rows"]]
    assert scores == [[3, None, None], [3, 3, None], [3, 3, 3]]
    learner = load_learner(
        load_model(str(Path(result["stages"][2]["adapter"]).parent / "model")), Path(result["adapter"]), "auto"
    )
    assert set(learner.heads) == {"v:1/main", "two/main"}


def test_two_stages_in_turn_take_the_fisher_information_of_both(tiny_path, tmp_path):
    """Three stages, the last held by ewc: the first's is taken at its own adapter, the second's at its own."""
    pair = Pair(tiny_path, tmp_path)
    tune = {**TUNE, "epochs": 1}
    stages = [
        {**pair.stages[0], "tune": tune},
        {**pair.stages[1], "tune": tune, "start": "continue"},
        {**pair.stages[0], "name": "third", "tune": tune, "start": "continue",
         "keep": {"penalty": "ewc", "strength": 5, "fisher_rows": 4}},
    ]  # fmt: skip
    result = train(recipe_of(tiny_path, stages), tmp_path / "run")
    folder = tmp_path / "run" / "stages"
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/fisher/*")) == [
        "01-first/fisher/01-first-4", "02-second/fisher/02-second-4",
    ]  # fmt: skip
    assert result["stages"][2]["training"]["curve"]["train"][0]["penalty"] == 0.0
    assert list(result["matrix"]["mean"]) == ["bits_per_byte"] and len(result["matrix"]["notes"]) == 2


def test_preferences_are_replayed_and_scored_against_their_own_reference(tiny_path, tmp_path):
    """dpo beside a head, then sft with both replayed; the reference is that of the first stage, and must be there."""
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    rows = [{"prompt": f"Text:{HOT[i % 3]} {i}", "chosen": " Sports", "rejected": " Politics"} for i in range(24)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"text": f"{(HOT, COLD)[i % 2][i % 3]} {i}", "label": "ab"[i % 2]} for i in range(24)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = rows_file(tmp_path / "told.jsonl", "Classify", (" Politics", " Sports"))
    tune = {"epochs": 1, "batch_size": 8, "evaluate_every": 99, "adapter": {"rank": 2}}
    both = {
        "pairs": {"method": "dpo", "data": {"train": str(pairs)}},
        "label": {"method": "classify", "data": {"train": str(labels)}},
    }
    stages = [
        {"name": "both", "tasks": both, "tune": tune},
        {"name": "sft", "data": {"train": told}, "method": "sft", "tune": tune, "keep": {"replay_share": 0.4}},
    ]
    result = train(recipe_of(tiny_path, stages), tmp_path / "run")
    first, second = result["matrix"]["rows"]
    assert [column["stage"] for column in result["matrix"]["columns"]] == ["both/pairs", "both/label", "sft"]
    assert all(one["n"] > 0 and one["value"] is not None for one in second["scores"]) and first["scores"][2] is None
    assert result["stages"][1]["training"]["steps"] == 10  # 48 new rows and 32 replayed, 16 of each task
    names = set(result["stages"][1]["training"]["curve"]["validation"][-1])
    assert {"bits_per_byte", "both/pairs/reward_accuracy", "both/label/accuracy"} <= names
    assert set(result["stages"][1]["figures"]) == {"bits_per_byte"}
    shutil.rmtree(tmp_path / "run" / "stages" / "01-both" / "tasks" / "pairs" / "reference")
    stages[1] = {**stages[1], "keep": {"replay_share": 0.3}}
    with pytest.raises(RunError, match=r"reference: the reference log-probabilities of an earlier stage are gone"):
        train(recipe_of(tiny_path, stages), tmp_path / "run")


def test_rows_that_the_stage_is_judged_by_are_not_replayed(tiny_path, tmp_path):
    """One file for both stages, split otherwise: what the second holds out is left out of the replay, and said."""
    rows = rows_file(tmp_path / "rows.jsonl", "Text", (" Sports", " Politics"))
    tune = {"epochs": 1, "batch_size": 8, "memory": {"predict": False}, "adapter": {"rank": 2}}
    stages = [
        {"name": "first", "method": "sft", "data": {"train": rows, "test_share": 0.1}, "tune": tune},
        {"name": "second", "method": "sft", "data": {"train": rows, "test_share": 0.4}, "tune": tune,
         "start": "continue", "keep": {"replay_share": 0.5}},
    ]  # fmt: skip
    whole = Stages(recipe_of(tiny_path, stages), tmp_path / "run", Silent())
    first = whole.stage_run(1, Left(str(tiny_path)), ())
    first.run()
    second = whole.stage_run(2, first.left, (first,))
    _, _, plan = second.ready()
    test, validation = ({row.prompt for row in part} for part in (second.rows.test, second.rows.validation))
    prompts = {key_of(row): row.prompt for part in (first.rows.train, first.rows.validation) for row in part}
    learnt = {prompts[row.key] for row in plan.train if row.task == "first/main"}
    judged = {prompts[row.key] for row in plan.validation if row.task == "first/main"}
    wanted = {row.prompt for row in first.rows.train} - test - validation
    assert learnt == wanted and judged == {row.prompt for row in first.rows.validation} - test
    num_lost = len(first.rows.train) + len(first.rows.validation) - len(learnt) - len(judged)
    assert num_lost > 10 and second.rows.ledger.notes == [
        f"{num_lost} rows of earlier stages are not replayed: their prompt, text or group stands in this stage's "
        "validation or test rows."
    ]


def test_a_replay_without_a_row_left_is_refused(tiny_path, tmp_path):
    rows = rows_file(tmp_path / "rows.jsonl", "Text", (" Sports", " Politics"))
    others = rows_file(tmp_path / "others.jsonl", "Classify", (" Sports", " Politics"))
    tune = {"epochs": 1, "batch_size": 8, "memory": {"predict": False}, "adapter": {"rank": 2}}
    stages = [
        {"name": "first", "method": "sft", "data": {"train": rows}, "tune": tune},
        {"name": "second", "method": "sft", "data": {"train": others, "test": rows}, "tune": tune,
         "keep": {"replay_share": 0.5}},
    ]  # fmt: skip
    with pytest.raises(DataError, match="second: keep.replay_share: no row of an earlier stage is left to be replayed"):
        train(recipe_of(tiny_path, stages), tmp_path / "run")


# --- the matrix, by hand ----------------------------------------------------------------------------------------------


def cell(task, value, since=None, better=True):
    return {"task": task, "figure": "accuracy" if better else "bits", "higher_is_better": better, "n": 9,
            "value": value, "low": value, "high": value, "since": since}  # fmt: skip


def test_backward_transfer_and_forgetting_by_hand():
    """a: 0.8, 0.9, 0.6: transfer -0.2, forgetting 0.3. b: bits 1.0, then 0.7: turned round, +0.3 and -0.3."""
    moved = {"value": -0.2, "low": -0.3, "high": -0.1}
    fell = {"value": -0.3, "low": -0.5, "high": 0.1}
    stages = [
        {"name": "a", "every_task": [cell("a", 0.8)]},
        {"name": "b", "every_task": [cell("b", 1.0, better=False), cell("a", 0.9, moved)]},
        {"name": "c", "every_task": [cell("c", 0.5), cell("a", 0.6, moved), cell("b", 0.7, fell, better=False)]},
    ]
    found = matrix(stages)
    a, b, c = found["columns"]
    assert [row["stage"] for row in found["rows"]] == ["a", "b", "c"] and "forgetting" not in c
    assert [[one and one["value"] for one in row["scores"]] for row in found["rows"]] == [
        [0.8, None, None], [0.9, 1.0, None], [0.6, 0.7, 0.5],
    ]  # fmt: skip
    assert a["backward_transfer"] == {"value": pytest.approx(-0.2), "low": -0.3, "high": -0.1}
    assert a["forgetting"] == pytest.approx(0.3)
    assert b["backward_transfer"] == {"value": pytest.approx(0.3), "low": -0.1, "high": 0.5}
    assert b["forgetting"] == pytest.approx(-0.3)
    assert found["mean"]["accuracy"]["forgetting"] == pytest.approx(0.3)
    assert found["notes"] == [
        "a: forgotten since its own stage; accuracy changed by -0.2 [-0.3, -0.1].",
        "b: no loss shown since its own stage; bits changed by -0.3 [-0.5, +0.1].",
    ]
    assert matrix(stages[:1]) is None


def test_a_task_whose_first_score_is_gone_says_so():
    found = lost([cell("a", 0.8), cell("a", 0.7)])
    assert found["backward_transfer"]["low"] is None and found["forgetting"] == pytest.approx(0.1)
    assert note({"stage": "a", "figure": "accuracy", **found}) == (
        "a: accuracy could not be compared with the one after its own stage."
    )


def test_a_change_that_no_draw_of_rows_alters_is_told_without_an_interval():
    for value, word in ((0.0, "no loss shown"), (-0.5, "forgotten")):
        found = lost([cell("a", 0.8), cell("a", 0.8 + value, {"value": value, "low": None, "high": None})])
        assert note({"stage": "a", "figure": "entity_f1", **found}) == (
            f"a: {word} since its own stage; entity f1 changed by {value:+.4g} (no interval)."
        )


# --- the recipe -------------------------------------------------------------------------------------------------------

DATA = {"train": "a.jsonl"}


@pytest.mark.parametrize(
    ("number", "changes", "problem"),
    [
        (
            0,
            {"keep": {"replay_share": 0.2}},
            "keep.replay_share: the first stage has no earlier rows to replay; leave it out.",
        ),
        (
            0,
            {"keep": {"penalty": "ewc"}},
            "keep.penalty: the first stage has no earlier task to keep. Use l2, or leave it out.",
        ),
        (
            1,
            {"keep": {"penalty": "ewc"}},
            "keep.penalty: ewc weighs each trained number by what it matters to the earlier stages, and with start: stack "
            "all of them are new. Set start: continue, or penalty: l2, which holds the change of the weights themselves.",
        ),
        (
            1,
            {"keep": {"strength": 2}},
            "keep.strength: there is no penalty to multiply. Set keep.penalty to l2 or ewc.",
        ),
        (
            1,
            {"keep": {"penalty": "l2", "fisher_rows": 9}},
            "keep.fisher_rows: only ewc reads it. Set keep.penalty: ewc, or leave it out.",
        ),
        (
            1,
            {"keep": {"penalty": "l1"}},
            "keep.penalty: 'l1' is not allowed; use 'none', 'l2' or 'ewc'.",
        ),
        (1, {"keep": {"repaly_share": 0.1}}, 'keep.repaly_share: unknown key. Did you mean "replay_share"?'),
    ],
)
def test_what_keeping_refuses(number, changes, problem):
    stages = [{"name": "a", "method": "sft", "data": DATA}, {"name": "b", "method": "sft", "data": DATA}]
    stages[number] |= changes
    with pytest.raises(RecipeError) as error:
        parse_stages({"stages": stages})
    assert f"  - stages.{number}.{problem}" in str(error.value).splitlines()
