"""Loading a model with its tokenizer, and describing it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from luthier.errors import ModelError
from luthier.files import sha256
from luthier.forest.encoders import is_encoder
from luthier.forest.even import mark_even
from luthier.kernels import narrow, quicken, round_on, round_products
from luthier.models.encoders import known_positions, load_encoder, refuse_wrong_kind
from luthier.models.store import find_model
from luthier.models.trial import refuse_other_head, refuse_unknown_tokens
from luthier.runtime import chosen_device, has_fast_bfloat16, release_free_memory


@dataclass(frozen=True)
class LoadedModel:
    """A language model, frozen, with its tokenizer. `sha256` covers weights and tokenizer."""

    name: str
    folder: Path
    model: nn.Module
    tokenizer: Any
    sha256: str
    num_parameters: int  # of the model as loaded, tied ones once
    precision: str = "float32"  # of the factors in the products of its linear layers

    @property
    def family(self) -> str:
        """transformers' name of the architecture."""
        return str(self.model.config.model_type)  # type: ignore[union-attr]

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        config: Any = self.model.config
        return int(config.get_text_config().hidden_size)

    @property
    def context_tokens(self) -> int:
        """Longest sequence the model knows positions for."""
        return known_positions(self.model.config)

    def narrow(self) -> None:
        """Keep weights that products round anyway in bfloat16, where there are such products."""
        if self.precision == "bfloat16":
            narrow(self.model)

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it only; else the model is an encoder."""
        return not is_encoder(self.model.config)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; never runs code that comes with the model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"model {folder}: its tokenizer cannot be loaded ({first_line(error)}).") from error
    if not tokenizer.is_fast:
        raise ModelError(f"model {folder}: its tokenizer has no fast version, which the prompt masks need.")
    return tokenizer


def token_counter(tokenizer: Any) -> Callable[[list[str]], list[int]]:
    """A function that gives the number of tokens of each text, special ones not counted."""

    def count(texts: list[str]) -> list[int]:
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(tokens) for tokens in encoded["input_ids"]]

    return count


def load_model(
    name: str, device: str | None = None, precision: str = "float32", encoders: bool = False, exact: bool = True
) -> LoadedModel:
    """Load a model by starter name, hub id, folder or GGUF file, in float32, parameters frozen.

    `device`: torch's word for where it lives; `runtime.chosen_device()` where it is not given.

    `encoders`: whether one that sees both sides will do; else it is refused.

    `precision`: `float32`; `bfloat16` rounds the factors of the linear layers' products (sums stay float32), which
    processors and GPUs with bfloat16 matrix units do several times faster; `auto` does so where there are such units.

    `exact`: whether the weights are kept in float32 where products round them, to be trained or added to; else those
    layers keep theirs in bfloat16, which is the same to a product and half as large.
    Only safetensors weights are read. Raises ModelError.
    """
    device = device or chosen_device()
    precision = choose_precision(precision, device)
    hf_logging.disable_progress_bar()
    folder = find_model(name)
    tokenizer = load_tokenizer(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        weight_files(name, folder)
        refuse_wrong_kind(name, config, encoders)
        if is_encoder(config):
            model, found = load_encoder(folder, config.model_type)
        else:
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"model {name}: cannot be loaded from {folder} ({first_line(error)}).") from error
    refuse_incomplete(f"model {name}", found)
    model.requires_grad_(False)
    model.eval()
    refuse_unknown_tokens(name, model, tokenizer)
    refuse_other_head(name, model, tokenizer)
    size = sum(parameter.numel() for parameter in model.parameters())
    if precision == "bfloat16":
        round_products(model)
        if device == "cpu":
            mark_even(model, known_positions(config))
    round_on(device, precision)
    quicken(model)
    loaded = LoadedModel(name, folder, model, tokenizer, folder_hash(folder), size, precision)
    if not exact:
        loaded.narrow()
    model.to(device)
    return loaded


def load_outline(name: str, precision: str = "float32", encoders: bool = False) -> LoadedModel:
    """A model that was loaded and checked as by `load_model`, and then let go of its weights (torch's meta device).

    For its tokenizer, its hash and its shapes; `precision` is what `load_model` would choose. Raises ModelError.
    """
    precision = choose_precision(precision, chosen_device())
    loaded = load_model(name, device="cpu", encoders=encoders)
    loaded.model.to("meta")
    release_free_memory()
    return replace(loaded, precision=precision)


def save_model(loaded: LoadedModel, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a model and its tokenizer into a folder, as transformers reads them; `loaded` becomes of that type."""
    model: Any = loaded.model.to(dtype)
    model.save_pretrained(folder, safe_serialization=True)
    loaded.tokenizer.save_pretrained(folder)


def choose_precision(wanted: str, device: str = "cpu") -> str:
    """`float32` or `bfloat16`; ModelError where bfloat16 would only be emulated."""
    if wanted != "float32" and has_fast_bfloat16(device):
        return "bfloat16"
    if wanted == "bfloat16":
        where = "this processor" if device == "cpu" else device
        raise ModelError(
            f"precision: bfloat16 has no hardware on {where} (it would be emulated, slower than float32). "
            "Set precision: auto or float32."
        )
    return "float32"


def refuse_incomplete(what: str, found: dict[str, Any]) -> None:
    """transformers fills weights that a checkpoint lacks with random numbers; such a model is refused."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{what}: {len(missing)} of its weights are not in the file (first: {missing[0]}); they would be random. "
            "Fetch the model again, or give another one."
        )


def describe_model(name: str) -> dict[str, Any]:
    """What `luthier models show` prints: configuration only, no weights are loaded.

    Raises:
        ModelError: there is no such model, or configuration, tokenizer or weight files are not whole.
    """
    from luthier.forest.forward import PROVEN_FAMILIES

    folder = find_model(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        told = first_line(error).rstrip(".")
        raise ModelError(
            f"model {name}: its configuration cannot be used ({told}). Mend {folder / 'config.json'}, fetch the model "
            "again, or give another one."
        ) from error
    tokenizer = load_tokenizer(folder)
    refuse_damaged(name, folder)
    return {
        "name": name,
        "folder": str(folder),
        "family": config.model_type,
        "token_forest": config.model_type in PROVEN_FAMILIES,
        "layers": getattr(config, "num_hidden_layers", None),
        "hidden_size": getattr(config, "hidden_size", None),
        "vocabulary": len(tokenizer),
        "context_tokens": getattr(config, "max_position_embeddings", None),
        "chat_template": tokenizer.chat_template is not None,
        "weights_bytes": sum(file.stat().st_size for file in weight_files(name, folder)),
        "sha256": folder_hash(folder),
    }


def refuse_damaged(name: str, folder: Path) -> None:
    """ModelError where a file of weights is missing or cut short, by the files' headers alone."""
    again = "Fetch the model again, or give another one."
    for file in weight_files(name, folder):
        if not file.is_file():
            raise ModelError(
                f"model {name}: there is no {file}. Weights are read from safetensors alone, never from pickled files. "
                + again
            )
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelError(f"model {name}: {file} is damaged ({first_line(error)}). {again}") from error


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files that a model's weights are in: one, or those that an index names."""
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model {name}: {index} does not name the files of the weights. Fetch the model again, or give another one."
        ) from error
    for file in names:
        if not isinstance(file, str) or not file or Path(file).is_absolute() or ".." in Path(file).parts:
            raise ModelError(
                f"model {name}: {index} names {file!r}, which is not a file inside the folder. A model's weights stand "
                "with it. Fetch the model again, or give another one."
            )
    return [folder / file for file in names]


def folder_hash(folder: Path) -> str:
    """Content hash of configuration, tokenizer and weights; large files by the checksums written beside them."""
    digest = hashlib.sha256()
    files = {
        file
        for file in folder.iterdir()
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt") and file.name != "checksums.json"
    }
    weights = {file for file in weight_files(folder.name, folder) if file.is_file()}
    for file in sorted(files | weights):
        digest.update(f"{file.relative_to(folder)} {sha256(file)}\n".encode())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
