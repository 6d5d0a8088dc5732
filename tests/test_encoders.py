"""Encoders equal transformers' own models: log-probabilities, gradients, hidden states, and XLNet's two streams."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from encoders import CONFIGS, LEGACY_FREE, MASKED, plain_logprobs, tiny_encoder, tiny_encoder_folder
from luthier.errors import ModelError
from luthier.forest.encoders import HEADS, permutation_masks
from luthier.forest.forward import backbone, choose_backend, hidden_states, logprobs, readout, set_backend
from luthier.forest.output import output_head
from luthier.forest.tree import build_forest
from luthier.methods.base import Example
from luthier.models import load_model
from luthier.recipe import Lora
from luthier.records import Sequence
from luthier.training.learner import load_learner, new_learner

ROWS = [
    Sequence((1, 7, 3, 9, 12, 2), (2, 3), (1.0, 0.5), wanted=(8, 9)),
    Sequence((1, 7, 3, 2), (2, 1), (2.0, 1.0), wanted=(8, 10)),
    Sequence((1, 20, 21, 22, 3, 15, 3, 11, 16, 2), (4, 6, 6, 7), (1.0, 0.5, 0.25, 1.0), wanted=(8, 9, 5, 11)),
]
PERMUTED = [
    Sequence((20, 21, 22, 15, 11, 16, 2, 1), (4, 1, 3), (1.0, 1.0, 1.0)),
    Sequence((7, 9, 12, 2, 1), (0,), (1.0,)),
    Sequence((13, 9, 17, 18, 2, 1), (2, 0), (1.0, 1.0)),
]


def ours(model, sequences) -> torch.Tensor:
    set_backend(model, "padded")
    forest = build_forest(sequences, causal=False)
    return logprobs(model, forest, hidden_states(model, forest, "padded"))


def gradients(model, values, sequences) -> dict[str, torch.Tensor]:
    weights = torch.tensor([w for sequence in sequences for w in sequence.weights], dtype=values.dtype)
    model.zero_grad()
    (values * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < tolerance * scale, name


def test_every_family_is_proven_here():
    assert CONFIGS.keys() == HEADS.keys()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)], ids=["64", "32"])
@pytest.mark.parametrize("family", MASKED)
def test_masked_model_equals_transformers(family, dtype, tolerance):
    """Rows of unequal length, one of them asking for two tokens at one place; gradients of all parameters."""
    model = tiny_encoder(family, dtype)
    wanted = plain_logprobs(model, ROWS)
    wanted_gradients = gradients(model, wanted, ROWS)
    found = ours(model, ROWS)
    assert float((found - wanted).detach().abs().max()) < tolerance
    assert_same(gradients(model, found, ROWS), wanted_gradients, 10 * tolerance)


@pytest.mark.parametrize("family", MASKED)
def test_masked_model_equals_transformers_with_lora(family):
    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(tiny_encoder(family, torch.float64), config).base_model.model
    wanted = plain_logprobs(model, ROWS)
    wanted_gradients = gradients(model, wanted, ROWS)
    assert wanted_gradients and all("lora" in name for name in wanted_gradients)
    found = ours(model, ROWS)
    assert float((found - wanted).detach().abs().max()) < 1e-8
    assert_same(gradients(model, found, ROWS), wanted_gradients, 1e-7)


@pytest.mark.parametrize("family", [*MASKED, "xlnet"])
def test_spans_are_those_of_the_sequence_alone(family):
    model = tiny_encoder(family, torch.float64)
    rows = [replace(row, targets=(), weights=(), wanted=None, reads=((0, 2), (1, 4))) for row in ROWS]
    set_backend(model, "padded")
    forest = build_forest(rows, causal=False)
    with torch.no_grad():
        found = readout(forest, hidden_states(model, forest, "padded"))
        body = backbone(model)
        alone = [body(input_ids=torch.tensor([row.tokens])).last_hidden_state[0] for row in rows]
    wanted = torch.stack([states[start:stop].mean(0) for states in alone for start, stop in ((0, 2), (1, 4))])
    assert float((found - wanted).abs().max()) < 1e-8


def test_only_the_targets_rows_get_a_gradient():
    """Hidden rows that no target reads: exactly zero."""
    model = tiny_encoder("bert")
    forest = build_forest(ROWS, causal=False)
    hidden_ND = torch.randn(forest.num_tokens, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(logprobs(model, forest, hidden_ND).sum(), [hidden_ND])
    read = torch.zeros(forest.num_tokens, dtype=torch.bool).index_fill(0, torch.from_numpy(forest.row_M), True)
    assert torch.count_nonzero(gradient[~read]) == 0 and bool((gradient[read].abs().sum(1) > 0).all())


def test_length_groups_by_hand():
    """Lengths 20 and 18, then 20 of 5: in one group those would be padded by 15 each."""
    rows = [Sequence((7,) * 5)] * 10 + [Sequence((7,) * 20), Sequence((7,) * 18)] + [Sequence((7,) * 5)] * 10
    forest = build_forest(rows, causal=False)
    found = forest.length_groups()
    # 20 + 18 + 4 of 5 are 58 tokens with 62 of padding, under 58 / 8 + 64; one more would be 63 with 77
    assert found == [[10, 11, 0, 1, 2, 3], [*range(4, 10), *range(12, 22)]]
    assert forest.num_grouped_tokens == 6 * 20 + 16 * 5 < forest.num_padded_tokens == 22 * 20
    assert build_forest(rows).length_groups() == [list(range(22))]


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "xlnet"])
def test_length_groups_change_nothing(family):
    """Rows of 3 to 60 tokens, in mixed order, in several passes: log-probabilities and gradients of one by one."""
    draw = torch.Generator().manual_seed(3)
    sizes = (3, 60, 5, 58, 4, 20, 3, 21, 6, 59)
    rows = [
        Sequence(tuple(torch.randint(5, 30, (size,), generator=draw).tolist()), (1, 0), (1.0, 0.5), wanted=(8, 9))
        for size in sizes
    ]
    model = tiny_encoder(family)
    assert len(build_forest(rows, causal=False).length_groups()) == 2
    alone = torch.cat([ours(model, [row]) for row in rows])
    wanted_gradients = gradients(model, alone, rows)
    found = ours(model, rows)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    assert_same(gradients(model, found, rows), wanted_gradients, 1e-5)


# --- XLNet's two streams ------------------------------------------------------------------------------------------


def test_permutation_masks_by_hand():
    """Tokens a b c with b predicted first, then a; c is context."""
    forest = build_forest([Sequence((5, 6, 7), (1, 0), (1.0, 1.0))], causal=False)
    blocked, mapping, rank = permutation_masks(forest, 3)
    assert blocked[0].astype(int).tolist() == [
        [1, 0, 0],  # a sees b and c, not itself
        [1, 1, 0],  # b sees c only
        [1, 1, 0],  # the context sees itself only
    ]
    assert mapping[0].tolist() == [[0, 1, 0], [1, 0, 0]] and rank.tolist() == [0, 1]


def xlnet_alone(model, sequence: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' own loss of one sequence, masks built token by token, and its logits at the targets in order."""
    length, order = len(sequence.tokens), list(sequence.targets)
    blocked, mapping = torch.zeros(1, length, length), torch.zeros(1, len(order), length)
    for i in range(length):
        for j in order:
            seen_by = order[order.index(j) + 1 :]
            blocked[0, i, j] = 0.0 if i in seen_by else 1.0
    for p, target in enumerate(order):
        mapping[0, p, target] = 1.0
    labels = torch.tensor([[sequence.tokens[target] for target in order]])
    out = model(torch.tensor([sequence.tokens]), perm_mask=blocked, target_mapping=mapping, labels=labels)
    return out.loss, out.logits[0]


