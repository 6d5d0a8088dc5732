"""Several tasks in one stage: their losses, the order of their rows, their heads and their figures."""

import json
import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from luthier.cli.screen import print_stages
from luthier.errors import RecipeError, RunError
from luthier.evaluation.held_out import score_rows
from luthier.files import sha256
from luthier.methods.base import Example, LossOut, Outputs, make_batch, mean_ratio
from luthier.methods.several import Part, Several, shares_of, task_key
from luthier.models import load_model
from luthier.recipe import Lora, Training
from luthier.recipe.stages import dump_stages, load_stages, parse_stages
from luthier.records import Sequence
from luthier.stages import load_head, load_reward, train
from luthier.stages.answer import load
from luthier.stages.several import joint_verdict
from luthier.stopped import Stopped
from luthier.training.course import Course, MixedOrder, mixed_draws, replay_draws, whole_shares
from luthier.training.learner import load_learner, new_learner
from luthier.training.loop import rows_in_order
from luthier.training.loop import train as train_loop
from luthier.training.step import evaluate, one_step

WORDS = ("goal", "team", "match", "song", "museum", "painter", "vote", "law", "senate")


@dataclass(frozen=True)
class Squares:
    """A small objective: `scale` (z - gold)^2 of each row's first output."""

    name: str = "squares"
    scale: float = 1.0

    def weight(self, example):
        return 1.0

    def loss(self, outputs, batch):
        gaps = outputs.logits_PL[:, 0] - batch.gold_G.to(outputs.logits_PL.dtype)
        return LossOut(self.scale * gaps.square().sum(), float(batch.num_rows))

    def scores(self, outputs, batch):
        gaps = (outputs.logits_PL[:, 0] - batch.gold_G).double()
        return {"squared_error": (gaps.square(), torch.ones_like(gaps))}


@dataclass(frozen=True)
class Noting(Squares):
    """One that annotates and varies its rows, so that what reached it can be seen."""

    def annotated(self, ask, rows):
        return [replace(row, annotation=float(place)) for place, row in enumerate(rows)]

    def varied(self, rows, seed, step):
        return [replace(row, num_bytes=100 * seed + step) for row in rows]


def example(task: str, gold: float, tokens: tuple[int, ...] = (3, 4, 5)) -> Example:
    return Example((Sequence(tokens, reads=((0, len(tokens)),)),), (gold,), task=task, key=f"{task} {gold} {tokens}")


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_of_a_task_counts_by_its_share_and_its_weight_is_untouched():
    """a: squares of 1 and 2, together 5, share 0.25: 1.25 over weight 2. b: 3 * 4 = 12, share 0.75: 9 over weight 1."""
    both = Several({"a": Part(Squares(), 0.25, "one"), "b": Part(Squares(scale=3.0), 0.75, "two")})
    batch = make_batch([example("a", 0.0), example("a", 1.0)])
    outputs = Outputs(logits_PL=torch.tensor([[1.0], [3.0]]))
    out = both.loss(outputs, batch)
    assert (float(out.total), out.weight) == (1.25, 2.0)
    above, below = both.scores(outputs, batch)["one/squared_error"]
    assert above.tolist() == [1.0, 4.0] and below.tolist() == [1.0, 1.0]
    out = both.loss(Outputs(logits_PL=torch.tensor([[2.0]])), make_batch([example("b", 0.0)]))
    assert (float(out.total), out.weight) == (9.0, 1.0)
    assert both.weight(example("b", 0.0)) == 1.0
    assert shares_of({"x": 1.0, "y": 3.0}) == {"x": 0.25, "y": 0.75}


def test_each_task_alone_annotates_and_varies_its_rows():
    rows = [example("a", 1.0), example("b", 2.0), example("a", 3.0)]
    both = Several({"a": Part(Noting(), 0.5), "b": Part(Squares(), 0.5)})
    assert [row.annotation for row in both.annotated(lambda _: [], rows)] == [0.0, None, 1.0]
    assert [row.num_bytes for row in both.varied(rows, seed=2, step=7)] == [207, 0, 207]
    assert [row.gold for row in both.annotated(lambda _: [], rows)] == [(1.0,), (2.0,), (3.0,)]


