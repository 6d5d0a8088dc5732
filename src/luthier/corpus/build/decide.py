"""The merge: which rows stay, and in which part. It sees all units at once, but of each row only some numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.corpus.build.store import Store
from luthier.corpus.build.units import limits_of
from luthier.corpus.build.work import NO_DATE
from luthier.corpus.contamination import Audit, audit
from luthier.corpus.duplicates.clusters import Clusters, find_clusters
from luthier.corpus.lines import Problem
from luthier.corpus.partition import ASIDE, TEST, TRAIN, RowColumns, partition, read_frozen, write_frozen
from luthier.corpus.rows import readable
from luthier.recipe.corpus import Corpus, Input
from luthier.records import Labelled, Record

PARTS = ("train", "validation", "test")
DROPPED = -1


@dataclass
class Decisions:
    """part_N: the part of each row, or DROPPED. `problems`: why a row goes, by row number."""

    part_N: np.ndarray
    problems: dict[int, Problem]
    clusters: Clusters
    audit: Audit

    def numbers(self, part: int) -> np.ndarray:
        """Row numbers of a part, in order."""
        return np.flatnonzero(self.part_N == part)

    def drop(self, number: int, problem: Problem) -> None:
        """A row goes, for the first reason found."""
        self.part_N[number] = DROPPED
        self.problems.setdefault(number, problem)


def decide(store: Store, corpus: Corpus, say: Callable[[str], None]) -> Decisions:
    """Duplicates, then the split, then contamination of training by test rows."""
    signatures = store.signatures()
    clusters = find_clusters(signatures, corpus.duplicates)
    found = Decisions(np.zeros(len(store), np.int8), {}, clusters, Audit([], 0, 0))
    labels = store.column("labels")
    for kept, copies in clusters.groups():
        twin = store.row(kept).source
        exact = [kept, *(number for number in copies if clusters.exact_N[number])]
        if len(set(labels[exact].tolist())) > 1:
            for number in exact:
                found.drop(number, Problem("conflicting_labels", conflict(store, exact)))
        for number in copies:
            found.drop(number, twin_problem(str(twin), bool(clusters.exact_N[number]), clusters.similarity_N[number]))
    stays = np.flatnonzero(found.part_N != DROPPED)
    keys_N2 = np.concatenate([unit.keys_B2 for unit in signatures]) if signatures else np.zeros((0, 2), np.uint64)
    found.part_N[stays] = split(store, corpus, stays, keys_N2[stays], say)
    for number in np.flatnonzero(found.part_N == ASIDE).tolist():
        found.drop(number, Problem("beside_frozen_test", "belongs to a group or text that is frozen as test."))
    return with_audit(store, corpus, found)


def twin_problem(twin: str, exact: bool, similarity: float) -> Problem:
    """Why a copy goes."""
    if exact:
        return Problem("duplicate", f"the same text as {twin}.")
    return Problem("near_duplicate", f"nearly the same text as {twin} (Jaccard {similarity:.2f}).")


def conflict(store: Store, numbers: list[int]) -> str:
    """Where a text stands with which label."""
    places = {record.label: str(record.source) for record in store.rows(numbers) if isinstance(record, Labelled)}
    said = " and ".join(f'"{label}" ({place})' for label, place in places.items())
    return f"the same text has the labels {said}. Keep the right one."


def split(
    store: Store, corpus: Corpus, stays: np.ndarray, keys_N2: np.ndarray, say: Callable[[str], None]
) -> np.ndarray:
    """The part of each row that stays; test rows once frozen stay frozen."""
    path = Path(corpus.split.frozen) if corpus.split.frozen else None
    frozen = read_frozen(path) if path is not None and path.is_file() else None
    rows = RowColumns(
        keys_N2=keys_N2,
        labels_N=store.column("labels")[stays],
        groups_N=store.column("groups")[stays],
        dates_N=store.column("dates")[stays],
        no_date=int(NO_DATE),
    )
    parts_N = partition(rows, corpus.split, corpus.seed, frozen)
    if path is not None and frozen is None and (parts_N == TEST).any():
        write_frozen(path, keys_N2[parts_N == TEST])
        say(f"the {int((parts_N == TEST).sum()):,} test rows are frozen in {path}.")
    return parts_N


def with_audit(store: Store, corpus: Corpus, found: Decisions) -> Decisions:
    """The audit of training rows against test rows and probes; such rows go where that is asked."""
    settings = corpus.contamination
    if not (settings.against or settings.probes or (found.part_N == TEST).any()):
        return found
    train = found.numbers(TRAIN)
    found.audit = audit(store.rows(train), tested(store, corpus, found), settings)
    if settings.action == "drop":
        for hit in found.audit.hits:
            found.drop(int(train[hit.train_index]), Problem("contaminated", f"{hit.how}: {hit.test}."))
    return found


def tested(store: Store, corpus: Corpus, found: Decisions) -> Iterator[Record]:
    """Everything the training rows must not hold."""
    yield from store.rows(found.numbers(TEST))
    for path in corpus.contamination.against:
        yield from readable(Input(path=path), limits_of(corpus))
