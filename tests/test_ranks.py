"""Several processes learn what one learns from the same rows, and read each other's checkpoints."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file

from luthier import processes
from luthier.errors import RunError, TrainingError
from luthier.files import check_folder
from luthier.methods.base import Example, distinct_tokens
from luthier.recipe.adapters import Full, Lora, Qlora
from luthier.recipe.optimizers import Muon
from luthier.records import Sequence
from luthier.training.ranks import dealt, here
from luthier.training.ranks_shard import refuse_unsharded
from luthier.training.ranks_together import refuse_alone, way_of
from test_preferences import WORDS
from test_training import tune_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
TOLERANCE = 1e-5  # relative, float32: a sum over ranks is taken in another order than one over rows
TUNE = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "adapter": {"rank": 2, "alpha": 4.0}}
SHARES = {"validation_share": 0.2, "test_share": 0.25}


class Jobs:
    """A process that runs jobs (tests/ranked.py) in forks of itself; a job with the same settings is run once."""

    def __init__(self, model: Path, folder: Path):
        self.model, self.folder, self.done = model, folder, {}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ranked.py")), str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def run(self, folder: Path, size: int, **job) -> tuple[int, list[dict]]:
        """(exit status, what each process came to)."""
        folder.mkdir(exist_ok=True)
        self.server.stdin.write(json.dumps({"size": size, "folder": str(folder), **job}) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        results = [folder / f"result-{rank}.json" for rank in range(size)]
        return code, [json.loads(path.read_text()) if path.is_file() else {} for path in results]

    def loop(self, size: int, folder: Path | None = None, **settings) -> dict:
        """What the first process says of a training; the others have to agree."""
        key = json.dumps([size, settings])
        if folder is None and key in self.done:
            return self.done[key]
        place = folder or self.folder / f"job-{len(self.done)}"
        code, results = self.run(place, size, work="loop", model=str(self.model), **settings)
        assert code == 0, [result.get("trace") for result in results]
        first, *others = [result["value"] for result in results]
        assert all(without_seconds(other) == without_seconds(first) for other in others), "all know the same"
        found = {**first, "folder": place}
        if "stopped" not in found:
            found["weights"] = load_file(place / "weights.safetensors")
        if folder is None:
            self.done[key] = found
        return found


def without_seconds(result: dict) -> dict:
    return {key: value for key, value in result.items() if "seconds" not in key}


@pytest.fixture(scope="module")
def jobs(tiny_path, tmp_path_factory):
    """The process that forks."""
    found = Jobs(tiny_path, tmp_path_factory.mktemp("ranks"))
    yield found
    found.server.communicate(timeout=60)  # no more jobs: it ends


def assert_same_training(found: dict, wanted: dict) -> None:
    """Loss and gradient norm of each step, validations, and the weights that are left, up to rounding.

    AdamW divides a gradient by its own size: where that is rounding noise, the update is noise as well, a small part of
    the rate.
    """
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [step[name] for step in found["train"]] == pytest.approx(
            [step[name] for step in wanted["train"]], rel=TOLERANCE
        ), name
    for there, here_ in zip(found["validation"], wanted["validation"], strict=True):
        assert there == pytest.approx(here_, rel=TOLERANCE)
    assert found["best_step"] == wanted["best_step"]
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, tensor in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-4, atol=5e-5)


# --- one trajectory --------------------------------------------------------------------------------------------


CASES = [
    ("sft", "lora", "replicate", 2),
    ("sft", "lora-1", "shard", 2),  # A has one row: the second rank holds none of it
    ("head", "lora", "shard", 2),
    pytest.param("head", "lora", "replicate", 3, marks=pytest.mark.slow),
    ("candidates", "full", "auto", 2),
    ("sft", "full", "replicate", 2),
    pytest.param("sft", "ia3", "shard", 2, marks=pytest.mark.slow),
]
FIVE_STEPS = {"learning_rate": 1e-3, "epochs": 2.0, "micro_batch_tokens": 64}


@pytest.mark.parametrize(("method", "adapter", "parallel", "size"), CASES)
def test_several_processes_learn_what_one_learns(method, adapter, parallel, size, jobs):
    settings = FIVE_STEPS | {"method": method, "adapter": adapter}
    wanted = jobs.loop(1, **settings)
    found = jobs.loop(size, parallel=parallel, **settings)
    assert_same_training(found, wanted)
    assert len(found["train"]) == 5 and found["distributed"] and not wanted["distributed"]
    assert found["tokens"][0] == wanted["tokens"][0] and found["tokens"][2] == wanted["tokens"][2]
    assert set(found["parameters"]) == {"Parameter"}, "the learner is whole again"


def test_more_processes_than_rows(jobs):
    """One or two rows a step for three ranks: whoever has none keeps the others company."""
    settings = {"adapter": "full", "learning_rate": 1e-3, "batch_size": 2, "rows": 5, "epochs": 1.4}
    assert_same_training(jobs.loop(3, **settings), jobs.loop(1, **settings))


def test_a_checkpointed_and_averaged_training_in_shards(jobs):
    settings = FIVE_STEPS | {"memory": {"checkpointing": "all"}, "average": "ema", "neftune_alpha": 5.0}
    assert_same_training(jobs.loop(2, parallel="shard", **settings), jobs.loop(1, **settings))


def test_each_process_draws_its_own_dropout(jobs):
    """The same twice, and not what one process draws for all rows."""
    settings = FIVE_STEPS | {"adapter": "dropout", "method": "sft"}
    first, again = (jobs.loop(2, jobs.folder / name, **settings) for name in ("first", "again"))
    assert again["train"] == first["train"]
    assert [s["loss"] for s in first["train"]] != [s["loss"] for s in jobs.loop(1, **settings)["train"]]


# --- checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "parallel", "before", "after"),
    [
        ("full", "shard", 2, 1),
        ("full", "shard", 1, 2),
        pytest.param("full", "shard", 2, 3, marks=pytest.mark.slow),
        ("lora", "replicate", 2, 1),
    ],
)
def test_a_checkpoint_is_read_by_any_number_of_processes(adapter, parallel, before, after, jobs, tmp_path):
    """SIGTERM to one of them after step 2 stops all; other processes go on, and end where one alone does."""
    settings = FIVE_STEPS | {
        "adapter": adapter,
        "parallel": parallel,
        "method": "candidates",
        "checkpoints": {"every": 0},
    }
    stopped = jobs.loop(before, tmp_path, stop_after=2, **settings)
    assert stopped["stopped"].startswith("stopped on request: training is saved after step 2 of 5.")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == "step-000002" and check_folder(checkpoint) == []
    shards = sorted(path.name for path in checkpoint.glob("shards/*"))
    assert len(shards) == (before if parallel == "shard" and before > 1 else 0)
    found = jobs.loop(after, tmp_path, **settings)
    assert found["steps"] == [3, 4, 5]
    assert_same_training(found, jobs.loop(1, adapter=adapter, method="candidates", **FIVE_STEPS))
    left = {path.name for path in (tmp_path / "run").iterdir()} | {
        path.name for path in (tmp_path / "run" / "checkpoints").iterdir()
    }
    assert not [name for name in left if name.startswith(".")], "nothing half-written is left behind"


def test_two_processes_resume_bit_for_bit(jobs, tmp_path):
    """Each with its own random state, so dropout goes on where it was; a damaged shard falls back."""
    settings = FIVE_STEPS | {"adapter": "dropout", "method": "sft", "parallel": "shard", "checkpoints": {"every": 2}}
    whole = jobs.loop(2, tmp_path / "whole", **settings)
    jobs.loop(2, tmp_path / "cut", stop_after=3, **settings)
    newest = tmp_path / "cut" / "run" / "checkpoints" / "step-000003"
    shard = next(newest.glob("shards/*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = jobs.loop(2, tmp_path / "cut", **settings)
    assert found["steps"] == [3, 4, 5]
    assert found["train"] == whole["train"]
    assert all(torch.equal(found["weights"][name], tensor) for name, tensor in whole["weights"].items())


# --- whole runs ------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, model: Path) -> Path:
    """Documents, then pairs over them (stacked), then thumbs (merged): adapters, references and a merged model."""
    names = list(itertools.islice(itertools.permutations(WORDS, 2), 0, 72, 3))
    pairs = [{"prompt": f"the {a} of the {b}", "chosen": f"a {a} won", "rejected": f"{b} passed"} for a, b in names]
    rows = {
        "clm": [{"text": f"the {a} of the {b} won a {a} by a vote of {i}"} for i, (a, b) in enumerate(names)],
        "dpo": pairs,
        "kto": [
            {"prompt": row["prompt"], "completion": row[("rejected", "chosen")[i % 2]], "label": bool(i % 2)}
            for i, row in enumerate(pairs)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    stages = [
        {"method": {"kind": name}, "data": {"train": str(folder / f"{name}.jsonl"), **SHARES},
         "tune": TUNE | {"parallel": parallel}, "start": start}
        for name, start, parallel in (("clm", "stack", "replicate"), ("dpo", "stack", "replicate"),
                                      ("kto", "merge", "shard"))
    ]  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"model": str(model), "precision": "float32", "stages": stages}))
    return path


def assert_same_result(found: dict, wanted: dict) -> None:
    """Losses, and every figure before and after, of all stages."""
    for there, here_ in zip(found["stages"], wanted["stages"], strict=True):
        curves = [[step["loss"] for step in stage["training"]["curve"]["train"]] for stage in (there, here_)]
        assert curves[0] == pytest.approx(curves[1], rel=TOLERANCE)
        for name, figure in here_["figures"].items():
            for when in ("before", "after"):
                value = figure[when]["value"]
                assert there["figures"][name][when]["value"] == (
                    value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
                ), name


def test_stages_with_references_in_two_processes(jobs, tiny_path, tmp_path):
    """One after the other, replicas and shards; KTO asks the learner about all rows of a step."""
    recipe = str(write_recipe(tmp_path, tiny_path))
    (alone,) = jobs.run(tmp_path / "one", 1, work="chain", recipe=recipe, overrides=[])[1]
    code, (first, second) = jobs.run(tmp_path / "two", 2, work="chain", recipe=recipe, overrides=[])
    assert code == 0, (first.get("trace"), second.get("trace"))
    assert_same_result(first["value"], alone["value"])
    assert second["value"]["stages"] == first["value"]["stages"]
    kept = [
        load_file(next((tmp_path / name).glob("run/stages/02*/reference/*.safetensors"))) for name in ("one", "two")
    ]
    assert kept[0].keys() == kept[1].keys()
    for key, value in kept[0].items():
        torch.testing.assert_close(kept[1][key], value)


@pytest.mark.slow
def test_torchrun_runs_the_command(tiny_path, tmp_path):
    """`torchrun -m luthier train`: one result on standard output, one speaker."""
    recipe = write_recipe(tmp_path, tiny_path)
    kept = json.loads(recipe.read_text())
    recipe.write_text(json.dumps(kept | {"stages": kept["stages"][:1]}))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         "-m", "luthier", "train", str(recipe), "--out", str(tmp_path / "out"), "--json"],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (told,) = done.stdout.splitlines()
    result = json.loads(told)
    assert result["stages"][0]["training"]["steps"] == 4
    assert json.loads((tmp_path / "out" / "result.json").read_text())["verdict"] == result["verdict"]


# --- who does what ---------------------------------------------------------------------------------------------


ROWS = some.lists(some.lists(some.integers(0, 2), min_size=1, max_size=6), max_size=7)


@given(ROWS, some.integers(1, 4))
def test_rows_are_dealt_so_that_the_largest_share_is_smallest(rows, size):
    """Against every way of cutting the sorted rows."""
    examples = [Example((Sequence(tuple(tokens)),), key=str(i)) for i, tokens in enumerate(rows)]
    pieces = dealt(examples, size)
    ordered = [row for piece in pieces for row in piece]
    assert len(pieces) == size and sorted(row.key for row in ordered) == sorted(row.key for row in examples)
    assert [row.sequences[0].tokens for row in ordered] == sorted(tuple(tokens) for tokens in rows)

    def cost(piece: list[Example]) -> int:
        befores = [(), *(row.sequences[0].tokens for row in piece)]
        return sum(distinct_tokens(row, before) for row, before in zip(piece, befores, strict=False))

    borders = itertools.combinations_with_replacement(range(len(ordered) + 1), size - 1)
    ways = ([0, *cut, len(ordered)] for cut in borders)
    best = min(max(cost(ordered[a:b]) for a, b in itertools.pairwise(way)) for way in ways)
    assert max(map(cost, pieces)) == best


def test_one_process_has_nobody_to_ask():
    assert (processes.num_processes(), processes.rank(), processes.is_first()) == (1, 0, True)
    assert processes.gathered("x") == ["x"] and processes.told("x") == "x" and processes.any_of(False) is False
    with processes.first_goes_first():
        processes.wait()
    assert processes.joined.cache_info().currsize == 0, "and joined no group for that"
    assert type(here()).__name__ == "Ranks"


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        (tune_of(optimizer=Muon()), "optimizer: muon looks at whole matrices"),
        (tune_of(adapter=Qlora(rank=2)), "adapter.kind: qlora cannot be cut into shards"),
        (tune_of(layer_drop=0.2), "layer_drop skips layers"),
        (tune_of(unfreeze="share", adapter=Lora(rank=2)), "unfreeze and cache_below change which layers take part"),
    ],
)
def test_what_shards_cannot_do_is_refused(tune, told):
    with pytest.raises(TrainingError, match=told) as caught:
        refuse_unsharded(tune, None)
    assert str(caught.value).endswith("Set tune.parallel: replicate.")


def test_a_penalty_needs_whole_parameters():
    with pytest.raises(TrainingError, match=r"keep\.penalty compares whole parameters\. Set tune\.parallel: replicate"):
        refuse_unsharded(tune_of(), lambda: torch.zeros(()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"micro_batch_tokens": "auto"}, "tune.micro_batch_tokens: auto tries out what fits"),
        ({"memory": {"optimizer_in_backward": True}, "clip_norm": 0.0}, "updates before gradients are summed"),
    ],
)
def test_what_one_process_only_can_do_is_refused(changes, told):
    with pytest.raises(TrainingError, match=told):
        refuse_alone(tune_of(**changes))


def test_whole_weights_go_into_shards_unless_said_otherwise():
    assert [way_of(tune_of(adapter=adapter)) for adapter in (Full(), Lora())] == ["shard", "replicate"]
    assert way_of(tune_of(adapter=Full(), parallel="replicate")) == "replicate"


def test_a_process_with_other_rows_is_found_out(jobs, tmp_path):
    code, results = jobs.run(tmp_path, 2, work="loop", model=str(jobs.model), others=True)
    assert code != 0
    for result in results:
        assert result["error"].startswith("TrainingError: process 1 has not got the same rows as process 0. Give every")


def test_an_environment_that_is_half_set_up(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RunError, match=r"has WORLD_SIZE=2, but no MASTER_ADDR and no MASTER_PORT\. Start several"):
        processes.wait()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RunError, match="WORLD_SIZE=two, which is no number"):
        processes.num_processes()


def test_commands_for_one_process_are_refused_in_several(luthier, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = luthier("sweep", "recipe.yaml")
    assert (code, out) == (1, "")
    assert err.startswith("Error: luthier sweep runs in one process; `run` and `train` share their work among several.")


def test_a_process_that_dies_takes_nothing_with_it(jobs, tmp_path):
    """SIGKILL of one of two in shards: what it had saved is whole, and one process goes on from there."""
    settings = FIVE_STEPS | {"adapter": "full", "method": "candidates", "checkpoints": {"every": 2}}
    code, _ = jobs.run(tmp_path, 2, work="loop", model=str(jobs.model), die_after=3, **settings)
    assert os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGKILL
    found = jobs.loop(1, tmp_path, **settings)
    assert found["steps"] == [3, 4, 5]
    assert_same_training(found, jobs.loop(1, adapter="full", method="candidates", **FIVE_STEPS))
