"""Entities in tagged words, by the rules that seqeval and conlleval count with."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Entity = tuple[str, int, int]  # type, first word, behind the last word

CHUNK_TAG = re.compile(r"O|[BIESLU](-.+)?", re.DOTALL)


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities that BIO tags (or BIOES, BILOU) name, of invalid sequences too.

    An I that follows O, an ended entity, or one of another type begins an entity, as a B does; so every tag but O is
    part of one.
    """
    found: set[Entity] = set()
    begun, before = 0, "O"
    for index, tag in enumerate((*tags, "O")):
        if inside(tag) and follows(before, tag):
            before = tag
            continue
        if before != "O":
            found.add((kind(before), begun, index))
        begun, before = index, tag
    return found


def inside(tag: str) -> bool:
    """Whether a tag goes on with an entity."""
    return tag[0] in "IEL"


def follows(before: str, tag: str) -> bool:
    """Whether a tag may stand behind another: one that goes on needs a B or I of its type there."""
    return not inside(tag) or (before[0] in "BI" and kind(tag) == kind(before))


def well_formed(tags: Sequence[str]) -> bool:
    """Whether every tag that goes on with an entity stands behind a B or I of its type."""
    return all(map(follows, ("O", *tags), tags))


def as_bio(tags: Sequence[str]) -> tuple[str, ...]:
    """Tags with a B where an I begins an entity, which is how IOB1 writes most of them. BIOES and BILOU stay."""
    if any(tag[0] not in "BIO" for tag in tags):
        return tuple(tags)
    pairs = zip(("O", *tags), tags, strict=False)
    return tuple(tag if follows(before, tag) else f"B{tag[1:]}" for before, tag in pairs)


def likeliest(scores_WL: NDArray[np.float64], tags: Sequence[str]) -> list[int]:
    """The well-formed tags of W words with the greatest sum of scores, as indices: Viterbi's algorithm.

    scores_WL: log-probabilities, or anything that differs from them by a constant for each word. `tags` has one that
    begins or stands alone.
    """
    allowed_LL = np.array([[follows(before, tag) for tag in tags] for before in tags])
    first_L = np.array([follows("O", tag) for tag in tags])
    best_L = np.where(first_L, scores_WL[0], -np.inf)
    came = []
    for scores_L in scores_WL[1:]:
        paths_LL = np.where(allowed_LL, best_L[:, None], -np.inf)
        came.append(paths_LL.argmax(0))
        best_L = paths_LL.max(0) + scores_L
    path = [int(best_L.argmax())]
    for before_L in reversed(came):
        path.append(int(before_L[path[-1]]))
    return path[::-1]


def kind(tag: str) -> str:
    """The entity's type: what follows the first hyphen, `_` where there is none."""
    return tag[2:] or "_"


def agreement(gold: Sequence[str], given: Sequence[str]) -> tuple[int, int, int]:
    """(entities in both, entities in gold, entities given) of one row; an entity is right if type and words are."""
    wanted, found = entities(gold), entities(given)
    return len(wanted & found), len(wanted), len(found)


def is_chunk_tag(tag: str) -> bool:
    """Whether a tag is O or begins with a prefix of BIO, BIOES or BILOU."""
    return CHUNK_TAG.fullmatch(tag) is not None
