"""What ends a training early, and what is left of it: kills, a full disk, no memory, no number, damage, other settings."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import ModelError, RunError, TrainingError
from luthier.files import sha256
from luthier.recipe import Lora
from luthier.recipe.checkpoints import Checkpoints
from luthier.recipe.stages import parse_stages
from luthier.run_folder import RunFolder
from luthier.stages import train
from luthier.stopped import Stopped
from luthier.training.checkpoint import History, found_checkpoints, latest_checkpoint, save_checkpoint, step_of
from luthier.training.keeper import Keeper, is_out_of_memory
from survivor import Before, before_loss, contents, same
from teachers import wide_folder
from test_pipeline import Heard
from test_teacher import recipe_of
from test_training import Training, flip_a_byte, tune_of
from tiny import tiny_tokenizer

HERE = Path(__file__).parent
KILLS = 100
NO_NAMESPACE = "needs Linux user namespaces (unshare) to mount a file system that fills up"


def survivor(*words: object, before: tuple[str, ...] = ()) -> dict:
    """What tests/survivor.py prints."""
    done = subprocess.run(
        [*before, sys.executable, str(HERE / "survivor.py"), *map(str, words)],
        capture_output=True, text=True, check=False, cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- kill -9 --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_a_hundred_times_it_ends_in_the_same_bits(tiny_path, tmp_path):
    """At random moments, many of them while a checkpoint is written; each life goes on after the last one saved."""
    found = survivor("killed", tiny_path, tmp_path, KILLS)
    assert found["kills"] >= KILLS and found["finished"] >= 3, found
    assert found["while_writing"] >= KILLS // 10, found
    assert found["lost_steps"] == found["wrong_starts"] == found["wrong_ends"] == 0, found


def same_files(found: Path, wanted: Path) -> None:
    """Every file below has the same bytes."""
    names = sorted(str(path.relative_to(wanted)) for path in wanted.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) and names
    assert [name for name in names if sha256(found / name) != sha256(wanted / name)] == []


@pytest.fixture(scope="module")
def recipe(tiny_path, tmp_path_factory):
    """A recipe file: fine-tuning, then DPO on top, with dropout and validation."""
    folder = tmp_path_factory.mktemp("recipe")
    words = ["goal", "team", "match", "vote", "law", "senate", "song", "museum"]
    pairs = [{"prompt": f"the {a} of the {b}", "chosen": f"a {a} won", "rejected": f"{b} passed"}
             for a in words[:4] for b in words[4:]]  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    tune = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "checkpoints": {"every": 1}, "evaluate_every": 2,
            "memory": {"predict": False}, "adapter": {"rank": 2, "alpha": 4.0, "dropout": 0.1}}  # fmt: skip
    data = {"train": str(folder / "pairs.jsonl"), "validation_share": 0.25, "test_share": 0.25}
    stages = [{"method": method, "data": data, "tune": tune} for method in ("sft", "dpo")]
    values = {"name": "tiny", "model": str(tiny_path), "precision": "float32", "judge": {"resamples": 200}}
    (folder / "recipe.yaml").write_text(json.dumps({**values, "stages": stages}))  # JSON is YAML
    return folder / "recipe.yaml"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_command_ends_in_the_same_adapters(recipe, tmp_path):
    """`luthier train` killed while it loads, trains, computes references, scores, writes; stopped by Ctrl-C, SIGTERM."""
    found = survivor("commands", recipe, tmp_path, 8)
    assert found["killed"] >= 6
    assert found["ends"] == {"killed": 0, "SIGINT first": 130, "SIGINT": 0, "SIGTERM first": 143, "SIGTERM": 0}
    wanted = json.loads((tmp_path / "whole" / "result.json").read_text())["stages"]
    for out in ("killed", "SIGINT", "SIGTERM"):
        for stage in ("01-sft", "02-dpo"):
            same_files(tmp_path / out / "stages" / stage / "adapter", tmp_path / "whole" / "stages" / stage / "adapter")
        stages = json.loads((tmp_path / out / "result.json").read_text())["stages"]
        assert [stage["figures"] for stage in stages] == [stage["figures"] for stage in wanted]
        curves = [stage["training"]["curve"] for stage in stages]
        assert curves == [stage["training"]["curve"] for stage in wanted]
        assert not list((tmp_path / out).rglob(".*"))
    for out in ("SIGINT", "SIGTERM"):
        told = (tmp_path / f"{out}.err").read_text()
        assert "stopped on request: training is saved after step" in told and "Traceback" not in told


# --- what the machine runs out of -----------------------------------------------------------------------------------


def has_namespaces() -> bool:
    """Whether a file system may be mounted for a process alone."""
    if not shutil.which("unshare"):
        return False
    asked = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason=NO_NAMESPACE)
def test_a_full_disk_loses_nothing_and_says_how_much_is_wanted(tiny_path, tmp_path):
    (tmp_path / "small").mkdir()
    mount = 'mount -t tmpfs -o size=1500k none "$0" && exec "$@"'
    small = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path / "small"))
    found = survivor("filled", tiny_path, tmp_path / "small", tmp_path / "out", before=small)
    size = "a checkpoint takes 28.6 kB, and 8.2 kB are free there. Free at least 20.4 kB, or set "
    assert found["said"] == (
        f"{tmp_path}/small/run/checkpoints/step-000005: the disk is full: {size}tune.checkpoints.keep: 1, and run the "
        "same command again: training goes on after step 4."
    )
    assert (found["left"], found["same"]) == (4, True)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux limits")
def test_limits_of_the_system_on_files_and_memory(tiny_path, tmp_path):
    """RLIMIT_FSIZE: the checkpoint of step 8 cannot be written. RLIMIT_AS: step 6 does not fit, step 5 is saved."""
    found = survivor("limited", tiny_path, tmp_path)
    assert found["file"]["said"].endswith(
        "step-000008: a file may not become this large (ulimit -f). Raise that limit, and run the same command again."
    )
    assert found["memory"]["said"].startswith("step 6: out of memory (")
    assert found["memory"]["said"].endswith(
        "Set tune.micro_batch_tokens to 2048 (now 4096), and run the same command again: the steps stay the same and "
        f"training goes on. The state after step 5 of 40 is saved in {tmp_path}/memory/checkpoints/step-000005."
    )
    assert [(one["left"], one["first"], one["same"]) for one in found.values()] == [(4, 5, True), (5, 6, True)]


def test_what_counts_as_out_of_memory():
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50)
    assert is_out_of_memory(torchs.value) and is_out_of_memory(MemoryError()) and is_out_of_memory(
        torch.OutOfMemoryError("CUDA out of memory.")
    )  # fmt: skip
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError())


# --- a step that fails ----------------------------------------------------------------------------------------------


def dropping(**changes) -> Training:
    """Ten steps with dropout; a checkpoint every fourth."""
    path = changes.pop("path")
    values = {
        "checkpoints": {"every": 4},
        "adapter": Lora(rank=2, alpha=4.0, dropout=0.2),
        "memory": {"predict": False},
    }
    return Training(path, tune_of(**(values | changes)))


def fail(error: BaseException):
    def act() -> None:
        raise error

    return act


def interrupt_twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)


LAST = "The state after step 5 of 10 is saved in {folder}/checkpoints/step-000005."
ENDS = [
    (fail(MemoryError("no room")), TrainingError, "step 6: out of memory (no room). Set tune.micro_batch_tokens to 2048 "
     "(now 4096), and run the same command again: the steps stay the same and training goes on. " + LAST),
    (interrupt_twice, Stopped, f"interrupted: {LAST} Run the same command again to go on."),
    (fail(ValueError("a bug")), ValueError, "a bug"),
    (fail(TrainingError("step 6: odd.")), TrainingError, f"step 6: odd. {LAST}"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "kind", "told"), ENDS, ids=["memory", "two Ctrl-C", "bug", "training error"])
def test_a_step_that_fails_costs_that_step_only(act, kind, told, tiny_path, tmp_path):
    """The fifth step is saved though none was due, with the random state of before the sixth: the end is the same."""
    whole = dropping(path=tiny_path)
    whole.run(tmp_path / "whole")
    failing = dropping(path=tiny_path)
    before_loss(failing, 6, act)
    with pytest.raises(kind) as caught:
        failing.run(tmp_path / "cut")
    assert str(caught.value) == told.format(folder=tmp_path / "cut")
    if kind is ValueError:
        assert caught.value.__notes__ == [LAST.format(folder=tmp_path / "cut")]
    steps: list[int] = []
    dropping(path=tiny_path).run(tmp_path / "cut", lambda progress: steps.append(progress.step))
    assert steps == [6, 7, 8, 9, 10] and same(contents(tmp_path / "cut"), contents(tmp_path / "whole"))


def test_half_an_update_is_not_saved(tiny_path, tmp_path):
    """Memory runs out within the optimizer: some weights have moved, so what is left is the checkpoint of step 4."""
    failing = dropping(path=tiny_path)

    def break_the_update() -> None:
        parameter = list(failing.learner.trained().values())[-1]
        parameter.register_post_accumulate_grad_hook(spoil)

    def spoil(parameter: torch.Tensor) -> None:
        with torch.no_grad():
            parameter.add_(1.0)
        raise MemoryError("in the update")

    before_loss(failing, 6, break_the_update)
    with pytest.raises(TrainingError, match=r"The state after step 4 of 10 is saved in .*step-000004\.$"):
        failing.run(tmp_path / "cut")
    assert [step_of(path) for path in found_checkpoints(tmp_path / "cut")] == [4]
    dropping(path=tiny_path).run(tmp_path / "cut")
    dropping(path=tiny_path).run(tmp_path / "whole")
    assert same(contents(tmp_path / "cut"), contents(tmp_path / "whole"))


def test_an_optimizer_that_has_begun_is_no_good_state(tiny_path, tmp_path):
    training = dropping(path=tiny_path)
    parameters = list(training.learner.trained().values())
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    keeper = Keeper(tmp_path, training.tune, training.learner, optimizer, History(num_steps=10, step=3))
    keeper.note_good()
    assert keeper.good is not None
    optimizer.step()
    assert keeper.good is None and keeper.saved() == "Nothing is saved yet: training begins anew."


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tiny_path, tmp_path):
    training = dropping(path=tiny_path)

    class Broken(Before):
        def loss(self, outputs, batch):
            out = super().loss(outputs, batch)
            return type(out)(out.total * (math.nan if self.step <= 0 else 1.0), out.weight)

    training.method = Broken(training, 6, lambda: None)
    with pytest.raises(TrainingError) as caught:
        training.run(tmp_path)
    assert str(caught.value) == (
        "step 6: loss nan, gradient norm nan; the update was not made. Lower tune.learning_rate (now 0.005) or raise "
        "tune.warmup_share, and run again. " + LAST.format(folder=tmp_path)
    )
    tensors = load_file(tmp_path / "checkpoints" / "step-000005" / "state.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_weights_that_are_no_numbers_are_never_saved(tiny_path, tmp_path):
    """They would end every later call too, and push out the checkpoint that is good."""
    training = dropping(path=tiny_path)

    def spoil(progress) -> None:
        if progress.step == 8:
            with torch.no_grad():
                next(iter(training.learner.trained().values())).view(-1)[0] = math.inf

    with pytest.raises(
        TrainingError, match=r"the weights after step 8 are not finite \(1 of 112 tensors, first weight"
    ):
        training.run(tmp_path, spoil)
    assert [step_of(path) for path in found_checkpoints(tmp_path)] == [4]


def test_a_stop_does_not_wait_for_a_validation(tiny_path, tmp_path):
    """It comes within step 6, after which a validation is due: that is the first thing done when training goes on."""
    whole = dropping(path=tiny_path, evaluate_every=3)
    wanted = whole.run(tmp_path / "whole")
    stopped = dropping(path=tiny_path, evaluate_every=3)
    before_loss(stopped, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="training is saved after step 6 of 10") as caught:
        stopped.run(tmp_path / "cut")
    assert caught.value.exit_code == 143
    notes = json.loads((tmp_path / "cut/checkpoints/step-000006/checkpoint.json").read_text())
    assert [entry["step"] for entry in notes["history"]["validation"]] == [3]
    found = dropping(path=tiny_path, evaluate_every=3).run(tmp_path / "cut")
    assert found.validation == wanted.validation and same(contents(tmp_path / "cut"), contents(tmp_path / "whole"))


@pytest.mark.parametrize("validated", [True, False])
def test_a_stop_in_the_last_step_leaves_only_its_judgement_to_do(validated, tiny_path, tmp_path):
    def training() -> Training:
        made = dropping(path=tiny_path)
        made.validation = made.validation if validated else []
        return made

    training().run(tmp_path / "whole")
    stopped = training()
    before_loss(stopped, 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped, match="training is saved after step 10 of 10") as caught:
        stopped.run(tmp_path / "cut")
    assert caught.value.exit_code == 130
    again = training()
    found = again.run(tmp_path / "cut", lambda progress: pytest.fail("a step was made"))
    assert found.best_step > 0
    adapter = "best/adapter_model.safetensors"
    assert sha256(tmp_path / "cut" / adapter) == sha256(tmp_path / "whole" / adapter)


# --- damage ---------------------------------------------------------------------------------------------------------


def test_the_user_is_told_of_a_damaged_checkpoint(tiny_path, tmp_path):
    dropping(path=tiny_path).run(tmp_path)
    newest = tmp_path / "checkpoints" / "step-000010"
    flip_a_byte(newest)
    said: list[str] = []
    dropping(path=tiny_path).run(tmp_path, say=said.append)
    assert said[-1] == (
        f"{newest}: damaged (state.safetensors missing or not as written) and not used; training goes on after step 8."
    )
    assert latest_checkpoint(tmp_path) == newest, "and it is written anew"


def test_where_no_checkpoint_is_whole_training_begins_anew(tiny_path, tmp_path):
    dropping(path=tiny_path).run(tmp_path)
    wanted = contents(tmp_path)
    for path in found_checkpoints(tmp_path):
        flip_a_byte(path)
    said: list[str] = []
    steps: list[int] = []
    dropping(path=tiny_path).run(tmp_path, lambda progress: steps.append(progress.step), said.append)
    assert len([text for text in said if text.endswith("not used; training starts from the first step.")]) == 2
    assert steps == list(range(1, 11)) and same(contents(tmp_path), wanted)


def test_damaged_best_weights_are_not_taken_for_good(tiny_path, tmp_path):
    """What a checkpoint says of the best step is of no use without those weights; they come back by training."""
    dropping(path=tiny_path).run(tmp_path)
    wanted = contents(tmp_path)
    (tmp_path / "best" / "adapter_model.safetensors").unlink()
    said: list[str] = []
    dropping(path=tiny_path).run(tmp_path, say=said.append)
    assert any("damaged (best/adapter_model.safetensors missing or not as written)" in text for text in said)
    assert same(contents(tmp_path), wanted)


def test_a_checkpoint_of_another_version_is_refused(tiny_path, tmp_path):
    dropping(path=tiny_path).run(tmp_path)
    path = latest_checkpoint(tmp_path)
    notes = json.loads((path / "checkpoint.json").read_text())
    for changed in ({**notes, "form": 1}, {**notes, "history": {"step": 10, "num_steps": 10}}):
        (path / "checkpoint.json").write_text(json.dumps(changed))
        sums = {file.name: sha256(file) for file in path.iterdir() if file.name != "checksums.json"}
        (path / "checksums.json").write_text(json.dumps(sums))
        with pytest.raises(RunError, match="was written by another version of luthier and cannot be read. Finish that"):
            dropping(path=tiny_path).run(tmp_path)
    assert path.is_dir(), "nothing is deleted"


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"every": 1, "keep": 1}, [10]),
        ({"every": 2, "keep": 3}, [6, 8, 10]),
        ({"every": 1, "keep": 1, "keep_every": 4}, [4, 8, 10]),
        ({"every": 5, "keep": 1, "keep_every": 4}, [4, 8, 10]),
        ({"every": 100, "minutes": 1e-9}, [9, 10]),
        ({"every": 100, "minutes": 60}, [10]),
    ],
)
def test_which_checkpoints_are_kept(settings, kept, tiny_path, tmp_path):
    dropping(path=tiny_path, checkpoints=settings).run(tmp_path)
    assert [step_of(path) for path in found_checkpoints(tmp_path)][::-1] == kept


def test_fewer_are_kept_from_the_next_call_on(tiny_path, tmp_path):
    """`keep: 1` makes room before anything is written: the answer to a full disk."""
    dropping(path=tiny_path).run(tmp_path)
    dropping(path=tiny_path, checkpoints={"keep": 1}).run(tmp_path)
    assert [step_of(path) for path in found_checkpoints(tmp_path)] == [10]


def test_steps_beyond_a_million_keep_their_order(tmp_path):
    for step in (999_999, 1_000_000, 20):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    assert [step_of(path) for path in found_checkpoints(tmp_path)] == [1_000_000, 999_999, 20]


class Counter(torch.optim.Optimizer):
    """Plain descent whose state is a whole number, a fraction and a half-precision tensor."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                state["sum"] = state.get("sum", 0.1) + 0.7
                state["memory"] = p.detach().half()


