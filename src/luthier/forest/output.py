"""What stands above a model's body: the output head of each family, as one product with little before and after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.forest.encoders import MaskedHead, bert_head, is_encoder, masked_head, roberta_head

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # the families' names of one thing
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
MULTIPLIED = frozenset(["hyperclovax", "hyperclovax_vision_v2"])  # others divide by their `logits_scaling`
UNSCALED = frozenset(["mpt"])  # its configuration has a `logit_scale` that its code never reads
UNCAPPED = frozenset(["gemma3"])  # with images; the configuration of its text part has a cap that it never reads


@dataclass(frozen=True)
class Head:
    """The output head: logits = cap(scale * (transform(hidden) @ weight.T + bias))."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None = None
    scale: float = 1.0
    transform: Callable[[Tensor], Tensor] | None = None

    def read(self, rows_RD: Tensor) -> Tensor:
        """What the weight is multiplied with, for hidden states."""
        return rows_RD if self.transform is None else self.transform(rows_RD)


def output_head(model: nn.Module) -> Head:
    """The head's weight, bias, cap and scale, and what comes before them, a LoRA adapter on it included.

    That holds for the families that it was proven for; `models.trial` compares all others when they are loaded.
    """
    module: Any = model.get_output_embeddings()  # type: ignore[operator]
    if is_encoder(model.config):
        masked = masked_head(model)
        return with_lora(Head(masked.weight_VD, masked.bias_V, transform=masked.transform), module)
    if module is None:
        raise ModelError(f"{type(model).__name__} has no output head; use a causal language model.")
    before = transformed_head(model)
    weight_VD, bias_V = module.weight, getattr(module, "bias", None)
    transform = None if before is None else before.transform
    config: Any = model.config
    text = config.get_text_config()
    names = () if config.model_type in UNCAPPED else SOFTCAPS
    softcap = next((value for name in names if (value := getattr(text, name, None))), None)
    return with_lora(Head(weight_VD, bias_V, softcap, logit_scale(text), transform), module)


def logit_scale(config: Any) -> float:
    """The factor on the logits."""
    if config.model_type in UNSCALED:
        return 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    factor = scaling if config.model_type in MULTIPLIED else 1.0 / scaling
    for name in MULTIPLIERS:
        factor *= getattr(config, name, None) or 1.0
    return float(factor)


def transformed_head(model: Any) -> MaskedHead | None:
    """The head of a decoder that bends its hidden states once more, as encoders do; None where it does not."""
    masked, top = getattr(model, "cls", None), getattr(model, "lm_head", None)
    if hasattr(getattr(masked, "predictions", None), "transform"):  # BERT's kind with is_decoder
        return bert_head(model)
    if all(hasattr(top, name) for name in ("dense", "layer_norm", "decoder")):  # RoBERTa's
        return roberta_head(model)
    if model.config.model_type == "modernbert-decoder":
        return MaskedHead(model.lm_head, model.decoder.weight, model.decoder.bias)
    return None


def with_lora(head: Head, module: Any) -> Head:
    """The head with what PEFT put on its matrix: s B A h + W h = [W, B] [h; s A h].

    Raises:
        ModelError: a kind of LoRA that changes more than that.
    """
    if not hasattr(module, "lora_A") or module.disable_adapters or module.merged:
        return head
    names = [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant for name in names):
        raise ModelError(
            "the adapter has weights of another kind than plain LoRA (DoRA or the like) on the output head, which is "
            "not supported. Leave the head out of tune.adapter.targets, or train it with plain LoRA."
        )

    def transform(rows_RD: Tensor) -> Tensor:
        """The rows, and behind them what each adapter reads of them."""
        rows_RD = head.read(rows_RD)
        low = [module.lora_A[name](module.lora_dropout[name](rows_RD)) * module.scaling[name] for name in names]
        return torch.cat([rows_RD, *low], dim=1)

    wide_VD = torch.cat([head.weight_VD, *(module.lora_B[name].weight for name in names)], dim=1)
    return replace(head, weight_VD=wide_VD, transform=transform)
