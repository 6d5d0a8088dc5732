"""Sweeps on a tiny model: trials equal to plain trainings, pruning, failures, several processes, kill and resume."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import luthier
from luthier.errors import RecipeError, RunError
from luthier.locks import Lock
from luthier.progress import Silent
from luthier.recipe import parse_recipe
from luthier.recipe.space import parse_any, resolved_sweep
from luthier.recipe.stages import parse_stages
from luthier.stopped import Stopped
from luthier.sweeps import study as studies
from luthier.sweeps.metric import Metric, NoFigureError, Pruned, Watch, metric_of
from luthier.training.checkpoint import Progress
from test_pipeline import LABELS, write_rows
from test_stages import talk_row, write_lines

GRID = {"tune.learning_rate": [0.01, 0.003], "tune.batch_size": [6, 12]}


@pytest.fixture(scope="module")
def rows(tiny_path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweeps")
    write_rows(folder / "train.jsonl", 8, 1)
    write_rows(folder / "test.jsonl", 3, 2)
    swapped = folder / "swapped.jsonl"
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    swapped.write_text(
        "".join(json.dumps({**line, "label": LABELS[i % 3]}) + "\n" for i, line in enumerate(lines[::-1]))
    )
    return folder


def values_of(rows: Path, model: Path, sweep: dict | None = None, test: str = "test.jsonl", **tune) -> dict:
    """A recipe of six steps an epoch's worth of rows; `sweep` is its section."""
    return {
        "name": "tiny", "model": str(model), "seed": 3, "precision": "float32", "arms": ["majority", "tuned"],
        "task": {"labels": LABELS, "instruction": "Classify the text ."},
        "data": {"train": str(rows / "train.jsonl"), "test": str(rows / test), "validation_share": 0.25},
        "tune": {"epochs": 1, "batch_size": 6, "learning_rate": 0.01, "head_learning_rate": 0.02, "refit": False,
                 "micro_batch_tokens": 4096, "adapter": {"rank": 2, "alpha": 4}, "memory": {"predict": False}, **tune},
        **({} if sweep is None else {"sweep": sweep}),
    }  # fmt: skip


def first_two(result: dict) -> dict[int, object]:
    """The curves of the first two trials."""
    return {number: curve for number, curve in by_number(result, "curve").items() if number < 2}


def by_number(result: dict, key: str) -> dict[int, object]:
    return {trial["number"]: trial[key] for trial in result["trials"]}


# --- a grid, with the best one in full ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(rows, tiny_path):
    """Folder and result of four trials, the best one run in full."""
    recipe = parse_recipe(values_of(rows, tiny_path, {"space": GRID, "sampler": "grid", "pruner": "none"}))
    out = rows / "grid"
    return out, luthier.sweep(recipe, out, final=True), recipe


def test_a_grid_goes_through_all_combinations_once(grid):
    _, result, _ = grid
    assert [trial["values"] for trial in result["trials"]] == [
        {"tune.learning_rate": rate, "tune.batch_size": size} for rate in (0.01, 0.003) for size in (6, 12)
    ]
    assert result["counts"] == {"complete": 4, "pruned": 0, "failed": 0, "running": 0}
    assert result["metric"] == {"name": "loss", "higher_is_better": False, "rows": 6}
    values = by_number(result, "value")
    assert len(set(values.values())) == 4, "other values, other trainings"
    assert result["best"]["value"] == min(values.values())
    assert result["baseline"] is None, "a grid has no trial of the recipe as it stands"


def test_a_trial_is_the_training_of_its_recipe(grid):
    """The full run of the best recipe has the same validation losses, and takes its training over instead of redoing it."""
    out, result, _ = grid
    final = Path(result["final"]["folder"])
    full = json.loads((final / "result.json").read_text())
    losses = {entry["step"]: entry["loss"] for entry in full["training"]["curve"]["validation"]}
    assert result["best"]["value"] == losses[result["best"]["best_step"]] == min(losses.values())
    assert [value for _, value in result["best"]["curve"]] == list(losses.values())
    assert result["final"]["verdict"] == full["verdict"] and result["final"]["metric"] == "accuracy"
    number = result["best"]["number"]
    times = [json.loads(next(folder.glob("checkpoints/*/checkpoint.json")).read_text())["history"]["seconds"]
             for folder in (out / "trials" / f"{number:04d}" / "training", final / "training")]  # fmt: skip
    assert times[0] == times[1], "the stopwatch of the trial's training, to the last bit"


