"""Adapters of our own: modules at places of a model, saved as safetensors with the section of the recipe beside them.

PEFT has no such kinds, so it refuses what is saved here by its `peft_type`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters.base import CONFIG, WEIGHTS, Plain, Single, require_adapter
from luthier.adapters.sites import Around, adapter_at, put_around, take_out, text_config
from luthier.errors import ModelError
from luthier.files import write_json
from luthier.recipe.adapters import AdapterKeys
from luthier.recipe.base import explain

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


class Placed(Plain):
    """A model with adapters at `places`, in the place where PEFT's kinds have PEFT's wrapper."""

    def __init__(self, model: nn.Module, settings: AdapterKeys, places: Sequence[str], base_name: str):
        super().__init__(model)
        self.settings = settings
        self.places = tuple(places)
        self.base_name = base_name

    def adapters(self) -> dict[str, nn.Module]:
        """The adapters by their place."""
        model: Any = self.base_model.model
        return {place: adapter_at(model, place) for place in self.places}

    def state(self) -> dict[str, Tensor]:
        """The parameters of all adapters, as they are saved."""
        return {
            f"{place}.{name}": parameter
            for place, adapter in self.adapters().items()
            for name, parameter in adapter.named_parameters()
        }


class PlacedKind(Single):
    """What the kinds of placed adapters share; see AdapterKind. A kind says where they stand, and what they are."""

    peft_type: ClassVar[str]
    section: ClassVar[type[AdapterKeys]]

    def sites(self, model: nn.Module, settings: Any) -> dict[str, type[Around]]:
        """The parts of the model that get an adapter, by their path; ModelError where the model is not known."""
        raise NotImplementedError

    def adapter(self, settings: Any, model: nn.Module) -> nn.Module:
        """One adapter, its parameters on the CPU and not yet drawn (`draw` does that)."""
        raise NotImplementedError

    def add(self, model: nn.Module, settings: Any, seed: int, base_folder: Path) -> Placed:
        """Fresh adapters. Each is drawn from the seed and its number, and gives zero at first."""
        wrapper = self.put(model, settings, str(base_folder))
        for number, adapter in enumerate(wrapper.adapters().values()):
            draw: Any = adapter.draw
            draw(torch.Generator().manual_seed(seed * 1_000_003 + number))
        return wrapper

    def put(self, model: nn.Module, settings: Any, base_name: str) -> Placed:
        """Adapters that are trained, in a model that is not."""
        sites = self.sites(model, settings)
        model.requires_grad_(False)
        for place, kind in sites.items():
            put_around(model, place, kind, self.adapter(settings, model))
        return Placed(model, settings, list(sites), base_name)

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> Placed:
        """Saved ones."""
        require_adapter(folder)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        del config["peft_type"]
        base_name = str(config.pop("base_model_name_or_path", ""))
        try:
            settings = self.section.model_validate(config)
        except ValidationError as error:
            raise ModelError(f"{folder / CONFIG}: {explain(error.errors()[0], self.section)}") from error
        wrapper = self.put(model, settings, base_name)
        self.restore(wrapper, folder)
        wrapper.requires_grad_(False)
        if trainable:
            for adapter in wrapper.adapters().values():
                adapter.requires_grad_(True)
        return wrapper

    def save(self, wrapper: Any, folder: Path) -> None:
        """Configuration and weights."""
        state = {name: parameter.detach().contiguous() for name, parameter in wrapper.state().items()}
        save_file(state, str(folder / WEIGHTS), metadata={"format": "pt"})
        values = {"peft_type": self.peft_type, "base_model_name_or_path": wrapper.base_name}
        write_json(folder / CONFIG, {**values, **wrapper.settings.model_dump()})

    @torch.no_grad()
    def restore(self, wrapper: Any, folder: Path) -> None:
        """The weights that `save` wrote, whatever the type of the base's."""
        saved, own = load_file(str(folder / WEIGHTS)), wrapper.state()
        shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (saved, own)]
        if shapes[0] != shapes[1]:
            name = min(shapes[0].items() ^ shapes[1].items())[0]
            raise ModelError(
                f"{folder / WEIGHTS}: does not fit this {text_config(wrapper.base_model.model).model_type} model: "
                f"{name} has shape {shapes[0].get(name)} in the file and {shapes[1].get(name)} here. Load the adapter "
                "on the model that it was trained on."
            )
        for name, parameter in own.items():
            parameter.copy_(saved[name])

    def fold(self, model: nn.Module, folder: Path) -> None:
        """Refused: a function that bends is no change of a weight."""
        kind = self.section.model_fields["kind"].default
        raise ModelError(
            f"{folder}: an adapter of kind {kind} computes with an activation of its own, so it cannot be written into "
            "the model's weights. Keep it beside the model, set start: continue, or train lora instead."
        )

    def remove(self, wrapper: Any) -> None:
        """The parts themselves again."""
        for place in wrapper.places:
            take_out(wrapper.base_model.model, place)


def trained_dtype(model: nn.Module) -> torch.dtype:
    """float64 where the model is; else float32, also beside weights of half the size, whose steps would be lost."""
    kinds = {parameter.dtype for parameter in model.parameters()}
    return torch.float64 if torch.float64 in kinds else torch.float32


def width_of(model: nn.Module) -> int:
    """Width of the hidden states."""
    return int(text_config(model).hidden_size)


@torch.no_grad()
def draw_uniform(parameter: Tensor, fan_in: int, generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan_in), drawn on the CPU in float32, so that devices and types agree."""
    drawn = torch.rand(parameter.shape, generator=generator).mul_(2).sub_(1).div_(fan_in**0.5)
    parameter.copy_(drawn)
