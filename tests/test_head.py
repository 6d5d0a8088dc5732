"""The fused output head equals log-softmax, values and gradients, whatever the chunk size."""

import pytest
import torch

from luthier.forest import head
from luthier.forest.head import target_logprobs

ROWS, WIDTH, VOCABULARY = 5, 4, 7
READER = torch.tensor([0, 0, 2, 4, 1, 4, 4])  # row 3 is read by nobody, row 4 by three targets
TOKEN = torch.tensor([1, 6, 0, 3, 3, 2, 3])
SETTINGS = pytest.mark.parametrize(
    ("with_bias", "softcap", "scale"),
    [(False, None, 1.0), (True, None, 1.0), (False, 3.0, 1.0), (False, None, 0.25), (True, 3.0, 0.25)],
)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.5


def inputs(with_bias: bool) -> list[torch.Tensor | None]:
    tensors = [draw(ROWS, WIDTH, seed=1), draw(VOCABULARY, WIDTH, seed=2), draw(VOCABULARY, seed=3)]
    return [tensors[0], tensors[1], tensors[2] if with_bias else None]


def plain(rows, weight, bias, softcap, scale) -> torch.Tensor:
    logits = torch.nn.functional.linear(rows, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, -1)[READER, TOKEN]


def gradients(values: torch.Tensor, tensors: list[torch.Tensor | None]) -> list[torch.Tensor]:
    weights = torch.linspace(-1.1, 2, len(values), dtype=values.dtype)
    return list(torch.autograd.grad((values * weights).sum(), [t for t in tensors if t is not None]))


def test_by_hand():
    """One row h = (1, 0), head rows (log 2, 5), (0, 9), (0, -3): logits (log 2, 0, 0), so p = (1/2, 1/4, 1/4).

    Halved by `scale`: exp(log 2 / 2) = sqrt 2, so p_0 = sqrt 2 / (sqrt 2 + 2) = 0.41421356.
    """
    rows = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[2.0, 5.0], [1.0, 9.0], [1.0, -3.0]], dtype=torch.float64)
    weight[:, 0].log_()
    reader, token = torch.tensor([0, 0]), torch.tensor([0, 2])
    found = target_logprobs(rows, weight, None, reader, token).exp()
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25], dtype=torch.float64), atol=1e-12, rtol=0)
    halved = float(target_logprobs(rows, weight, None, reader, token, scale=0.5)[0].exp())
    assert halved == pytest.approx(2**0.5 - 1, abs=1e-12)


@pytest.mark.parametrize("chunk_elements", [1, 2 * VOCABULARY, 1 << 20])
@SETTINGS
def test_equals_log_softmax_with_gradients(with_bias, softcap, scale, chunk_elements, monkeypatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", chunk_elements)
    tensors = [None if t is None else t.requires_grad_() for t in inputs(with_bias)]
    rows, weight, bias = tensors
    wanted = plain(rows, weight, bias, softcap, scale)
    found = target_logprobs(rows, weight, bias, READER, TOKEN, softcap, scale)
    assert float((found - wanted).detach().abs().max()) < 1e-12
    for mine, theirs in zip(gradients(found, tensors), gradients(wanted, tensors), strict=True):
        assert float((mine - theirs).abs().max()) < 1e-12


@SETTINGS
def test_gradcheck(with_bias, softcap, scale):
    tensors = tuple(t.requires_grad_() for t in inputs(with_bias) if t is not None)

    def function(rows, weight, bias=None):
        return target_logprobs(rows, weight, bias, READER, TOKEN, softcap, scale)

    assert torch.autograd.gradcheck(function, tensors)


def test_gradcheck_with_a_tied_head():
    """Hidden rows come from the very matrix that is the head, as with tied embeddings."""
    weight = inputs(False)[1].requires_grad_()

    def function(weight):
        return target_logprobs(torch.tanh(weight[:ROWS]), weight, None, READER, TOKEN)

    assert torch.autograd.gradcheck(function, (weight,))


def test_a_row_nobody_reads_gets_exactly_no_gradient():
    tensors = [t for t in inputs(False) if t is not None]
    rows, weight = (t.requires_grad_() for t in tensors)
    (gradient, _) = gradients(target_logprobs(rows, weight, None, READER, TOKEN), [rows, weight])
    assert torch.equal(gradient[3], torch.zeros(WIDTH, dtype=torch.float64))
    assert all(bool(gradient[i].abs().sum() > 0) for i in (0, 1, 2, 4))


def test_a_frozen_head_gets_none_and_rows_get_the_same():
    rows, weight, bias = inputs(True)
    rows.requires_grad_()
    (frozen,) = gradients(target_logprobs(rows, weight, bias, READER, TOKEN), [rows])
    (trained, *_) = gradients(target_logprobs(rows, weight.requires_grad_(), bias, READER, TOKEN), [rows, weight])
    assert torch.equal(frozen, trained)


def test_bfloat16_rows_are_summed_in_float32():
    rows, weight = (t.to(torch.bfloat16) for t in inputs(False) if t is not None)
    found = target_logprobs(rows, weight, None, READER, TOKEN)
    assert found.dtype == torch.float32
    exact = plain(rows.double(), weight.double(), None, None, 1.0)
    assert float((found - exact).abs().max()) < 0.05


def test_repeated_rows_add_up_in_one_order():
    """Two threads, 2,000 targets on 40 rows: the backward of `rows[reader]` would differ from run to run."""
    threads = torch.get_num_threads()
    rows, weight = (draw(count, 64, seed=count).float().requires_grad_() for count in (40, 50))
    generator = torch.Generator().manual_seed(0)
    reader, token = (torch.randint(0, count, (2_000,), generator=generator) for count in (40, 50))
    torch.set_num_threads(2)
    try:
        first, *others = (
            gradients(target_logprobs(rows, weight, None, reader, token), [rows, weight]) for _ in range(40)
        )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for found in others for a, b in zip(first, found, strict=True))
