"""What every kind of adapter keeps to: one test of each promise, run on every kind that is registered."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.adapters import WEIGHTS, add_adapter, folded, load_adapter
from luthier.adapters.registry import KINDS
from luthier.errors import ModelError
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.models import load_model
from luthier.recipe.adapters import KINDS as SECTIONS
from luthier.recipe.adapters import (
    AdapterKeys,
    Bottleneck,
    Full,
    Ia3,
    Lora,
    Prefix,
    Probe,
    Prompt,
    Qlora,
    Sparse,
)
from luthier.records import Sequence
from luthier.stopped import Stopped
from luthier.training.checkpoint import History
from test_training import ROWS, Training, assert_equal_tensors, losses, tune_of, what_happened

CASES: dict[str, AdapterKeys] = {
    "lora": Lora(rank=2, alpha=4.0),
    "lora rslora, last layer": Lora(rank=4, alpha=4.0, scaling="rslora", last=1, targets=["q_proj", "down_proj"]),
    "lora dora": Lora(rank=2, alpha=4.0, dora=True),
    "lora pissa rslora dora": Lora(rank=2, alpha=2.0, init="pissa", scaling="rslora", dora=True),
    "lora olora": Lora(rank=2, alpha=4.0, init="olora"),
    "lora orthogonal": Lora(rank=2, alpha=4.0, init="orthogonal"),
    "lora on the output head": Lora(rank=2, alpha=4.0, targets=["q_proj", "lm_head"]),
    "lora on embeddings": Lora(rank=2, alpha=4.0, targets=["q_proj", "embed_tokens"]),
    "qlora": Qlora(rank=2, alpha=4.0),
    "qlora dora": Qlora(rank=2, alpha=4.0, dora=True, double=False),
    "full": Full(),
    "full last layer": Full(last=1),
    "ia3": Ia3(),
    "prompt": Prompt(tokens=3, text=" the goal"),
    "prefix": Prefix(tokens=3),
    "bottleneck": Bottleneck(size=4),
    "sparse": Sparse(width=16, top=4, groups=4, active_groups=2),
}
CASES |= {  # a kind that is registered and has no case of its own is tried as it is by default
    section.model_fields["kind"].default: section()
    for section in KINDS
    if section not in {type(one) for one in CASES.values()}
}
RATES = {"full": 1e-3, "prompt": 5e-2, "prefix": 5e-2, "ia3": 2e-2}
SEQUENCES = [Sequence((3, 4, 5, 6, 7, token, 9), (4, 5, 6), (1.0, 0.5, 1.0), token) for token in (8, 10, 11)]
SEQUENCES.append(Sequence((12, 13, 14), (1, 2), (1.0, 1.0), 20))


def test_every_kind_is_tried():
    assert {type(settings) for settings in CASES.values()} == set(KINDS) == set(SECTIONS) - {Probe}


def training(tiny_path: Path, settings: AdapterKeys, backend: str = "auto", **changes) -> Training:
    rate = RATES.get(settings.kind, 5e-3)
    memory = {"predict": False}  # what two more steps would take is measured elsewhere
    values = {"method": "sft", "epochs": 1.6, "learning_rate": rate, "adapter": settings, "memory": memory}
    tune = tune_of(**(values | changes))
    return Training(tiny_path, tune, backend)


def answers(lm: torch.nn.Module, backend: str = "grouped") -> torch.Tensor:
    """log p of some targets."""
    set_backend(lm, backend)
    forest = build_forest(SEQUENCES)
    with torch.no_grad():
        return logprobs(lm, forest, hidden_states(lm, forest, backend))


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def round_weights(model: torch.nn.Module, double: bool) -> None:
    """What 4 bits leave of the linear layers' weights."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                packed = quantize_4bit(module.weight, blocksize=64, compress_statistics=double, quant_type="nf4")
                module.weight.copy_(dequantize_4bit(*packed))


@dataclass
class Done:
    """A training of four steps: what it was before and after, and the folder of what was saved then."""

    settings: AdapterKeys
    run: Training
    before: dict[str, torch.Tensor]
    names: set[str]
    history: History
    folder: Path
    best: Path


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def done(request, tiny_path, tmp_path_factory) -> Done:
    """Done once for each kind; nobody changes it."""
    where = tmp_path_factory.mktemp("kind")
    run = training(tiny_path, request.param)
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    names = set(run.learner.trained())
    history = run.run(where / "training")
    (where / "saved").mkdir()
    run.learner.save(where / "saved")
    return Done(request.param, run, before, names, history, where / "saved", where / "training" / "best")


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_fresh_adapter_leaves_the_answers_as_they_are(settings, tiny_path):
    model = load_model(str(tiny_path)).model
    if isinstance(settings, Qlora):
        round_weights(model, settings.double)
    wanted = answers(model)
    found = answers(training(tiny_path, settings).learner.lm)
    if settings.starts_equal:
        assert_close(found, wanted)
    else:
        assert float((found - wanted).abs().max()) > 1e-3


