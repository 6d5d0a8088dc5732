"""What a kind of adapter is: how it gets into a model, onto disk, and back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from luthier.errors import ModelError

# PEFT loads bitsandbytes where it is installed, and that complains of a kernel which nobody here asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class AdapterKind(Protocol):
    """One kind of adapter. `peft_type` is what its adapter_config.json says it is.

    A saved adapter is a folder with CONFIG and WEIGHTS; all of them are luthier's own word (`LUTHIER_...`) where PEFT
    has no such kind, so that PEFT refuses what it cannot load.
    """

    peft_type: ClassVar[str]

    def add(self, model: nn.Module, settings: Any, seed: int, base_folder: Path) -> nn.Module:
        """Put a fresh adapter into `model` in place and return its wrapper; the model's answers stay as they are.

        `requires_grad` is set on what is trained, and on nothing else. ModelError where it does not fit the model.
        """
        ...

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> nn.Module:
        """A saved adapter, put into `model` in place, frozen unless `trainable`."""
        ...

    def save(self, wrapper: nn.Module, folder: Path) -> None:
        """Write CONFIG and WEIGHTS into a folder that is there."""
        ...

    def restore(self, wrapper: nn.Module, folder: Path) -> None:
        """The weights that `save` wrote, back into the adapter they came from."""
        ...

    def fold(self, model: nn.Module, folder: Path) -> None:
        """Add a saved adapter to the weights of `model`, in place. ModelError where that cannot be exact."""
        ...

    def remove(self, wrapper: nn.Module) -> None:
        """Take the adapter out of the model again, so that a fresh one can be put in; the weights are as they were."""
        ...

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """Write what two saved adapters of this kind do together, `upper` over `lower`, as one into `target`.

        ModelError where that is not exactly one adapter of this kind; `Single` is for kinds where it never is.
        """
        ...


class Single:
    """A kind of which one adapter over another is never one again."""

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """Refused."""
        raise ModelError(
            f"{upper}: an adapter of this kind cannot be stacked over {lower}. Set start: continue for the next stage."
        )


class Plain(nn.Module):
    """A model in the place where PEFT's kinds have PEFT's wrapper."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model


def require_adapter(folder: Path) -> None:
    """ModelError unless a folder holds an adapter's weights."""
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} holds no {WEIGHTS}; give the folder of a finished run.")