def test_an_optimizers_plain_values_come_back_as_they_were(tiny_path, tmp_path):
    training = dropping(path=tiny_path)
    made = [Counter([{"params": list(training.learner.trained().values())}], {}) for _ in range(2)]
    for _ in range(3):
        made[0].step()
    history = History(num_steps=10, step=3)
    save_checkpoint(tmp_path, training.learner, made[0], history)
    keeper = Keeper(tmp_path, training.tune, training.learner, made[1], History(num_steps=10))
    keeper.resume(lambda text: None)
    assert keeper.history == history
    for p, state in made[0].state.items():
        found = made[1].state[p]
        assert (found["count"], found["sum"]) == (3, state["sum"]) and type(found["count"]) is int
        assert found["memory"].dtype == torch.float16 and torch.equal(found["memory"], state["memory"])


def test_checkpoints_are_settings_like_others():
    assert Checkpoints().model_dump() == {"every": 20, "minutes": 10.0, "keep": 2, "keep_every": 0}
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Checkpoints(keep=0)


# --- other settings in the same folder ------------------------------------------------------------------------------


def unfinished(folder: Path, step: int = 3) -> None:
    path = folder / "training" / "checkpoints" / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))


def test_an_unfinished_training_is_set_aside_and_comes_back(tmp_path):
    """First settings, then others, then the first again. Nothing that was trained is lost, and the user is told."""
    run, folder = RunFolder(tmp_path), tmp_path / "stages" / "01-sft"
    assert run.take_up("01-sft", folder, {"rate": 1}) == ""
    unfinished(folder)
    assert run.take_up("01-sft", folder, {"rate": 1}) == "" and (folder / "training").is_dir()
    told = run.take_up("01-sft", folder, {"rate": 2})
    assert told == (
        f"Rows, settings or code are not those of the unfinished training that was in {folder}: it is set aside in "
        f"{folder}.earlier. Put things back as they were to take it up again, or delete it."
    )
    assert sorted(path.name for path in folder.iterdir()) == ["inputs.txt"]
    unfinished(folder, 5)
    told = run.take_up("01-sft", folder, {"rate": 1})
    assert told.startswith(f"the training with these settings, set aside earlier, is taken up again in {folder}. Rows")
    assert [path.name for path in (folder / "training" / "checkpoints").iterdir()] == ["step-000003"]
    kept = folder.with_name("01-sft.earlier") / "training" / "checkpoints"
    assert [path.name for path in kept.iterdir()] == ["step-000005"]


