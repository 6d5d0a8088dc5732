"""Settings of supervised fine-tuning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.recipe.methods.base import MethodPart


class Sft(MethodPart):
    """Supervised fine-tuning on conversations, instructions or completions."""

    kind: Literal["sft"] = "sft"
    train_on: Literal["answers", "last_answer", "everything"] = Field(
        "answers", description="Which turns are learnt: the assistant's, only its last one, or every token."
    )
    tune: ClassVar[dict[str, Any]] = {"epochs": 2.0, "learning_rate": 3e-4}