def test_two_streams_equal_transformers():
    """Loss and gradients, of sequences of unequal length in one padded batch."""
    model = tiny_encoder("xlnet")
    wanted = torch.stack([xlnet_alone(model, row)[0] for row in PERMUTED])
    sizes = [len(row.targets) for row in PERMUTED]
    wanted_gradients = gradients(model, -wanted * torch.tensor(sizes), [Sequence((5,), (0,), (1.0,))] * 3)
    found = ours(model, PERMUTED)
    means = torch.stack([-part.mean() for part in found.split(sizes)])
    torch.testing.assert_close(means, wanted, atol=1e-5, rtol=0)
    found_gradients = gradients(model, found, PERMUTED)
    assert float(found_gradients["transformer.mask_emb"].abs().max()) > 0
    assert_same(found_gradients, wanted_gradients, 1e-5)


def test_no_prediction_sees_its_token_or_a_later_one():
    """By changing every token in turn: what is predicted at place p moves with context and earlier targets only."""
    model = tiny_encoder("xlnet")
    tokens, order = (20, 21, 22, 15, 11, 16, 2, 1), (4, 1, 3)
    asked = (8, 8, 8)

    def predicted(changed: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            return ours(model, [Sequence(changed, order, (1.0,) * 3, wanted=asked)])

    base = predicted(tokens)
    for place in range(len(tokens)):
        other = tuple(30 if i == place else token for i, token in enumerate(tokens))
        moved = (predicted(other) - base).abs() > 1e-6
        rank = order.index(place) if place in order else -1
        assert moved.tolist() == [p > rank for p in range(3)], place


def test_a_padded_neighbour_changes_nothing():
    model = tiny_encoder("xlnet")
    with torch.no_grad():
        together, alone = ours(model, PERMUTED), torch.cat([ours(model, [row]) for row in PERMUTED])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_path(tmp_path_factory):
    return tiny_encoder_folder(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert", "xlnet"])
def test_a_folder_loads(family, tmp_path):
    """Of the right class, with the head's weights, no dropout left, and the encoder is known as one."""
    path = tiny_encoder_folder(tmp_path, family)
    loaded = load_model(str(path), encoders=True)
    assert not loaded.causal and loaded.family == family and loaded.hidden_size == 32
    torch.testing.assert_close(output_head(loaded.model).weight_VD, output_head(tiny_encoder(family)).weight_VD)
    model = new_learner(loaded, Lora(rank=2), 0, "auto").train()
    row = [Example((PERMUTED[0] if family == "xlnet" else ROWS[0],))]
    with torch.no_grad():
        first, second = model(model.batch(row)).logprobs_M, model(model.batch(row)).logprobs_M
    assert torch.equal(first, second), "dropout inside the frozen model"
    torch.testing.assert_close(first, ours(tiny_encoder(family), row[0].sequences), atol=1e-5, rtol=0)


def test_later_deberta_checkpoints_load(tmp_path):
    """Their configuration does not say that the head is of the other kind; its weights' names do."""
    model = tiny_encoder(LEGACY_FREE)
    tiny_encoder_folder(tmp_path, "deberta-v2", model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["legacy"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(str(tmp_path), encoders=True).model
    with torch.no_grad():
        torch.testing.assert_close(ours(loaded, ROWS), ours(model, ROWS), atol=1e-6, rtol=0)


def test_known_positions(bert_path, tmp_path):
    """RoBERTa counts positions from behind its padding token, XLNet's are relative."""
    assert load_model(str(bert_path), encoders=True).context_tokens == 64
    roberta = load_model(str(tiny_encoder_folder(tmp_path / "roberta", "roberta")), encoders=True)
    assert roberta.context_tokens == 63
    longest = Sequence((7,) * 63, (0,), (1.0,))
    with torch.no_grad():
        assert bool(torch.isfinite(ours(roberta.model, [longest])).all())
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            ours(roberta.model, [Sequence((7,) * 64, (0,), (1.0,))])
    xlnet = load_model(str(tiny_encoder_folder(tmp_path / "xlnet", "xlnet")), encoders=True)
    assert xlnet.context_tokens > 10**6


def test_an_adapter_loads_in_plain_peft(bert_path, tmp_path):
    learner = new_learner(load_model(str(bert_path), encoders=True), Lora(rank=2), 0, "auto")
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        learner.save(tmp_path)
        batch = learner.batch([Example((row,)) for row in ROWS])
        found = learner(batch).logprobs_M
        plain = PeftModel.from_pretrained(hf.AutoModelForMaskedLM.from_pretrained(bert_path), tmp_path)
        torch.testing.assert_close(plain_logprobs(plain.eval(), ROWS), found, atol=1e-5, rtol=0)
        again = load_learner(load_model(str(bert_path), encoders=True), tmp_path, "auto")
        assert torch.equal(again(batch).logprobs_M, found)
    assert float((found - ours(tiny_encoder("bert"), ROWS)).detach().abs().max()) > 1e-3, "the adapter does something"
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert not [name for name in targets if name.endswith("decoder")]


def test_where_a_decoder_is_needed_an_encoder_is_refused(bert_path):
    with pytest.raises(ModelError) as caught:
        load_model(str(bert_path))
    assert str(caught.value) == (
        f'model {bert_path}: "bert" is an encoder, and this needs a decoder, which writes text from left to right. '
        "Train encoders with luthier train (mlm, plm, or a head such as classify), or give a decoder."
    )


def test_an_encoder_that_is_not_proven_is_refused(tmp_path):
    config = hf.AlbertConfig(
        vocab_size=40, embedding_size=8, hidden_size=16, intermediate_size=16, num_attention_heads=2
    )
    hf.AlbertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_encoder_folder(tmp_path / "other")
    for file in (tmp_path / "other").glob("tokenizer*"):
        file.rename(tmp_path / file.name)
    with pytest.raises(
        ModelError, match=r'"albert" is an encoder of a family that is not proven here \(proven: bert, '
    ):
        load_model(str(tmp_path), encoders=True)


def test_an_encoder_runs_padded_only():
    model = tiny_encoder("bert")
    assert choose_backend(model)[0] == "padded"
    with pytest.raises(ModelError, match='the family "bert" is not proven on the token forest'):
        choose_backend(model, "grouped")
