"""The stage methods by the kind their settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.methods.conversations import ConversationSft
from luthier.methods.distillation import make_distillation
from luthier.methods.documents import DocumentClm
from luthier.methods.heads import ClassifyHead, MultiLabelHead, OrdinalHead, RegressHead, TagHead
from luthier.methods.masked import MaskedLm
from luthier.methods.permuted import PermutedLm
from luthier.methods.preferences.dpo import DpoMethod
from luthier.methods.preferences.kto import KtoMethod
from luthier.methods.preferences.orpo import OrpoMethod
from luthier.methods.preferences.reward import RewardMethod
from luthier.methods.preferences.simpo import SimPoMethod
from luthier.methods.stage import StageMethod

MAKERS: dict[str, Callable[[Any], StageMethod]] = {
    "distil": make_distillation,
    "clm": lambda settings: DocumentClm(settings=settings),
    "classify": lambda settings: ClassifyHead(settings=settings),
    "multilabel": lambda settings: MultiLabelHead(settings=settings),
    "ordinal": lambda settings: OrdinalHead(settings=settings),
    "regress": lambda settings: RegressHead(settings=settings),
    "tag": lambda settings: TagHead(settings=settings),
    "mlm": lambda settings: MaskedLm(settings=settings),
    "plm": lambda settings: PermutedLm(settings=settings),
    "sft": lambda settings: ConversationSft(settings=settings),
    "reward": lambda settings: RewardMethod(settings=settings),
    "dpo": lambda settings: DpoMethod(settings=settings),
    "kto": lambda settings: KtoMethod(settings=settings),
    "orpo": lambda settings: OrpoMethod(settings=settings),
    "simpo": lambda settings: SimPoMethod(settings=settings),
}


def make_stage_method(settings: Any) -> StageMethod:
    """The method that a stage's settings describe."""
    return MAKERS[settings.kind](settings)
