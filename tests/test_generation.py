"""Decoding: greedy and sampled, alone and in a batch, on the forest and padded."""

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from families import SMALL, plain_logprobs, tiny_model
from luthier.forest.forward import set_backend
from luthier.forest.output import output_head
from luthier.generation.engine import generate, next_tokens
from luthier.generation.sampling import Draw, Sampling, cut_distribution, pick
from luthier.records import Sequence

PROMPTS = [(1, 5, 9, 13), (1, 5, 9, 20, 21), (1, 5), (7, 8, 9, 10, 11, 12)]
WARM = Sampling(temperature=1.3, top_p=0.9, top_k=40, seed=3)
TABLE = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)


def forest_model(family: str = "llama", backend: str = "grouped"):
    model = tiny_model(family)
    set_backend(model, backend)
    return model


def draws_of(prompts, sampling: Sampling = WARM, sample: int = 0) -> list[Draw]:
    """A draw for each prompt, numbered by what it says and not by where it stands."""
    return [Draw(sampling, sum(prompt) * 100 + len(prompt), sample) for prompt in prompts]


def distribution(**settings) -> list[float]:
    """What TABLE becomes at temperature 1."""
    return cut_distribution(TABLE.log(), [Sampling(temperature=1.0, **settings)])[0].tolist()


# --- the distribution ----------------------------------------------------------------------------------


def test_top_p_keeps_the_fewest_likely_tokens_that_hold_the_share():
    """Ranked 0.4, 0.3, 0.2, 0.1. The first two hold 0.7: at 0.65 both are needed, at 0.75 a third, at 0.35 one."""
    assert distribution(top_p=0.35) == pytest.approx([0, 1, 0, 0])
    assert distribution(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert distribution(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert distribution(top_p=1.0) == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert distribution(top_p=0.65)[0] == distribution(top_p=0.65)[2] == 0  # exactly


def test_top_k_comes_before_top_p():
    """The best two are 4/7 = 0.571 and 3/7 of what is left: at 0.5 one token stays, of all tokens it would be two."""
    assert distribution(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert distribution(top_k=2, top_p=0.5) == pytest.approx([0, 1, 0, 0])
    assert distribution(top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert distribution(top_k=9) == distribution()


def test_temperature_is_a_power_of_the_probabilities():
    """At 0.5 probabilities are squared: 1, 16, 4, 9 of 30. Rows of one batch keep their own."""
    logits = TABLE.log().repeat(2, 1)
    cool, plain = cut_distribution(logits, [Sampling(temperature=0.5), Sampling(temperature=1.0)]).tolist()
    assert cool == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    assert plain == pytest.approx([0.1, 0.4, 0.2, 0.3])


def test_top_p_that_the_first_tokens_hold_exactly_is_reached():
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    assert cut_distribution(logits, [Sampling(temperature=1.0, top_p=0.5)])[0].tolist() == [1, 0, 0]


def test_equally_likely_tokens_rank_by_index():
    logits = torch.zeros(1, 5)
    assert cut_distribution(logits, [Sampling(temperature=1.0, top_k=2)])[0].tolist() == [0.5, 0.5, 0, 0, 0]


def test_pick_inverts_the_running_sum():
    """Running sums of TABLE: 0.1, 0.5, 0.7, 1."""
    shares = [0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, np.nextafter(1, 0)]
    assert pick(TABLE.repeat(8, 1), shares).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    holes = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]], dtype=torch.float64)
    assert pick(holes.repeat(3, 1), [0.0, 0.5, np.nextafter(1, 0)]).tolist() == [1, 3, 3]


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.01, 1.0),
    share=st.floats(0, 1, exclude_max=True),
)
def test_cut_distribution_sums_to_one_and_only_kept_tokens_are_picked(logits, top_k, top_p, share):
    table = torch.tensor([logits], dtype=torch.float64)
    probs = cut_distribution(table, [Sampling(temperature=0.7, top_k=top_k, top_p=top_p)])
    assert float(probs.sum()) == pytest.approx(1)
    assert bool((probs[table > table.max() - 1e-9] > 0).any())
    assert int((probs > 0).sum()) <= (top_k or len(logits))
    assert float(probs[0, pick(probs, [share])]) > 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"seed": -1}], ids=str
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(AssertionError):
        Sampling(**wrong)


# --- decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_temperature_zero_and_top_k_one_are_greedy(family):
    model = forest_model(family)
    greedy = generate(model, PROMPTS, 8, {2}, "grouped")
    assert any(reply for reply in greedy)
    for sampling in (Sampling(seed=9), Sampling(temperature=2.0, top_k=1, seed=9), Sampling(1e-4, seed=9)):
        assert generate(model, PROMPTS, 8, {2}, "grouped", draws_of(PROMPTS, sampling)) == greedy


