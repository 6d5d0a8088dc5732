"""The reference of DPO and KTO is the model a stage starts from, however it starts; its numbers are computed once."""

import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from luthier.methods.base import make_batch, sequence_logprobs
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.progress import Silent
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora
from luthier.recipe.methods import Dpo, Kto
from luthier.recipe.stages import parse_stages
from luthier.records import Sequence
from luthier.stages import train
from luthier.stages.reference import sequence_key, with_reference
from luthier.training.learner import Learner, new_learner
from test_preferences import PAIRS, WORDS

SFT_TUNE = {"epochs": 4, "batch_size": 8, "learning_rate": 2e-2, "adapter": {"rank": 2, "alpha": 4.0}}
TUNE = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "checkpoints": {"every": 1},
        "adapter": {"rank": 2, "alpha": 4.0}}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of 24 pairs, of the same as thumbs, and of their chosen answers as conversations."""
    folder = tmp_path_factory.mktemp("rows")
    names = list(itertools.islice(itertools.permutations(WORDS, 2), 0, 72, 3))
    pairs = [{"prompt": f"the {a} of the {b}", "chosen": f"a {a} won", "rejected": f"{b} passed"} for a, b in names]
    thumbs = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, row in enumerate(pairs)
    ]
    answers = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    for name, rows in (("pairs", pairs), ("thumbs", thumbs), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def stages(model, data, method, start: str | None):
    """SFT, then the method started from it as said; the method alone where `start` is None."""
    shares = {"validation_share": 0.0, "test_share": 0.25}
    sft = {"method": "sft", "data": {"train": str(data / "answers.jsonl"), **shares}, "tune": SFT_TUNE}
    rows = "thumbs" if method["kind"] == "kto" else "pairs"
    last = {"method": method, "data": {"train": str(data / f"{rows}.jsonl"), **shares}, "tune": TUNE}
    listed = [last] if start is None else [sft, {**last, "start": start}]
    return parse_stages({"model": str(model), "precision": "float32", "stages": listed})


def references(out) -> dict[str, torch.Tensor]:
    (folder,) = out.glob("stages/*/reference")
    return load_file(folder / "logprobs.safetensors")


@pytest.mark.parametrize("method", [{"kind": "dpo"}, {"kind": "dpo", "loss": "robust", "label_smoothing": 0.1},
                                    {"kind": "kto"}], ids=["dpo", "robust", "kto"])  # fmt: skip
@pytest.mark.parametrize("start", ["stack", "continue", "merge"])
def test_after_sft_the_reference_is_the_sft_model(start, method, data, tiny_path, tmp_path):
    """At step 0 the policy is the reference: the loss is log 2 (of KTO 1/2), the margin 0, every comparison a tie."""
    result = train(stages(tiny_path, data, method, start), tmp_path / "run")
    sft, last = result["stages"]
    first = last["training"]["curve"]["train"][0]["loss"]
    assert first == pytest.approx(0.5 if method["kind"] == "kto" else math.log(2), abs=1e-5)
    before = {name: figure["before"]["value"] for name, figure in last["figures"].items()}
    assert before["margin"] == pytest.approx(0, abs=1e-5) and before["reward_accuracy"] == 0.5
    assert last["figures"]["margin"]["after"]["value"] > 0.01, "then it moves"
    learnt = sft["figures"]["bits_per_byte"]
    assert learnt["after"]["value"] < 0.8 * learnt["before"]["value"], "and the SFT model is not the raw one"
    if method == {"kind": "dpo"}:
        train(stages(tiny_path, data, method, None), tmp_path / "raw")
        ours, raw = references(tmp_path / "run"), references(tmp_path / "raw")
        moved = [abs(float(ours[key] - raw[key])) for key in raw]
        assert ours.keys() == raw.keys() and sum(moved) / len(moved) > 1, "nats per answer"


class Counted:
    """A learner, and how often it was run."""

    def __init__(self, path):
        loaded = load_model(str(path))
        self.prompt = Dialogue(Layout(loaded.tokenizer))
        self.learner: Learner = new_learner(loaded, Lora(rank=2, alpha=4.0), 3, "auto")
        self.calls = 0
        self.learner.register_forward_hook(self.count)

    def count(self, *_: object) -> None:
        self.calls += 1


@pytest.mark.parametrize("settings", [Dpo(), Kto()], ids=["dpo", "kto"])
def test_references_are_computed_once_by_content(settings, tiny_path, tmp_path):
    """Again, in another order, with other micro-batches or fewer rows: no forward pass. One new row: only that one."""
    counted = Counted(tiny_path)
    examples = make_stage_method(settings).view(counted.prompt, PAIRS)
    known = with_reference(counted.learner, examples[:-1], 100, tmp_path / "kept")
    assert counted.calls > 1 and all(len(e.reference_S) == len(e.sequences) for e in known)
    calls = counted.calls
    assert with_reference(counted.learner, examples[-2::-1], 4096, tmp_path / "kept") == known[::-1]
    assert with_reference(counted.learner, examples[2:3], 100, tmp_path / "kept") == known[2:3]
    assert counted.calls == calls
    all_known = with_reference(counted.learner, examples, 4096, tmp_path / "kept")
    assert counted.calls == calls + 1 and all_known[:-1] == known
    for example in all_known:
        batch = make_batch([example])
        with torch.no_grad():
            found_S = sequence_logprobs(counted.learner(batch), batch)
        torch.testing.assert_close(found_S, batch.reference_S, rtol=1e-5, atol=1e-4)


class Breaking(Silent):
    """Stops the run, as a power cut would, after some steps of the training."""

    def __init__(self, steps: int):
        self.steps = steps

    def update(self, done: int, total: int, note: str = "") -> None:
        if note.startswith("loss") and done >= self.steps:
            raise InterruptedError


def test_references_survive_a_stop(data, tiny_path, tmp_path):
    """Stopped in the middle of the second epoch: the file is not written again, and the curve is that of one go."""
    recipe = stages(tiny_path, data, {"kind": "dpo"}, None)
    whole = train(recipe, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "cut", listener=Breaking(3))
    (kept,) = (tmp_path / "cut").glob("stages/*/reference/logprobs.safetensors")
    written = kept.stat()
    again = train(recipe, tmp_path / "cut")
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    curves = [result["stages"][0]["training"]["curve"]["train"] for result in (whole, again)]
    assert curves[0] == curves[1] and len(curves[0]) == 5
    assert whole["stages"][0]["figures"] == again["stages"][0]["figures"]


def test_every_part_of_a_sequence_that_a_logprob_depends_on_is_in_its_key():
    plain = {"tokens": (3, 4, 5), "targets": (1, 2), "weights": (1.0, 1.0)}
    changes = [{}, {"tokens": (3, 4, 6)}, {"targets": (2, 2)}, {"weights": (1.0, 0.5)}, {"wanted": (4, 7)},
               {"temperatures": (1.0, 2.0)}, {"temperatures": (2.0, 2.0)}]  # fmt: skip
    assert len({sequence_key(Sequence(**(plain | change))) for change in changes}) == len(changes)
    assert sequence_key(Sequence(**plain)) == sequence_key(Sequence(**plain, group=3, role=1))