def test_only_the_full_run_has_test_figures(grid):
    out, result, _ = grid
    text = (out / "sweep.json").read_text()
    assert "accuracy" not in json.dumps([result["trials"], result["best"]])
    assert "test rows" in result["final"]["verdict"] and json.loads(text)["final"] == result["final"]
    assert not list((out / "trials").rglob("result.json")) and not list((out / "trials").rglob("tuned.json"))


def test_the_best_recipe_runs_and_only_its_trial_keeps_weights(grid):
    out, result, recipe = grid
    best = result["best"]
    written = parse_any(yaml.safe_load((out / "best.yaml").read_text()))
    assert written.sweep is None and written.tune.batch_size == best["values"]["tune.batch_size"]
    assert written.tune.model_dump(exclude={"learning_rate", "batch_size"}) == recipe.tune.model_dump(
        exclude={"learning_rate", "batch_size"}
    )
    assert (out / "best.yaml").read_text().startswith(f"# The best of 4 trials of tiny (trial {best['number']}): ")
    kept = {path.parts[-5] for path in (out / "trials").rglob("checkpoints/*/state.safetensors")}
    assert kept == {f"{best['number']:04d}"}
    assert {path.name for path in (out / "trials").iterdir()} == {f"{n:04d}" for n in range(4)}
    assert all((out / "trials" / f"{n:04d}" / "recipe.yaml").is_file() for n in range(4))


def test_called_again_nothing_is_computed_and_more_trials_go_on(grid):
    """A finished grid has no more trials to give out."""
    out, result, recipe = grid

    class Told(Silent):
        def begin(self, stage: str) -> None:
            raise AssertionError(f"{stage} is computed again")

    again = luthier.sweep(recipe, out, listener=Told())
    assert by_number(again, "value") == by_number(result, "value")


def test_the_folder_and_the_study_belong_to_one_sweep(grid, rows, tiny_path, tmp_path):
    out, _, recipe = grid
    other = parse_recipe(values_of(rows, tiny_path, {"space": {"tune.batch_size": [4]}, "sampler": "grid"}))
    with pytest.raises(RunError, match="begun with another recipe, space, metric or rows"):
        luthier.sweep(other, out)
    with pytest.raises(RunError, match='holds the trials of the study "tiny"'):
        luthier.sweep(recipe, out, study="mine")
    (tmp_path / "holiday.txt").write_text("beach")
    with pytest.raises(RunError, match="holds other files and is no sweep's folder"):
        luthier.sweep(recipe, tmp_path)
    with pytest.raises(RunError, match="is a file"):
        luthier.sweep(recipe, tmp_path / "holiday.txt")
    with pytest.raises(RunError, match=r"--storage mysql://me:\*\*\*@nowhere/x: the study cannot be opened: .*driver"):
        luthier.sweep(recipe, tmp_path / "new", storage="mysql://me:secret@nowhere/x")


def test_test_rows_have_no_part_in_it(grid, rows, tiny_path, tmp_path):
    """Other labels on the test rows, the same trials to the last bit."""
    _, whole, _ = grid
    sweep = {"space": GRID, "sampler": "grid", "pruner": "none", "trials": 2}
    result = luthier.sweep(parse_recipe(values_of(rows, tiny_path, sweep, "swapped.jsonl")), tmp_path / "out")
    assert by_number(result, "curve") == first_two(whole)


# --- trials that end early, and trials that fail ----------------------------------------------------------------


