"""What a stage does for the tasks of the stages before it: replay, a penalty, and their figures after it."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.corpus.wire import key_of
from luthier.errors import DataError, RunError
from luthier.evaluation.held_out import Figures, Floats, by_group, change, figure, score_rows
from luthier.files import new_folder
from luthier.methods.base import MAIN, Example, Objective
from luthier.methods.several import Part, Several, named, task_key
from luthier.methods.stage import Described, StageMethod
from luthier.models import load_model
from luthier.processes import told, wait
from luthier.stages.chain import Start
from luthier.stages.figures import group_of
from luthier.stages.reference import FILE as REFERENCE_FILE
from luthier.stages.rows import marks
from luthier.training.anchor import fisher_diagonal, hold_adapter, hold_update
from luthier.training.course import Course, MixedOrder, Penalty, mixed_draws, replay_draws
from luthier.training.learner import Learner, continued_learner, read_heads

if TYPE_CHECKING:
    from luthier.stages.one import StageRun

HELD_OUT = "held_out"  # folder of each task's sums by row, right after its own stage


@dataclass(frozen=True)
class Known:
    """A task of an earlier stage: all that is needed to learn it again, or to score it. `share` is of its stage."""

    run: StageRun
    key: str
    label: str
    method: StageMethod
    share: float
    examples: Mapping[str, list[Example]]


@dataclass(frozen=True)
class Plan:
    """What the loop gets."""

    objective: Objective
    train: list[Example]
    validation: list[Example]
    course: Course


def plan_of(run: StageRun, start: Start, parts: Mapping[str, list[Example]]) -> Plan:
    """The stage's own rows, with those of the earlier stages that are replayed, and the penalty."""
    share = run.stage.keep.replay_share
    old = replayed_tasks(run, start) if share else []
    own = run.parts
    course = Course(penalty=penalty_of(run, start))
    if len(own) + len(old) == 1:
        return Plan(run.objective, parts["train"], parts["validation"], course)
    tasks = {key: replace(part, share=part.share * (1 - share)) for key, part in own.items()}
    tasks |= {known.key: Part(known.method, share / len(old), known.label) for known in old}
    train = [*parts["train"], *(example for known in old for example in known.examples["train"])]
    validation = [*parts["validation"], *(example for known in old for example in known.examples["validation"])]
    rows = tuple(tuple(i for i, example in enumerate(train) if example.task == key) for key in tasks)
    draws = mixed_draws([len(indices) for indices in rows[: len(own)]], run.stage.mixing.power)
    if old:
        draws += replay_draws(sum(draws), len(old), share)
    order = MixedOrder(rows, tuple(draws), run.whole.recipe.seed)
    return Plan(Several(tasks), train, validation if parts["validation"] else [], replace(course, order=order))


# --- heads and examples of the earlier stages -----------------------------------------------------------------------


def heads_left(run: StageRun) -> dict[str, nn.Module]:
    """All heads that a stage left, its own under the name that later stages know it by."""
    saved = read_heads(run.folder / "adapter")
    return {task_key(run.stage.name, MAIN) if name == MAIN else name: head for name, head in saved.items()}


def all_heads(run: StageRun) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """A stage's fresh heads beside those of the stages before it; and the fresh ones alone."""
    fresh = run.fresh_heads()
    return {**(heads_left(run.earlier[-1]) if run.earlier else {}), **fresh}, fresh


def settle_heads(run: StageRun, learner: Learner, fresh: Mapping[str, nn.Module]) -> None:
    """Which heads are trained: the stage's own, and earlier ones where their rows are replayed.

    A head that a continued adapter brought along stays where it answers the very same question.
    """
    before = run.earlier[-1] if run.earlier else None
    for key, head in fresh.items():
        if before is not None and not same_question(before, run):
            learner.heads[key] = head.to(learner.device)
    for key, head in learner.heads.items():
        head.requires_grad_(key in fresh or bool(run.stage.keep.replay_share))


