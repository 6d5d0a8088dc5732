"""LoRA through PEFT (Hu et al. 2021): what is saved here loads in PEFT, vLLM and llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import WEIGHTS
from luthier.adapters.parts import is_inside, last_layers, linear_names, unread_parts
from luthier.adapters.peft_files import (
    change_config,
    has_transposed,
    load_peft,
    put_in,
    restore_peft,
    save_peft,
    task_type,
    untie,
)
from luthier.adapters.snapshot import Snapshot
from luthier.adapters.stack import joined_lora
from luthier.errors import ModelError
from luthier.recipe.adapters import Lora, LowRank

INITS: dict[str, bool | str] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa_niter_16",  # by subspace iteration; the singular vectors of every matrix would take minutes
    "olora": "olora",
}
# the families, and their layers, for which PEFT refuses LoRA: their kernels read such a layer's weight themselves
FUSED_MAMBA = frozenset(["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"])
FUSED_LAYERS = frozenset(["conv1d", "out_proj"])
STEPS = "dt_proj"  # Mamba's first kind, in every family: its weight is read, and the layer never called
Factors = dict[str, Tensor]


class LoraKind:
    """LoRA as a kind of adapter; see AdapterKind.

    Where the weights give up their largest directions to a fresh adapter (PiSSA, OLoRA), the wrapper keeps the A and B
    that it began with (`began`) and the weights as they were (`snapshot`).
    """

    peft_type: ClassVar[str] = "LORA"

    def add(self, model: nn.Module, settings: Lora, seed: int, base_folder: Path) -> PeftModel:
        """A fresh adapter. A and B are drawn with `seed`; PEFT insists that `base_folder` agrees with the model's."""
        if settings.init == "olora" and has_transposed(model):
            raise ModelError("tune.adapter.init: olora does not know transposed weights (GPT-2's). Use pissa.")
        snapshot = Snapshot(linear_weights(model)) if settings.changes_base else None
        told = said_of_left_out(model, settings)
        wrapper: Any = put_in(model, lora_config(model, settings, base_folder), seed)
        refuse_on_head(model, settings)
        wrapper.left_out = told
        if snapshot is not None:
            wrapper.snapshot = snapshot
            wrapper.began = {name: tensor.clone() for name, tensor in factors(wrapper).items()}
        return wrapper

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> PeftModel:
        """A saved one."""
        return load_peft(model, folder, trainable)

    def save(self, wrapper: Any, folder: Path) -> None:
        """In PEFT's format, for the model as it was before the adapter."""
        save_peft(wrapper, folder)
        changes: dict[str, Any] = {"init_lora_weights": True}  # or PEFT would begin anew before it loads
        if began := getattr(wrapper, "began", None):
            save_file(widened(load_file(str(folder / WEIGHTS)), began), str(folder / WEIGHTS), {"format": "pt"})
            config = wrapper.peft_config["default"]
            ratio = 2**0.5 if config.use_rslora else 2
            changes |= {"r": 2 * config.r, "lora_alpha": whole(config.lora_alpha * ratio)}
        change_config(folder, **changes)

    def restore(self, wrapper: Any, folder: Path) -> None:
        """Back from PEFT's format."""
        if not hasattr(wrapper, "began"):
            restore_peft(wrapper, folder)
            return
        state = load_peft_weights(str(folder), device="cpu")
        set_peft_model_state_dict(wrapper, narrowed(state, wrapper.began))

    def fold(self, model: nn.Module, folder: Path) -> None:
        """The updates added to the weights."""
        wrapper: Any = load_peft(model, folder)
        untie(model)
        wrapper.merge_and_unload()

    def remove(self, wrapper: Any) -> None:
        """The plain layers again."""
        model = wrapper.base_model.model
        wrapper.unload()
        if hasattr(wrapper, "snapshot"):
            wrapper.snapshot.restore(linear_weights(model))

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """Plain updates add."""
        joined_lora(lower, upper, target)


