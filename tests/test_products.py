"""Rounded products are what they say, forward and backward, and are refused where they would be emulated.

Factors are cast on every processor here; on one with matrix units they are rounded inside the product too. Other
devices than the CPU are in tests/test_device.py.
"""

import pytest
import torch
from torch import nn

from luthier.errors import ModelError
from luthier.kernels import add_product, linear, product, products
from luthier.kernels.products import RoundedLinear, round_on, rounding
from luthier.models import load
from luthier.runtime import has_fast_bfloat16, has_matrix_units, processor_name

WAYS = ("cast", "inside") if has_matrix_units() else ("cast",)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def rounded(x: torch.Tensor) -> torch.Tensor:
    """What a factor becomes."""
    return x.bfloat16().double()


@pytest.fixture(params=WAYS)
def most(request, monkeypatch) -> float:
    """How factors are rounded, and how far a product may then be from that of the rounded factors."""
    monkeypatch.setattr(products, "has_matrix_units", lambda: request.param == "inside")
    return {"cast": 0.004, "inside": 1e-5}[request.param]


def test_products_are_rounded_inside_only_and_also_after_an_error():
    a, b = torch.randn(64, 96), torch.randn(96, 80)
    exact = a @ b
    with pytest.raises(ValueError, match="inside"), rounding("bfloat16"):
        inside = a @ b
        raise ValueError("inside")
    assert torch.equal(a @ b, exact)
    assert error(inside, exact) < 0.01
    assert error(inside, exact) > 1e-5 or not has_matrix_units()
    with rounding("float32"):
        assert torch.equal(a @ b, exact)


def test_each_product_by_its_rounded_factors(most):
    """Beside float64 sums of the same rounded factors nothing is off but what float32, or the answer's type, rounds."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=draw) for shape in ((3, 40, 96), (80, 96), (80,)))
    wanted = rounded(x) @ rounded(weight).T
    assert error(product(x, weight.T, "bfloat16"), wanted) < most
    assert error(linear(x, weight, None, "bfloat16"), wanted) < most
    assert error(linear(x, weight, bias, "bfloat16"), wanted + bias) < most
    start = torch.randn(40, 80, generator=draw)
    assert error(add_product(start.clone(), x[0], weight.T, "bfloat16"), start + wanted[0]) < most
    assert torch.equal(product(x, weight.T, "float32"), x @ weight.T)
    assert torch.equal(linear(x, weight, bias, "float32"), nn.functional.linear(x, weight, bias))
    assert torch.equal(add_product(start.clone(), x[0], weight.T, "float32"), start.clone().addmm_(x[0], weight.T))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("trains_weight", [True, False])
def test_a_rounded_layer_rounds_in_backward_too(has_bias, trains_weight, most):
    draw = torch.Generator().manual_seed(1)
    x, weight, bias, grad = (torch.randn(*s, generator=draw) for s in ((3, 40, 96), (80, 96), (80,), (3, 40, 80)))
    x.requires_grad_()
    weight.requires_grad_(trains_weight)
    bias.requires_grad_(trains_weight)
    RoundedLinear.apply(x, weight, bias if has_bias else None).backward(grad)
    assert error(x.grad, rounded(grad) @ rounded(weight.detach())) < most
    if trains_weight:
        assert error(weight.grad, torch.einsum("bno,bni->oi", rounded(grad), rounded(x.detach()))) < most
    assert (bias.grad is not None) == (has_bias and trains_weight)
    if bias.grad is not None:
        assert torch.allclose(bias.grad, grad.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch):
    monkeypatch.setattr(load, "has_fast_bfloat16", lambda device: False)
    assert load.choose_precision("auto") == load.choose_precision("auto", "cuda:0") == "float32"
    with pytest.raises(ModelError, match=r"no hardware on this processor.*Set precision: auto or float32"):
        load.choose_precision("bfloat16")
    with pytest.raises(ModelError, match=r"no hardware on cuda:1 .*Set precision: auto or float32"):
        load.choose_precision("bfloat16", "cuda:1")
    monkeypatch.setattr(load, "has_fast_bfloat16", lambda device: True)
    assert load.choose_precision("auto") == load.choose_precision("bfloat16") == "bfloat16"
    assert load.choose_precision("float32") == "float32"


def test_which_devices_have_it(monkeypatch):
    assert processor_name() and has_fast_bfloat16() in (True, False) and not has_fast_bfloat16("mps")
    for flags, wanted in (("fma avx512_bf16", True), ("amx_bf16", True), ("fma avx512f", False)):
        has_fast_bfloat16.cache_clear(), has_matrix_units.cache_clear()
        monkeypatch.setattr("luthier.runtime.processor_flags", lambda found=flags: frozenset(found.split()))
        assert has_fast_bfloat16() is wanted and has_matrix_units() is (flags == "amx_bf16")
    has_matrix_units.cache_clear()
    has_fast_bfloat16.cache_clear()
    for capability, wanted in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device, found=capability: found)
        assert has_fast_bfloat16(f"cuda:{capability[0]}") is wanted
    has_fast_bfloat16.cache_clear()


def test_a_gpu_s_other_products_are_tf32_where_its_layers_are_rounded():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for device, precision, wanted in (
            ("cuda:0", "bfloat16", "tf32"),
            ("cpu", "float32", "tf32"),
            ("cuda:0", "float32", "ieee"),
        ):
            round_on(device, precision)
            assert matmul.fp32_precision == wanted
    finally:
        matmul.fp32_precision = before


def test_a_weight_that_is_kept_rounded_gives_the_same_products(most):
    """Of rows in float32 and in bfloat16, with their types kept; the weight is a factor of the same value."""
    draw = torch.Generator().manual_seed(2)
    x, weight, grad = (torch.randn(*s, generator=draw) for s in ((40, 96), (80, 96), (40, 80)))
    for rows in (x, x.bfloat16()):
        out = linear(rows, weight.bfloat16(), None, "bfloat16")
        assert out.dtype == rows.dtype and error(out, rounded(x) @ rounded(weight).T) < 0.004
        start = grad.to(rows.dtype) @ torch.zeros(80, 96, dtype=rows.dtype)
        back = add_product(start, grad.to(rows.dtype), weight.bfloat16(), "bfloat16")
        assert back.dtype == rows.dtype and error(back, rounded(grad) @ rounded(weight)) < 0.004