@pytest.mark.parametrize(
    "names", [("train", "type"), ("keys", "forward"), ("parameters", "0"), ("a", "stage.v1"), ("training", "items")]
)
def test_a_task_may_be_called_as_it_likes(names, tiny_path, tmp_path):
    """The keys of heads can be neither an attribute's name nor hold a dot; the same heads come back."""
    keys = [task_key("v1.2", name) for name in names]
    heads = {key: torch.nn.Linear(32, 2) for key in keys}
    learner = new_learner(load_model(str(tiny_path)), Lora(rank=2), 0, "auto", heads)
    learner.save(tmp_path)
    loaded = load_learner(load_model(str(tiny_path)), tmp_path, "auto")
    assert all(torch.equal(loaded.heads[key].weight, heads[key].weight) for key in keys)


# --- the step: tagging, a label and a number, over one model ----------------------------------------------------------


class ThreeTasks:
    """Two labelled texts, one number and two tagged texts, each with its head, over one adapter."""

    def __init__(self, model_path: Path):
        from luthier.methods.heads.classify import ClassifyHead
        from luthier.methods.heads.regress import RegressHead
        from luthier.methods.heads.tag import TagHead
        from luthier.recipe.methods import Tag

        torch.manual_seed(3)
        outputs = {"label": 2, "number": 1, "tags": 3}
        heads = {f"s/{task}": torch.nn.Linear(32, size) for task, size in outputs.items()}
        self.learner = new_learner(load_model(str(model_path)), Lora(rank=2, alpha=4.0), 3, "auto", heads)
        with torch.no_grad():  # off zero, so that A has a gradient too
            for name, parameter in self.learner.trained().items():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05)
        label = ClassifyHead(labels=("no", "yes"), label_weights=(1.0, 1.0))
        tags = TagHead(settings=Tag(scheme="plain"), tags=("A", "B", "C"), tag_weights=(1.0, 1.0, 1.0))
        methods = {"label": label, "number": RegressHead(), "tags": tags}
        self.shares = {"label": 0.2, "number": 0.5, "tags": 0.3}
        self.objective = Several({f"s/{name}": Part(m, self.shares[name], name) for name, m in methods.items()})
        span = (Sequence((5, 9, 11, 12, *range(20, 28)), reads=((1, 2), (2, 4))),)
        self.rows = [
            example("s/label", 1.0, tuple(range(5, 15))),
            Example(span, (2.0, 0.0), task="s/tags"),
            example("s/number", 0.5, (5, 6, 9, 10)),
            example("s/label", 0.0, tuple(range(21, 33))),
            Example((Sequence((5, 9, 3, *range(30, 38)), reads=((2, 3),)),), (1.0,), task="s/tags"),
        ]

    def mean_loss(self, task: str) -> torch.Tensor:
        """Cross-entropy over rows or words, squared error: from torch, without the methods' code."""
        rows = [row for row in self.rows if row.task == f"s/{task}"]
        logits_PL = self.learner(make_batch(rows)).logits_PL.double()
        gold_P = torch.tensor([number for row in rows for number in row.gold], dtype=torch.float64)
        if task == "number":
            return (logits_PL[:, 0] - gold_P).square().mean()
        return torch.nn.functional.cross_entropy(logits_PL, gold_P.long())


@pytest.mark.parametrize("most", [16, 4096])
def test_the_gradient_of_a_step_is_the_weighted_sum_of_the_tasks(most, tiny_path):
    """Plain descent at rate 1, a row at a time or three batches; the factor 0.2, 0.5, 0.3 stands before each task's mean."""
    three = ThreeTasks(tiny_path)
    names, parameters = zip(*three.learner.trained().items(), strict=True)
    losses = {task: three.mean_loss(task) for task in three.shares}
    whole = sum(three.shares[task] * loss for task, loss in losses.items())
    wanted, whole = torch.autograd.grad(whole, parameters), float(whole.detach())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD([{"params": list(parameters), "peak": 1.0}], lr=1.0)
    tune = Training(micro_batch_tokens=most, clip_norm=0.0)
    loss, figures = evaluate(three.learner, three.objective, three.rows, most)
    done = one_step(three.learner, three.objective, three.rows, optimizer, 1.0, tune, 0)
    assert done.loss == pytest.approx(whole, rel=1e-5) and loss == pytest.approx(whole, rel=1e-5)
    assert {name.partition("/")[0] for name in figures} == {"label", "number", "tags"}
    assert done.trained_tokens == 6
    for name, parameter, start, gradient in zip(names, parameters, before, wanted, strict=True):
        torch.testing.assert_close(start - parameter.detach(), gradient, rtol=1e-4, atol=1e-6, msg=name)


# --- the order of the rows --------------------------------------------------------------------------------------------


