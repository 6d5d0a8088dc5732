"""Settings of the heads: what is read off a text's hidden states."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from luthier.recipe.methods.base import MethodPart, ModelKind


def different(labels: list[str]) -> list[str]:
    """The labels, if none of them is empty or stands twice."""
    if not all(label.strip() for label in labels):
        raise ValueError("a label is empty; write its name")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f'"{twice[0]}" stands twice; name each label once')
    return labels


Labels = Annotated[list[str], AfterValidator(different)]


class Classify(MethodPart):
    """One label for each text."""

    kind: Literal["classify"] = "classify"
    model: ClassVar[ModelKind] = "any"
    labels: Labels = Field(default_factory=list, description="The labels; empty: those of the training rows.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced` weighs each label by the inverse of its frequency."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all labels.")
    focal_gamma: float = Field(0.0, ge=0, strict=False, description="Focal loss (Lin et al. 2017); 0 = off.")
    tune: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="after")
    def one_loss(self) -> Classify:
        """Smoothed labels and the focal loss are two answers to one question."""
        if self.label_smoothing and self.focal_gamma:
            raise ValueError("label_smoothing and focal_gamma cannot both be set; set one of them to 0")
        return self


class MultiLabel(MethodPart):
    """Any number of labels for each text."""

    kind: Literal["multilabel"] = "multilabel"
    model: ClassVar[ModelKind] = "any"
    labels: Labels = Field(default_factory=list, description="The labels; empty: those of the training rows.")
    separator: str = Field(",", min_length=1, description="What parts the labels of a row.")
    none: str = Field("none", min_length=1, description="What stands where a row has none of the labels.")
    class_weights: Literal["none", "balanced"] = Field("none", description="`balanced` weighs rare labels up.")
    focal_gamma: float = Field(0.0, ge=0, strict=False, description="Focal loss (Lin et al. 2017); 0 = off.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability from which a label counts as given.")
    tune: ClassVar[dict[str, Any]] = {}


class Ordinal(MethodPart):
    """One of some labels in an order (grades, stars): cumulative link (McCullagh 1980), as CORAL learns it."""

    kind: Literal["ordinal"] = "ordinal"
    model: ClassVar[ModelKind] = "any"
    labels: Labels = Field(min_length=2, description="The labels, lowest first.")
    tune: ClassVar[dict[str, Any]] = {}


class Regress(MethodPart):
    """A number for each text."""

    kind: Literal["regress"] = "regress"
    model: ClassVar[ModelKind] = "any"
    loss: Literal["squared", "huber"] = Field("squared", description="Squared error, or Huber's.")
    huber_delta: float = Field(1.0, gt=0, strict=False, description="Where Huber's loss turns linear, in deviations.")
    tune: ClassVar[dict[str, Any]] = {}


class Tag(MethodPart):
    """One tag for each word: entities (BIO), parts of speech."""

    kind: Literal["tag"] = "tag"
    model: ClassVar[ModelKind] = "any"
    tags: Labels = Field(default_factory=list, description="The tags; empty: those of the training rows.")
    scheme: Literal["bio", "plain"] = Field("bio", description="BIO spans (entity F1), or a tag of its own per word.")
    reads: Literal["last", "first", "mean"] = Field(
        "last", description="Which token of a word the head reads: a decoder knows the word at its last one."
    )
    twice: bool = Field(
        False,
        description="The text is given two times and read in its second copy, so that a decoder knows what follows a "
        "word (Springer et al. 2024). Twice the tokens.",
    )
    class_weights: Literal["none", "balanced"] = Field("none", description="`balanced` weighs rare tags up.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all tags.")
    tune: ClassVar[dict[str, Any]] = {}
