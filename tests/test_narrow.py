"""Weights kept in bfloat16: the same factors in every product, half the memory, and nobody who needs them exact."""

import pytest
import torch
from torch import nn

from families import plain_logprobs
from luthier.adapters import add_adapter, fuse, load_adapter, needs_exact_weights
from luthier.errors import ModelError
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.kernels import narrow, products, quicken, round_products, thin_type
from luthier.models import load_model
from luthier.recipe.adapters import KINDS, Bottleneck, Full, Ia3, Lora, Prefix, Prompt, Qlora, Sparse
from luthier.recipe.run import Tune
from luthier.records import Sequence
from luthier.training.learner import Learner, new_learner
from placed import FAMILIES, answers, tiny

ROWS = [Sequence((3, 4, 5, 6, token, 9), (4, 5), (1.0, 0.5)) for token in (8, 10, 11)]
# the kinds that leave weights as they are, and some that do not
KEEPING = [Lora(), Lora(dropout=0.5), Lora(init="orthogonal"), Lora(scaling="rslora", last=1), Ia3(), Prompt(tokens=3),
           Prefix(tokens=3), Bottleneck(), Sparse(width=8, top=4, groups=2, active_groups=1)]  # fmt: skip
EXACT = [Full(), Full(last=1), Lora(init="pissa"), Lora(init="olora"), Lora(dora=True), Qlora()]


@pytest.fixture
def rounding_processor(monkeypatch):
    """A processor that has units for it, whether or not this one does."""
    monkeypatch.setattr("luthier.models.load.has_fast_bfloat16", lambda device="cpu": True)


def rounded(family: str) -> nn.Module:
    """A tiny model with the products that load_model would give it."""
    model = tiny(family, torch.float32)
    round_products(model)
    quicken(model)
    return model