def same_question(before: StageRun, run: StageRun) -> bool:
    """Whether two stages of one method ask for the same thing: the same labels in the same order, or the same scale."""
    if before.stage.tasks or run.stage.tasks or type(before.method) is not type(run.method):
        return False
    there, here = (one.method.described() if isinstance(one.method, Described) else {} for one in (before, run))
    return there == here


def earlier_tasks(run: StageRun, start: Start) -> list[Known]:
    """Every task of the earlier stages with its examples."""
    return [known for earlier in run.earlier for known in tasks_of(earlier, start)]


def replayed_tasks(run: StageRun, start: Start) -> list[Known]:
    """The earlier stages' tasks without the rows that this stage is judged by, which it may not learn.

    Raises:
        DataError: no row is left to be replayed.
    """
    test = {mark for row in run.rows.test for mark in marks(row)}
    held = {"train": test | {mark for row in run.rows.validation for mark in marks(row)}, "validation": test}
    found, lost = [], 0
    for known in earlier_tasks(run, start):
        rows = known.run.tasks[known.key.rpartition("/")[2]].rows
        examples = dict(known.examples)
        for part, seen in held.items():
            out = {key_of(row) for row in getattr(rows, part) if not seen.isdisjoint(marks(row))}
            examples[part] = [example for example in known.examples[part] if example.key not in out]
            lost += len({example.key for example in known.examples[part]} & out)
        if examples["train"]:
            found.append(replace(known, examples=examples))
    if lost:
        run.note(
            f"{lost:,} rows of earlier stages are not replayed: their prompt, text or group stands in this stage's "
            "validation or test rows."
        )
    if not found:
        raise DataError(
            f"{run.stage.name}: keep.replay_share: no row of an earlier stage is left to be replayed; their prompts, "
            "texts or groups all stand in this stage's validation or test rows. Give other rows, or leave it out."
        )
    return found


def tasks_of(run: StageRun, start: Start) -> list[Known]:
    """The tasks of a finished stage; their references and teachers come from what the stage has computed."""
    for task in run.tasks.values():
        if task.method.needs_reference and not (task.folder / "reference" / REFERENCE_FILE).is_file():
            raise RunError(
                f"{task.folder}/reference: the reference log-probabilities of an earlier stage are gone, and a later "
                f"stage needs them. Delete {run.folder}.json, and run again: the stage is done anew."
            )
    if not run.made:
        run.made = run.examples(start)
    found = []
    for name, task in run.tasks.items():
        inner = MAIN if not run.stage.tasks else task_key(run.stage.name, name)
        outer = task_key(run.stage.name, name)
        examples = {
            part: [replace(example, task=outer) for example in rows if example.task == inner]
            for part, rows in run.made.items()
        }
        found.append(Known(run, outer, label_of(run, name), task.method, run.parts[inner].share, examples))
    return found


def label_of(run: StageRun, name: str) -> str:
    """What a task is called in the matrix: its stage, and its name where the stage has several."""
    return named(run.stage.name, name) if run.stage.tasks else run.stage.name


# --- the penalty ----------------------------------------------------------------------------------------------------


def penalty_of(run: StageRun, start: Start) -> Penalty | None:
    """What holds the weights to where the stage starts."""
    keep = run.stage.keep
    if keep.penalty == "none":
        return None
    if keep.penalty == "ewc":
        return hold_adapter(start.learner, keep.strength, importance(run, start))
    if run.stage.start == "continue" or run.stage.tune.adapter.kind == "full":
        return hold_adapter(start.learner, keep.strength)
    return hold_update(start.learner, keep.strength)


def importance(run: StageRun, start: Start) -> dict[str, Tensor]:
    """The Fisher information of all earlier stages' rows, added up (Huszar 2018: one penalty around the last optimum).

    Each stage's is taken at the adapter that it left, or at the first one after it that has today's parameters: a
    stage that stacks or merges begins new ones.
    """
    beginnings = [i for i, earlier in enumerate(run.earlier) if earlier.stage.start != "continue"]
    total: dict[str, Tensor] = {}
    for number, earlier in enumerate(run.earlier):
        place = run.earlier[max(number, beginnings[-1])]
        for name, values in stored_fisher(run, earlier, place, start).items():
            total[name] = total[name] + values if name in total else values
    device = start.learner.device
    return {name: values.to(device) for name, values in total.items()}