def test_its_own_parameters_learn_and_no_others(done):
    assert done.names, "something learns"
    moved = set()
    for name, parameter in done.run.learner.named_parameters():
        if not torch.equal(parameter, done.before[name]):
            assert name in done.names, name
            moved.add(name)
    assert len(moved) >= (len(done.names) + 1) // 2, done.names - moved  # a sparse one may not reach every group


def test_what_is_saved_answers_as_what_was_trained(done, tiny_path):
    wanted = answers(done.run.learner.lm)
    plain = answers(load_model(str(tiny_path)).model)
    assert float((wanted - plain).abs().max()) > 1e-3, "it learnt something"
    frozen = load_adapter(load_model(str(tiny_path)).model, done.folder)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert_close(answers(frozen.base_model.model), wanted)
    open_again = load_adapter(load_model(str(tiny_path)).model, done.folder, trainable=True)
    assert any(p.requires_grad for p in open_again.parameters())
    other = training(tiny_path, done.settings)
    other.learner.load(done.folder)
    assert_close(answers(other.learner.lm), wanted)
    assert_equal_tensors(other.weights(), done.run.weights())


def test_it_folds_into_the_weights_or_says_why_not(done, tiny_path):
    model = load_model(str(tiny_path)).model
    if done.settings.folds:
        names = {name for name, _ in model.named_parameters()}
        folded(model, done.folder)
        untied = {"lm_head.weight"}  # the head, where it or the embeddings alone change
        assert {name for name, _ in model.named_parameters()} - untied == names
        assert_close(answers(model), answers(done.run.learner.lm))
    else:
        with pytest.raises(ModelError, match=r"cannot be (written into|merged)"):
            folded(model, done.folder)


def test_taken_out_again_it_leaves_the_model_as_it_was(done, tiny_path):
    """A fresh one whose numbers have moved, and a saved one."""
    settings = done.settings
    wanted = {name: p.detach().clone() for name, p in load_model(str(tiny_path)).model.named_parameters()}
    fresh = add_adapter(load_model(str(tiny_path)).model, settings, 3, tiny_path)
    first = answers(fresh.base_model.model)
    with torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    for wrapper in (fresh, load_adapter(load_model(str(tiny_path)).model, done.folder)):
        lm = wrapper.base_model.model
        wrapper.adapter_kind.remove(wrapper)
        assert_equal_tensors({name: p.detach() for name, p in lm.named_parameters()}, wanted)
        assert not any(p.requires_grad for p in lm.parameters())
        again = answers(add_adapter(lm, settings, 3, tiny_path).base_model.model)
        torch.testing.assert_close(
            again, first
        )  # singular vectors by some processors' products differ in the last bits


def test_micro_batches_and_the_forest_change_nothing(done, tiny_path, tmp_path):
    """8 x 1 = 4 x 2 = padded: the same losses."""
    for name, backend, most in (("cut", "auto", 48), ("padded", "padded", 4096)):
        run = training(tiny_path, done.settings, backend, micro_batch_tokens=most)
        found = losses(run.run(tmp_path / name))
        assert found == pytest.approx(losses(done.history), rel=1e-4), name


def test_four_steps_are_two_and_a_stop_and_two(done, tiny_path, tmp_path):
    """Bit for bit."""

    def stop(progress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        training(tiny_path, done.settings).run(tmp_path, stop)
    resumed = training(tiny_path, done.settings)
    assert what_happened(resumed.run(tmp_path)) == what_happened(done.history)
    assert_equal_tensors(resumed.weights(), done.run.weights())
    saved, other = (load_file(folder / WEIGHTS) for folder in (tmp_path / "best", done.best))
    assert_equal_tensors(saved, other)


def test_what_learns_is_said_before_the_first_step(tiny_path, tmp_path):
    said: list[str] = []
    run = training(tiny_path, Lora(rank=2, alpha=4.0), method="head")
    run.run(tmp_path, say=said.append)
    lora = sum(2 * sum(p.shape) for n, p in run.learner.lm.named_parameters() if n.endswith("base_layer.weight"))
    base = load_model(str(tiny_path)).num_parameters
    head = 3 * 32 + 3
    share = f"{(lora + head) / (lora + head + base):.2%}"
    assert said[0] == (
        f"{lora + head:,} of {lora + head + base:,} parameters learn ({share}, {head:,} of them in the head)."
    )


def test_an_unknown_saved_kind_is_refused(tiny_path, tmp_path):
    training(tiny_path, CASES["lora"]).learner.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "VERA"}))
    with pytest.raises(ModelError, match="luthier does not know adapters of type VERA; it has LORA, "):
        load_adapter(load_model(str(tiny_path)).model, tmp_path)


assert len(ROWS) == 10  # 1.6 epochs of batches of 4 are four steps
