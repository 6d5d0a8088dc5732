"""What is tried when a model is loaded: that its tokenizer's tokens are there, and that our head says what it says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.forest.encoders import is_encoder
from luthier.forest.forward import PROVEN_FAMILIES, lacking, num_embeddings, padded_hidden_states
from luthier.forest.head import cap, chunk_logits
from luthier.forest.output import output_head
from luthier.forest.tree import build_forest
from luthier.records import Sequence

TEXT = "Two plain words, and a few more."
TOKENS = 8  # of that text at most
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
TOLERANCE, COARSE = 1e-3, 0.1  # of a log-probability, with weights in float32, and in less


def refuse_unknown_tokens(name: str, model: nn.Module, tokenizer: Any) -> None:
    """ModelError where a token that many texts have, a special one or one of the chat template, has no embedding.

    Others may lack one (Gemma 3 has a token for pictures beyond its smallest models' embeddings): a text that has
    such a token is refused when it comes.
    """
    rows = num_embeddings(model)
    missing = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {
        value for key, value in tokenizer.special_tokens_map.items() if key in SPECIAL and isinstance(value, str)
    }
    template = str(tokenizer.chat_template or "")
    needed = sorted((number, token) for token, number in missing.items() if token in special or token in template)
    if needed:
        raise ModelError(f"model {name}: {lacking(needed[0][0], rows, needed[0][1])}")


@torch.no_grad()
def refuse_other_head(name: str, model: nn.Module, tokenizer: Any) -> None:
    """ModelError where a decoder's own log-probabilities of a few tokens are others than those that are learnt here.

    A family that is proven is not asked. Two passes over a few tokens, in float32 on the CPU, before any product is
    rounded: the same numbers go through the same layers, so what differs is the head.
    """
    lm: Any = model
    family = lm.config.model_type
    if is_encoder(lm.config) or family in PROVEN_FAMILIES or next(model.parameters()).device.type == "meta":
        return
    tokens = tuple(tokenizer(TEXT)["input_ids"][:TOKENS]) or (0,)
    try:
        logits_TV = lm(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        ours_TV = head_logprobs(model, tokens)
    except ModelError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            f'model {name}: "{family}" cannot be asked for the log-probabilities of a text alone '
            f"({lines[0] if lines else type(error).__name__}). Give a causal language model of another family, "
            f"such as {', '.join(sorted(PROVEN_FAMILIES)[:4])}."
        ) from error
    wanted_TV = torch.log_softmax(logits_TV.to(ours_TV.dtype), dim=-1)
    allowed = TOLERANCE if output_head(model).weight_VD.dtype in (torch.float32, torch.float64) else COARSE
    far = float((wanted_TV - ours_TV).abs().max()) if wanted_TV.shape == ours_TV.shape else float("inf")
    if not far <= allowed * (1 + float(wanted_TV.abs().max()) / 10):  # rounding grows with the number; nan is refused
        raise ModelError(
            f'model {name}: the family "{family}" computes its log-probabilities in a way that is not known here (on a '
            f"trial text they differ by up to {far:.2g}), so everything learnt or compared would be wrong. Give a "
            f"model of another family; these are proven: {', '.join(sorted(PROVEN_FAMILIES))}."
        )


def head_logprobs(model: nn.Module, tokens: tuple[int, ...]) -> Tensor:
    """All log-probabilities [T, V] behind each token as training and scoring work them out.

    The first half comes from a shorter sequence with padding behind it, which a decoder does not see.
    """
    forest = build_forest([Sequence(tokens[: max(1, len(tokens) // 2)]), Sequence(tokens)])
    hidden_ND = padded_hidden_states(model, forest, next(model.parameters()).device)
    head = output_head(model)
    rows_TD = head.read(hidden_ND[torch.from_numpy(forest.rows_of(1))])
    logits = chunk_logits(rows_TD, head.weight_VD, head.bias_V, head.scale)
    return torch.log_softmax(cap(logits, head.softcap), dim=-1)