def test_greedy_forest_decodes_as_transformers_does():
    model = forest_model()
    replies = generate(model, PROMPTS, 8, {2}, "grouped")
    set_backend(model, "padded")
    assert generate(model, PROMPTS, 8, {2}, "padded") == replies


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_sampled_forest_decodes_as_the_plain_model_does(family):
    model = forest_model(family)
    draws = draws_of(PROMPTS)
    replies = generate(model, PROMPTS, 8, {2}, "grouped", draws)
    set_backend(model, "padded")
    assert generate(model, PROMPTS, 8, {2}, "padded", draws) == replies
    greedy_first = [Draw(Sampling(), 0), *draws[1:]]
    mixed = generate(model, PROMPTS, 8, {2}, "padded", greedy_first)
    assert mixed[0] == generate(model, PROMPTS[:1], 8, {2}, "padded")[0]
    assert mixed[1:] == replies[1:]


SMALL_HEADS = {
    "a cap": hf.Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.5),
    "a divisor": hf.GraniteConfig(**SMALL, logits_scaling=8.0),
    "a factor": hf.CohereConfig(**SMALL, logit_scale=0.0625),
    "a bias": hf.PhiConfig(**SMALL),
}


@pytest.mark.parametrize("head", SMALL_HEADS)
@torch.no_grad()
def test_tokens_are_drawn_from_the_logits_of_the_model(head):
    """A cap, a scale and a bias change no most likely token, or seldom, but every distribution."""
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(SMALL_HEADS[head]).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    tokens = torch.tensor([PROMPTS[3]])
    seen = []
    chooser = type("Chooser", (), {"choose": lambda self, logits, rows: seen.append(logits) or logits.argmax(-1)})()
    hidden_SD = model.base_model(tokens).last_hidden_state[0]
    next_tokens(output_head(model), hidden_SD, chooser, list(range(6)))
    plain = model(tokens).logits[0]
    torch.testing.assert_close(seen[0], plain)
    weight = model.get_output_embeddings().weight
    assert not torch.allclose(hidden_SD @ weight.T, plain, atol=0.01)  # the head does something


def test_what_a_prompt_gets_does_not_depend_on_its_batch():
    model = forest_model()
    together = dict(zip(PROMPTS, generate(model, PROMPTS, 8, {2}, "grouped", draws_of(PROMPTS)), strict=True))
    turned = PROMPTS[::-1]
    assert dict(zip(turned, generate(model, turned, 8, {2}, "grouped", draws_of(turned)), strict=True)) == together
    for prompt in PROMPTS:
        assert generate(model, [prompt], 8, {2}, "grouped", draws_of([prompt])) == [together[prompt]]


def test_samples_of_one_prompt_differ_and_share_its_computation(monkeypatch):
    """Eight samples of a prompt of 4 tokens: the first pass computes 4 rows, not 32."""
    import luthier.generation.engine as engine

    model = forest_model()
    rows: list[int] = []
    run_plan = engine.run_plan
    monkeypatch.setattr(
        engine, "run_plan", lambda m, tokens, plan: rows.append(len(tokens)) or run_plan(m, tokens, plan)
    )
    draws = [Draw(WARM, 0, sample) for sample in range(8)]
    replies = generate(model, PROMPTS[:1] * 8, 6, {2}, "grouped", draws)
    assert rows[0] == 4
    assert rows[1] <= 8
    assert len({tuple(reply) for reply in replies}) > 4
    assert generate(model, PROMPTS[:1], 6, {2}, "grouped", draws[5:6]) == replies[5:6]


def test_first_tokens_follow_the_softmax():
    """Chi-square over 4,000 samples with a fixed seed; tokens expected less than 5 times are counted together."""
    model = forest_model()
    prompt, count = PROMPTS[0], 4000
    every = [Sequence((*prompt, token), (len(prompt),), (1.0,)) for token in range(97)]
    expected = plain_logprobs(model, every).detach().exp().numpy() * count
    set_backend(model, "grouped")
    draws = [Draw(Sampling(temperature=1.0, seed=11), 0, sample) for sample in range(count)]
    replies = generate(model, [prompt] * count, 1, set(), "grouped", draws)
    seen = np.bincount([reply[0] for reply in replies], minlength=97)
    rare = expected < 5
    assert (~rare).sum() > 10
    tables = [np.append(table[~rare], table[rare].sum()) for table in (seen, expected)]
    assert stats.chisquare(*tables).pvalue > 0.01
    wrong = np.roll(tables[1], 1)
    assert stats.chisquare(tables[0], wrong).pvalue < 1e-6  # the test can fail


def test_another_seed_gives_other_replies():
    model = forest_model()
    one, other = (
        generate(model, PROMPTS, 8, {2}, "grouped", draws_of(PROMPTS, Sampling(temperature=1.0, seed=seed)))
        for seed in (0, 1)
    )
    assert one != other


def test_no_prompts_no_replies():
    assert generate(forest_model(), [], 4, {2}, "grouped") == []
