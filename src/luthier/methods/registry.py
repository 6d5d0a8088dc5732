"""The stage methods by the kind their settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.methods.conversations import ConversationSft
from luthier.methods.stage import StageMethod

MAKERS: dict[str, Callable[[Any], StageMethod]] = {
    "sft": lambda settings: ConversationSft(settings=settings),
}


def make_stage_method(settings: Any) -> StageMethod:
    """The method that a stage's settings describe."""
    return MAKERS[settings.kind](settings)
