"""The model's own weights, all of them or some. What is saved are those that were trained, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import CONFIG, WEIGHTS, Plain, require_adapter
from luthier.adapters.parts import embedding_names, is_inside, last_layers, norm_names, unread_parts
from luthier.adapters.snapshot import Snapshot
from luthier.errors import ModelError
from luthier.files import write_json
from luthier.recipe.adapters import Full


class OwnWeights(Plain):
    """A model whose own weights learn: `names` of them, and what they were before."""

    def __init__(self, model: nn.Module, names: list[str], base: str):
        super().__init__(model)
        self.names = names
        self.base = base
        self.snapshot = Snapshot(self.chosen())

    def chosen(self) -> dict[str, nn.Parameter]:
        """The weights in question, by the transformers model's names."""
        model: Any = self.base_model.model
        parameters = dict(model.named_parameters())
        return {name: parameters[name] for name in self.names}


class FullKind:
    """Whole weights as a kind of adapter; see AdapterKind."""

    peft_type: ClassVar[str] = "LUTHIER_WEIGHTS"

    def add(self, model: nn.Module, settings: Full, seed: int, base_folder: Path) -> OwnWeights:
        """The chosen weights learn from where they are."""
        wrapper = OwnWeights(model, chosen_names(model, settings), str(base_folder))
        for parameter in wrapper.chosen().values():
            parameter.requires_grad_(True)
        return wrapper

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> OwnWeights:
        """Saved weights in the place of the model's."""
        state = read_weights(model, folder)
        wrapper = OwnWeights(model, list(state), str(getattr(model, "name_or_path", "")))
        copy_into(wrapper.chosen(), state)
        for parameter in wrapper.chosen().values():
            parameter.requires_grad_(trainable)
        return wrapper

    def save(self, wrapper: Any, folder: Path) -> None:
        """The chosen weights as safetensors, in the model's own type."""
        state = {name: parameter.detach().cpu().contiguous() for name, parameter in wrapper.chosen().items()}
        save_file(state, str(folder / WEIGHTS), {"format": "pt"})
        numbers = sum(tensor.numel() for tensor in state.values())
        told = {"peft_type": self.peft_type, "base_model_name_or_path": wrapper.base, "numbers": numbers}
        write_json(folder / CONFIG, told)

    def restore(self, wrapper: Any, folder: Path) -> None:
        """Saved weights, copied back."""
        copy_into(wrapper.chosen(), load_file(str(folder / WEIGHTS)))

    def fold(self, model: nn.Module, folder: Path) -> None:
        """Saved weights in the place of the model's."""
        state = read_weights(model, folder)
        parameters = dict(model.named_parameters())
        copy_into({name: parameters[name] for name in state}, state)

    def remove(self, wrapper: Any) -> None:
        """The weights as they were."""
        wrapper.snapshot.restore(wrapper.chosen())
        for parameter in wrapper.chosen().values():
            parameter.requires_grad_(False)
            parameter.grad = None

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """The later weights began as the earlier ones, so they stand in their place."""
        state = {**load_file(str(lower / WEIGHTS)), **load_file(str(upper / WEIGHTS))}
        save_file(state, str(target / WEIGHTS), {"format": "pt"})
        numbers = sum(tensor.numel() for tensor in state.values())
        write_json(target / CONFIG, {"peft_type": self.peft_type, "base_model_name_or_path": "", "numbers": numbers})


def chosen_names(model: nn.Module, settings: Full) -> list[str]:
    """The names of the parameters that learn, in the model's order; a tied one once.

    What stands above the last layers (the last norm) is what the model registers after them.

    Raises:
        ModelError: none does.
    """
    unread = unread_parts(model)
    names = [name for name, _ in model.named_parameters() if not is_inside(name, unread)]
    embeddings = [name for name in names if is_inside(name, embedding_names(model))]
    chosen = names
    if settings.last:
        layers = last_layers(model, settings.last)
        first = next(place for place, name in enumerate(names) if is_inside(name, layers))
        chosen = names[first:]
    chosen = [name for name in names if name in (embeddings if settings.with_embeddings else ())
              or (name in chosen and name not in embeddings)]  # fmt: skip
    if not settings.norms:
        norms = norm_names(model)
        chosen = [name for name in chosen if not is_inside(name, norms)]
    chosen = [name for name in chosen if re.search(settings.pattern, name)]
    if not chosen:
        raise ModelError(
            f"tune.adapter.pattern: {settings.pattern!r} is found in no name of a parameter that learns. The model has "
            f"names such as {', '.join(names[:: max(1, len(names) // 4)][:4])}."
        )
    return chosen


def read_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Saved weights. ModelError where they are not of this model."""
    require_adapter(folder)
    state = load_file(str(folder / WEIGHTS))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = [name for name, tensor in state.items() if shapes.get(name) != tensor.shape]
    if wrong:
        raise ModelError(
            f"{folder / WEIGHTS}: {wrong[0]} {list(state[wrong[0]].shape)} is not of this model "
            f"({list(shapes[wrong[0]]) if wrong[0] in shapes else 'which has none of that name'}). Give the model that "
            "these weights were trained from."
        )
    return state


@torch.no_grad()
def copy_into(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Values in place."""
    for name, parameter in parameters.items():
        parameter.copy_(state[name])
