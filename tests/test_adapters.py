"""What every kind of adapter keeps to: one test of each promise, run on every kind that is registered."""

import json
import os
import signal
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
    Sparse,
)
from luthier.records import Sequence
from luthier.stopped import Stopped
from test_training import ROWS, Training, assert_equal_tensors, losses, tune_of, what_happened

CASES: dict[str, AdapterKeys] = {
    "lora": Lora(rank=2, alpha=4.0),
    "lora rslora, last layer": Lora(rank=4, alpha=4.0, scaling="rslora", last=1, targets=["q_proj", "down_proj"]),
    "lora dora": Lora(rank=2, alpha=4.0, dora=True),
    "lora pissa": Lora(rank=2, alpha=4.0, init="pissa"),
    "lora pissa rslora dora": Lora(rank=2, alpha=2.0, init="pissa", scaling="rslora", dora=True),
    "lora olora": Lora(rank=2, alpha=4.0, init="olora"),
    "lora orthogonal": Lora(rank=2, alpha=4.0, init="orthogonal"),
    "full": Full(),
    "full last layer": Full(last=1),
    "full by pattern": Full(pattern=r"mlp|norm", norms=False, embeddings=False),
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

every_kind = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())


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


def trained(tiny_path: Path, tmp_path: Path, settings: AdapterKeys) -> tuple[Training, Path]:
    """Four steps, and the folder of what was saved then."""
    run = training(tiny_path, settings)
    run.run(tmp_path / "training")
    folder = tmp_path / "saved"
    folder.mkdir()
    run.learner.save(folder)
    return run, folder


@every_kind
def test_a_fresh_adapter_leaves_the_answers_as_they_are(settings, tiny_path):
    wanted = answers(load_model(str(tiny_path)).model)
    found = answers(training(tiny_path, settings).learner.lm)
    if settings.starts_equal:
        assert_close(found, wanted)
    else:
        assert float((found - wanted).abs().max()) > 1e-3


@every_kind
def test_its_own_parameters_learn_and_no_others(settings, tiny_path, tmp_path):
    run = training(tiny_path, settings)
    before = {name: p.detach().clone() for name, p in run.learner.named_parameters()}
    names = set(run.learner.trained())
    run.run(tmp_path)
    assert names, "something learns"
    for name, parameter in run.learner.named_parameters():
        if name not in names:
            assert torch.equal(parameter, before[name]), name
    moved = {name for name in names if not torch.equal(run.learner.trained()[name], before[name])}
    assert len(moved) >= (len(names) + 1) // 2, names - moved  # a sparse one may not reach every group


@every_kind
def test_what_is_saved_answers_as_what_was_trained(settings, tiny_path, tmp_path):
    run, folder = trained(tiny_path, tmp_path, settings)
    wanted = answers(run.learner.lm)
    plain = answers(load_model(str(tiny_path)).model)
    assert float((wanted - plain).abs().max()) > 1e-3, "it learnt something"
    frozen = load_adapter(load_model(str(tiny_path)).model, folder)
    assert not any(p.requires_grad for p in frozen.parameters())
    assert_close(answers(frozen.base_model.model), wanted)
    open_again = load_adapter(load_model(str(tiny_path)).model, folder, trainable=True)
    assert any(p.requires_grad for p in open_again.parameters())
    other = training(tiny_path, settings)
    other.learner.load(folder)
    assert_close(answers(other.learner.lm), wanted)
    assert_equal_tensors(
        {name: p.detach() for name, p in other.learner.trained().items()},
        {name: p.detach() for name, p in run.learner.trained().items()},
    )


@every_kind
def test_it_folds_into_the_weights_or_says_why_not(settings, tiny_path, tmp_path):
    run, folder = trained(tiny_path, tmp_path, settings)
    model = load_model(str(tiny_path)).model
    if settings.folds:
        names = {name for name, _ in model.named_parameters()}
        folded(model, folder)
        assert {name for name, _ in model.named_parameters()} == names
        assert_close(answers(model), answers(run.learner.lm))
    else:
        with pytest.raises(ModelError, match=r"cannot be (written into|merged)"):
            folded(model, folder)


@every_kind
def test_taken_out_again_it_leaves_the_model_as_it_was(settings, tiny_path, tmp_path):
    run, folder = trained(tiny_path, tmp_path, settings)
    wanted = {name: p.detach().clone() for name, p in load_model(str(tiny_path)).model.named_parameters()}
    lm = run.learner.lm
    run.learner.wrapper.adapter_kind.remove(run.learner.wrapper)
    assert_equal_tensors({name: p.detach() for name, p in lm.named_parameters()}, wanted)
    assert not any(p.requires_grad for p in lm.parameters())
    again = add_adapter(lm, settings, 3, tiny_path)
    assert_close(answers(again.base_model.model), answers(training(tiny_path, settings).learner.lm))
    loaded = load_adapter(load_model(str(tiny_path)).model, folder)
    lm = loaded.base_model.model
    loaded.adapter_kind.remove(loaded)
    assert_equal_tensors({name: p.detach() for name, p in lm.named_parameters()}, wanted)


@every_kind
def test_micro_batches_and_the_forest_change_nothing(settings, tiny_path, tmp_path):
    """8 x 1 = 4 x 2 = padded: the same losses."""
    settings_of = {"whole": ("auto", 4096), "cut": ("auto", 48), "padded": ("padded", 4096), "dense": ("dense", 4096)}
    found = {}
    for name, (backend, most) in settings_of.items():
        run = training(tiny_path, settings, backend, micro_batch_tokens=most, epochs=1.2)
        found[name] = losses(run.run(tmp_path / name))
    assert len(found["whole"]) == 3
    for name in ("cut", "padded", "dense"):
        assert found[name] == pytest.approx(found["whole"], rel=5e-5), name


@every_kind
def test_four_steps_are_two_and_a_stop_and_two(settings, tiny_path, tmp_path):
    """Bit for bit."""
    whole = training(tiny_path, settings)
    wanted = whole.run(tmp_path / "whole")

    def stop(progress) -> None:
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        training(tiny_path, settings).run(tmp_path / "cut", stop)
    resumed = training(tiny_path, settings)
    found = resumed.run(tmp_path / "cut")
    assert what_happened(found) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())
    saved, other = (load_file(tmp_path / name / "best" / WEIGHTS) for name in ("cut", "whole"))
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
    _, folder = trained(tiny_path, tmp_path, CASES["lora"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "VERA"}))
    with pytest.raises(ModelError, match="luthier does not know adapters of type VERA; it has LORA, "):
        load_adapter(load_model(str(tiny_path)).model, folder)


assert len(ROWS) == 10  # 1.6 epochs of batches of 4 are four steps