def test_a_finished_training_makes_way(tmp_path):
    run, folder = RunFolder(tmp_path), tmp_path / "stages" / "01-sft"
    run.take_up("01-sft", folder, {"rate": 1})
    unfinished(folder)
    run.stage("01-sft", {"rate": 1}, lambda: {"done": True})
    assert run.take_up("01-sft", folder, {"rate": 2}) == ""
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["01-sft", "01-sft.json"]


def test_a_run_begins_without_what_a_killed_one_left_half_written(tmp_path):
    """References of a stage, killed while they are written: known ones come back, half of the new ones goes."""
    run, stage = RunFolder(tmp_path), tmp_path / "stages" / "02-dpo"
    run.prepare("name: one")
    for name in (".reference.old", ".reference.x1y2z3.partial"):
        (stage / name).mkdir(parents=True)
    run.prepare("name: one")
    assert [path.name for path in stage.iterdir()] == ["reference"]


def test_what_is_known_by_content_stays(tmp_path):
    run, folder = RunFolder(tmp_path), tmp_path / "stages" / "01-dpo"
    run.take_up("01-dpo", folder, {"rate": 1})
    for name in ("reference", "tasks/a/teacher", "adapter"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kept").write_text(name)
    run.take_up("01-dpo", folder, {"rate": 2}, ("reference", "tasks/*/teacher"))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("kept")) == [
        "reference/kept",
        "tasks/a/teacher/kept",
    ]


