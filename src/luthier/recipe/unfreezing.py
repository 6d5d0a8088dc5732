"""When which layers begin to learn: one section a kind of schedule. No torch here.

What is trained thaws from the head downwards (Howard and Ruder 2018, section 3.3): first what stands above the layers,
then the layers from the top, last the embeddings. A kind is a section here and a function in
`luthier/training/unfreezing.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind, kind_or

if TYPE_CHECKING:
    from luthier.recipe.training import Training


class NoThaw(Kind):
    """Everything that is trained learns from the first step."""

    kind: Literal["none"] = Field("none", description="Everything learns from the first step.")


class Thaw(Kind):
    """The keys of a schedule that thaws layers."""

    layers: int = Field(1, ge=1, description="Layers that thaw at once.")
    at_start: int = Field(
        0,
        ge=0,
        description="Layers that learn from the first step, beside the head; at least 1 where there is no head.",
    )


class ThawByShare(Thaw):
    """Evenly over the first part of the training, however many layers there are."""

    kind: Literal["share"] = Field("share", description="Evenly over the first part of the training.")
    until: float = Field(0.5, gt=0, le=1, description="Share of the steps after which everything learns.")


class ThawByEpochs(Thaw):
    """Every so many epochs. Layers that the training ends before stay as they are."""

    kind: Literal["epochs"] = Field("epochs", description="Every so many epochs.")
    every: Annotated[float, Field(gt=0)] = Field(1.0, strict=False, description="Epochs between two thaws.")


class ThawByPlateau(Thaw):
    """Whenever validation stops getting better. Looks at `tune.metric`; needs validation rows."""

    kind: Literal["plateau"] = Field("plateau", description="Whenever validation stops getting better.")
    patience: int = Field(1, ge=0, description="Validations without a better one that are borne; the next one thaws.")
    min_change: float = Field(0.0, ge=0, strict=False, description="A validation is better by more than this.")


UnfreezingSettings = Annotated[NoThaw | ThawByShare | ThawByEpochs | ThawByPlateau, Field(discriminator="kind")]
Unfreezing = Annotated[UnfreezingSettings, BeforeValidator(kind_or("share"))]


def layer_problems(training: Training, where: str, validated: bool) -> list[str]:
    """Rules of what thaws, learns and is kept layer by layer; `where` is the section of the training."""
    problems = []
    is_probe = training.adapter.kind == "none"
    if is_probe:
        problems += [
            f"{where}.{key}: a linear probe (adapter.kind: none) trains no layer. Leave it out."
            for key, given in (
                ("unfreeze", training.unfreeze.kind != "none"),
                ("layer_rate_factor", training.layer_rate_factor != 1.0),
                ("cache_below", training.cache_below),
            )
            if given
        ]
    if training.unfreeze.kind == "plateau" and not validated:
        problems.append(
            f"{where}.unfreeze: plateau looks at validation rows, and none are held out. Set data.validation_share, or "
            "another kind."
        )
    if training.cache_below:
        problems += [
            f"{where}.cache_below: {key} changes what the frozen layers say of a row at each step, so it cannot be "
            "computed once. Leave out one of the two."
            for key in ("neftune_alpha", "layer_drop")
            if getattr(training, key)
        ]
    elif training.cache_gigabytes != type(training).model_fields["cache_gigabytes"].default and not is_probe:
        problems.append(
            f"{where}.cache_gigabytes: is read where cache_below is true, or adapter.kind is none. Leave it out."
        )
    return problems
