"""The fused LoRA layer gives PEFT's numbers."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from luthier.adapters.fused import LoraLinears, fits, fuse


class Two(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(12, 20, bias=True)
        self.down = nn.Linear(20, 12, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Three(nn.Module):
    """Query, key and value of one input, named as in transformers' attention; `calls` says which read what."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(12, 20), nn.Linear(12, 8, bias=False), nn.Linear(12, 8)
        self.calls = "qkv"

    def forward(self, x):
        outs = [getattr(self, f"{name.lower()}_proj")(x if name.islower() else x.cos()) for name in self.calls]
        return torch.cat(outs, dim=-1)


def adapted(seed=0, dtype=torch.float64, model=Two, **settings):
    torch.manual_seed(seed)
    targets = ["up", "down"] if model is Two else ["q_proj", "k_proj", "v_proj"]
    wrapper = get_peft_model(model().to(dtype), LoraConfig(r=3, lora_alpha=7, target_modules=targets, **settings))
    for name, parameter in wrapper.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=dtype)
    return wrapper


def gradients(wrapper, x):
    x = x.clone().requires_grad_()
    out = wrapper(x)
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).cos()).sum().backward()
    found = {name: p.grad.clone() for name, p in wrapper.named_parameters() if p.grad is not None}
    return out.detach(), x.grad, found


def test_output_and_gradients_are_those_of_peft():
    plain, fused = adapted(), adapted()
    assert fuse(fused, "float32") == 2
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted, got = gradients(plain, x), gradients(fused, x)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-12, atol=1e-12)
    assert got[2].keys() == wanted[2].keys() and len(got[2]) == 4
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(got[2][name], gradient, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("calls", ["qkv", "vkq", "q", "kv", "qqkv", "qKv", "kQkv", "vqkqq"])
def test_layers_of_one_input_are_those_of_peft_in_whatever_order_they_are_called(calls):
    """A capital letter reads another tensor; a layer that is not called gets a gradient of zero, or none."""
    plain, fused = adapted(model=Three), adapted(model=Three)
    assert fuse(fused, "float32") == 3
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for wrapper in (plain, fused):
        wrapper.base_model.model.calls = calls
    wanted, got = gradients(plain, x), gradients(fused, x)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-12, atol=1e-12)
    for name, gradient in got[2].items():
        torch.testing.assert_close(gradient, wanted[2].get(name, torch.zeros_like(gradient)), rtol=1e-11, atol=1e-11)
    assert wanted[2].keys() <= got[2].keys()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), wanted[0], rtol=1e-12, atol=1e-12)


def test_nothing_is_held_once_every_layer_has_its_result():
    fused = adapted(model=Three)
    fuse(fused, "float32")
    fused(torch.randn(3, 12, dtype=torch.float64))
    shared = fused.base_model.model.k_proj.forward.shared
    assert shared.x is None and not shared.ready
    assert shared is fused.base_model.model.q_proj.forward.shared


def test_a_copy_of_the_model_has_layers_of_its_own():
    fused = adapted(model=Three)
    fuse(fused, "float32")
    x = torch.randn(3, 12, dtype=torch.float64)
    before = fused(x)
    other = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(fused(x), before)
    assert float(other(x).detach().abs().max()) == 0


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(2)
    shapes = ((4, 6), (5, 6), (2, 6), (5, 2))
    x, weight, a, b = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, a, b: LoraLinears.apply(x, ("float32", (1.5,), (None,)), weight, None, a, b), (x, a, b)
    )


def test_an_input_without_gradient_costs_none():
    fused = adapted()
    fuse(fused, "float32")
    fused(torch.randn(3, 12, dtype=torch.float64)).sum().backward()
    assert fused.base_model.model.up.lora_A["default"].weight.grad is not None


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_other_kinds_keep_their_own_forward(settings):
    assert fuse(adapted(**settings), "float32") == 0


def test_a_trained_base_is_not_fused():
    wrapper = adapted()
    layer = wrapper.base_model.model.up
    assert fits(layer)
    layer.base_layer.weight.requires_grad_(True)
    assert not fits(layer)