def with_tune(recipe: Path, stage: int, **changes):
    """The recipe with other settings of a stage's training."""
    values = json.loads(recipe.read_text())
    values["stages"][stage]["tune"] |= changes
    return parse_stages(values)


def test_other_settings_compute_no_reference_anew_and_other_cuts_nothing_at_all(recipe, tmp_path):
    """A higher rate in DPO trains anew on the kept references; smaller micro-batches, or fewer checkpoints: no work."""
    first = train(with_tune(recipe, 1), tmp_path)
    (kept,) = tmp_path.glob("stages/02-dpo/reference/logprobs.safetensors")
    written = kept.stat()
    heard = Heard()
    again = train(with_tune(recipe, 1, micro_batch_tokens=64, checkpoints={"every": 7}), tmp_path, listener=heard)
    assert heard.cached == {"sft": True, "dpo": True, "report": False}
    assert again["stages"] == first["stages"]
    heard = Heard()
    changed = train(with_tune(recipe, 1, learning_rate=1e-3), tmp_path, listener=heard)
    assert heard.cached["dpo"] is False and changed["stages"][1]["figures"] != first["stages"][1]["figures"]
    now = kept.stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    train(with_tune(recipe, 0, learning_rate=1e-3), tmp_path)  # another SFT model is another reference
    assert kept.stat().st_ino != written.st_ino or kept.stat().st_mtime_ns != written.st_mtime_ns