@pytest.mark.parametrize("pruner", [{"pruner": "median", "startup_trials": 1}, {"pruner": "asha", "reduction": 2}])
def test_a_bad_trial_ends_early(pruner, rows, tiny_path, tmp_path):
    """Trial 1 hardly learns: it is ended at half an epoch. The figure of a trial that was ended makes no best."""
    sweep = {"space": {"tune.learning_rate": [0.01, 1e-9]}, "sampler": "grid", **pruner}
    values = values_of(rows, tiny_path, sweep, head_learning_rate=1e-9, epochs=2, evaluate_every=1)
    result = luthier.sweep(parse_recipe(values), tmp_path / "out")
    good, bad = result["trials"]
    assert (good["state"], bad["state"]) == ("complete", "pruned")
    assert [epochs for epochs, _ in good["curve"]] == pytest.approx([i / 3 for i in range(1, 7)])
    assert [epochs for epochs, _ in bad["curve"]] == pytest.approx([1 / 3, 2 / 3])
    assert bad["value"] > good["curve"][1][1] and result["best"]["number"] == 0


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(rows, tiny_path, tmp_path):
    """Trial 0 is the recipe as it stands; a rate of 1e38 comes to nothing."""
    said = []

    class Told(Silent):
        def end(self, stage: str, cached: bool, note: str = "") -> None:
            said.append(f"{stage}: {note}")

    sweep = {
        "space": {"tune.learning_rate": [1e38, 0.01, 2e38, 3e38]},
        "sampler": "random",
        "pruner": "none",
        "trials": 3,
    }
    values = values_of(rows, tiny_path, sweep, clip_norm=0)
    result = luthier.sweep(parse_recipe(values), tmp_path / "out", listener=Told())
    assert result["trials"][0]["values"] == {"tune.learning_rate": 0.01}
    assert result["baseline"] == {"number": 0, "value": result["trials"][0]["value"]}
    failed = [trial for trial in result["trials"] if trial["state"] == "failed"]
    assert failed and result["counts"]["complete"] == 3 - len(failed)
    for trial in failed:
        assert "Lower tune.learning_rate" in trial["error"] and trial["value"] is None
        assert said[trial["number"]].startswith(f"trial {trial['number']}: failed: ")
    assert said[0].startswith("trial 0: validation loss ") and said[0].endswith(", the best so far")
    assert "Lower tune.learning_rate" in (tmp_path / "out" / "sweep.html").read_text()


def test_values_that_do_not_go_together_fail_alone(rows, tiny_path, tmp_path):
    """Each value suits the recipe; a pair of them does not, as the recipe's own rules say."""
    space = {"tune.clip_norm": [1.0, 0.0], "tune.memory.optimizer_in_backward": [True, False]}
    sweep = {"space": space, "sampler": "grid", "pruner": "none", "trials": 2}
    result = luthier.sweep(parse_recipe(values_of(rows, tiny_path, sweep, clip_norm=0.0)), tmp_path / "out")
    failed, done = result["trials"]
    assert failed["state"] == "failed" and failed["values"] == {
        "tune.clip_norm": 1.0, "tune.memory.optimizer_in_backward": True
    }  # fmt: skip
    assert "clip_norm" in failed["error"] and done["state"] == "complete"


def test_a_recipe_of_which_every_trial_fails_stops(rows, tiny_path, tmp_path):
    sweep = {"space": {"tune.learning_rate": {"low": 1e37, "high": 1e38}}, "pruner": "none"}
    values = values_of(rows, tiny_path, sweep, clip_norm=0)
    with pytest.raises(
        RunError, match="the first 3 trials all failed, the last one with: validation loss nan"
    ) as caught:
        luthier.sweep(parse_recipe(values), tmp_path / "out")
    assert "Mend the recipe" in str(caught.value) and "sweep.html" in str(caught.value)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["counts"]["failed"] == 3


def test_a_figure_that_is_not_validated_stops_the_sweep(rows, tiny_path, tmp_path):
    values = values_of(rows, tiny_path, {"space": GRID, "metric": "acuracy"})
    with pytest.raises(NoFigureError, match='no figure "acuracy". Did you mean "accuracy"'):
        luthier.sweep(parse_recipe(values), tmp_path / "out")


def test_a_run_without_its_tuned_arm_is_refused(rows, tiny_path, tmp_path):
    recipe = parse_recipe({**values_of(rows, tiny_path), "arms": ["majority"]})
    with pytest.raises(RecipeError, match="the arm tuned is not among them"):
        luthier.sweep(recipe, tmp_path / "out")


# --- stages -----------------------------------------------------------------------------------------------------


