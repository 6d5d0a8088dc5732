"""What `luthier sweep` searches: keys of the recipe with their values, and how trials are drawn and cut short.

No torch here. What a space means on a given recipe stands in `recipe/space.py`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from luthier.recipe.base import Part

DEFAULT_TRIALS = 20


class Search(Part):
    """The values of one key: a range, or some choices. A list alone is its choices."""

    low: float | None = Field(None, description="Smallest value of a range.", strict=False)
    high: float | None = Field(None, description="Largest value of a range.", strict=False)
    log: bool = Field(False, description="Draw evenly by the logarithm: for rates and weights.")
    step: float | None = Field(
        None, gt=0, strict=False, description="Distance of the values in a range; a grid needs it."
    )
    choices: list[Any] = Field(
        default_factory=list, description="The values themselves, in the place of a range; a section is one too."
    )

    @model_validator(mode="after")
    def agreed(self) -> Search:
        """A range or choices, finite ones, and nothing that is set without effect."""
        if any(isinstance(choice, float) and not math.isfinite(choice) for choice in self.choices):
            raise ValueError("choices must be finite numbers")
        if self.choices and (self.low, self.high, self.step, self.log) != (None, None, None, False):
            raise ValueError("choices stand beside low, high, log or step; give a range or choices")
        if self.choices:
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("log needs a low above 0")
        if self.log and self.step is not None:
            raise ValueError("log has no step; leave one of them out")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step ({self.step:g}) is wider than the range")
        return self


def with_choices(values: Any) -> Any:
    """A list alone stands for choices."""
    return {"choices": values} if isinstance(values, list) else values


Space = dict[str, Annotated[Search, BeforeValidator(with_choices)]]


class Sweep(Part):
    """Trials of one recipe with other values of some keys; the best one on validation rows is written out."""

    space: Space = Field(
        default_factory=dict,
        description="Keys of the recipe by their paths (`tune.learning_rate`, `stages.0.method.beta`), each with a "
        "range or a list of choices. Empty: the space that the method brings along.",
    )
    trials: int = Field(0, ge=0, description="Trials in all; 0: the whole grid, or 20 with another sampler.")
    sampler: Literal["tpe", "random", "grid"] = Field(
        "tpe",
        description="`tpe` draws where good trials were (Bergstra et al. 2011), `random` anywhere; the first trial of "
        "both is the recipe as it stands. `grid` goes through all combinations.",
    )
    pruner: Literal["median", "asha", "none"] = Field(
        "median",
        description="Which trials end early, by their validation curves: `median` those worse than the middle of "
        "earlier trials at the same point, `asha` all but the best 1 / `reduction` at each rung (Li et al. 2018).",
    )
    metric: str = Field(
        "auto",
        min_length=1,
        description="What trials are compared by, on validation rows: `loss`, or a figure of the method. `auto`: as "
        "`tune.metric` says, and the method's deciding figure where the space changes what the loss means.",
    )
    startup_trials: int = Field(
        5, ge=1, description="Trials that `tpe` draws anywhere, and that `median` waits for before it ends any."
    )
    reduction: int = Field(3, ge=2, description="One trial in this many goes on from a rung (`asha`).")

    @model_validator(mode="after")
    def read(self) -> Sweep:
        """Nothing that is set may be without effect."""
        if self.reduction != 3 and self.pruner != "asha":
            raise ValueError("reduction is read by pruner: asha alone; leave it out")
        if self.startup_trials != 5 and self.sampler != "tpe" and self.pruner != "median":
            raise ValueError("startup_trials is read by sampler: tpe and pruner: median; leave it out")
        if self.sampler == "grid":
            open_ended = [path for path, search in self.space.items() if not search.choices and search.step is None]
            if open_ended or not self.space:
                where = f"space.{open_ended[0]}" if open_ended else "space"
                raise ValueError(f"a grid needs choices or a step for every key; {where} has neither")
        return self