def lora_config(model: nn.Module, settings: LowRank, base_folder: Path) -> LoraConfig:
    """PEFT's configuration of a section of the recipe."""
    init: str = getattr(settings, "init", "default")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=whole(settings.alpha),
        lora_dropout=settings.dropout,
        target_modules=target_names(model, settings),
        use_rslora=settings.scaling == "rslora",
        use_dora=settings.dora,
        init_lora_weights=INITS[init],
        fan_in_fan_out=has_transposed(model),
        task_type=task_type(model),
        base_model_name_or_path=str(base_folder),
    )


def refuse_on_head(model: nn.Module, settings: LowRank) -> None:
    """ModelError where the output head has a kind of LoRA that is more than a product added to its own."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    if hasattr(head, "lora_A") and (settings.dora or getattr(settings, "changes_base", False)):
        raise ModelError(
            "tune.adapter.targets: the output head is among them, and it takes plain LoRA only. Leave it out, or leave "
            "out dora and init."
        )


def target_names(model: nn.Module, settings: LowRank) -> list[str] | str:
    """The modules that get an adapter: as the recipe says, or by their full names where some are left out."""
    unread, unsuited = left_out(model, settings)
    if not (settings.last or unread or unsuited):
        return settings.targets
    layers = last_layers(model, settings.last) if settings.last else [""]
    names = linear_names(model) if settings.last or settings.targets == "all-linear" else module_names(model)
    chosen = [
        name
        for name in names
        if (not settings.last or is_inside(name, layers))
        and not is_inside(name, unread)
        and not is_inside(name, unsuited)
        and (settings.targets == "all-linear" or any(f".{name}".endswith(f".{one}") for one in settings.targets))
    ]
    if not chosen:
        where = f" in the last {settings.last} layers" if settings.last else ", where text reaches it"
        raise ModelError(f"tune.adapter.targets: none of {settings.targets} is{where}.")
    return chosen


def module_names(model: nn.Module) -> list[str]:
    """The names of all modules."""
    return [name for name, _ in model.named_modules()]


def left_out(model: nn.Module, settings: LowRank) -> tuple[list[str], list[str]]:
    """Modules without an adapter that the settings do not speak of: those no text reaches, those PEFT has none for."""
    config: Any = model.config
    unsuited = {STEPS, *(FUSED_LAYERS if config.model_type in FUSED_MAMBA else ())}
    names = linear_names(model) if settings.targets == "all-linear" else []
    return unread_parts(model), [name for name in names if name.rpartition(".")[2] in unsuited]


def said_of_left_out(model: nn.Module, settings: LowRank) -> str:
    """The same in a sentence for the user; empty where nothing is left out."""
    unread, unsuited = left_out(model, settings)
    kinds = sorted({name.rpartition(".")[2] for name in unsuited})
    parts = [f"{', '.join(kinds)} (this family's code goes past one)"] * bool(kinds)
    parts += [f"{', '.join(unread)} (no text reaches it)"] * bool(unread)
    return f" No adapter on {' nor on '.join(parts)}." if parts else ""


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that an adapter's beginning may change."""
    return {name: model.get_submodule(name).weight for name in linear_names(model)}  # type: ignore[misc]


def factors(wrapper: PeftModel) -> Factors:
    """A and B of every layer as they are saved."""
    state: Factors = get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    return {name: tensor.detach().cpu() for name, tensor in state.items() if is_a(name) or is_b(name)}


def widened(state: Factors, began: Factors) -> Factors:
    """B A - B0 A0 = [B, -B0] [A; A0]: what was learnt, for weights from which B0 A0 was not taken."""
    wide = dict(state)
    for name, first in began.items():
        parts = [state[name], first if is_a(name) else -first]
        wide[name] = torch.cat(parts, dim=0 if is_a(name) else 1).contiguous()
    return wide


def narrowed(wide: Factors, began: Factors) -> Factors:
    """A and B again from what `widened` made."""
    state = dict(wide)
    for name, first in began.items():
        state[name] = wide[name][: len(first)] if is_a(name) else wide[name][:, : first.shape[1]]
    return state


def is_a(name: str) -> bool:
    """Whether a saved tensor is an A."""
    return ".lora_A." in name


def is_b(name: str) -> bool:
    """Whether a saved tensor is a B."""
    return ".lora_B." in name


def whole(number: float) -> float:
    """A whole number as an int: other readers of PEFT's configuration expect one."""
    return int(number) if number == int(number) else number
