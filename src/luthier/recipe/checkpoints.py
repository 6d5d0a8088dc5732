"""When a training is saved, and how much of that is kept. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.recipe.base import Part


class Checkpoints(Part):
    """When a training is saved, and how much of that is kept. None of it changes what is learnt."""

    every: int = Field(20, ge=0, description="Steps between checkpoints; 0: only at validations.")
    minutes: Annotated[float, Field(ge=0)] = Field(
        10.0, description="Also after so many minutes, where steps are long; 0 turns it off.", strict=False
    )
    keep: int = Field(2, ge=1, description="Newest ones that are kept; a damaged one falls back on the one before.")
    keep_every: int = Field(
        0, ge=0, description="Checkpoints at multiples of so many steps are written and kept for good; 0: none."
    )
