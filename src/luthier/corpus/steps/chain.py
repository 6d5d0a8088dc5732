"""The steps a recipe asks for, in their order."""

from __future__ import annotations

from collections.abc import Callable

from luthier.corpus.labels import shorten
from luthier.corpus.steps.base import Step
from luthier.corpus.steps.labels import LabelsStep
from luthier.corpus.steps.language import LanguageStep
from luthier.corpus.steps.licences import LicencesStep
from luthier.corpus.steps.personal import PersonalStep
from luthier.corpus.steps.quality import QualityStep
from luthier.corpus.steps.repair import RepairStep
from luthier.errors import RecipeError
from luthier.recipe.corpus import Steps
from luthier.records import Document, Source


def make_steps(settings: Steps, key: bytes | None) -> list[Step]:
    """The steps, without those that are switched off. `key` is the secret of the pseudonyms.

    Raises:
        RecipeError: pseudonyms without a key.
    """
    steps: list[Step] = []
    if settings.repair.enabled:
        steps.append(RepairStep(settings.repair))
    if settings.licences.allow or settings.licences.deny:
        steps.append(LicencesStep(settings.licences))
    if settings.labels.allow:
        steps.append(LabelsStep(settings.labels))
    if settings.language.enabled:
        steps.append(LanguageStep(settings.language))
    if settings.quality.rules != "off":
        steps.append(QualityStep(settings.quality))
    if settings.personal.action != "off":
        if settings.personal.action == "pseudonym" and not key:
            raise RecipeError(
                "steps.personal",
                [f"pseudonym needs a secret key: set the environment variable {settings.personal.key_variable}."],
            )
        steps.append(PersonalStep(settings.personal, key))
    return steps


def masked_excerpt(settings: Steps, num_chars: int) -> Callable[[str], str]:
    """How ledger and page show a text: cut, and masked wherever personal data is looked for, if only to count it."""
    if settings.personal.action == "off":
        return lambda text: shorten(text, num_chars)
    mask = PersonalStep(settings.personal.model_copy(update={"action": "mask"}), None)

    def excerpt(text: str) -> str:
        head = text[: 4 * num_chars].rpartition(" ")[0] if len(text) > 4 * num_chars else text  # no half values
        passed = mask(Document(head, Source("", 1)))
        return shorten(passed.record.text, num_chars) if isinstance(passed.record, Document) else ""

    return excerpt
