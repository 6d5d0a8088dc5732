"""Loading encoders: which families, how many positions they know, and no chance in a frozen model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from luthier.errors import ModelError
from luthier.forest.encoders import HEADS, PERMUTED, is_encoder

OFFSET_POSITIONS = frozenset(["camembert", "roberta", "xlm-roberta"])  # positions count from behind the padding's


def refuse_wrong_kind(name: str, config: Any, encoders: bool) -> None:
    """ModelError for an encoder where only decoders will do, and for one of a family that is not proven."""
    family = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f'model {name}: "{family}" is an encoder-decoder, which luthier does not support: it adapts decoders, '
            "which write a text on from left to right, and encoders. Give one of these."
        )
    if is_encoder(config) and not encoders:
        raise ModelError(
            f'model {name}: "{family}" is an encoder, and this needs a decoder, which writes text from left to right. '
            "Train encoders with luthier train (mlm, plm, or a head such as classify), or give a decoder."
        )
    writes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if family in MODEL_FOR_MASKED_LM_MAPPING_NAMES and family not in HEADS and not writes:
        raise ModelError(
            f'model {name}: "{family}" is an encoder of a family that is not proven here (proven: '
            f"{', '.join(sorted(HEADS))}). Give a model of one of these, or a decoder."
        )
    if not is_encoder(config) and family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        also = ", which takes more than text" if config.get_text_config() is not config else ""
        raise ModelError(
            f'model {name}: transformers has no causal language model of the family "{family}"{also}. Give a model '
            "that is one, such as the text model that this one was made from."
        )


def load_encoder(folder: Path, family: str) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder with its language-model head in float32, and transformers' report of what was found in the file.

    DeBERTa's later checkpoints name the head in a second way, which their configuration does not tell.
    """
    kind = AutoModelForCausalLM if family == PERMUTED else AutoModelForMaskedLM
    settings: dict[str, Any] = {
        "dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True,
    }  # fmt: skip
    model, found = kind.from_pretrained(folder, **settings)
    if any(name.startswith("cls.") for name in found["missing_keys"]) and any(
        name.startswith("lm_predictions.") for name in found["unexpected_keys"]
    ):
        model, found = kind.from_pretrained(folder, legacy=False, **settings)
    return without_dropout(model), found


def without_dropout(model: nn.Module) -> nn.Module:
    """Turn off the dropout inside a model that stays frozen: a batch in one piece or in eight is to give one loss."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model


def known_positions(config: Any) -> int:
    """The longest sequence a model knows positions for; very many where they are relative."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if config.model_type in OFFSET_POSITIONS:
        positions -= int(config.pad_token_id) + 1
    return positions if positions > 0 else 1 << 30
