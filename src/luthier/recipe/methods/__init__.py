"""What a stage of training learns from, by name: one settings class for each method. No torch here."""

from typing import Annotated, get_args

from pydantic import Field

from luthier.recipe.methods.distillation import Distil
from luthier.recipe.methods.heads import Classify, MultiLabel, Ordinal, Regress, Tag
from luthier.recipe.methods.language import Clm, Mlm, Plm
from luthier.recipe.methods.preferences import Dpo, Kto, Orpo, Reward, SimPo
from luthier.recipe.methods.supervised import Sft

Reading = Clm | Mlm | Plm | Sft | Distil
Headed = Classify | MultiLabel | Ordinal | Regress | Tag
Preferring = Reward | Dpo | Kto | Orpo | SimPo
MethodSettings = Annotated[Reading | Headed | Preferring, Field(discriminator="kind")]
HEADED = tuple(str(one.model_fields["kind"].default) for one in get_args(Headed))
# What learns no text to write: such a stage cannot be asked (`luthier answer`).
SILENT = tuple(str(one.model_fields["kind"].default) for one in (*get_args(Headed), Reward, Mlm, Plm))
METHODS = (*get_args(Reading), *get_args(Headed), *get_args(Preferring))


def asked_by(kind: str) -> str:
    """The command that asks what a method left: `predict`, `score`, `answer`; empty for what fills gaps (mlm, plm)."""
    if kind in HEADED:
        return "predict"
    return "score" if kind == Reward.model_fields["kind"].default else "" if kind in SILENT else "answer"


__all__ = [
    "HEADED",
    "METHODS",
    "SILENT",
    "Classify",
    "Clm",
    "Distil",
    "Dpo",
    "Kto",
    "MethodSettings",
    "Mlm",
    "MultiLabel",
    "Ordinal",
    "Orpo",
    "Plm",
    "Regress",
    "Reward",
    "Sft",
    "SimPo",
    "Tag",
    "asked_by",
]
