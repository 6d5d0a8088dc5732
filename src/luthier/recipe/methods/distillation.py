"""Settings of distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.recipe.methods.base import MethodPart


class Distil(MethodPart):
    """Learn from a teacher's probabilities, or from its answers."""

    kind: Literal["distil"] = "distil"
    teacher: str = Field(
        description="The teacher: a model as for `model`, or an OpenAI-compatible address (http://HOST:PORT/v1#NAME)."
    )
    adapter: str | None = Field(None, description="Folder of an adapter that the teacher wears.")
    what: Literal["forward_kl", "reverse_kl", "answers"] = Field(
        "forward_kl", description="KL(teacher || student), KL(student || teacher), or the teacher's own answers."
    )
    top_k: int = Field(16, ge=1, description="Tokens of the teacher's distribution that are kept for each position.")
    temperature: float = Field(1.0, gt=0, strict=False, description="Temperature of both distributions.")
    hard_weight: float = Field(
        0.0, ge=0, le=1, strict=False, description="Share of the loss that is cross-entropy on the rows' own answers."
    )
    max_answer_tokens: int = Field(256, ge=1, description="Most tokens of a teacher's answer (`answers`).")
    tune: ClassVar[dict[str, Any]] = {"epochs": 2.0, "learning_rate": 3e-4}
