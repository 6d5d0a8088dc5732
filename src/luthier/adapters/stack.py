"""Several low-rank adapters as one, exactly: their updates add, so their factors stand side by side.

    s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2] [A1; A2]

The joint adapter has the sum of the ranks and scale 1, and loads in PEFT on the model below all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.adapters.base import CONFIG, WEIGHTS
from luthier.errors import ModelError
from luthier.files import write_json

A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING = ".lora_embedding_"  # in the names of factors that look tokens up
PREFIX = "base_model.model."  # PEFT's, before the name of every layer in a saved adapter
# settings of PEFT under which an adapter is more than B A, or not the same in all layers
SPECIAL = ("use_dora", "rank_pattern", "alpha_pattern", "bias", "lora_bias", "modules_to_save", "layers_to_transform",
           "layer_replication", "trainable_token_indices", "target_parameters")  # fmt: skip


def joined_lora(lower: Path, upper: Path, target: Path) -> None:
    """Write the sum of two saved adapters to `target` (a folder that is there). Both must be plain LoRA."""
    configs = [read_config(folder) for folder in (lower, upper)]
    factors = [read_factors(folder, config) for folder, config in zip((lower, upper), configs, strict=True)]
    ranks = [int(config["r"]) for config in configs]
    state: dict[str, Tensor] = {}
    for layer in sorted(factors[0].keys() | factors[1].keys()):
        own = next(found[layer] for found in factors if layer in found)
        parts = [found.get(layer) or zeros(own, rank) for found, rank in zip(factors, ranks, strict=True)]
        state[f"{layer}.{A}"] = torch.cat([a for a, _ in parts], dim=0).contiguous()
        state[f"{layer}.{B}"] = torch.cat([b for _, b in parts], dim=1).contiguous()
    targets = target_modules(state_layers(state), configs)
    save_file(state, str(target / WEIGHTS), metadata={"format": "pt"})
    joint = {"r": sum(ranks), "lora_alpha": sum(ranks), "use_rslora": False, "target_modules": targets}
    write_json(target / CONFIG, {**configs[1], **joint})


def target_modules(layers: set[str], configs: list[dict[str, Any]]) -> list[str]:
    """What the joint adapter names: the layers in full where one of the two does (it has the last ones only)."""
    in_full = any("." in str(name) for config in configs for name in config["target_modules"])
    return sorted({layer.removeprefix(PREFIX) if in_full else layer.rpartition(".")[2] for layer in layers})


def state_layers(state: dict[str, Tensor]) -> set[str]:
    """The layers that a saved adapter changes."""
    return {name.removesuffix(f".{A}").removesuffix(f".{B}") for name in state}


def read_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration; ModelError where it is no plain LoRA, whose updates would not just add."""
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    special = special_settings(config)
    if config.get("peft_type") != "LORA" or special:
        kind = ", ".join(special) or str(config.get("peft_type"))
        raise ModelError(f"{folder}: an adapter with {kind} cannot be stacked. Set start: merge for the next stage.")
    return config


def special_settings(config: dict[str, Any]) -> list[str]:
    """Settings of an adapter's configuration because of which its updates do not just add to another's."""
    return [name for name in SPECIAL if config.get(name) not in (None, False, {}, [], "none")]


def unstackable(wrapper: Any) -> list[str]:
    """The same of a LoRA adapter that is in a model: PEFT alters what it is asked for where experts are fused."""
    config: Any = getattr(wrapper, "peft_config", {}).get("default")
    if getattr(config, "peft_type", None) != "LORA":
        return []
    embeds = any(EMBEDDING in name for name, _ in wrapper.named_parameters())
    return special_settings(config.to_dict()) + (["LoRA on embeddings"] if embeds else [])


def read_factors(folder: Path, config: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and scaled B of each layer."""
    state = load_file(str(folder / WEIGHTS))
    if any(EMBEDDING in name for name in state):
        raise ModelError(f"{folder}: an adapter on embeddings cannot be stacked. Set start: merge for the next stage.")
    rank = config["r"]
    scale = float(config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
    return {layer: (state[f"{layer}.{A}"], state[f"{layer}.{B}"] * scale) for layer in state_layers(state)}


def zeros(like: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """Factors of an adapter that leaves a layer alone."""
    a, b = like
    return a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
