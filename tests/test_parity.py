"""The forest equals the plain model, log-probabilities and gradients, for every proven family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from families import CONFIGS, plain_logprobs, tiny_model
from luthier.errors import ModelError
from luthier.forest import plan as plans
from luthier.forest.forward import PROVEN_FAMILIES, choose_backend, hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.records import Sequence


def shared_rows(num_rows: int = 4, labels: int = 3) -> list[Sequence]:
    """An instruction, rows of unequal length below it, label branches below those; and a stranger."""
    generator = torch.Generator().manual_seed(3)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 97, (size,), generator=generator).tolist())

    instruction, sequences = draw(7), []
    for row in range(num_rows):
        prompt = instruction + draw(3 + 2 * row)
        for label in range(labels):
            tokens = prompt + draw(1 + label)
            targets = tuple(range(len(prompt), len(tokens)))
            weights = tuple(0.5 + 0.25 * i for i in range(len(targets)))
            sequences.append(Sequence(tokens, targets, weights, row, label))
    return [*sequences, Sequence(draw(9), (1, 8), (1.0, 2.0), num_rows)]


def forest_logprobs(model, sequences, backend: str) -> torch.Tensor:
    set_backend(model, backend)
    forest = build_forest(sequences)
    return logprobs(model, forest, hidden_states(model, forest, backend))


def weighted_gradients(model, values, sequences) -> dict[str, torch.Tensor]:
    weights = torch.tensor([w for sequence in sequences for w in sequence.weights], dtype=values.dtype)
    model.zero_grad()
    (values * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        # the families themselves compute norms and softmax in float32, whatever the model's type
        assert float((found[name] - gradient).abs().max()) < 2e-6 * scale, name


@pytest.mark.parametrize("block_tokens", [1, 8, 4096])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_forest_equals_plain_model(family, block_tokens, monkeypatch):
    monkeypatch.setattr(plans, "BLOCK_TOKENS", block_tokens)
    model, sequences = tiny_model(family), shared_rows()
    wanted = plain_logprobs(model, sequences)
    wanted_gradients = weighted_gradients(model, wanted, sequences)
    for backend in ("grouped", "dense"):
        found = forest_logprobs(model, sequences, backend)
        assert float((found - wanted).detach().abs().max()) < 2e-6, backend
        assert_same(weighted_gradients(model, found, sequences), wanted_gradients)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_padded_path_equals_plain_model(family):
    model, sequences = (
        tiny_model(family, torch.float32),
        shared_rows(),
    )  # transformers' masks are not for float64
    wanted = plain_logprobs(model, sequences)
    found = forest_logprobs(model, sequences, "padded")
    assert float((found - wanted).detach().abs().max()) < 5e-5


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_forest_equals_plain_model_with_lora(family):
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules="all-linear",
        init_lora_weights=False,
        fan_in_fan_out=family == "gpt2",
    )
    torch.manual_seed(1)
    model = get_peft_model(tiny_model(family), config).base_model.model
    sequences = shared_rows()
    wanted = plain_logprobs(model, sequences)
    wanted_gradients = weighted_gradients(model, wanted, sequences)
    assert all("lora" in name for name in wanted_gradients)
    found = forest_logprobs(model, sequences, "grouped")
    assert float((found - wanted).detach().abs().max()) < 2e-6
    assert_same(weighted_gradients(model, found, sequences), wanted_gradients)


def test_every_proven_family_is_proven_here():
    assert frozenset(CONFIGS) == PROVEN_FAMILIES


TOKENS = st.lists(st.integers(3, 8), min_size=2, max_size=14)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.lists(TOKENS, min_size=1, max_size=6), block_tokens=st.sampled_from([1, 3, 6, 100]))
def test_random_trees_equal_the_plain_model(rows, block_tokens):
    model = MODEL
    sequences = [Sequence(tuple(row), tuple(range(1, len(row))), (1.0,) * (len(row) - 1)) for row in rows]
    wanted = plain_logprobs(model, sequences)
    set_backend(model, "grouped")
    forest = build_forest(sequences)
    plan = plans.plan_forest(forest, "grouped", block_tokens=block_tokens)
    from luthier.forest.forward import run_plan

    found = logprobs(model, forest, run_plan(model, torch.from_numpy(forest.tokens_N), plan))
    assert float((found - wanted).detach().abs().max()) < 2e-6
    assert_same(weighted_gradients(model, found, sequences), weighted_gradients(model, wanted, sequences))


MODEL = tiny_model("gemma2")


def test_unproven_family_runs_padded_and_says_so():
    model = tiny_model("llama")
    model.config.model_type = "mystery"
    backend, reason = choose_backend(model)
    assert backend == "padded" and '"mystery" is not proven on the token forest' in reason
    with pytest.raises(ModelError, match="Set attention: auto or padded"):
        choose_backend(model, "grouped")
