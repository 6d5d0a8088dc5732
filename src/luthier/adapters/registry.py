"""The kinds of adapters, by the section of a recipe and by what a saved one says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.adapters.base import CONFIG, AdapterKind, require_adapter
from luthier.adapters.bottleneck import BottleneckKind
from luthier.adapters.full import FullKind
from luthier.adapters.ia3 import Ia3Kind
from luthier.adapters.lora import LoraKind
from luthier.adapters.qlora import QUANTIZED, QloraKind
from luthier.adapters.sparse import SparseKind
from luthier.adapters.virtual import PrefixKind, PromptKind
from luthier.errors import ModelError
from luthier.files import require_whole, write_json
from luthier.recipe.adapters import AdapterKeys, Bottleneck, Full, Ia3, Lora, Prefix, Prompt, Qlora, Sparse
from luthier.recipe.base import Kind

KINDS: dict[type[Kind], AdapterKind] = {
    Lora: LoraKind(),
    Qlora: QloraKind(),
    Full: FullKind(),
    Ia3: Ia3Kind(),
    Prompt: PromptKind(),
    Prefix: PrefixKind(),
    Bottleneck: BottleneckKind(),
    Sparse: SparseKind(),
}
SAVED: dict[str, AdapterKind] = {kind.peft_type: kind for section, kind in KINDS.items() if section is not Qlora}


def add_adapter(model: nn.Module, settings: AdapterKeys, seed: int, base_folder: Path) -> nn.Module:
    """Put a fresh adapter into `model` in place and return its wrapper; see AdapterKind.add."""
    if settings.exact_weights and any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        raise ModelError(
            f"tune.adapter.kind: {settings.kind} as set here wants exact weights, and this model's are kept in "
            "bfloat16. Load it with exact=True."
        )
    wrapper = KINDS[type(settings)].add(model, settings, seed, base_folder)
    wrapper.adapter_kind = KINDS[type(settings)]  # type: ignore[assignment]
    return wrapper


def load_adapter(model: nn.Module, folder: Path, trainable: bool = False) -> nn.Module:
    """A saved adapter of any kind, put into `model` in place, frozen unless `trainable`."""
    kind = saved_kind(folder)
    wrapper = kind.load(model, folder, trainable)
    wrapper.adapter_kind = kind  # type: ignore[assignment]
    return wrapper


def kind_of(wrapper: nn.Module) -> AdapterKind:
    """The kind of the adapter that a wrapper holds."""
    kind: Any = wrapper.adapter_kind
    return kind


def saved_kind(folder: Path) -> AdapterKind:
    """The kind of a saved adapter.

    Raises:
        ModelError: there is none, or none that is known.
        RunError: it is not as it was written.
    """
    require_whole(folder)
    require_adapter(folder)
    said = read_config(folder).get("peft_type")
    if said not in SAVED:
        raise ModelError(
            f"{folder / CONFIG}: luthier does not know adapters of type {said}; it has {', '.join(SAVED)}."
        )
    return KINDS[Qlora] if (folder / QUANTIZED).is_file() else SAVED[said]


def needs_exact_weights(folder: Path) -> bool:
    """Whether an adapter saved in `folder`, if one is, packs the weights below it or measures them (DoRA)."""
    if not (folder / CONFIG).is_file():
        return False
    return (folder / QUANTIZED).is_file() or bool(read_config(folder).get("use_dora"))


def read_config(folder: Path) -> dict[str, Any]:
    """What a saved adapter says it is. ModelError where that cannot be read."""
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder / CONFIG}: missing or damaged ({error}). Write the adapter again.") from error


def folded(model: nn.Module, folder: Path) -> None:
    """Add a saved adapter to the weights of `model`, in place."""
    saved_kind(folder).fold(model, folder)


def joined(lower: Path, upper: Path, target: Path) -> None:
    """Write what two saved adapters do together, `upper` over `lower`, as one into `target` (a folder that is there).

    Raises:
        ModelError: that is not exactly one adapter.
    """
    below, above = saved_kind(lower), saved_kind(upper)
    if below is not above:
        raise ModelError(
            f"{upper}: an adapter of type {above.peft_type} over one of type {below.peft_type} ({lower}) is not one "
            "adapter. Set start: merge for the next stage."
        )
    above.join(lower, upper, target)


def name_base_model(folder: Path, name: str) -> None:
    """Write a name that means something elsewhere (a hub id) into a saved adapter's configuration."""
    path = folder / CONFIG
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "base_model_name_or_path": name})
