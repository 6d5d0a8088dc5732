"""Where models live: whole runs on a device that refuses tensors left on the CPU (tests/pretend_device.py).

No GPU is needed, and none is tried: kernels, memory and speed of a real one are not seen here.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import luthier
from luthier.errors import ModelError, RunError
from luthier.models import load_model
from luthier.recipe import parse_recipe
from luthier.recipe.stages import parse_stages
from luthier.runtime import chosen_device
from luthier.stages import train
from test_pipeline import recipe as run_recipe
from test_pipeline import write_rows

BAKERY = Path(__file__).parents[1] / "examples" / "bakery"
# name of a recipe of the bakery: what is changed in its stage's `tune`
STAGES = {
    "reward": {},
    "regress": {"adapter": {"kind": "none"}},
    "tag": {"adapter": {"kind": "full"}, "optimizer": "muon"},
    "dpo": {"memory": {"checkpointing": "all"}, "adapter": {"kind": "lora", "dora": True}},
    "kto": {"adapter": {"kind": "sparse"}},
    "sft": {"adapter": {"kind": "full"}, "unfreeze": "share", "average": "ema", "neftune_alpha": 5.0},
}

ROUNDED = ("reward", "tag")  # again with products in bfloat16: a low-rank adapter, and whole weights


def stage_recipe(name: str, model: Path, tune: dict) -> dict:
    values = yaml.safe_load((BAKERY / f"{name}.yaml").read_text())
    (stage,) = values["stages"]
    stage["data"]["train"] = str(BAKERY / stage["data"]["train"])
    stage["tune"] = {"epochs": 0.3, "batch_size": 4, "evaluate_every": 100, **tune}
    return values | {"model": str(model), "precision": "float32", "judge": {"resamples": 200}}


def continued_recipe(model: Path) -> dict:
    """A regression trained on as another one: another scale, so a fresh head of the same size."""
    values = stage_recipe("regress", model, {"adapter": {"kind": "lora", "rank": 2}})
    (stage,) = values["stages"]
    other = {**stage, "name": "second", "start": "continue", "data": {**stage["data"], "max_rows": 8}}
    return values | {"stages": [stage, other]}


@pytest.fixture(scope="module")
def jobs(tiny_path, tmp_path_factory):
    """Recipes by name, and the results of all of them on the pretended device."""
    folder = tmp_path_factory.mktemp("device")
    (folder / "model").symlink_to(tiny_path)
    write_rows(folder / "train.jsonl", 20, 1)
    write_rows(folder / "test.jsonl", 8, 2)
    recipes = {name: stage_recipe(name, tiny_path, tune) for name, tune in STAGES.items()}
    recipes["continued"] = continued_recipe(tiny_path)
    run = run_recipe(folder, precision="float32").model_dump(mode="json", exclude_unset=True)
    recipes["run"] = run
    recipes |= {f"{name} rounded": recipes[name] | {"precision": "bfloat16"} for name in ROUNDED}
    listed = [{"recipe": recipe, "out": str(folder / name)} for name, recipe in recipes.items()]
    (folder / "jobs.json").write_text(json.dumps(listed))
    environment = {"LUTHIER_DEVICE": "pretend:0", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("pretend_device.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return recipes, {name: json.loads((folder / f"{name}.json").read_text()) for name in recipes}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_learns_the_same_there(name, jobs, tmp_path):
    recipes, found = jobs
    assert found[name]["environment"]["device"] == "pretend:0"
    wanted = train(parse_stages(recipes[name]), tmp_path / "run")
    assert wanted["environment"]["device"] == "cpu"
    for figure, values in wanted["stages"][0]["figures"].items():
        for when in ("before", "after"):
            here, there = values[when]["value"], found[name]["stages"][0]["figures"][figure][when]["value"]
            assert (here is None and there is None) or math.isclose(here, there, rel_tol=2e-3, abs_tol=2e-3), figure


def test_a_fresh_head_over_a_continued_adapter_is_moved_there(jobs):
    """In the place of a saved one of its size that answers another question."""
    stages = jobs[1]["continued"]["stages"]
    described = [json.loads((Path(stage["adapter"]) / "method.json").read_text()) for stage in stages]
    assert described[0] != described[1] and stages[1]["training"]["steps"] > 0


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_products_learn_about_the_same_there(name, jobs):
    """Beside the same device in float32: not the same numbers, and near them."""
    exact, found = (jobs[1][key] for key in (name, f"{name} rounded"))
    assert found["environment"]["precision"] == "bfloat16" and exact["environment"]["precision"] == "float32"
    curves = [one["stages"][0]["training"]["curve"]["train"] for one in (exact, found)]
    ends = [[step["loss"] for step in curve] for curve in curves]
    assert len(ends[0]) == len(ends[1]) and ends[0] != ends[1]
    assert all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(*ends, strict=True))


def test_every_arm_answers_the_same_there(jobs, tmp_path):
    recipes, found = jobs
    wanted = luthier.run(parse_recipe(recipes["run"]), tmp_path / "run")
    there = found["run"]["arms"]
    assert {arm: values["accuracy"] for arm, values in wanted["arms"].items()} == {
        arm: values["accuracy"] for arm, values in there.items()
    }


def test_what_torch_has_not_is_refused(monkeypatch, tiny_path):
    monkeypatch.setenv("LUTHIER_DEVICE", "warp:3")
    with pytest.raises(RunError, match=r"LUTHIER_DEVICE=warp:3: torch cannot use it here .* Set LUTHIER_DEVICE to cpu"):
        chosen_device()
    with pytest.raises(ModelError, match="precision: bfloat16 has no hardware on meta"):
        load_model(str(tiny_path), device="meta", precision="bfloat16")


@pytest.mark.parametrize("word", ["", "auto", "cpu"])
def test_without_a_gpu_it_is_the_cpu(word, monkeypatch):
    monkeypatch.setenv("LUTHIER_DEVICE", word)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert chosen_device() == "cpu"
