"""What is trained: one section a kind of adapter. No torch here.

A kind is a section here and a file in `luthier/adapters/`; `kind` names it in a recipe.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind


class Lora(Kind):
    """Low-rank updates of linear layers (LoRA, Hu et al. 2021), saved in PEFT's format."""

    kind: Literal["lora"] = Field("lora", description="Low-rank updates of linear layers.")
    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update counts alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update. A shared prefix shares its mask.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Module names that get an adapter, or all linear layers but the head."
    )


class Probe(Kind):
    """No adapter: a head learns on the frozen model."""

    kind: Literal["none"] = Field(
        "none",
        description="A head alone learns, on the frozen model (a linear probe): what it reads is computed once and "
        "kept, and epochs cost seconds. For stages with a head.",
    )


KINDS = (Lora, Probe)


def with_kind(values: Any) -> Any:
    """A kind by its name alone; without a name it is lora."""
    if isinstance(values, str):
        return {"kind": values}
    return {"kind": "lora", **values} if isinstance(values, dict) else values


AdapterSettings = Annotated[Lora | Probe, Field(discriminator="kind")]
Adapter = Annotated[AdapterSettings, BeforeValidator(with_kind)]
