"""Settings of the methods that read plain documents."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.recipe.methods.base import MethodPart, ModelKind


class Clm(MethodPart):
    """Continued pre-training: next-token prediction on documents."""

    kind: Literal["clm"] = "clm"
    window_tokens: int = Field(
        512, ge=16, description="Documents are cut into windows of at most this many tokens; none crosses a document."
    )
    end_documents: bool = Field(True, description="Learn the end-of-text token after each document.")
    # windows share next to nothing, so small passes cost no time and save memory
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 3e-4, "micro_batch_tokens": 1024}


class Mlm(MethodPart):
    """Masked language modelling (Devlin et al. 2019), for encoders."""

    kind: Literal["mlm"] = "mlm"
    model: ClassVar[ModelKind] = "masked"
    window_tokens: int = Field(512, ge=16, description="Most tokens of one window of a document.")
    mask_share: float = Field(0.15, gt=0, lt=1, description="Share of the tokens that are to be guessed.")
    whole_words: bool = Field(False, description="Choose whole words instead of single tokens.")
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 3e-4}


class Plm(MethodPart):
    """Permutation language modelling (Yang et al. 2019), for XLNet."""

    kind: Literal["plm"] = "plm"
    model: ClassVar[ModelKind] = "permuted"
    window_tokens: int = Field(512, ge=16, description="Most tokens of one window of a document.")
    predicted_share: float = Field(
        1 / 6, gt=0, lt=1, description="Share of the tokens that are predicted, the last ones of each permutation."
    )
    span_tokens: int = Field(5, ge=1, description="Most tokens of one predicted span.")
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 3e-4}
