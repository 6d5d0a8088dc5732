"""LoRA through PEFT (Hu et al. 2021): what is saved here loads in PEFT, vLLM and llama.cpp's converter."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.adapters.base import require_adapter
from luthier.errors import ModelError
from luthier.recipe.adapters import Lora


class LoraKind:
    """LoRA as a kind of adapter; see AdapterKind."""

    peft_type: ClassVar[str] = "LORA"

    def add(self, model: nn.Module, settings: Lora, seed: int, base_folder: Path) -> PeftModel:
        """A fresh adapter."""
        return add_lora(model, settings, seed, base_folder)

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> PeftModel:
        """A saved one."""
        return load_lora(model, folder, trainable)

    def save(self, wrapper: Any, folder: Path) -> None:
        """In PEFT's format."""
        save_peft(wrapper, folder)

    def restore(self, wrapper: Any, folder: Path) -> None:
        """Back from PEFT's format."""
        restore_peft(wrapper, folder)

    def fold(self, model: nn.Module, folder: Path) -> None:
        """The updates added to the weights."""
        wrapper: Any = load_lora(model, folder)
        wrapper.merge_and_unload()

    def remove(self, wrapper: Any) -> None:
        """The plain layers again."""
        wrapper.unload()


def add_lora(model: nn.Module, adapter: Lora, seed: int, base_folder: Path) -> PeftModel:
    """Put a fresh adapter into `model` in place; returns PEFT's wrapper, which saves and loads it.

    A is drawn with `seed`, B is zero, so the first forward equals the base model's. `base_folder` is where the
    model was loaded from; PEFT insists that it agrees with the model's own `name_or_path`.
    """
    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM" if model.can_generate() else None,  # type: ignore[operator]
        base_model_name_or_path=str(base_folder),
    )
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        with quiet_peft():
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"tune.adapter.targets: {error}") from error
    finally:
        torch.random.set_rng_state(state)


def save_peft(wrapper: PeftModel, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json in PEFT's format."""
    wrapper.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def restore_peft(wrapper: PeftModel, folder: Path) -> None:
    """The weights that `save_peft` wrote, back into the adapter they came from."""
    set_peft_model_state_dict(wrapper, load_peft_weights(str(folder), device="cpu"))


def load_lora(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """An adapter from its folder, frozen unless `trainable`, put into `model` in place."""
    require_adapter(folder)
    with quiet_peft():
        wrapper: Any = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return wrapper


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for a property that is about to be renamed; the user cannot help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
