"""The whole run on a tiny model: every arm, the result, resuming, and the tutorial's mistakes made impossible."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import luthier
from luthier.errors import DataError, ModelError, RecipeError, RunError
from luthier.files import write_checksums
from luthier.locks import Lock
from luthier.pipeline import Pipeline
from luthier.progress import Silent
from luthier.recipe import ALL_ARMS, parse_recipe
from luthier.run_folder import RunFolder
from luthier.stopped import Stopped
from tiny import tiny_folder

LABELS = ["SPORTS", "POLITICS", "ARTS & CULTURE"]
WORDS = {
    "SPORTS": ["goal", "team", "match", "won"],
    "POLITICS": ["vote", "law", "senate", "passed"],
    "ARTS & CULTURE": ["painter", "museum", "song", "new"],
}


class Heard(Silent):
    """Remembers which stages were computed and which were there already."""

    def __init__(self) -> None:
        self.cached: dict[str, bool] = {}
        self.said: list[str] = []

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        self.cached[stage] = cached

    def say(self, text: str) -> None:
        self.said.append(text)


def write_rows(path: Path, per_label: int, seed: int) -> Path:
    draw = np.random.default_rng(seed)
    spellings = {"ARTS & CULTURE": ["ARTS AND CULTURE", "arts_and_culture", "Arts & Culture"]}
    lines = []
    for label in LABELS:
        for i in range(per_label):
            words = " ".join(str(draw.choice(WORDS[label])) for _ in range(4))
            spelling = spellings.get(label, [label])[i % len(spellings.get(label, [label]))]
            lines.append(json.dumps({"text": f"a {words} {seed}-{i}", "label": spelling}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_folder(folder / "model")
    write_rows(folder / "train.jsonl", 20, 1)
    write_rows(folder / "test.jsonl", 8, 2)
    return folder


def recipe(folder: Path, **changes):
    values = {
        "name": "tiny",
        "model": str(folder / "model"),
        "task": {"labels": LABELS, "instruction": "Classify the text ."},
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "tune": {
            "method": "head",
            "epochs": 4,
            "batch_size": 8,
            "learning_rate": 0.01,
            "head_learning_rate": 0.02,
        },
        "ask": {"validation_rows": 8, "shots": [2], "neighbours": [1, 2], "generate_rows": 5},
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_recipe(values)


@pytest.fixture(scope="module")
def finished(setting):
    result = luthier.run(recipe(setting), setting / "run")
    return setting, result


def test_result_holds_every_arm_on_the_same_rows(finished):
    folder, result = finished
    stored = json.loads((folder / "run" / "result.json").read_text())
    assert stored == result
    assert set(result["arms"]) == set(ALL_ARMS)
    for arm in result["arms"].values():
        assert {"accuracy", "low", "high", "macro_f1", "n", "seconds_per_row"} <= arm.keys()
        assert arm["n"] == 24 and arm["low"] <= arm["accuracy"] <= arm["high"]
        assert sum(map(sum, arm["confusion"])) == 24
        assert sum(arm["outcomes"].values()) == 24
    assert {item["reference"] for item in result["comparisons"]} == set(ALL_ARMS) - {"tuned"}
    assert {"seconds", "trained_tokens", "computed_tokens", "peak_rss_bytes"} <= result["training"].keys()
    assert result["training"]["computed_tokens"] < result["training"]["padded_tokens"]
    assert result["generated"]["n"] == 5 and sum(result["generated"]["outcomes"].values()) == 5
    assert "<html" in (folder / "run" / "report.html").read_text()


def test_tuned_learns_and_is_compared(finished):
    _, result = finished
    assert result["arms"]["tuned"]["accuracy"] > 0.9
    majority = next(item for item in result["comparisons"] if item["reference"] == "majority")
    gain = result["arms"]["tuned"]["accuracy"] - result["arms"]["majority"]["accuracy"]
    assert majority["difference"] == pytest.approx(gain) and majority["p_holm"] < 0.01


def test_served_as_trained(finished):
    """Kili 1: trained on one prompt, served with another. Here the adapter answers only with its own."""
    folder, _ = finished
    stored = json.loads((folder / "run" / "stages" / "tuned.json").read_text())["value"]["predictions"]
    texts = [json.loads(line)["text"] for line in (folder / "test.jsonl").read_text().splitlines()]
    pipeline = Pipeline(recipe(folder), folder / "elsewhere", Silent())
    ordered = [row.text for row in pipeline.prepared.test]
    assert sorted(ordered) == sorted(texts)
    predictor = luthier.load(folder / "run")
    for answer, wanted in zip(predictor.predict(ordered), stored, strict=True):
        assert answer.label == wanted["label"]
        assert list(answer.probabilities.values()) == pytest.approx(wanted["probabilities"], abs=1e-5)
    assert predictor.classifier.prompt.key == pipeline.tuned_prompt.key


def test_label_spellings_are_one_label(finished):
    """Kili 2: trained on one spelling, parsed for another. All three spellings in the file are one label."""
    _, result = finished
    assert result["ledger"]["reasons"] == {"train": {}, "validation": {}, "test": {}}
    assert result["arms"]["tuned"]["per_class"]["ARTS & CULTURE"]["support"] == 8


def test_finished_stages_are_not_done_again_and_changed_ones_are(finished):
    folder, before = finished
    heard = Heard()
    again = luthier.run(recipe(folder), folder / "run", listener=heard)
    assert all(cached for stage, cached in heard.cached.items() if stage not in ("data", "report"))
    assert {**again, "created": ""} == {**before, "created": ""}
    heard = Heard()
    luthier.run(
        recipe(folder, arms=["majority", "zero_shot"], ask={"validation_rows": 9}),
        folder / "run",
        listener=heard,
    )
    assert heard.cached["zero_shot"] is False
    heard = Heard()
    arms = ["majority", "tfidf", "few_shot", "retrieval"]
    luthier.run(recipe(folder, arms=arms, tune={"refit": False}), folder / "run", listener=heard)
    assert [heard.cached[arm] for arm in arms] == [True, False, True, False]


@pytest.mark.parametrize("method", ["candidates", "sft"])
def test_other_methods_learn_too(setting, method):
    """Labels under another name, so that aliases are on the way too; asked exactly as trained."""
    task = {"labels": ["SPORTS", "POLITICS", "ARTS"], "aliases": {"ARTS & CULTURE": "ARTS"}}
    changed = recipe(
        setting, arms=["majority", "tuned"], tune={"method": method, "epochs": 8}, task=task, precision="float32"
    )
    result = luthier.run(changed, setting / f"run-{method}")
    assert result["arms"]["tuned"]["accuracy"] > 0.9
    predictor = luthier.load(setting / f"run-{method}")
    assert predictor.predict(["a goal team goal match"])[0].label == "SPORTS"


def test_stop_in_training_goes_on_where_it_stopped(setting):
    plain = luthier.run(recipe(setting, arms=["tuned"]), setting / "whole")

    class StopsAtStepFour(Heard):
        def update(self, done: int, total: int, note: str = "") -> None:
            if note.startswith("loss") and done == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="Run the same command again"):
        luthier.run(recipe(setting, arms=["tuned"]), setting / "stopped", listener=StopsAtStepFour())
    resumed = luthier.run(recipe(setting, arms=["tuned"]), setting / "stopped")
    assert resumed["training"]["curve"] == plain["training"]["curve"]
    assert resumed["arms"]["tuned"]["accuracy"] == plain["arms"]["tuned"]["accuracy"]


def test_stop_in_the_refit_goes_on_there(setting):
    plain = luthier.run(recipe(setting, arms=["tuned"]), setting / "whole-refit")

    class StopsInTheRefit(Heard):
        steps = 0

        def update(self, done: int, total: int, note: str = "") -> None:
            self.steps += note.startswith("loss")
            if self.steps == plain["training"]["steps"] + 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="saved after step 2 of"):
        luthier.run(recipe(setting, arms=["tuned"]), setting / "stopped-refit", listener=StopsInTheRefit())
    resumed = luthier.run(recipe(setting, arms=["tuned"]), setting / "stopped-refit")
    assert resumed["training"]["temperature"] == plain["training"]["temperature"]
    weights = [
        (setting / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("whole-refit", "stopped-refit")
    ]
    assert weights[0] == weights[1]


def test_the_refit_sees_every_row(setting):
    heard = Heard()
    result = luthier.run(recipe(setting, arms=["tuned"]), setting / "refit", listener=heard)["training"]
    assert result["refit"]["rows"] == result["rows"] + 6 == 60  # 20 rows a label, 2 of each set aside
    assert result["refit"]["steps"] == 30  # 4 epochs of 60 rows in batches of 8
    learnt = f"{result['trainable_parameters']:,} of {result['total_parameters']:,} parameters learn "
    assert any(text.startswith(learnt) for text in heard.said)
    assert result["total_seconds"] == result["seconds"] + result["validation_seconds"] > result["seconds"]
    without = luthier.run(recipe(setting, arms=["tuned"], tune={"refit": False}), setting / "no-refit")["training"]
    assert without["refit"] is None and without["temperature"] == result["temperature"]
    assert without["curve"] == result["curve"] and without["seconds"] < result["seconds"]


def test_kill_in_the_middle_loses_no_finished_stage(setting):
    out = setting / "killed"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from test_pipeline import *\n"
        "class Dies(Heard):\n"
        "    def begin(self, stage):\n"
        "        if stage == 'few_shot': os.kill(os.getpid(), signal.SIGKILL)\n"
        "luthier.run(recipe(Path(sys.argv[1])), Path(sys.argv[1]) / 'killed', listener=Dies())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(setting), str(Path(__file__).parent)], check=False)
    assert done.returncode == -signal.SIGKILL
    heard = Heard()
    luthier.run(recipe(setting), out, listener=heard)
    assert heard.cached["zero_shot"] and heard.cached["best_prompt"] and not heard.cached["few_shot"]


def test_adapter_refuses_another_model(finished, tmp_path):
    folder, _ = finished
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (folder / "run" / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    stored = json.loads((adapter / "prompt.json").read_text())
    (adapter / "prompt.json").write_text(json.dumps({**stored, "model_sha256": "0" * 64}))
    write_checksums(adapter)
    with pytest.raises(RunError, match="is not the one the adapter was trained on"):
        luthier.load(adapter)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "head.safetensors", "prompt.json"])
@pytest.mark.parametrize("harm", ["gone", "flipped", "cut"])
def test_a_damaged_adapter_is_refused_and_the_next_run_mends_it(finished, name, harm):
    folder, _ = finished
    file = folder / "run" / "adapter" / name
    before = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(before[:-9] if harm == "cut" else before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
    with pytest.raises(RunError, match=f"{name} missing, or not as written. Run the recipe again"):
        luthier.load(folder / "run")
    heard = Heard()
    luthier.run(recipe(folder), folder / "run", listener=heard)
    assert file.read_bytes() == before
    assert heard.cached["training"] and not heard.cached["tuned"]
    luthier.load(folder / "run")


def test_without_adapter_and_weights_of_the_training_it_is_trained_again(setting):
    asked = recipe(setting, arms=["tuned"], tune={"epochs": 1})
    luthier.run(asked, setting / "emptied")
    weights = (setting / "emptied" / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(setting / "emptied" / "adapter")
    for best in (setting / "emptied" / "training").rglob("best/adapter_model.safetensors"):
        best.unlink()
    heard = Heard()
    luthier.run(asked, setting / "emptied", listener=heard)
    assert not heard.cached["training"]
    assert (setting / "emptied" / "adapter" / "adapter_model.safetensors").read_bytes() == weights


def test_one_run_folder_has_one_process(setting):
    code = (
        "import sys, time; from pathlib import Path; from luthier.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1])); folder.prepare('name: a'); print('ready', flush=True); time.sleep(60)"
    )
    out = setting / "shared"
    command = [sys.executable, "-c", code, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == b"ready\n"
            with pytest.raises(RunError, match=rf"another luthier \(process {other.pid}\) works in this folder"):
                luthier.run(recipe(setting, arms=["majority"]), out)
        finally:
            other.kill()
    luthier.run(recipe(setting, arms=["majority"]), out)


def test_one_run_folder_has_one_thread(tmp_path):
    mine, told = RunFolder(tmp_path / "run"), []
    mine.prepare("name: a")
    RunFolder(tmp_path / "run").prepare("name: a")  # this thread does not do two things at once

    def another() -> None:
        try:
            RunFolder(tmp_path / "run").prepare("name: a")
            told.append("ours")
        except RunError as error:
            told.append(str(error))

    for _ in range(2):
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
        mine.release()
    assert "another luthier (a thread of this process) works in this folder" in told[0]
    assert told[1] == "ours"


def test_a_run_that_is_over_lets_go_of_its_folder(setting):
    out = setting / "over"
    luthier.run(recipe(setting, arms=["majority"]), out)
    with pytest.raises(ModelError):
        luthier.run(recipe(setting, arms=["zero_shot"], model=str(setting / "nothing")), out)
    lock = Lock(out / "run.lock")
    assert lock.taken()
    lock.release()


def test_two_containers_have_the_same_process_number(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    other = Lock(tmp_path / "run" / "run.lock")
    assert other.taken() and other.holder() == os.getpid()
    with pytest.raises(RunError, match=rf"another luthier \(process {os.getpid()}\) works in this folder"):
        RunFolder(tmp_path / "run").prepare("name: a")


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({"adapter": {"kind": "qlora"}}, "tune.adapter.kind: qlora needs the package bitsandbytes"),
        ({"optimizer": "adam8bit"}, "tune.optimizer: adam8bit needs the package bitsandbytes"),
    ],
)
def test_what_is_not_installed_is_said_before_any_arm_is_asked(setting, tmp_path, monkeypatch, tune, told):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    heard = Heard()
    with pytest.raises(RecipeError, match=re.escape(told)):
        luthier.run(recipe(setting, arms=["majority", "tuned"], tune=tune), tmp_path / "run", listener=heard)
    assert "majority" not in heard.cached


def test_what_is_dropped_is_said(setting, tmp_path):
    lines = (setting / "test.jsonl").read_text().splitlines()
    odd = [json.dumps({"text": f"a vote number {i}", "label": "WEATHER"}) for i in range(4)]
    (tmp_path / "test.jsonl").write_text("\n".join([*lines, *odd]) + "\n")
    heard = Heard()
    data = {"test": str(tmp_path / "test.jsonl")}
    luthier.run(recipe(setting, arms=["majority"], data=data), tmp_path / "run", listener=heard)
    assert "test: 4 of 28 rows dropped (unknown_label 4); see data peek." in heard.said


def test_rows_longer_than_the_model_reads_are_refused_before_anything_is_computed(setting, tmp_path):
    long = json.dumps({"text": "a vote " * 300, "label": "POLITICS"})
    (tmp_path / "test.jsonl").write_text((setting / "test.jsonl").read_text() + long + "\n")
    heard, data = Heard(), {"test": str(tmp_path / "test.jsonl"), "max_tokens": 1000}
    with pytest.raises(DataError, match=r"test.jsonl line 25: its prompt has \d+ tokens, the model reads 512"):
        luthier.run(recipe(setting, data=data), tmp_path / "run", listener=heard)
    assert not heard.cached


def test_ways_of_asking_that_do_not_fit_are_left_out(setting, tmp_path):
    asked = {"shots": [2, 54], "shot_draws": 1}
    result = luthier.run(recipe(setting, arms=["few_shot"], ask=asked), tmp_path / "run")
    assert result["arms"]["few_shot"]["chosen"].startswith("2 worked examples")
    assert "1 left out, longer than the model reads" in result["arms"]["few_shot"]["chosen"]
    with pytest.raises(
        DataError, match=r"few_shot: its shortest way of asking takes [\d,]+ tokens, the model reads 512"
    ):
        luthier.run(recipe(setting, arms=["few_shot"], ask={"shots": [54]}), tmp_path / "none")


def test_a_text_that_the_model_cannot_read_is_refused(finished):
    folder, _ = finished
    predictor = luthier.load(folder / "run")
    with pytest.raises(DataError, match=r"text 2: it has [\d,]+ tokens with its prompt; the model reads 512"):
        predictor.predict(["a goal", "a vote " * 300])
    assert list(predictor.problems(["a goal", "a vote " * 300, "a vote"])) == [1] and not predictor.problems([])
    with pytest.raises(TypeError, match="text 1 is None, and no text"):
        predictor.predict([None])


def test_damaged_prompt_file_is_a_message(tmp_path):
    (tmp_path / "prompt.json").write_text('{"format": 1}')
    with pytest.raises(RunError, match="is damaged or from another version"):
        luthier.load(tmp_path)


def test_model_without_chat_template_runs_with_a_plain_layout(setting, tmp_path):
    tiny_folder(tmp_path / "bare", template=False)
    heard = Heard()
    changed = recipe(setting, model=str(tmp_path / "bare"), arms=["majority", "zero_shot", "tuned"], tune={"epochs": 1})
    luthier.run(changed, tmp_path / "run", listener=heard)
    assert any("has no chat template: prompts use a plain layout" in text for text in heard.said)


def test_adapter_loads_in_plain_peft(finished):
    """The adapter is PEFT's own format: merging it into the base changes the base's logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _ = finished
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 8]])
    before = base(tokens).logits
    tuned = PeftModel.from_pretrained(base, folder / "run" / "adapter")
    assert float((tuned(tokens).logits - before).detach().abs().max()) > 1e-3
