"""Entities in tagged words, by the rules that seqeval and conlleval count with."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
        goes_on = tag[0] in "IEL" and before[0] in "BI" and kind(tag) == kind(before)
        if goes_on:
            before = tag
            continue
        if before != "O":
            found.add((kind(before), begun, index))
        begun, before = index, tag
    return found


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
