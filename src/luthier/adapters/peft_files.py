"""What the kinds that come from PEFT have in common: how they are put in, saved and loaded."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.adapters.base import CONFIG, require_adapter
from luthier.errors import ModelError
from luthier.files import write_json


def put_in(model: nn.Module, config: PeftConfig, seed: int) -> PeftModel:
    """Put a fresh adapter into `model` in place; chance follows from `seed` and leaves no trace.

    Raises:
        ModelError: it does not fit the model.
    """
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        with quiet_peft(), wide_weights(model):
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"tune.adapter.targets: {error}") from error
    finally:
        torch.random.set_rng_state(state)


@contextlib.contextmanager
def wide_weights(model: nn.Module) -> Iterator[None]:
    """Inside it, weights that are kept in bfloat16 look like float32 (and are not to be read).

    PEFT makes a fresh adapter of the type of the weights below it, and so would round what it begins with.
    """
    kept = {parameter: parameter.data for parameter in model.parameters() if parameter.dtype == torch.bfloat16}
    for parameter in kept:
        parameter.data = torch.empty(1, device=parameter.device).expand(parameter.shape)
    try:
        yield
    finally:
        for parameter, data in kept.items():
            parameter.data = data


def has_transposed(model: nn.Module) -> bool:
    """Whether linear layers keep their weights transposed, as GPT-2's do."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def task_type(model: nn.Module) -> str | None:
    """What PEFT is told of a model: the wrapper of causal models, or the one of all."""
    return "CAUSAL_LM" if model.can_generate() else None  # type: ignore[operator]


def save_peft(wrapper: PeftModel, folder: Path) -> None:
    """adapter_model.safetensors and adapter_config.json in PEFT's format."""
    wrapper.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def change_config(folder: Path, **changes: Any) -> None:
    """Other values in a saved adapter's configuration."""
    path = folder / CONFIG
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


def restore_peft(wrapper: PeftModel, folder: Path) -> None:
    """The weights that `save_peft` wrote, back into the adapter they came from."""
    set_peft_model_state_dict(wrapper, load_peft_weights(str(folder), device="cpu"))


def load_peft(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """An adapter from its folder, frozen unless `trainable`, put into `model` in place."""
    require_adapter(folder)
    with quiet_peft():
        wrapper: Any = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    return wrapper


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for a property that is about to be renamed, and doubts its own settings of fused experts.

    It also warns of tied embeddings, which `untie` sees to. The user can help none of it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model (with|has) `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def untie(model: nn.Module) -> None:
    """Give the output head a weight of its own where an adapter on it or on the embeddings is to be written into one.

    Tied, both would change; the adapter changes the one that it stands on.
    """
    lm: Any = model
    ends = lm.get_input_embeddings(), lm.get_output_embeddings()
    if not any(hasattr(end, "base_layer") for end in ends):
        return
    embeddings, head = (getattr(end, "base_layer", end) for end in ends)
    if head is None or head.weight.data_ptr() != embeddings.weight.data_ptr():
        return
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (lm.config, lm.config.get_text_config()):
        config.tie_word_embeddings = False
    lm.all_tied_weights_keys = {}  # transformers' own note of what it leaves out of a saved model
