"""Averages of the weights over a training, and when it stops early. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind, Part, kind_or


class NoAverage(Kind):
    """The weights as the last step left them."""

    kind: Literal["none"] = Field("none", description="The weights as they are.")


class Ema(Kind):
    """An exponential moving average of the trained weights, step by step (Polyak and Juditsky 1992).

    At step t it keeps at most (1 + t) / (10 + t) of itself, so that a short training is not held to where it began.
    """

    kind: Literal["ema"] = Field("ema", description="A moving average: smoother weights at any time.")
    decay: float = Field(0.99, gt=0, lt=1, description="Share of the average that is kept at each step.")


class Swa(Kind):
    """The mean of the trained weights over the end of a training (Izmailov et al. 2018).

    Until it begins the weights are validated and saved as they are. Goes well with a constant rate.
    """

    kind: Literal["swa"] = Field("swa", description="The mean over the end of the training.")
    begin_share: float = Field(0.75, ge=0, lt=1, description="Share of the steps after which it begins.")
    every: int = Field(1, ge=1, description="Steps between two weights that are averaged.")


class Stop(Part):
    """End a training early, once validation (`tune.metric`) has stopped getting better."""

    patience: int = Field(3, ge=1, description="Validations in a row without a better one after which it ends.")
    min_change: float = Field(0.0, ge=0, strict=False, description="A validation is better by more than this.")


AveragingSettings = Annotated[NoAverage | Ema | Swa, Field(discriminator="kind")]
Averaging = Annotated[AveragingSettings, BeforeValidator(kind_or("ema"))]
