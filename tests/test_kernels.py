"""The kernels give what the formulas and the families give, forward and backward, and are put only where they do."""

import math

import pytest
import torch
import transformers.models.llama.modeling_llama as llama
from peft import LoraConfig, get_peft_model
from torch import nn

from families import CONFIGS, plain_logprobs, tiny_model
from luthier.adapters import fuse
from luthier.forest import parts
from luthier.forest import plan as plans
from luthier.forest.attention import GroupedAttention
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.parts import Scores
from luthier.forest.tree import build_forest
from luthier.kernels import quicken
from luthier.kernels.gate import SiluGate
from luthier.kernels.norm import RmsNorm
from luthier.kernels.rotary import Rotary
from luthier.records import Sequence

# modules of two layers that get a kernel: two norms a layer and the last one, the gate, the rotation; Qwen3 has
# two more norms a layer (query, key), Gemma 2 four norms a layer and no SiLU, Gemma 3 both, OLMo 2 four norms.
QUICKENED = {
    "llama": 9, "mistral": 9, "qwen2": 9, "qwen3": 13, "gemma2": 11, "gemma3_text": 15, "phi3": 7, "gpt2": 0,
    "gpt_neox": 2, "olmo2": 13, "smollm3": 9,
}  # fmt: skip


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rms_norm_formula(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def gate_formula(gate, up):
    return gate / (1 + torch.exp(-gate)) * up


def rotary_formula(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


NORM = (lambda x, w: RmsNorm.apply(x, w, 1e-5)), (lambda x, w: rms_norm_formula(x, w, 1e-5)), ((3, 5, 8), (8,)), 2
GATE = SiluGate.apply, gate_formula, ((3, 5, 8), (3, 5, 8)), 2
ROTARY = Rotary.apply, rotary_formula, ((1, 4, 5, 8), (1, 1, 5, 8), (1, 1, 5, 8)), 1


def value_and_gradients(function, tensors, num_wanting):
    leaves = [tensor.clone().requires_grad_(i < num_wanting) for i, tensor in enumerate(tensors)]
    out = function(*leaves)
    out.backward(draw(*out.shape, seed=9).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves[:num_wanting])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("case", [NORM, GATE, ROTARY], ids=["norm", "gate", "rotary"])
def test_kernel_equals_its_formula(case, dtype, tolerance):
    kernel, formula, shapes, num_wanting = case
    tensors = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    wanted = value_and_gradients(formula, tensors, num_wanting)
    found = value_and_gradients(kernel, [tensor.to(dtype) for tensor in tensors], num_wanting)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).abs().max()) < tolerance * float(other.abs().max())


@pytest.mark.parametrize("case", [NORM, GATE, ROTARY], ids=["norm", "gate", "rotary"])
def test_gradients_agree_with_finite_differences(case):
    kernel, _, shapes, num_wanting = case
    tensors = [draw(*shape, seed=i).requires_grad_(i < num_wanting) for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(kernel, tensors)


def test_numbers_worked_by_hand():
    # mean(3^2, 4^2) + 3.5 = 16, so r = 1/4
    normed = RmsNorm.apply(torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 10.0]), 3.5)
    assert normed.tolist() == [[1.5, 10.0]]
    # silu(ln 3) = ln 3 * 3/4
    gated = SiluGate.apply(torch.tensor([0.0, math.log(3)]), torch.tensor([5.0, 8.0]))
    torch.testing.assert_close(gated, torch.tensor([0.0, 6 * math.log(3)]))
    # a quarter turn sends (1, 2 | 3, 4) to (-3, -4 | 1, 2)
    turned = Rotary.apply(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.zeros(1, 4), torch.ones(1, 4))
    assert turned.tolist() == [[-3.0, -4.0, 1.0, 2.0]]


def test_nothing_is_worked_out_that_nobody_wants():
    x, weight = draw(2, 4), draw(4).requires_grad_()
    RmsNorm.apply(x, weight, 0.0).sum().backward()
    assert x.grad is None and weight.grad.shape == (4,)
    gate, up = draw(2, 4), draw(2, 4).requires_grad_()
    SiluGate.apply(gate, up).sum().backward()
    assert gate.grad is None
    torch.testing.assert_close(up.grad, gate * torch.sigmoid(gate))


# --- where they are put --------------------------------------------------------------------------------


def rows():
    generator = torch.Generator().manual_seed(3)

    def tokens(size):
        return tuple(torch.randint(3, 97, (size,), generator=generator).tolist())

    shared = tokens(6)
    return [Sequence(row, tuple(range(4, len(row))), (1.0,) * (len(row) - 4))
            for row in (shared + tokens(3), shared + tokens(5), tokens(9))]  # fmt: skip


