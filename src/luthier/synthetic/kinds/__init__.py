"""The kinds of record that can be written: one small file each."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.generation.sampling import Sampling
from luthier.recipe.synthetic import Synthetic
from luthier.records import Labelled, Record
from luthier.synthetic.base import Asking, Classify, Kind, Score
from luthier.synthetic.kinds.columns import ColumnsKind
from luthier.synthetic.kinds.examples import ExamplesKind
from luthier.synthetic.kinds.labelling import Labelling
from luthier.synthetic.kinds.paraphrases import ParaphrasesKind
from luthier.synthetic.kinds.preferences import PreferencesKind
from luthier.synthetic.kinds.questions import QuestionsKind

__all__ = [
    "ColumnsKind",
    "ExamplesKind",
    "Labelling",
    "ParaphrasesKind",
    "PreferencesKind",
    "QuestionsKind",
    "kinds_of",
]


def kinds_of(
    settings: Synthetic, seeds: Sequence[Record], classify: Classify | None = None, score: Score | None = None
) -> list[Kind]:
    """The kinds a recipe asks for, in a fixed order."""
    drawn = settings.draws
    sampling = Sampling(drawn.temperature, drawn.top_p, drawn.top_k, settings.seed)
    asking = Asking(sampling, drawn.max_new_tokens, settings.language)
    labels = tuple(sorted({seed.label for seed in seeds if isinstance(seed, Labelled)}))
    labelling = Labelling(labels, classify, asking)
    kinds: list[Kind] = []
    if settings.questions is not None:
        kinds.append(QuestionsKind(settings.questions, asking))
    if settings.paraphrases is not None:
        kinds.append(ParaphrasesKind(settings.paraphrases, asking, labelling))
    if settings.preferences is not None:
        kinds.append(PreferencesKind(settings.preferences, asking, score))
    if settings.examples is not None:
        kinds.append(ExamplesKind(settings.examples, asking, labelling, settings.seed))
    if settings.columns is not None:
        kinds.append(ColumnsKind(settings.columns, asking))
    return kinds
