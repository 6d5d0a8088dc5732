"""Labels: one canonical spelling each, and no others than those that are allowed."""

from __future__ import annotations

from dataclasses import replace

from luthier.corpus.fold import row_key
from luthier.corpus.labels import LabelTable
from luthier.corpus.steps.base import Finding, Passed
from luthier.errors import RecipeError, did_you_mean
from luthier.recipe import fold_label
from luthier.recipe.corpus import Labels
from luthier.records import Labelled, Record


class LabelsStep:
    """Spells labels as the recipe does. Records without a label pass."""

    name = "labels"

    def __init__(self, settings: Labels):
        unknown = [label for label in settings.aliases.values() if label not in settings.allow]
        if unknown:
            hint = did_you_mean(unknown[0], settings.allow)
            raise RecipeError("steps.labels.aliases", [f'"{unknown[0]}" is not in steps.labels.allow.{hint}'])
        aliases = {fold_label(alias): label for alias, label in settings.aliases.items()}
        self.table = LabelTable(aliases | {fold_label(label): label for label in settings.allow}, "steps.labels.allow")

    def __call__(self, record: Record) -> Passed:
        """The record under its canonical label, or `unknown_label`."""
        if not isinstance(record, Labelled):
            return Passed(record)
        if problem := self.table.problem(record.label):
            return Passed(None, problem)
        label = self.table.resolve(record.label)
        assert label is not None
        if label == record.label:
            return Passed(record)
        spelled = replace(record, label=label, key=row_key(record.text, label))
        return Passed(spelled, None, (Finding("respelled"),))