def stored_fisher(run: StageRun, earlier: StageRun, place: StageRun, start: Start) -> dict[str, Tensor]:
    """The Fisher information of one stage's training rows at the adapter of `place`, kept beside that adapter."""
    num_rows = run.stage.keep.fisher_rows
    folder = place.folder / "fisher" / f"{earlier.folder.name}-{num_rows}"
    if not told((folder / "fisher.safetensors").is_file()):
        learner = start.learner if place is run.earlier[-1] else learner_left(place)
        total: dict[str, Tensor] = {}
        for known in tasks_of(earlier, start):
            most = earlier.stage.tune.pass_tokens
            found = fisher_diagonal(learner, known.method, known.examples["train"][:num_rows], most)
            for name, values in found.items():
                total[name] = total.get(name, 0.0) + known.share * values.cpu()
        with new_folder(folder) as aside:
            save_file(total, str(aside / "fisher.safetensors"))
        wait()
    return load_file(str(folder / "fisher.safetensors"))


def learner_left(run: StageRun) -> Learner:
    """The learner as a stage left it, its adapter open to gradients."""
    recipe, left = run.whole.recipe, run.left
    assert left.adapter is not None
    model = load_model(left.model, precision=recipe.precision, encoders=True)
    return continued_learner(model, left.adapter, recipe.attention, heads_left(run))


# --- the matrix -----------------------------------------------------------------------------------------------------


def matrix_row(run: StageRun, start: Start, test: ManyOf[Example], after: Figures) -> list[dict[str, Any]]:
    """Every task known after a stage: its deciding figure, and what became of it since its own stage."""
    cells = []
    for name, task in run.tasks.items():
        inner = MAIN if not run.stage.tasks else task_key(run.stage.name, name)
        mine = [i for i, example in enumerate(test) if example.task == inner]
        above, below = after[named(run.parts[inner].label, task.method.primary)]
        sums = by_group((above[mine], below[mine]), [group_of(test[i]) for i in mine])
        keep_sums(run.folder, name, sums)
        cells.append(cell(run, label_of(run, name), task.method, sums, sums))
    for known in earlier_tasks(run, start):
        most = known.run.stage.tune.pass_tokens
        examples = known.examples["test"]
        found = score_rows(start.learner, known.method, examples, most, run.progress(f"test rows of {known.label}"))
        sums = by_group(found[known.method.primary], [group_of(example) for example in examples])
        name = known.key.partition("/")[2]
        cells.append(cell(run, known.label, known.method, sums, kept_sums(known.run.folder, name)))
    return cells


def cell(
    run: StageRun, label: str, method: StageMethod, sums: tuple[Floats, Floats], own: tuple[Floats, Floats] | None
) -> dict[str, Any]:
    """One task after one stage, as JSON values. `since` is its change since its own stage, on the same rows."""
    judge = run.whole.recipe.judge
    draws = (judge.resamples, run.whole.recipe.seed, judge.confidence)
    return {
        "task": label,
        "figure": method.primary,
        "higher_is_better": method.higher_is_better,
        "n": len(sums[0]),
        **asdict(figure(sums, *draws)),
        "since": asdict(change(own, sums, *draws)) if own is not None and len(own[0]) == len(sums[0]) else None,
    }


def keep_sums(folder: Path, name: str, sums: tuple[Floats, Floats]) -> None:
    """A task's sums by row, to be compared with those after later stages."""
    with new_folder(folder / HELD_OUT / name) as aside:
        save_arrays(
            {"above": np.ascontiguousarray(sums[0]), "below": np.ascontiguousarray(sums[1])}, str(aside / "sums")
        )


