"""LoRA through PEFT (Hu et al. 2021): what is saved here loads in PEFT, vLLM and llama.cpp's converter."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.files import write_json
from luthier.recipe import Adapter


def add_lora(model: nn.Module, adapter: Adapter, seed: int, base_folder: Path) -> PeftModel:
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


def save_lora(wrapper: PeftModel, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json in PEFT's format."""
    wrapper.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def restore_lora(wrapper: PeftModel, folder: Path) -> None:
    """The weights that `save_lora` wrote, back into the adapter they came from."""
    set_peft_model_state_dict(wrapper, load_peft_weights(str(folder), device="cpu"))


def load_lora(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """An adapter from its folder, frozen unless `trainable`, put into `model` in place."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds no adapter_model.safetensors; give the folder of a finished run.")
    with quiet_peft():
        wrapper: Any = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return wrapper


def name_base_model(folder: Path, name: str) -> None:
    """Write a name that means something elsewhere (a hub id) into a saved adapter's configuration."""
    path = folder / "adapter_config.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "base_model_name_or_path": name})


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for a property that is about to be renamed; the user cannot help it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
