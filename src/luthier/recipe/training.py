"""How weights learn, whatever the method: steps, rates, schedule, adapter. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.adapters import Adapter, Lora
from luthier.recipe.base import Part


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
    adapter: Adapter = Field(default_factory=Lora, description="What is trained: a kind (`lora`), or its keys.")