def test_draws_by_hand():
    """Sizes 100 and 10,000: equal halves of 10,100; at temperature 2 as 10 to 100, so 918.2 and 9,181.8."""
    assert mixed_draws([100, 10_000], 1.0) == [100, 10_000]
    assert mixed_draws([100, 10_000], math.inf) == [5050, 5050]
    assert mixed_draws([100, 10_000], 2.0) == [918, 9182]
    assert mixed_draws([1, 1000], 1.0) == [1, 1000]
    assert whole_shares(10, [1, 1, 1]) == [4, 3, 3] and whole_shares(2, [1, 99]) == [1, 2]
    assert replay_draws(80, 2, 0.2) == [10, 10]  # 20 of 100
    assert replay_draws(3, 2, 0.1) == [1, 1]


def test_every_step_has_each_tasks_share():
    """8, 4 and 2 of each 14 rows in steps of 7: 4, 2 and 1, give or take one at an uneven cut."""
    order = MixedOrder((tuple(range(16)), tuple(range(16, 24)), tuple(range(24, 28))), (16, 8, 4), seed=5)
    task_of = [0] * 16 + [1] * 8 + [2] * 4
    for step in range(40):
        rows = rows_in_order(step, 7, 28, order)
        counts = np.bincount([task_of[row] for row in rows], minlength=3)
        assert len(rows) == 7 and np.all(np.abs(counts - [4, 2, 1]) <= 1), counts
    assert sorted(order(3)) == list(range(28)) and not np.array_equal(order(3), order(4))


def test_a_task_goes_through_all_its_rows_before_one_comes_again():
    """Three rows drawn five times an epoch, fifteen in three: each turn of three holds every row."""
    order = MixedOrder(((7, 8, 9), (1, 2)), (5, 4), seed=0)
    drawn = np.concatenate([order.drawn(0, epoch) for epoch in range(3)])
    assert all(sorted(drawn[i : i + 3]) == [7, 8, 9] for i in range(0, 15, 3))
    assert {int(row) for epoch in range(2) for row in order(epoch)} == {7, 8, 9, 1, 2}
    assert [int(row) for row in order(11)] == [int(row) for row in MixedOrder(order.rows, order.draws, 0)(11)]


def test_a_mixed_training_resumes_exactly(tiny_path, tmp_path):
    """Stopped by SIGTERM after step 3 of 7 and taken up by a fresh process' objects, it ends in the same weights."""
    tune = Training(epochs=2, batch_size=3, learning_rate=1e-2, checkpoints={"every": 2}, micro_batch_tokens=16)
    ends = []
    for cut in (False, True):
        folder = tmp_path / str(cut)
        for _ in range(1 + cut):
            three = ThreeTasks(tiny_path)
            order = MixedOrder(((0, 3), (2,), (1, 4)), (3, 4, 3), seed=1)

            def report(progress, folder=folder, cut=cut):
                if cut and progress.step == 3 and not (folder / "seen").exists():
                    (folder / "seen").touch()
                    os.kill(os.getpid(), signal.SIGTERM)

            arguments = (three.learner, three.objective, three.rows, [], tune, 1, folder, report)
            try:
                history = train_loop(*arguments, course=Course(order))
            except Stopped:
                assert cut
        ends.append((sha256(folder / "best" / "adapter_model.safetensors"), history.train))
    assert ends[0] == ends[1] and len(ends[0][1]) == 7


# --- a stage, end to end ----------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Tagging, a label and a number, 40 rows each, with names that a module's attributes have."""
    folder, draw = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    texts = [[*(str(word) for word in draw.choice(WORDS, 3)), str(i)] for i in range(40)]
    tagged = [{"tokens": t, "tags": ["B-ART" if w in WORDS[3:6] else "O" for w in t]} for t in texts]
    labelled = [{"text": " ".join(t), "label": "yes" if WORDS.index(t[0]) < 4 else "no"} for t in texts]
    numbers = [{"text": " ".join(t), "label": str(sum(w in WORDS[6:] for w in t))} for t in texts]
    return {
        "type": {"method": "tag", "data": {"train": write(folder / "tags.jsonl", tagged)}},
        "keys": {"method": "classify", "data": {"train": write(folder / "labels.jsonl", labelled)}, "weight": 2},
        "train": {"method": "regress", "data": {"train": write(folder / "numbers.jsonl", numbers)}},
    }


