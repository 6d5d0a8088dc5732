"""Passes that are filled up to one of few sizes: nothing that is read changes, and the sizes are few."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from encoders import tiny_encoder
from families import tiny_model
from luthier.forest import even
from luthier.forest.even import even_length, even_size, filled_up, mark_even
from luthier.forest.forward import hidden_states, logprobs, readout, set_backend
from luthier.forest.tree import build_forest
from luthier.forest.virtual import Virtual
from luthier.generation.engine import generate
from luthier.models import load_model
from luthier.records import Sequence
from luthier.training.cut import Cut
from luthier.training.memory_layers import layers_of

ROWS = [
    Sequence((1, 5, 9, 9, 4, 7, 8, 3), (6, 7), (1.0, 1.0), reads=((2, 5),)),
    Sequence((1, 5, 9, 9, 4, 6, 8), (5, 6), (1.0, 0.5)),
    Sequence((1, 5, 9, 9, 4, 7, 6, 2, 8, 3, 4, 4), (6, 8), (1.0, 2.0), reads=((6, 8),)),
    Sequence((1, 6, 6), (1, 2), (2.0, 1.0)),
]


@pytest.fixture
def halves(monkeypatch):
    """Sizes are multiples of half a power of two, so that even a small pass is filled up by much."""
    monkeypatch.setattr(even, "STEPS", 2)


def marked(positions: int = 1 << 30) -> nn.Module:
    model = nn.Module()
    mark_even(model, positions)
    return model


def told(model, rows, backend: str, causal: bool = True) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities and what spans read, in one, and the gradients of both."""
    set_backend(model, backend)
    model.zero_grad()
    forest = build_forest(rows, causal=causal)
    hidden_ND = hidden_states(model, forest, backend)
    assert len(hidden_ND) == forest.num_tokens
    values = torch.cat([logprobs(model, forest, hidden_ND), readout(forest, hidden_ND).flatten()])
    (values * torch.linspace(1, 2, len(values))).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted) -> None:
    torch.testing.assert_close(found[0], wanted[0], atol=2e-6, rtol=0)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5, msg=name)


def rows_seen(model) -> list[int]:
    """The rows of each pass from here on."""
    sizes: list[int] = []
    layers_of(model)[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:-1].numel()))
    return sizes


# --- sizes --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 100_000))
def test_a_size_is_reached_at_little_cost_and_comes_again(size):
    found = even_size(marked(), size)
    assert size <= found <= size + size // 16
    assert even_size(marked(), found) == found
    assert even_size(nn.Module(), size) == size


def test_there_are_few_sizes():
    assert {even_size(marked(), size) for size in range(513, 1025)} == set(range(544, 1025, 32))
    assert len({even_size(marked(), size) for size in range(1025, 8193)}) == 3 * 16


def test_a_padded_length_stays_within_the_model_s_positions():
    assert even_length(marked(), 1001) == 1024
    assert even_length(marked(1000), 993) == 1000
    assert even_length(marked(1000), 1000) == 1000
    assert even_length(nn.Module(), 993) == 993


# --- nothing changes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["grouped", "dense", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_filled_pass_says_the_same(family, backend, halves):
    model = tiny_model(family)
    wanted = told(model, ROWS, backend)
    mark_even(model, 1 << 30)
    assert_same(told(model, ROWS, backend), wanted)


@pytest.mark.parametrize("family", ["bert", "deberta-v2"])
def test_a_longer_padding_of_an_encoder_says_the_same(family, halves):
    model, rows = tiny_encoder(family), [Sequence(row.tokens, (1,), (1.0,), reads=row.reads) for row in ROWS]
    wanted = told(model, rows, "padded", causal=False)
    mark_even(model, 1 << 30)
    assert_same(told(model, rows, "padded", causal=False), wanted)


def test_learned_rows_stand_before_a_filled_pass(halves):
    model = tiny_model("llama")
    learned = torch.randn(3, model.config.hidden_size)
    model.virtual_tokens = Virtual(3, embeddings=lambda: learned)
    wanted = told(model, ROWS, "grouped")
    mark_even(model, 1 << 30)
    assert_same(told(model, ROWS, "grouped"), wanted)


def test_a_pass_has_the_size_that_was_chosen(halves):
    model = tiny_model("llama")
    set_backend(model, "grouped")
    forest, sizes = build_forest(ROWS), rows_seen(model)
    with torch.no_grad():
        hidden_states(model, forest, "grouped")
        mark_even(model, 1 << 30)
        hidden_states(model, forest, "grouped")
    assert sizes == [11, 12]
    assert filled_up(model, filled_up(model, forest)).num_tokens == 12


def test_replies_are_the_same_and_prompts_come_in_even_sizes(halves):
    model = tiny_model("llama")
    set_backend(model, "grouped")
    prompts = [(1, 5, 9, 13), (1, 5, 9, 20, 21), (1, 5), (7, 8, 9, 10, 11, 12, 13)]
    wanted = generate(model, prompts, 8, {2}, "grouped")
    mark_even(model, 1 << 30)
    sizes = rows_seen(model)
    assert generate(model, prompts, 8, {2}, "grouped") == wanted
    assert sizes[0] == 16


@pytest.mark.parametrize("backend", ["grouped", "padded"])
def test_a_model_cut_in_two_fills_its_passes_too(backend, halves):
    model = tiny_model("llama")
    set_backend(model, backend)
    mark_even(model, 1 << 30)
    layers = layers_of(model)
    forest, cut = build_forest(ROWS), Cut(model, backend, layers[:1], layers[1:], 0)
    with torch.no_grad():
        wanted = hidden_states(model, forest, backend)
        states_ND = cut.below(forest)
        assert len(states_ND) == forest.num_tokens
        torch.testing.assert_close(cut.above(forest, states_ND), wanted, atol=1e-6, rtol=0)


# --- where it is done ---------------------------------------------------------------------------------------------


def test_only_a_model_that_rounds_on_a_cpu_is_marked(tiny_path, monkeypatch):
    assert not hasattr(load_model(str(tiny_path)).model, even.MARK)
    monkeypatch.setattr("luthier.models.load.has_fast_bfloat16", lambda device="cpu": True)
    rounded = load_model(str(tiny_path), precision="bfloat16").model
    assert even_size(rounded, 1001) == 1024