def kept_sums(folder: Path, name: str) -> tuple[Floats, Floats] | None:
    """What `keep_sums` wrote; None where the folder was cleared."""
    path = folder / HELD_OUT / name / "sums"
    if not path.is_file():
        return None
    arrays = load_arrays(str(path))
    return arrays["above"], arrays["below"]


def matrix(stages: ManyOf[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The score of every task after every stage, and what was forgotten; None where there is one stage.

    columns: the tasks in the order they were learnt. rows: one a stage, its scores in the order of the columns, None
    for tasks to come. A column of an earlier stage also has backward_transfer, the last score minus the one after its
    own stage (Lopez-Paz and Ranzato 2017, section 2), with its interval; and forgetting, the best earlier score minus
    the last (Chaudhry et al. 2018, section 3). Where less is better both are turned round: a negative backward
    transfer and a positive forgetting always mean a loss. `mean` is over the tasks of one kind of figure, since
    accuracies and bits have no common mean.
    """
    if len(stages) < 2:
        return None
    after = [{one["task"]: one for one in value["every_task"]} for value in stages]
    columns = []
    for task, last in ordered(after).items():
        column = {"stage": task, "figure": last["figure"], "higher_is_better": last["higher_is_better"]}
        cells = [found[task] for found in after if task in found]
        columns.append(column | (lost(cells) if len(cells) > 1 else {}))
    names = [column["stage"] for column in columns]
    rows = [
        {"stage": value["name"], "scores": [found.get(name) for name in names]}
        for value, found in zip(stages, after, strict=True)
    ]
    return {
        "columns": columns,
        "rows": rows,
        "mean": means(columns),
        "notes": [note(c) for c in columns if "since" in c],
    }


def ordered(after: ManyOf[Mapping[str, Any]]) -> dict[str, Any]:
    """The last cell of each task, the tasks in the order they were learnt."""
    return {task: one for cells in after for task, one in cells.items()}


def lost(cells: ManyOf[Mapping[str, Any]]) -> dict[str, Any]:
    """Backward transfer and forgetting of one task, from its cells after its own stage and the later ones."""
    sign = 1.0 if cells[-1]["higher_is_better"] else -1.0
    values = [float("nan") if one["value"] is None else sign * one["value"] for one in cells]
    since = cells[-1]["since"] or {}
    bounds = [sign * since[side] for side in ("low", "high") if since.get(side) is not None]
    low, high = (min(bounds), max(bounds)) if bounds else (None, None)
    transfer = {"value": values[-1] - values[0], "low": low, "high": high}
    return {"since": since, "backward_transfer": transfer, "forgetting": max(values[:-1]) - values[-1]}


def means(columns: ManyOf[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Backward transfer and forgetting, averaged over the earlier tasks of one figure."""
    old = [column for column in columns if "since" in column]
    found: dict[str, dict[str, float]] = {}
    for name in sorted({column["figure"] for column in old}):
        mine = [column for column in old if column["figure"] == name]
        found[name] = {
            "backward_transfer": float(np.mean([column["backward_transfer"]["value"] for column in mine])),
            "forgetting": float(np.mean([column["forgetting"] for column in mine])),
        }
    return found


def note(column: Mapping[str, Any]) -> str:
    """One sentence on an earlier task: what became of it."""
    moved, figure_name = column["backward_transfer"], column["figure"].replace("_", " ")
    since = column["since"]
    if since.get("value") is None:
        return f"{column['stage']}: {figure_name} could not be compared with the one after its own stage."
    if moved["low"] is None:
        word, interval = "forgotten" if moved["value"] < 0 else "no loss shown", "(no interval)"
    else:
        word = "kept or better" if moved["low"] >= 0 else "forgotten" if moved["high"] < 0 else "no loss shown"
        interval = f"[{since['low']:+.4g}, {since['high']:+.4g}]"
    return f"{column['stage']}: {word} since its own stage; {figure_name} changed by {since['value']:+.4g} {interval}."