def test_a_stage_of_three_tasks(tasks, tiny_path, tmp_path, capsys):
    """Each has its figures and its head; the saved adapter answers as the result says; a second call computes nothing."""
    tune = {"epochs": 1, "batch_size": 8, "evaluate_every": 12, "adapter": {"rank": 2}}
    stage = {"name": "all.three", "tasks": tasks, "mixing": "equal", "tune": tune}
    values = {"name": "x", "model": str(tiny_path), "stages": [stage], "precision": "float32"}
    recipe = parse_stages({**values, "judge": {"resamples": 200}})
    result = train(recipe, tmp_path / "run")
    (value,) = result["stages"]
    assert result["matrix"] is None and result["primary_metric"] == "keys/accuracy"
    assert value["method"] == "type (tag) + keys (classify) + train (regress)"
    assert {name.partition("/")[0] for name in value["figures"]} == {"type", "keys", "train"}
    assert all(f"{name}: " in value["verdict"] for name in tasks), value["verdict"]
    assert value["rows"] == {"train": 96, "validation": 12, "test": 12}
    assert value["ledger"]["rows_in"] == value["rows"] and value["training"]["steps"] == 12
    heads = load_file(tmp_path / "run" / "stages" / "01-all.three" / "adapter" / "head.safetensors")
    assert {name.rpartition(".")[0] for name in heads} == {f"all:three/{name}" for name in tasks}
    checked_by_hand(value, recipe, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "keys/accuracy" in page
    stamp = (tmp_path / "run" / "stages" / "01-all.three.json").stat().st_mtime_ns
    assert train(recipe, tmp_path / "run")["stages"] == result["stages"]
    assert (tmp_path / "run" / "stages" / "01-all.three.json").stat().st_mtime_ns == stamp
    with pytest.raises(RunError, match=r'stage "all\.three" .* learnt no text to write\.'):
        load(tmp_path / "run")
    asked_by_task(value, recipe, tmp_path / "run")
    print_stages(result, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("all.three") for line in lines) == 4, "macro-F1 stands beside accuracy"
    assert all(any(f" {name}/" in line for line in lines) for name in tasks), "a line for each task"


def asked_by_task(value, recipe, folder):
    """`load_head` with a task's name answers as the figures say; without one it asks for it."""
    from luthier.progress import Silent
    from luthier.stages.chain import Left
    from luthier.stages.run import Stages
    from luthier.stages.several import SeveralRun

    run = SeveralRun(Stages(recipe, folder, Silent()), recipe.stages[0], folder / "stages" / "01-all.three",
                     Left(recipe.model))  # fmt: skip
    rows = run.tasks["keys"].rows.test
    answers = load_head(folder, task="keys").predict([row.text for row in rows])
    right = [answer["label"] == row.label for answer, row in zip(answers, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(value["figures"]["keys/accuracy"]["after"]["value"])
    rows = run.tasks["train"].rows.test
    answers = load_head(folder, "all.three", "train").predict([row.text for row in rows])
    gaps = [abs(answer["number"] - float(row.label)) for answer, row in zip(answers, rows, strict=True)]
    assert np.mean(gaps) == pytest.approx(value["figures"]["train/absolute_error"]["after"]["value"], rel=1e-4)
    (answer,) = load_head(folder, task="type").predict(["song goal painter"])
    assert len(answer["tags"]) == 3
    with pytest.raises(RunError, match="has several tasks. Say which, with --task: type, keys, train"):
        load_head(folder)
    with pytest.raises(
        RunError, match=r'no such task "key" \(those to be asked so: type, keys, train\)\. Did you mean'
    ):
        load_head(folder, task="key")
    with pytest.raises(RunError, match="no stage is a reward model"):
        load_reward(folder, task="keys")


def checked_by_hand(value, recipe, folder):
    """Every task's figures again, from the saved adapter with its heads."""
    from luthier.progress import Silent
    from luthier.stages.chain import Left, Start
    from luthier.stages.run import Stages
    from luthier.stages.several import SeveralRun

    whole = Stages(recipe, folder, Silent())
    run = SeveralRun(whole, recipe.stages[0], folder / "stages" / "01-all.three", Left(recipe.model))
    learner = load_learner(load_model(recipe.model), Path(value["adapter"]), "auto")
    test = run.examples(Start(learner, whole.model, None))["test"]
    found = score_rows(learner, run.objective, test, 4096)
    for name, pair in value["figures"].items():
        above, below = (np.nansum(column, axis=0) for column in found[name])
        if np.any(below):
            assert pair["after"]["value"] == pytest.approx(mean_ratio(above, below), rel=1e-4), name
    assert value["labels"] == [] and value["tasks"]["train"]["numbers"]["test"]["mean"] > 0
    assert {row["label"] for row in value["tasks"]["keys"]["labels"]} == {
        row.label for part in ("train", "validation", "test") for row in getattr(run.tasks["keys"].rows, part)
    }


def test_one_verdict_for_all():
    assert joint_verdict({"a": "better: x 1.", "b": "better: y 2."}) == "better: a: x 1. b: y 2."
    assert joint_verdict({"a": "better: x.", "b": "worse: y."}) == "mixed: a: better: x. b: worse: y."
    assert joint_verdict({"a": "better: x.", "b": "y could not be measured."}).startswith("mixed: ")


# --- the recipe -------------------------------------------------------------------------------------------------------

DATA = {"train": "a.jsonl"}


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"name": "x"}, "stages.0.method: missing; it has no default."),
        ({"method": "sft"}, "stages.0.data: missing; it has no default."),
        (
            {"method": "sft", "data": DATA, "tasks": {"a": {"method": "sft", "data": DATA}}},
            "stages.0.method: stands beside tasks. Each task has its own; move it there.",
        ),
        (
            {"tasks": {"a.b": {"method": "sft", "data": DATA}}},
            'stages.0.tasks: "a.b" is no name for a task. Begin with a letter or digit; _ and - may follow.',
        ),
        (
            {"method": "sft", "data": DATA, "mixing": "equal"},
            "stages.0.mixing: there are no tasks to mix. Give tasks, or leave it out.",
        ),
        (
            {"tasks": {"a": {"method": "sft", "data": DATA}}, "mixing": {"by": "equal", "temperature": 3}},
            "stages.0.mixing.temperature: is not read by equal. Set mixing.by: temperature.",
        ),
        (
            {"tasks": {"a": {"method": "sft", "data": {**DATA, "test_share": 0.0}}}},
            "stages.0.tasks.a.data: no rows are held out. Give test, or a test_share above 0.",
        ),
        (
            {"tasks": {"a": {"method": "sft", "data": DATA},
                       "b": {"method": "sft", "data": {**DATA, "validation_share": 0.0}}}},
            "stages.0.tasks: some have validation rows and some none. Give each a validation_share, or none.",
        ),
        (
            {"tasks": {"a": {"method": {"kind": "tag", "tgas": []}, "data": DATA}}},
            'stages.0.tasks.a.method.tgas: unknown key. Did you mean "tags"?',
        ),
        ({"tasks": {"a": {"method": "tag", "data": {}}}}, "stages.0.tasks.a.data.train: missing; it has no default."),
        (
            {"tasks": {"a": {"method": "sft", "data": DATA, "weight": 0}}},
            "stages.0.tasks.a.weight: input should be greater than 0 (got 0).",
        ),
    ],
)  # fmt: skip
def test_what_a_stage_of_tasks_refuses(stage, problem):
    with pytest.raises(RecipeError) as error:
        parse_stages({"stages": [stage]})
    assert f"  - {problem}" in str(error.value).splitlines()


