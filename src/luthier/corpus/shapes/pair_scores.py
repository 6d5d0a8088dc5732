"""What the two answers of a pair were given: scores under the names people use, or how far they lie apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from luthier.corpus.formats import json_type
from luthier.corpus.shapes.checks import Refused

MARGIN = "margin"  # TRL's
# of chosen and rejected; the first is UltraFeedback's, and the one that is written
SCORE_PAIRS = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"),
)  # fmt: skip


def read_pair_scores(places: Iterable[Mapping[str, object]]) -> tuple[float, float] | None:
    """The scores of chosen and rejected, or (margin, 0); None where a row has neither, or one of two."""
    for place in places:
        margin = score_in(place, MARGIN)
        if margin is not None:
            return margin, 0.0
        for ours, theirs in SCORE_PAIRS:
            chosen, rejected = score_in(place, ours), score_in(place, theirs)
            if chosen is not None and rejected is not None:
                return chosen, rejected
    return None


def score_in(place: Mapping[str, object], name: str) -> float | None:
    """A number, also as a text (CSV has no other way); null, an empty text and NaN are none."""
    value = place.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.inf
    except (ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        found = f'"{value}"' if isinstance(value, str) and len(value) <= 40 else json_type(value)
        raise Refused("wrong_type", f'"{name}" is {found}; it must be a number. Mend it, or rename the column.')
    return None if math.isnan(number) else number


def pair_score_columns(scores: tuple[float, ...] | None) -> dict[str, object]:
    """A pair's scores as columns of its row."""
    return {} if scores is None else dict(zip(SCORE_PAIRS[0], scores, strict=True))