def chain_values(tiny_path, folder: Path) -> dict:
    """sft -> dpo, with another beta tried."""
    write_lines(folder / "talks.jsonl", [talk_row(n) for n in range(24)])
    pairs = [{"prompt": f"Text goal {n}", "chosen": "Sports", "rejected": "Politics"} for n in range(24)]
    write_lines(folder / "pairs.jsonl", pairs)
    tune = {"batch_size": 8, "epochs": 1, "memory": {"predict": False}, "adapter": {"rank": 2, "alpha": 4}}
    return {
        "name": "chain", "model": str(tiny_path), "precision": "float32", "judge": {"resamples": 200},
        "stages": [
            {"method": "sft", "data": {"train": str(folder / "talks.jsonl")}, "tune": tune},
            {"method": "dpo", "data": {"train": str(folder / "pairs.jsonl"), "validation_share": 0.2}, "tune": tune},
        ],
        "sweep": {"space": {"stages.1.method.beta": [0.1, 0.5]}, "pruner": "none", "sampler": "grid"},
    }  # fmt: skip


def test_stages_before_the_searched_one_are_trained_once(tiny_path, tmp_path):
    """One sft for all trials, and the full run of the best agrees with its trial."""
    out = tmp_path / "out"
    result = luthier.sweep(parse_stages(chain_values(tiny_path, tmp_path)), out, final=True)
    assert result["counts"]["complete"] == 2
    assert result["metric"]["name"] == "accuracy", "beta changes what the loss means"
    assert (out / "shared" / "stages" / "01-sft" / "adapter" / "adapter_model.safetensors").is_file()
    assert not list((out / "trials").glob("*/stages/01-sft"))
    full = json.loads((Path(result["final"]["folder"]) / "result.json").read_text())
    curve = full["stages"][1]["training"]["curve"]["validation"]
    assert [value for _, value in result["best"]["curve"]] == [entry["accuracy"] for entry in curve]
    assert not list((out / "shared").rglob("held_out")) and not list((out / "trials").rglob("held_out"))


def test_a_stage_with_a_teacher_is_swept(tiny_path, tmp_path):
    """What the teacher is stands in the folder of each trial, which is a run folder before that."""
    rows = write_lines(tmp_path / "talks.jsonl", [talk_row(number) for number in range(24)])
    stage = {"method": {"kind": "distil", "teacher": str(tiny_path)},
             "data": {"train": rows, "test_share": 0.2, "validation_share": 0.25},
             "tune": {"epochs": 1, "batch_size": 8, "adapter": {"rank": 2}, "memory": {"predict": False}}}  # fmt: skip
    space = {"stages.0.tune.learning_rate": [1e-3, 1e-2]}
    values = {"name": "taught", "model": str(tiny_path), "precision": "float32", "stages": [stage],
              "judge": {"resamples": 200}, "sweep": {"space": space, "sampler": "grid"}}  # fmt: skip
    result = luthier.sweep(parse_stages(values), tmp_path / "sweep")
    assert result["counts"]["complete"] == 2
    assert (tmp_path / "sweep" / "trials" / "0000" / "teachers.json").is_file()


def test_without_validation_rows_there_is_nothing_to_compare(tiny_path, tmp_path):
    write_lines(tmp_path / "talks.jsonl", [talk_row(n) for n in range(24)])
    data = {"train": str(tmp_path / "talks.jsonl"), "validation_share": 0}
    recipe = parse_stages({"model": str(tiny_path), "stages": [{"method": "sft", "data": data}]})
    with pytest.raises(
        RecipeError, match="stages.0.data.validation_share: is 0, and trials are compared on validation"
    ):
        luthier.sweep(recipe, tmp_path / "out")


# --- stop, kill, several processes ------------------------------------------------------------------------------