def test_the_resolved_recipe_is_a_recipe():
    """With every default spelled out it says the same: for tasks, for one method, and with what is kept."""
    tasks = {"a": {"method": "tag", "data": DATA}, "b": {"method": "sft", "data": DATA, "weight": 2}}
    keep = {"penalty": "ewc", "strength": 10, "replay_share": 0.1}
    last = {"method": "dpo", "data": DATA, "start": "continue", "keep": keep}
    recipe = parse_stages({"stages": [{"tasks": tasks}, {"method": "sft", "data": DATA}, last]})
    assert parse_stages(yaml.safe_load(dump_stages(recipe))) == recipe


def test_rates_on_which_all_methods_agree_and_paths_of_tasks(tmp_path):
    """dpo and kto both learn at 2e-4; sft beside them does not. A task called train has its own train."""
    pair = {name: {"method": name, "data": DATA} for name in ("dpo", "kto")}
    assert parse_stages({"stages": [{"tasks": pair}]}).stages[0].tune.learning_rate == 2e-4
    mixed = parse_stages({"stages": [{"tasks": {**pair, "sft": {"method": "sft", "data": DATA}}}]}).stages[0]
    assert mixed.tune.learning_rate == Training().learning_rate and mixed.name == "tasks"
    path = tmp_path / "x.yaml"
    path.write_text("stages:\n- tasks:\n    train: {method: sft, data: {train: a.txt}}\n  mixing: temperature\n")
    stage = load_stages(path).stages[0]
    assert stage.tasks["train"].data.train[0].path == str(tmp_path / "a.txt")
    assert stage.mixing.power == 2.0