class Breaking(Heard):
    """Ends the run, as a crash would, after two steps of a training."""

    def update(self, done: int, total: int, note: str = "") -> None:
        if note.startswith("loss") and done == 2:
            raise InterruptedError


@pytest.mark.parametrize("what", ["forward_kl", "answers"])
def test_a_teacher_that_has_said_all_may_be_gone(what, tiny_path, tmp_path):
    """Its folder is deleted after the run was cut short. The rest needs its kept words only; other rows need it."""
    teacher = wide_folder(tmp_path / "teacher", len(tiny_tokenizer()))
    method = {"teacher": str(teacher), "what": what} | ({"max_answer_tokens": 20} if what == "answers" else {})
    if what == "answers":
        method["answer_temperature"] = 0.7
    recipe = recipe_of(tmp_path, tiny_path, method, memory={"predict": False}, checkpoints={"every": 1})
    wanted = train(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "cut", listener=Breaking())
    shutil.rmtree(teacher)
    found = train(recipe, tmp_path / "cut")
    assert found["stages"][0]["figures"] == wanted["stages"][0]["figures"]
    assert train(recipe, tmp_path / "cut")["stages"] == found["stages"]
    with pytest.raises(ModelError, match="is neither a starter"):
        train(recipe, tmp_path / "new")
    turns = [{"role": "user", "content": "a new law"}, {"role": "assistant", "content": "a vote"}]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(ModelError, match="is neither a starter"):
        train(recipe, tmp_path / "cut")