def shake(module: nn.Module, size: float = 0.05) -> None:
    """What learns is moved somewhere else, the same way in every call."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters(), key=lambda pair: pair[0]):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_with_the_weights_that_products_round(family):
    """Only its linear layers below the head are kept so, and answers keep their type."""
    exact, other = rounded(family), rounded(family)
    narrow(other)
    head = other.get_output_embeddings()
    for name, module in other.named_modules():
        if type(module) is nn.Linear and module is not head:
            assert module.weight.dtype == torch.bfloat16
            assert torch.equal(module.weight, exact.get_submodule(name).weight.bfloat16())
    assert head is None or head.weight.dtype == torch.float32
    with torch.no_grad():
        found, wanted = answers(other), answers(exact)
    assert found.dtype == torch.float32
    assert off(found, wanted) < 0.02


@pytest.mark.parametrize("settings", KEEPING, ids=lambda s: f"{s.kind} {getattr(s, 'init', '')}")
def test_a_fresh_adapter_begins_and_learns_as_over_exact_weights(settings, tiny_path, rounding_processor):
    """It begins with the same numbers to the bit, in float32; its gradients differ by what is rounded.

    A prefix begins with what the model makes of some tokens, and so differs by that too.
    """
    assert not settings.exact_weights
    found = []
    for exact in (True, False):
        model = load_model(str(tiny_path), precision="bfloat16", exact=exact)
        learner = new_learner(model, settings, seed=3, backend="grouped").eval()
        began = {name: p.detach().clone() for name, p in learner.trained().items()}
        shake(learner.wrapper)
        set_backend(learner.lm, "grouped")
        forest = build_forest(ROWS)
        values = logprobs(learner.lm, forest, hidden_states(learner.lm, forest, "grouped"))
        values.sum().backward()
        found.append((began, values.detach(), {name: p.grad for name, p in learner.trained().items()}))
    (began, values, gradients), (other_began, other_values, other_gradients) = found
    assert began.keys() == other_began.keys() == gradients.keys()
    for name, tensor in began.items():
        assert other_began[name].dtype == torch.float32
        assert (
            off(other_began[name], tensor) < 0.01
            if settings.kind == "prefix"
            else torch.equal(tensor, other_began[name])
        )
        assert other_gradients[name].dtype == torch.float32
    assert off(other_values, values) < 0.01
    joined = [torch.cat([g.flatten() for g in one.values() if g is not None]) for one in (other_gradients, gradients)]
    assert off(*joined) < 0.1


@pytest.mark.parametrize("settings", KEEPING, ids=lambda s: f"{s.kind} {getattr(s, 'init', '')}")
def test_a_saved_adapter_comes_back_to_the_bit(settings, tiny_path, tmp_path, rounding_processor):
    model = load_model(str(tiny_path), precision="bfloat16", exact=False)
    wrapper = add_adapter(model.model, settings, 3, tiny_path)
    shake(wrapper)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    assert not needs_exact_weights(tmp_path)
    again = load_adapter(load_model(str(tiny_path), precision="bfloat16", exact=False).model, tmp_path)
    state = {name: p for name, p in again.named_parameters() if name in dict(wrapper.named_parameters())}
    for name, parameter in wrapper.named_parameters():
        assert state[name].dtype == parameter.dtype and torch.equal(state[name], parameter)


@pytest.mark.parametrize("settings", EXACT, ids=lambda s: f"{s.kind} {getattr(s, 'init', '')}")
def test_kinds_that_train_change_or_measure_weights_are_given_exact_ones(settings):
    assert settings.exact_weights and Tune(adapter=settings).exact_weights


def test_all_kinds_are_one_or_the_other_and_a_shard_wants_one_type():
    assert {type(one) for one in KEEPING + EXACT} | {KINDS[-1]} == set(KINDS)
    assert not Tune().exact_weights
    assert Tune(parallel="shard").exact_weights


def test_a_loaded_model_is_half_as_large_where_products_are_rounded(tiny_path, rounding_processor):
    sizes = {}
    for precision, exact in (("float32", False), ("bfloat16", True), ("bfloat16", False)):
        model = load_model(str(tiny_path), precision=precision, exact=exact).model
        layers = [m for m in model.modules() if type(m) is nn.Linear and m is not model.get_output_embeddings()]
        sizes[precision, exact] = sum(layer.weight.nbytes for layer in layers)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sizes["float32", False] == sizes["bfloat16", True] == 2 * sizes["bfloat16", False]


def test_the_inner_rows_of_a_gated_block_are_kept_so_too(tiny_path, rounding_processor):
    """And only there: what the block gives, and all that attention sees, is float32."""
    model = load_model(str(tiny_path), precision="bfloat16", exact=False)
    learner = new_learner(model, Lora(), seed=0, backend="grouped")
    seen: dict[str, set[torch.dtype]] = {}
    for name, module in learner.lm.named_modules():
        kind = name.rpartition(".")[2]
        if kind in ("q_proj", "o_proj", "up_proj", "down_proj", "mlp"):
            module.register_forward_hook(lambda _m, _i, out, kind=kind: seen.setdefault(kind, set()).add(out.dtype))
    forest = build_forest(ROWS)
    hidden_states(learner.lm, forest, "grouped")
    assert seen.pop("up_proj") == seen.pop("down_proj") == {torch.bfloat16}
    assert set(map(frozenset, seen.values())) == {frozenset([torch.float32])}


@pytest.mark.parametrize("units", [True, False])
def test_fused_layers_give_what_peft_s_own_do(units, tiny_path, rounding_processor, monkeypatch):
    """Over the same kept weights; PEFT's are LoRA in float32 around the rounded product.

    Beside matrix units the thin products are float32 as well, which is nearer.
    """
    monkeypatch.setattr(products, "has_matrix_units", lambda: units)
    values = []
    for fused in (False, True):
        model = load_model(str(tiny_path), precision="bfloat16", exact=False)
        wrapper = add_adapter(model.model, Lora(), 3, tiny_path)
        shake(wrapper)
        assert not fused or fuse(wrapper, model.precision) == 14
        learner = Learner(wrapper, {}, "grouped").eval()
        set_backend(learner.lm, "grouped")
        forest = build_forest(ROWS)
        found = logprobs(learner.lm, forest, hidden_states(learner.lm, forest, "grouped"))
        found.sum().backward()
        gradients = torch.cat([p.grad.flatten() for _, p in sorted(learner.trained().items())])
        values.append((found, gradients))
    assert off(values[0][0], values[1][0]) < 0.01
    assert off(values[0][1], values[1][1]) < 0.03


def test_log_probabilities_are_near_those_of_float32(tiny_path, rounding_processor):
    narrowed = load_model(str(tiny_path), precision="bfloat16", exact=False).model
    set_backend(narrowed, "grouped")
    forest = build_forest(ROWS)
    with torch.no_grad():
        found = logprobs(narrowed, forest, hidden_states(narrowed, forest, "grouped"))
        wanted = plain_logprobs(load_model(str(tiny_path)).model, ROWS)
    assert off(found, wanted) < 0.01


@pytest.mark.parametrize("settings", [Qlora(), Lora(dora=True)], ids=["qlora", "dora"])
def test_saved_ones_that_pack_or_measure_are_given_exact_weights_too(settings, tiny_path, tmp_path, rounding_processor):
    if settings.kind == "qlora":
        pytest.importorskip("bitsandbytes")
    model = load_model(str(tiny_path), precision="bfloat16").model
    wrapper = add_adapter(model, settings, 0, tiny_path)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    assert needs_exact_weights(tmp_path)


@pytest.mark.parametrize("settings", EXACT, ids=lambda s: f"{s.kind} {getattr(s, 'init', '')}")
def test_what_needs_exact_weights_refuses_others(settings, tiny_path, rounding_processor):
    model = load_model(str(tiny_path), precision="bfloat16", exact=False).model
    with pytest.raises(ModelError, match="exact weights"):
        add_adapter(model, settings, 0, tiny_path)


def test_thin_products_are_cast_with_the_others_but_beside_matrix_units(monkeypatch):
    rows = torch.zeros(2, 3)
    for units, wanted in ((True, torch.float32), (False, torch.bfloat16)):
        monkeypatch.setattr(products, "has_matrix_units", lambda found=units: found)
        assert thin_type(rows.bfloat16()) == wanted
        assert thin_type(rows) == torch.float32