def start(recipe: dict, out: Path) -> subprocess.Popen:
    """A process of its own with this sweep."""
    path = out.parent / f"{out.name}.yaml"
    path.write_text(json.dumps(recipe))
    code = "from luthier.cli.main import main; main()"
    words = [sys.executable, "-c", code, "sweep", str(path), "--out", str(out), "--json"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_stopped_sweep_goes_on_in_the_trial_it_was_at(grid, tmp_path):
    _, whole, recipe = grid
    stopped_at = []

    class Stopping(Silent):
        def begin(self, stage: str) -> None:
            self.stage = stage

        def update(self, done: int, total: int, note: str = "") -> None:
            if (self.stage, done) == ("trial 1", 1) and not stopped_at:
                stopped_at.append(note)
                signal.raise_signal(signal.SIGTERM)

    out = tmp_path / "out"
    with pytest.raises(Stopped, match="training is saved after step 1 of 2"):
        luthier.sweep(recipe, out, listener=Stopping(), trials=2)
    assert (out / "trials" / "0001" / "training" / "checkpoints" / "step-000001").is_dir()
    result = luthier.sweep(recipe, out, trials=2)
    assert by_number(result, "curve") == first_two(whole)
    assert result["counts"] == {"complete": 2, "pruned": 0, "failed": 0, "running": 0}


def wait_for(pattern: str, out: Path, process: subprocess.Popen) -> None:
    """Until the process has made such a file."""
    deadline = time.monotonic() + 300
    while not list(out.glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


def test_killed_with_its_trial_half_done(grid, rows, tiny_path, tmp_path):
    """SIGKILL in a trial: the next process takes the trial up where it was, and its figures are those of the grid."""
    _, whole, _ = grid
    sweep = {"space": GRID, "sampler": "grid", "pruner": "none", "trials": 2}
    values = values_of(rows, tiny_path, sweep, checkpoints={"every": 1})
    out = tmp_path / "out"
    process = start(values, out)
    wait_for("trials/0001/training/checkpoints/step-*", out, process)
    process.kill()
    process.communicate()
    result = luthier.sweep(parse_recipe(values), out)
    assert by_number(result, "curve") == first_two(whole)
    assert [trial["attempts"] for trial in result["trials"]] == [1, 2]


def test_two_processes_share_the_trials(grid, rows, tiny_path, tmp_path):
    _, whole, recipe = grid
    values = values_of(rows, tiny_path, {"space": GRID, "sampler": "grid", "pruner": "none"})
    out = tmp_path / "out"
    process = start(values, out)
    wait_for("trials/0000/recipe.yaml", out, process)
    luthier.sweep(recipe, out)
    told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    result = json.loads((out / "sweep.json").read_text())
    assert by_number(result, "curve") == by_number(whole, "curve")
    assert len({trial["worker"] for trial in result["trials"]}) == 2, "each has done some"
    assert set(by_number(result, "attempts").values()) == {1}, "none has taken the other's"


def test_two_processes_share_the_stages_before(tiny_path, tmp_path):
    """Both begin with the same stage: one trains it, the other waits for it."""
    values, out = chain_values(tiny_path, tmp_path), tmp_path / "out"
    process = start(values, out)
    wait_for("shared/recipe.yaml", out, process)
    result = luthier.sweep(parse_stages(values), out)
    told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert result["counts"]["failed"] == 0
    assert len(list((out / "shared").rglob("adapter_model.safetensors"))) >= 1


# --- the study itself -------------------------------------------------------------------------------------------


def book_of(out: Path, storage: str = "", **sweep):
    recipe = parse_recipe({"task": {"labels": ["a", "b"]}, "data": {"train": "x.jsonl"}, "sweep": sweep})
    out.mkdir(exist_ok=True)
    where = storage or f"sqlite:///{out / 'study.db'}"
    return studies.open_book(where, "s", recipe, resolved_sweep(recipe), out, "key", False)


def told(book, count: int) -> list[dict]:
    """Values of some trials, each told the same simple figure of its values."""
    found = []
    for _ in range(count):
        turn = book.next_turn()
        found.append(turn.values)
        book.complete(turn, abs(turn.values["tune.learning_rate"] - 3e-4))
    return found


RATE = {"tune.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}, "tune.epochs": {"low": 1, "high": 3, "step": 1}}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_nothing_but_the_seed_decides(sampler, tmp_path):
    """However the trials are cut into processes."""
    sweep = {"space": RATE, "sampler": sampler, "trials": 8, "startup_trials": 3, "pruner": "median"}
    whole = told(book_of(tmp_path / "whole", **sweep), 8)
    parts = [values for _ in range(2) for values in told(book_of(tmp_path / "parts", **sweep), 4)]
    assert parts == whole and whole[0] == {"tune.learning_rate": 5e-4, "tune.epochs": 2.0}
    assert len({values["tune.learning_rate"] for values in whole}) == 8
    assert {values["tune.epochs"] for values in whole} <= {1.0, 2.0, 3.0}
    rates = [values["tune.learning_rate"] for values in whole[1:]]
    assert min(rates) < 1e-4 and all(1e-5 <= rate <= 1e-2 for rate in rates)


def test_tpe_looks_where_good_trials_were(tmp_path):
    """Away from the best rate, 3e-4, by decades: later trials lie nearer than random ones do."""
    import math

    def away(sampler: str) -> float:
        sweep = {"space": RATE, "sampler": sampler, "trials": 24, "pruner": "median"}
        found = told(book_of(tmp_path / sampler, "sqlite:///:memory:", **sweep), 24)[12:]
        return sum(abs(math.log10(values["tune.learning_rate"] / 3e-4)) for values in found) / len(found)

    assert away("tpe") < 0.7 * away("random")


def test_a_trial_whose_process_dies_again_and_again_is_given_up(tmp_path):
    sweep = {"space": {"tune.batch_size": [4, 8]}, "sampler": "grid", "pruner": "none"}
    numbers = []
    for _ in range(4):  # each time as a new process that ends without a word
        turn = book_of(tmp_path, **sweep).next_turn()
        numbers.append(turn.number)
        turn.lock.release()
    assert numbers == [0, 0, 0, 1]
    values = studies.trial_values(book_of(tmp_path, **sweep).trials(), {}, tmp_path)
    assert [trial["state"] for trial in values] == ["failed", "running"]
    assert values[0]["error"] == "its process died 3 times (killed, or out of memory)."


def test_a_trial_of_another_machine_that_is_silent_has_failed(tmp_path):
    """The folder is not here, so it cannot be taken up; the last sign of life is an hour old."""
    sweep = {"space": {"tune.batch_size": [4, 8, 16]}, "sampler": "grid", "pruner": "none"}
    far = book_of(tmp_path, **sweep).next_turn()
    with far.alive():
        pass
    (tmp_path / "trials" / "0000").rmdir()
    here = book_of(tmp_path, **sweep)
    assert here.next_turn().number == 1
    assert studies.trial_values(here.trials(), {}, tmp_path)[0]["state"] == "running", "it may still be alive"
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')")
    connection.close()
    assert book_of(tmp_path, **sweep).next_turn().number == 2
    first, second, _ = studies.trial_values(here.trials(), {}, tmp_path)
    assert (first["state"], first["error"]) == ("failed", studies.GONE)
    assert second["state"] == "running", "its lock is held"


def test_a_lock_is_held_by_one(tmp_path):
    one, other = Lock(tmp_path / "a"), Lock(tmp_path / "a")
    assert one.taken() and not other.taken()
    one.release()
    assert other.taken()


def test_importance_finds_the_key_that_matters(tmp_path):
    book = book_of(tmp_path, "sqlite:///:memory:", space=RATE, sampler="random", trials=20, pruner="none")
    assert book.importances(0)[0] is None
    told(book, 20)
    shares, note = book.importances(0)
    assert note == "" and shares["tune.learning_rate"] > 0.8 and sum(shares.values()) == pytest.approx(1)


# --- what trials are compared by --------------------------------------------------------------------------------


def test_which_figure_compares_trials():
    recipe = parse_recipe({"task": {"labels": ["a", "b"]}, "data": {"train": "x.jsonl"}})

    def metric(sweep: dict, tune_metric: str = "loss") -> Metric:
        changed = recipe.model_copy(
            update={"sweep": None, "tune": recipe.tune.model_copy(update={"metric": tune_metric})}
        )
        return metric_of(changed, parse_recipe({**recipe.model_dump(), "sweep": sweep}).sweep, "accuracy", 7)

    assert metric({"space": {"tune.epochs": [1.0]}}) == Metric("loss", False, 7, checked=True)
    assert metric({"space": {"tune.label_smoothing": [0.1]}}) == Metric("accuracy", True, 7)
    assert metric({"space": {"tune.epochs": [1.0]}}, "accuracy") == Metric("accuracy", True, 7, checked=True)
    assert metric({"metric": "bits_per_byte"}) == Metric("bits_per_byte", False, 7)
    with pytest.raises(RecipeError, match="reward is neither better nor worse"):
        metric({"metric": "reward"})


class Teller:
    """Notes what a trial is told; says stop from a rung on."""

    def __init__(self, stop_at: int):
        self.number, self.last_rung, self.stop_at, self.told = 1, 0, stop_at, []

    def report(self, rung: int, value: float) -> bool:
        self.last_rung = rung
        self.told.append((rung, value))
        return rung >= self.stop_at


def heard(watch: Watch, losses: list[tuple[int, float]], num_steps: int) -> None:
    entries = [{"step": step, "loss": loss} for step, loss in losses]
    for count in range(1, len(entries) + 1):
        best = min(entries[:count], key=lambda entry: entry["loss"])
        step = entries[count - 1]["step"]
        watch(Progress(step, num_steps, 1.0, {}, 0.0, tuple(entries[:count]), int(best["step"])))


def test_rungs_are_quarters_of_an_epoch_whatever_the_steps():
    """Two epochs of 20 steps, a rung every 2.5 steps: steps 2, 3, 6, 8 are at rungs 0, 1, 2, 3."""
    teller = Teller(stop_at=99)
    watch = Watch(teller, Metric("loss", False, 5), epochs=2.0, unit=0.25, may_end=True)
    heard(watch, [(2, 9.0), (3, 5.0), (4, 4.0), (6, 6.0), (8, 3.0)], num_steps=20)
    assert teller.told == [(1, 5.0), (2, 4.0), (3, 3.0)], "the figure of the step that is best so far"
    with pytest.raises(Pruned):
        heard(Watch(Teller(2), Metric("loss", False, 5), 2.0, 0.25, may_end=True), [(3, 5.0), (6, 4.0)], 20)
    heard(Watch(Teller(2), Metric("loss", False, 5), 2.0, 0.25, may_end=False), [(3, 5.0), (6, 4.0)], 20)
    heard(Watch(Teller(8), Metric("loss", False, 5), 2.0, 0.25, may_end=True), [(3, 5.0), (20, 4.0)], 20)  # it is done


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_shows_what_would_be_searched(luthier, rows, tiny_path, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values_of(rows, tiny_path)))
    code, out, _ = luthier("sweep", path, "--dry-run", "--trials", "7", "--set", "tune.batch_size=2")
    shown = yaml.safe_load(out)["sweep"]
    assert code == 0 and shown["trials"] == 7 and shown["space"]["tune.batch_size"] == [1, 2, 4]
    assert shown["space"]["tune.learning_rate"] == {"low": 0.002, "high": 0.05, "log": True}
    again = parse_recipe({**values_of(rows, tiny_path), "sweep": shown})
    assert resolved_sweep(again).space == resolved_sweep(parse_recipe(values_of(rows, tiny_path, batch_size=2))).space
    code, _, err = luthier("sweep", path, "--set", "sweep.space={tune.epokhs: [1]}")
    assert code == 1 and 'there is no key "epokhs" in tune. Did you mean "epochs"?' in err
    assert luthier("sweep", tmp_path / "none.yaml")[0] == 1


def test_the_command_tells_the_best(luthier, grid, rows, tiny_path, tmp_path):
    out, result, _ = grid
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values_of(rows, tiny_path, {"space": GRID, "sampler": "grid", "pruner": "none"})))
    code, told, _ = luthier("sweep", path, "--out", out)
    assert code == 0 and f"Trial {result['best']['number']} is the best of 4" in told
    assert f"luthier run {out / 'best.yaml'}" in " ".join(told.split())
    code, told, _ = luthier("sweep", path, "--out", out, "--json")
    assert code == 0 and json.loads(told)["best"]["value"] == result["best"]["value"]


def test_without_optuna_the_message_names_the_extra(luthier, rows, tiny_path, tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values_of(rows, tiny_path)))
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "luthier.sweeps.study")
    monkeypatch.delattr(sys.modules["luthier.sweeps"], "study")
    code, _, err = luthier("sweep", path, "--out", tmp_path / "out")
    assert code == 1 and 'a sweep needs optuna, which is not installed. pip install "luthier[sweep]"' in err
    assert not (tmp_path / "out").exists()


def test_a_figure_that_cannot_be_computed_yet_is_no_wrong_name():
    """A precision where nothing was found: the trial is not compared there; a name that never comes ends the sweep."""
    entries = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.9, "entity_precision": 0.5}]
    checked, plain = (Metric("entity_precision", True, 5, checked=value) for value in (True, False))
    assert checked.of(entries[:1], 2) is None and plain.of(entries, 2) is None and plain.of(entries, 4) == 0.5
    with pytest.raises(NoFigureError):
        plain.of(entries[:1], 2)
    watch = Watch(Teller(9), checked, epochs=2.0, unit=0.25, may_end=True)
    watch(Progress(2, 20, 1.0, {}, 0.0, tuple(entries[:1]), 2))
    assert watch.value is None
