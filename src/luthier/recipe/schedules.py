"""How the learning rate goes over a training: one section a kind of schedule. No torch here.

A kind is a section here and a function in `luthier/training/schedules.py`. Rates are shares of the peak rate, lengths
are shares of the steps after the warm-up (`tune.warmup_share`), so that a schedule fits a training of any length.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind, kind_or

Floor = Annotated[float, Field(ge=0, lt=1)]
FLOOR = "What is left of the peak rate at the end."


class Constant(Kind):
    """The peak rate all along."""

    kind: Literal["constant"] = Field("constant", description="The peak rate all along.")


class Linear(Kind):
    """A straight line down."""

    kind: Literal["linear"] = Field("linear", description="A straight line down.")
    final_share: Floor = Field(0.0, description=FLOOR)


class Cosine(Kind):
    """Half a cosine down (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = Field("cosine", description="Half a cosine down.")
    final_share: Floor = Field(0.0, description=FLOOR)


class Restarts(Kind):
    """Half a cosine down, again and again from the peak (SGDR, Loshchilov and Hutter 2017)."""

    kind: Literal["restarts"] = Field("restarts", description="Half a cosine down, again and again.")
    cycles: int = Field(3, ge=1, description="How many times.")
    growth: float = Field(1.0, ge=1, description="Each cycle is as long as the one before, times this.")
    final_share: Floor = Field(0.0, description="What is left of the peak rate at the end of each cycle.")


class Wsd(Kind):
    """Warm-up, stable, decay (Hu et al. 2024): the peak rate, and at the end a decay."""

    kind: Literal["wsd"] = Field("wsd", description="The peak rate, and at the end a decay.")
    decay_share: float = Field(0.2, gt=0, le=1, description="Share of the steps after the warm-up that decay.")
    shape: Literal["linear", "sqrt"] = Field(
        "sqrt",
        description="`linear`: a straight line; `sqrt`: 1 - sqrt(done), steep at first (Hägele et al. 2024).",
    )
    final_share: Floor = Field(0.0, description=FLOOR)


class InverseSqrt(Kind):
    """One over the root of the steps done (Vaswani et al. 2017): a half of the peak at four times the warm-up."""

    kind: Literal["inverse_sqrt"] = Field("inverse_sqrt", description="One over the root of the steps done.")


class Plateau(Kind):
    """Lower the rate whenever validation stops getting better. Looks at `tune.metric`; needs validation rows."""

    kind: Literal["plateau"] = Field("plateau", description="Lower whenever validation stops getting better.")
    factor: float = Field(0.5, gt=0, lt=1, description="What the rate is multiplied by.")
    patience: int = Field(2, ge=0, description="Validations without a better one that are borne; the next one lowers.")
    min_change: float = Field(0.0, ge=0, strict=False, description="A validation is better by more than this.")
    final_share: Floor = Field(0.0, description="Never below this share of the peak rate.")


ScheduleSettings = Annotated[
    Constant | Linear | Cosine | Restarts | Wsd | InverseSqrt | Plateau, Field(discriminator="kind")
]
LearningRateSchedule = Annotated[ScheduleSettings, BeforeValidator(kind_or("cosine"))]
