"""Settings of the heads: what is read off a text's hidden states."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.recipe.methods.base import MethodPart


class Classify(MethodPart):
    """One label for each text."""

    kind: Literal["classify"] = "classify"
    labels: list[str] = Field(default_factory=list, description="The labels; empty: those of the training rows.")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="`balanced` weighs each label by the inverse of its frequency."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all labels.")
    focal_gamma: float = Field(0.0, ge=0, strict=False, description="Focal loss (Lin et al. 2017); 0 = off.")
    tune: ClassVar[dict[str, Any]] = {}


class MultiLabel(MethodPart):
    """Any number of labels for each text."""

    kind: Literal["multilabel"] = "multilabel"
    labels: list[str] = Field(default_factory=list, description="The labels; empty: those of the training rows.")
    separator: str = Field(",", min_length=1, description="What parts the labels of a row.")
    class_weights: Literal["none", "balanced"] = Field("none", description="`balanced` weighs rare labels up.")
    focal_gamma: float = Field(0.0, ge=0, strict=False, description="Focal loss (Lin et al. 2017); 0 = off.")
    threshold: float = Field(0.5, gt=0, lt=1, description="Probability from which a label counts as given.")
    tune: ClassVar[dict[str, Any]] = {}


class Ordinal(MethodPart):
    """One of some labels in an order (grades, stars): cumulative link (McCullagh 1980), as CORAL learns it."""

    kind: Literal["ordinal"] = "ordinal"
    labels: list[str] = Field(min_length=2, description="The labels, lowest first.")
    tune: ClassVar[dict[str, Any]] = {}


class Regress(MethodPart):
    """A number for each text."""

    kind: Literal["regress"] = "regress"
    loss: Literal["squared", "huber"] = Field("squared", description="Squared error, or Huber's.")
    huber_delta: float = Field(1.0, gt=0, strict=False, description="Where Huber's loss turns linear, in deviations.")
    tune: ClassVar[dict[str, Any]] = {}


class Tag(MethodPart):
    """One tag for each word: entities (BIO), parts of speech."""

    kind: Literal["tag"] = "tag"
    tags: list[str] = Field(default_factory=list, description="The tags; empty: those of the training rows.")
    scheme: Literal["bio", "plain"] = Field("bio", description="BIO spans (entity F1), or a tag of its own per word.")
    reads: Literal["last", "first", "mean"] = Field(
        "last", description="Which token of a word the head reads: a decoder knows the word at its last one."
    )
    class_weights: Literal["none", "balanced"] = Field("none", description="`balanced` weighs rare tags up.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread over all tags.")
    tune: ClassVar[dict[str, Any]] = {}