def model_gradients(model, values):
    model.zero_grad()
    (values * torch.arange(1, len(values) + 1)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close_gradients(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * largest, name


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_quickened_forest_equals_the_family(family, with_lora):
    model = tiny_model(family)
    wanted_count, count = QUICKENED[family], quicken(model)
    assert count == wanted_count
    if with_lora:
        torch.manual_seed(1)
        settings = {"target_modules": "all-linear", "init_lora_weights": False, "fan_in_fan_out": family == "gpt2"}
        wrapper = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, **settings))
        model = wrapper.base_model.model
    bound = {module: module.__dict__.pop("forward") for module in model.modules() if "forward" in module.__dict__}
    wanted = plain_logprobs(model, rows())
    wanted_gradients = model_gradients(model, wanted)
    for module, forward in bound.items():
        module.forward = forward
    if with_lora:
        assert fuse(wrapper, "float32") or family == "gpt2"
    set_backend(model, "grouped")
    forest = build_forest(rows())
    found = logprobs(model, forest, hidden_states(model, forest, "grouped"))
    # the families work out norms in float32 whatever the model's type; the kernels do not
    assert float((found - wanted).detach().abs().max()) < 2e-6
    assert_close_gradients(model_gradients(model, found), wanted_gradients, 2e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_quickened_padded_path_equals_the_family(family):
    plain, quick = tiny_model(family, torch.float32), tiny_model(family, torch.float32)
    assert quicken(quick) > 0
    forest = build_forest(rows())
    results = []
    for model in (plain, quick):
        set_backend(model, "padded")
        values = logprobs(model, forest, hidden_states(model, forest, "padded"))
        results.append((values.detach(), model_gradients(model, values)))
    (wanted, wanted_gradients), (found, gradients) = results
    assert float((found - wanted).abs().max()) < 2e-5
    assert_close_gradients(gradients, wanted_gradients, 2e-5)


def test_a_family_s_module_is_left_as_it_was():
    own = llama.apply_rotary_pos_emb
    quick, plain = tiny_model("llama"), tiny_model("llama")
    quicken(quick)
    assert llama.apply_rotary_pos_emb is own
    assert not any("forward" in module.__dict__ for module in plain.modules())
    assert quick.model.layers[0].self_attn.forward.__globals__["apply_rotary_pos_emb"] is not own


def test_a_module_that_has_a_forward_of_its_own_keeps_it():
    model = tiny_model("llama")
    norm = model.model.norm
    norm.forward = lambda x: x * 0
    assert quicken(model) == QUICKENED["llama"] - 1
    assert float(norm(draw(2, 32)).abs().max()) == 0
    assert quicken(model) == 0  # all have one now


class AlmostRMSNorm(nn.Module):
    """Looks like one, and centres its rows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6

    def forward(self, x):
        return rms_norm_formula(x - x.mean(-1, keepdim=True), self.weight, self.eps)


class AlmostGate(nn.Module):
    """Looks like a gated block, and adds its input."""

    def __init__(self, activation):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)
        self.act_fn = activation

    def forward(self, x):
        return x + self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class GatedRMSNorm(AlmostRMSNorm):
    """A norm that may be given a second tensor."""

    def forward(self, x, gate=None):
        normed = rms_norm_formula(x, self.weight, self.eps)
        return normed if gate is None else normed * gate


def apply_rotary_pos_emb(q, k, cos, sin, position_ids):
    return rotary_formula(q, cos[position_ids], sin[position_ids]), k


class OddAttention(nn.Module):
    """Rotates by a function with another signature."""

    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin, 0)


@pytest.mark.parametrize(
    "module",
    [AlmostRMSNorm(), GatedRMSNorm(), AlmostGate(nn.SiLU()), AlmostGate(nn.GELU()), nn.RMSNorm(8), OddAttention()],
    ids=lambda module: type(module).__name__,
)
def test_what_only_looks_alike_keeps_its_own_forward(module):
    assert quicken(module) == 0


def test_other_types_run_the_family_s_own_code():
    quick, plain = tiny_model("llama", torch.float32), tiny_model("llama", torch.float32)
    quicken(quick)
    tokens = torch.tensor([[5, 6, 7, 8]])
    wanted = plain.to(torch.bfloat16)(input_ids=tokens, use_cache=False).logits
    found = quick.to(torch.bfloat16)(input_ids=tokens, use_cache=False).logits
    assert torch.equal(found, wanted)


# --- attention by plain products and by the flash kernel -----------------------------------------------


@pytest.mark.parametrize("block_tokens", [1, 8, 4096])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("product_keys", [0, 6, 4096])
@pytest.mark.parametrize("folded_keys", [0, 6, 160])
def test_parts_equal_one_masked_softmax(product_keys, folded_keys, window, block_tokens, monkeypatch):
    """Output and gradients of grouped-query attention, against softmax over the whole mask in float64."""
    monkeypatch.setattr(parts, "PRODUCT_KEYS", product_keys)
    monkeypatch.setattr(plans, "FOLDED_KEYS", folded_keys)
    forest = build_forest(rows())
    plan = plans.plan_forest(forest, "grouped", block_tokens=block_tokens)
    size = forest.num_tokens
    tensors = [draw(1, size, heads, 8, seed=heads + i).transpose(1, 2) for i, heads in enumerate((6, 2, 2))]
    visible = torch.from_numpy(forest.visible_NN())
    if window is not None:
        visible &= plan.positions_N[:, None] - plan.positions_N[None, :] < window

    def softmax_attention(q, k, v):
        k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)
        scores = (q @ k.transpose(-1, -2) * 0.7).masked_fill(~visible, -torch.inf)
        return torch.softmax(scores, dim=-1) @ v

    wanted = value_and_gradients(softmax_attention, tensors, 3)
    found = value_and_gradients(lambda q, k, v: GroupedAttention.apply(q, k, v, plan, Scores(0.7), window), tensors, 3)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_masked_key_gets_exactly_no_gradient_however_large_its_score():
    forest = build_forest(rows())
    plan = plans.plan_forest(forest, "grouped")
    query, key, value = (draw(1, 2, forest.num_tokens, 4, seed=i, dtype=torch.float32) for i in range(3))
    row = 2
    hidden = ~torch.from_numpy(forest.visible_NN())[row]
    key[:, :, hidden] *= 1e3
    for tensor in (query, key, value):
        tensor.requires_grad_()
    GroupedAttention.apply(query, key, value, plan, Scores(1.0), None)[:, :, row].sum().backward()
    for tensor in (key, value):
        assert float(tensor.grad[:, :, hidden].abs().max()) == 0
        assert float(tensor.grad[:, :, ~hidden].abs().min()) > 0
