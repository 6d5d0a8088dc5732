"""The forest equals the plain model, log-probabilities and gradients, for every proven family."""

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from families import CONFIGS, plain_logprobs, tiny_model
from luthier.errors import ModelError
from luthier.forest import plan as plans
from luthier.forest.forward import PROVEN_FAMILIES, choose_backend, hidden_states, logprobs, readout, set_backend
from luthier.forest.tree import build_forest
from luthier.records import Sequence


def shared_rows(num_rows: int = 4, labels: int = 3) -> list[Sequence]:
    """An instruction, rows of unequal length below it, label branches below those; and two strangers.

    The last asks for tokens that do not stand there, three of them at one place.
    """
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
    soft = Sequence(draw(9), (1, 4, 4, 4, 8), (1.0, 0.5, 0.25, 0.125, 2.0), num_rows + 1, wanted=(5, 9, 96, 3, 0))
    return [*sequences, Sequence(draw(9), (1, 8), (1.0, 2.0), num_rows), soft]


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


@pytest.mark.parametrize("backend", ["grouped", "dense", "padded"])
def test_wanted_tokens_at_one_place_are_one_distribution(backend):
    """The probabilities of all tokens at one place sum to 1, and the token that stands there has no say."""
    model = tiny_model("llama", torch.float32)
    asked = tuple(range(97))
    here, there = (Sequence((3, 4, token), (2,) * 97, (1.0,) * 97, wanted=asked) for token in (5, 6))
    with torch.no_grad():
        found = forest_logprobs(model, [here, there], backend)
        wanted = plain_logprobs(model, [here])
    assert float(found[:97].double().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(found[:97], found[97:])
    torch.testing.assert_close(found[:97], wanted, atol=2e-5, rtol=1e-5)


def test_in_an_encoder_each_sequence_is_its_own():
    """A tiny BERT, padded: hidden states and spans are those of a pass of the sequence alone, end to end."""
    torch.manual_seed(7)
    config = hf.BertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = hf.BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    sequences = [
        Sequence((3, 4, 5, 6, 7), (0, 2), (1.0, 1.0), wanted=(9, 10), reads=((1, 3),)),
        Sequence((3, 4, 5, 8), reads=((0, 2), (1, 4))),
        Sequence((3, 4, 5), (1,), (1.0,)),
    ]
    set_backend(model, "padded")
    forest = build_forest(sequences, causal=False)
    assert forest.num_tokens == 5 + 4 + 3
    with torch.no_grad():
        alone = [model.bert(input_ids=torch.tensor([s.tokens])).last_hidden_state[0] for s in sequences]
        hidden_ND = hidden_states(model, forest, "padded")
    for s, states in enumerate(alone):
        torch.testing.assert_close(hidden_ND[forest.rows_of(s)], states, atol=2e-5, rtol=1e-5)
    spans = torch.stack([alone[0][1:3].mean(0), alone[1][0:2].mean(0), alone[1][1:4].mean(0)])
    torch.testing.assert_close(readout(forest, hidden_ND), spans, atol=2e-5, rtol=1e-5)
    asked = torch.stack([alone[0][0], alone[0][2], alone[2][1]])
    torch.testing.assert_close(hidden_ND[forest.row_M], asked, atol=2e-5, rtol=1e-5)
    assert forest.token_M.tolist() == [9, 10, 4]


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
