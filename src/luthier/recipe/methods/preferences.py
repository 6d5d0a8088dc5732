"""Settings of the methods that learn from what people prefer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from luthier.recipe.methods.base import MethodPart


class Reward(MethodPart):
    """A reward model: Bradley-Terry on pairs, Plackett-Luce on rankings."""

    kind: Literal["reward"] = "reward"
    loss: Literal["pairs", "plackett_luce"] = Field(
        "pairs", description="All pairs of a ranking (Bradley-Terry), or the whole order at once (Plackett-Luce)."
    )
    use_margins: bool = Field(
        False, description="Ask for a lead as wide as the gap of the scores, where rows have them (loss: pairs)."
    )
    centring: float = Field(
        0.0, ge=0, strict=False, description="Weight of (r_chosen + r_rejected)^2, which keeps rewards near zero."
    )
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 2e-4}

    @field_validator("use_margins")
    @classmethod
    def asked(cls, value: bool, info: ValidationInfo) -> bool:
        """Only pairs have a place for them."""
        if value and info.data.get("loss") == "plackett_luce":
            raise PydanticCustomError("unused", "the loss plackett_luce takes none. Leave it out, or set loss: pairs")
        return value


class Dpo(MethodPart):
    """Direct preference optimisation (Rafailov et al. 2023) and its kin."""

    kind: Literal["dpo"] = "dpo"
    loss: Literal[
        "sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "apo_zero", "apo_down", "nca_pair"
    ] = Field("sigmoid", description="Which loss; sigmoid_norm is that of log-ratios per token, with a larger beta.")
    beta: float = Field(0.1, gt=0, strict=False, description="How strongly the policy is held to the reference.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Share of the pairs assumed to be the wrong way round (conservative, robust)."
    )
    sft_weight: float = Field(
        0.0, ge=0, strict=False, description="Weight of the chosen answers' token loss beside it (RPO); 0 = off."
    )
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 2e-4}
    search: ClassVar[dict[str, Any]] = {"beta": {"low": 0.03, "high": 0.5, "log": True}}

    @field_validator("label_smoothing")
    @classmethod
    def used(cls, value: float, info: ValidationInfo) -> float:
        """Only two of the losses have a place for it."""
        loss = info.data.get("loss")
        if value and loss not in ("conservative", "robust", None):
            message = "the loss {loss} takes none. Leave it out, or set loss: conservative or robust"
            raise PydanticCustomError("unused", message, {"loss": loss})
        return value


class Kto(MethodPart):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024), for single thumbs."""

    kind: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, strict=False, description="How strongly the policy is held to the reference.")
    good_weight: float = Field(1.0, gt=0, strict=False, description="Weight of good answers.")
    bad_weight: float = Field(1.0, gt=0, strict=False, description="Weight of bad answers.")
    balanced: bool = Field(
        False, description="Weigh the rarer thumb up, so that both sides count alike before these weights."
    )
    reference_rows: int = Field(
        16, ge=0, description="Rows of a step that estimate the KL term, by answers to other prompts; 0 = no KL term."
    )
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 2e-4}
    search: ClassVar[dict[str, Any]] = {"beta": {"low": 0.03, "high": 0.5, "log": True}}


class Orpo(MethodPart):
    """Odds-ratio preference optimisation (Hong et al. 2024): no reference."""

    kind: Literal["orpo"] = "orpo"
    weight: float = Field(0.1, gt=0, strict=False, description="Weight of the odds-ratio loss beside the SFT loss.")
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 5e-4}
    search: ClassVar[dict[str, Any]] = {"weight": {"low": 0.03, "high": 2.0, "log": True}}


class SimPo(MethodPart):
    """Simple preference optimisation (Meng et al. 2024): no reference, mean log-probabilities."""

    kind: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, strict=False, description="Scale of the margin.")
    margin: float = Field(1.0, ge=0, strict=False, description="Target margin, times beta: gamma = beta * margin.")
    tune: ClassVar[dict[str, Any]] = {"epochs": 1.0, "learning_rate": 5e-5}
    search: ClassVar[dict[str, Any]] = {
        "beta": {"low": 1.0, "high": 5.0, "log": True},
        "margin": {"low": 0.2, "high": 1.6},
    }
