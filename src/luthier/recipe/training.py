"""How weights learn, whatever the method: steps, rates, schedule, adapter. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.base import Part


class Adapter(Part):
    """The low-rank adapter (LoRA, Hu et al. 2021), saved in PEFT's format; or none, and a head alone learns."""

    kind: Literal["lora", "none"] = Field(
        "lora",
        description="`lora`; `none` trains a head on the frozen model (a linear probe): what it reads is computed "
        "once and kept, and epochs cost seconds. For stages with a head.",
    )

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update counts alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update. A shared prefix shares its mask.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Module names that get an adapter, or all linear layers but the head."
    )


class Training(Part):
    """How weights learn."""

    epochs: Annotated[float, Field(gt=0)] = Field(2.0, description="Passes over the training rows.", strict=False)
    batch_size: int = Field(16, ge=1, description="Rows of one optimizer step.")
    micro_batch_tokens: int = Field(
        4096, ge=16, description="Most distinct tokens of one forward pass; more are split, exactly."
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        5e-4, description="Peak learning rate of the adapter.", strict=False
    )
    head_learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-3, description="Peak learning rate of a head, where the method has one.", strict=False
    )
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="Decay after warm-up.")
    weight_decay: float = Field(0.01, ge=0, strict=False, description="AdamW weight decay (not on vectors).")
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns clipping off.")
    evaluate_every: int = Field(0, ge=0, description="Steps between validations; 0: four times an epoch at most.")
    checkpoint_every: int = Field(20, ge=0, description="Steps between checkpoints; 0: only at validations.")
    adapter: Adapter = Field(default_factory=Adapter, description="The adapter.")
