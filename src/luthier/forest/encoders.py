"""Encoders: hidden states that see both sides, XLNet's two streams, and the heads of masked language models.

Sequences of an encoder share nothing, since every token sees its whole sequence; they run padded, through the family's
own attention, and the padding is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.forest.even import even_length
from luthier.forest.tree import Forest, build_forest


@dataclass(frozen=True)
class MaskedHead:
    """The head of a masked language model: logits = transform(hidden) @ weight.T + bias."""

    transform: Callable[[Tensor], Tensor]
    weight_VD: Tensor
    bias_V: Tensor | None


def bert_head(model: Any) -> MaskedHead:
    """Dense layer, activation and norm stand in one module."""
    head = model.cls.predictions
    return MaskedHead(head.transform, head.decoder.weight, head.decoder.bias)


def roberta_head(model: Any) -> MaskedHead:
    """Dense layer, GELU, norm."""
    head = model.lm_head
    return MaskedHead(
        lambda rows: head.layer_norm(nn.functional.gelu(head.dense(rows))), head.decoder.weight, head.decoder.bias
    )


def deberta_head(model: Any) -> MaskedHead:
    """BERT's head, or (as published with version 3) one whose output matrix is the word embeddings."""
    if model.legacy:
        return bert_head(model)
    head = model.lm_predictions.lm_head
    return MaskedHead(
        lambda rows: head.LayerNorm(head.transform_act_fn(head.dense(rows))),
        model.deberta.embeddings.word_embeddings.weight,
        head.bias,
    )


def distilbert_head(model: Any) -> MaskedHead:
    """Dense layer, activation, norm."""
    return MaskedHead(
        lambda rows: model.vocab_layer_norm(model.activation(model.vocab_transform(rows))),
        model.vocab_projector.weight,
        model.vocab_projector.bias,
    )


def electra_head(model: Any) -> MaskedHead:
    """The generator's head, from the hidden width to that of the embeddings."""
    out = model.generator_lm_head
    return MaskedHead(model.generator_predictions, out.weight, out.bias)


def modernbert_head(model: Any) -> MaskedHead:
    """Dense layer, activation, norm."""
    return MaskedHead(model.head, model.decoder.weight, model.decoder.bias)


def xlnet_head(model: Any) -> MaskedHead:
    """One matrix, nothing before it."""
    return MaskedHead(lambda rows: rows, model.lm_loss.weight, model.lm_loss.bias)


# Families whose log-probabilities and gradients equal the plain model's: tests/test_encoders.py proves each of them.
HEADS: dict[str, Callable[[Any], MaskedHead]] = {
    "bert": bert_head,
    "camembert": roberta_head,
    "deberta": deberta_head,
    "deberta-v2": deberta_head,
    "distilbert": distilbert_head,
    "electra": electra_head,
    "modernbert": modernbert_head,
    "roberta": roberta_head,
    "xlm-roberta": roberta_head,
    "xlnet": xlnet_head,
}
PERMUTED = "xlnet"  # the family with two-stream attention


def is_encoder(config: Any) -> bool:
    """Whether a model of this configuration lets a token see both sides."""
    return config.model_type in HEADS and not getattr(config, "is_decoder", False)


def masked_head(model: nn.Module) -> MaskedHead:
    """The head of an encoder."""
    config: Any = model.config
    return HEADS[config.model_type](model)


def encoder_hidden_states(model: nn.Module, body: Any, forest: Forest, device: torch.device) -> Tensor:
    """The last hidden states [N, D]; in XLNet, where there are targets, the query stream's at those.

    Sequences of very different lengths run apart, so that little is computed for padding.
    """
    assert not forest.causal, "an encoder reads a forest that shares nothing"
    parts, places = [], []
    for group in forest.length_groups():
        own = build_forest([forest.sequences[s] for s in group], causal=False)
        parts.append(padded_encoder(body, own, even_length(model, own.longest), device))
        place_N = np.empty(own.num_tokens, np.int64)
        for number, s in enumerate(group):
            place_N[own.rows_of(number)] = forest.rows_of(s)
        places.append(place_N)
    back = torch.from_numpy(np.argsort(np.concatenate(places))).to(device)
    return torch.cat(parts).index_select(0, back)


def padded_encoder(body: Any, forest: Forest, length: int, device: torch.device) -> Tensor:
    """The same for sequences of nearly one length, in one pass, padded to `length`."""
    tokens, mask = (torch.from_numpy(array).to(device) for array in forest.padded(length))
    if body.config.model_type == PERMUTED:
        mask = mask.to(next(body.parameters()).dtype)
        if len(forest.row_M):
            return query_stream(body, forest, tokens, mask)
        out = body(input_ids=tokens, attention_mask=mask, use_mems=False)
    else:
        out = body(input_ids=tokens, attention_mask=mask)
    owner, time = (torch.from_numpy(array).to(device) for array in (forest.first_N, forest.positions_N))
    return out.last_hidden_state[owner, time]


def query_stream(body: Any, forest: Forest, tokens_ST: Tensor, mask_ST: Tensor) -> Tensor:
    """XLNet's query stream at each target (Yang et al. 2019, section 2.3), [N, D]; all other rows are zero.

    The order of a sequence's targets is the order in which they are predicted: each sees the tokens that are no
    targets, and the targets before it, and never itself.
    """
    assert not any(sequence.reads for sequence in forest.sequences), "XLNet predicts or is read, not both at once"
    blocked_STT, mapping_SPT, rank_M = (
        torch.from_numpy(array).to(tokens_ST.device) for array in permutation_masks(forest, tokens_ST.shape[1])
    )
    out = body(
        input_ids=tokens_ST,
        attention_mask=mask_ST,
        perm_mask=blocked_STT.to(mask_ST.dtype),
        target_mapping=mapping_SPT.to(mask_ST.dtype),
        use_mems=False,
    ).last_hidden_state
    row_M, sequence_M = (torch.from_numpy(array).to(tokens_ST.device) for array in (forest.row_M, forest.sequence_M))
    rows_MD = out[sequence_M, rank_M]
    return rows_MD.new_zeros(forest.num_tokens, rows_MD.shape[1]).index_copy(0, row_M, rows_MD)


def permutation_masks(forest: Forest, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(blocked [S, T, T], mapping [S, P, T], rank [M]) as XLNet takes them.

    blocked[s, i, j]: token i does not see token j. mapping[s, p, t]: the p-th prediction is of token t. rank: which
    prediction of its sequence a target is.
    """
    num_sequences = len(forest.sequences)
    order = np.zeros((num_sequences, length), np.int64)
    mapping = np.zeros((num_sequences, max(len(s.targets) for s in forest.sequences), length), np.float32)
    for s, sequence in enumerate(forest.sequences):
        places = np.array(sequence.targets, np.int64)
        assert len(set(sequence.targets)) == len(places), "each token is predicted once"
        order[s, places] = np.arange(1, len(places) + 1)
        mapping[s, np.arange(len(places)), places] = 1
    blocked = (order[:, None, :] > 0) & (order[:, :, None] <= order[:, None, :])
    rank = np.concatenate([np.arange(len(sequence.targets)) for sequence in forest.sequences])
    return blocked, mapping, rank
