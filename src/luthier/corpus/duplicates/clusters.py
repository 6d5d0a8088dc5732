"""Which records are copies of which: one decision over all units, the same however the corpus was cut into units.

1. Records with one exact key form a group; its best record (the first, or the longest) stands for it.
2. Locality-sensitive hashing proposes pairs: the signature is cut into bands, and texts that agree in a whole band
   share a bucket. Every proposed pair is verified by the exact Jaccard similarity of its shingle sets.
3. Records are gone through from the best to the worst. One that is a verified near copy of a record that stays
   goes, and that record is its twin. So whatever goes was compared with what stays: there are no chains in which
   A is like B, B is like C, and C goes for the sake of A. Two records with one twin have a Jaccard similarity of at
   least 2 * near - 1, since 1 - Jaccard is a metric.

Buckets of more than ALL_PAIRS records are not compared pair by pair. The bucket's best record is compared with all
others, then the best of those not like it, and so on for at most MAX_LEADERS records: work grows with the bucket's
size, not its square. Where such a leader goes and one that was only compared with it stays, the records that stay
are searched once more.

Axis letters: N records of all units, M records still in the search (best first), E verified pairs, P permutations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.corpus.duplicates.signatures import Signatures
from luthier.corpus.duplicates.words import I64, MULTIPLIER, U64, mix, offsets_of, ragged_positions
from luthier.errors import DataError
from luthier.recipe.corpus import Duplicates

F64 = npt.NDArray[np.float64]
RECALL_AT_THRESHOLD = 0.99  # smallest chance that a pair just at the threshold is proposed
ALL_PAIRS = 24
MAX_LEADERS = 16
MAX_SEARCHES = 8
BATCH_SHINGLES = 4_000_000  # compared at a time: some 200 MB
ROUNDING = 1e-9


@dataclass(frozen=True)
class Clusters:
    """What became of each of N records.

    `leader_N` is the index of the best record with the same exact key. `twin_N` is the index of the record that stays
    in its place, its own where it stays. `similarity_N` is the exact Jaccard similarity with the twin (1 for exact
    copies). `exact_N`: it goes as an exact copy. `links_E2` are the verified near pairs of leaders, better record
    first, `link_similarity_E` their similarities.
    """

    leader_N: I64
    twin_N: I64
    similarity_N: F64
    exact_N: npt.NDArray[np.bool_]
    links_E2: I64
    link_similarity_E: F64

    @property
    def stays_N(self) -> npt.NDArray[np.bool_]:
        """Whether each record stays."""
        return self.twin_N == np.arange(len(self.twin_N))

    def groups(self) -> Iterator[tuple[int, list[int]]]:
        """Each record that has copies, with those copies, in the order of the records."""
        gone = np.flatnonzero(~self.stays_N)
        order = gone[np.argsort(self.twin_N[gone], kind="stable")]
        starts = np.flatnonzero(np.diff(self.twin_N[order], prepend=-1))
        for copies in np.split(order, starts[1:]) if len(order) else []:
            yield int(self.twin_N[copies[0]]), copies.tolist()


@dataclass(frozen=True)
class Edges:
    """Verified pairs (better, worse) of one search, as positions in it. `led_E`: found in a big bucket."""

    better_E: I64
    worse_E: I64
    similarity_E: F64
    led_E: npt.NDArray[np.bool_]


class Corpus:
    """All units as one run of N records; arrays stay on disk until they are looked at."""

    def __init__(self, units: Sequence[Signatures]):
        self.units = [unit for unit in units if len(unit)]
        self.starts_U1 = offsets_of([len(unit) for unit in self.units])
        self.num_records = int(self.starts_U1[-1])

    def whole(self, name: str) -> npt.NDArray:
        """One array of every unit (its first axis is the record), one after the other."""
        return np.concatenate([getattr(unit, name) for unit in self.units])

    def band(self, first: int, last: int) -> U64:
        """[N]: one hash of the permutations `first` to `last` - 1 of each record."""
        parts = []
        for unit in self.units:
            total = np.full(len(unit), first, dtype=np.uint64)
            for row_B in unit.minhash_PB[first:last]:
                total *= MULTIPLIER
                total += row_B
            parts.append(mix(total))
        return np.concatenate(parts)

    def num_shingles(self) -> I64:
        """[N]: size of each record's shingle set."""
        return np.concatenate([np.diff(unit.offsets_B1) for unit in self.units])

    def shingles(self, records: I64, counts: I64) -> U64:
        """The shingles of some records, one record after the other."""
        found = np.empty(int(counts.sum()), dtype=np.uint64)
        places = offsets_of(counts)[:-1]
        unit_of = np.searchsorted(self.starts_U1, records, side="right") - 1
        for number in np.unique(unit_of):
            unit, mine = self.units[number], unit_of == number
            rows = records[mine] - self.starts_U1[number]
            source = ragged_positions(unit.offsets_B1[rows], counts[mine])
            found[ragged_positions(places[mine], counts[mine])] = unit.shingles[source]
        return found


def bands_and_rows(near: float, num_permutations: int) -> tuple[int, int]:
    """How a signature is cut: the most rows a band for which pairs at the threshold are proposed often enough.

    A pair of Jaccard similarity s agrees in a band of r rows with probability s^r, and is proposed by b bands with
    probability 1 - (1 - s^r)^b.

    Raises:
        DataError: the threshold is too low for so few permutations.
    """
    for rows in range(num_permutations, 0, -1):
        bands = num_permutations // rows
        if proposal_probability(near, bands, rows) >= RECALL_AT_THRESHOLD:
            return bands, rows
    raise DataError(
        f"duplicates.near: {num_permutations} permutations cannot find pairs of similarity {near:g}. "
        "Raise duplicates.permutations, or duplicates.near."
    )


def proposal_probability(similarity: float, bands: int, rows: int) -> float:
    """The chance that a pair of this Jaccard similarity shares a bucket."""
    return float(1 - (1 - similarity**rows) ** bands)


def find_clusters(units: Sequence[Signatures], settings: Duplicates) -> Clusters:
    """Decide over all units, in their order. The result depends on the records' order only.

    Needs about 100 bytes of memory a record, and what it reads of the units' arrays.
    """
    corpus = Corpus(units)
    num_records = corpus.num_records
    twin_N = np.arange(num_records)
    similarity_N = np.ones(num_records)
    links, link_similarities = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    if num_records == 0:
        return Clusters(twin_N, twin_N, similarity_N, np.zeros(0, bool), links[0], link_similarities[0])
    rank_N, best_first_N = ranks(corpus, settings)
    leader_N = exact_leaders(corpus.whole("keys_B2"), rank_N)
    if settings.exact or settings.near:
        twin_N = leader_N.copy()
    if settings.near:
        search = Search(corpus, settings)
        alive_M = best_first_N[leader_N[best_first_N] == best_first_N]
        for _ in range(MAX_SEARCHES):
            edges = search.edges(alive_M)
            twin_M, similarity_M = choose(len(alive_M), edges)
            links.append(np.stack([alive_M[edges.better_E], alive_M[edges.worse_E]], axis=1))
            link_similarities.append(edges.similarity_E)
            twin_N[alive_M], similarity_N[alive_M] = alive_M[twin_M], similarity_M
            stays_M = twin_M == np.arange(len(alive_M))
            if not (edges.led_E & stays_M[edges.worse_E] & ~stays_M[edges.better_E]).any():
                break
            alive_M = alive_M[stays_M]
        settle(twin_N, similarity_N, leader_N, search)
    exact_N = (twin_N == leader_N) & (twin_N != np.arange(num_records))
    exact_N &= rank_N[leader_N] < rank_N  # a record's own key, not a near twin's
    if not settings.exact:
        exact_N[:] = False
    return Clusters(leader_N, twin_N, similarity_N, exact_N, np.concatenate(links), np.concatenate(link_similarities))


def ranks(corpus: Corpus, settings: Duplicates) -> tuple[I64, I64]:
    """[N] the rank of each record (0 is best), and [N] the records from the best on."""
    best_first_N = np.arange(corpus.num_records)
    if settings.keep == "longest":
        best_first_N = np.argsort(-corpus.whole("lengths_B"), kind="stable")
    rank_N = np.empty_like(best_first_N)
    rank_N[best_first_N] = np.arange(corpus.num_records)
    return rank_N, best_first_N


def exact_leaders(keys_N2: U64, rank_N: I64) -> I64:
    """[N]: the best record that has the same key."""
    order = np.lexsort((rank_N, keys_N2[:, 1], keys_N2[:, 0]))
    ordered = keys_N2[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    leader_N = np.empty_like(rank_N)
    leader_N[order] = order[is_first][np.cumsum(is_first) - 1]
    return leader_N


def choose(num_records: int, edges: Edges) -> tuple[I64, F64]:
    """[M] each record's twin and the similarity with it: from the best record on, near copies of what stays go."""
    twin_M, similarity_M = np.arange(num_records), np.ones(num_records)
    order = np.lexsort((edges.worse_E, edges.better_E))
    gone: set[int] = set()
    rows = zip(edges.better_E[order].tolist(), edges.worse_E[order].tolist(), order.tolist(), strict=True)
    for better, worse, edge in rows:
        if better not in gone and worse not in gone:
            gone.add(worse)
            twin_M[worse], similarity_M[worse] = better, edges.similarity_E[edge]
    return twin_M, similarity_M


def settle(twin_N: I64, similarity_N: F64, leader_N: I64, search: Search) -> None:
    """Point every record at one that stays: exact copies follow their leader, and twins that went, theirs."""
    twin_N[:] = twin_N[leader_N]
    similarity_N[:] = similarity_N[leader_N]
    moved_N = np.zeros(len(twin_N), dtype=bool)
    while (twin_N[twin_N] != twin_N).any():
        moved_N |= twin_N[twin_N] != twin_N
        twin_N[:] = twin_N[twin_N]
    moved = np.flatnonzero(moved_N)
    similarity_N[moved] = search.jaccard(moved, twin_N[moved])


class Search:
    """Proposes and verifies near pairs among some of a corpus's records."""

    def __init__(self, corpus: Corpus, settings: Duplicates):
        self.corpus = corpus
        self.near = settings.near
        self.num_shingles_N = corpus.num_shingles()
        self.bands, self.rows = bands_and_rows(settings.near, settings.permutations)

    def edges(self, alive_M: I64) -> Edges:
        """The verified pairs among records `alive_M`, given from the best to the worst."""
        pairs = np.zeros(0, dtype=np.uint64)
        leader_M = np.full(len(alive_M), -1)
        found: list[tuple[I64, I64, F64]] = []
        for band in range(self.bands):
            hash_M = self.corpus.band(band * self.rows, (band + 1) * self.rows)[alive_M]
            order = np.argsort(hash_M, kind="stable")
            bounds = np.flatnonzero(np.diff(hash_M[order])) + 1
            sizes = np.diff(bounds, prepend=0, append=len(order))
            starts = np.cumsum(sizes) - sizes
            pairs = np.union1d(pairs, small_bucket_pairs(order, sizes))
            for bucket in np.flatnonzero(sizes > ALL_PAIRS):
                members = order[starts[bucket] : starts[bucket] + sizes[bucket]]
                found += self.peel(members, alive_M, leader_M)
        better, worse = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        num_led = sum(len(part[0]) for part in found)
        found.append(self.verified(better, worse, alive_M))
        better_E, worse_E, similarity_E = (np.concatenate(part) for part in zip(*found, strict=True))
        _, first = np.unique((better_E << 32) | worse_E, return_index=True)  # of equal pairs, the one found first
        return Edges(better_E[first], worse_E[first], similarity_E[first], first < num_led)

    def peel(self, members: I64, alive_M: I64, leader_M: I64) -> Iterator[tuple[I64, I64, F64]]:
        """Compare a big bucket's best record with the others, then the best of the rest with the rest, ...

        `leader_M` remembers whom a record was found to be like, so that other bands need not compare it again.
        """
        for _ in range(MAX_LEADERS):
            if len(members) < 2:
                return
            leader, members = members[0], members[1:]
            members = members[leader_M[members] != leader]
            pairs = self.verified(np.full(len(members), leader), members, alive_M)
            leader_M[pairs[1]] = leader
            members = members[leader_M[members] != leader]
            yield pairs

    def pairs_across(self, num_first: int) -> Iterator[tuple[int, int, float]]:
        """Verified near pairs of one of the first `num_first` records and one of the others.

        Each as the index of the one, that of the other among the others, and the similarity.
        """
        proposed = []
        for band in range(self.bands):
            hash_N = self.corpus.band(band * self.rows, (band + 1) * self.rows)
            order = np.argsort(hash_N[:num_first], kind="stable")
            ordered, asked = hash_N[order], hash_N[num_first:]
            first = np.searchsorted(ordered, asked, side="left")
            counts = np.searchsorted(ordered, asked, side="right") - first
            one = order[ragged_positions(first, counts)]
            other = np.repeat(np.arange(len(asked)), counts)
            proposed.append((other << 32) | one)
        pairs = np.unique(np.concatenate(proposed))
        one, other, similarity = self.verified(
            pairs & 0xFFFFFFFF, (pairs >> 32) + num_first, np.arange(self.corpus.num_records)
        )
        yield from zip(one.tolist(), (other - num_first).tolist(), similarity.tolist(), strict=True)

    def verified(self, better: I64, worse: I64, alive_M: I64) -> tuple[I64, I64, F64]:
        """Of proposed pairs, given as positions in `alive_M`, those that are similar enough, and how similar."""
        size_better = self.num_shingles_N[alive_M[better]]
        size_worse = self.num_shingles_N[alive_M[worse]]
        possible = np.minimum(size_better, size_worse) >= (self.near - ROUNDING) * np.maximum(size_better, size_worse)
        better, worse = better[possible], worse[possible]
        similarity = self.jaccard(alive_M[better], alive_M[worse])
        near = similarity >= self.near - ROUNDING
        return better[near], worse[near], similarity[near]

    def jaccard(self, first: I64, second: I64) -> F64:
        """The exact Jaccard similarity of pairs of records' shingle sets."""
        counts = self.num_shingles_N[first] + self.num_shingles_N[second]
        result = np.empty(len(first))
        start = 0
        ends = np.cumsum(counts)
        while start < len(first):
            limit = (ends[start - 1] if start else 0) + BATCH_SHINGLES
            end = max(int(np.searchsorted(ends, limit, side="right")), start + 1)
            shared = self.num_shared(first[start:end], second[start:end])
            result[start:end] = shared / (counts[start:end] - shared)
            start = end
        return result

    def num_shared(self, first: I64, second: I64) -> I64:
        """How many shingles each pair shares: within a pair, a value that stands twice is shared."""
        tagged = []
        for records in (first, second):
            counts = self.num_shingles_N[records]
            pair = np.repeat(np.arange(len(records), dtype=np.uint64), counts)
            tagged.append((pair << np.uint64(32)) | self.corpus.shingles(records, counts))
        values = np.sort(np.concatenate(tagged))
        twice = values[1:][values[1:] == values[:-1]]
        return np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=len(first))


def small_bucket_pairs(order: I64, sizes: I64) -> U64:
    """All pairs within each bucket of at most ALL_PAIRS records, as better << 32 | worse.

    `order` holds the records bucket by bucket, each bucket's from the best on; `sizes` are the buckets' sizes.
    """
    size_M = np.repeat(sizes, sizes)
    place_M = ragged_positions(np.zeros_like(sizes), sizes)
    small_M = size_M <= ALL_PAIRS
    found = [np.zeros(0, dtype=np.uint64)]
    for gap in range(1, min(ALL_PAIRS, len(order))):
        first = np.flatnonzero(small_M & (place_M + gap < size_M))
        if not len(first):
            break
        found.append((order[first].astype(np.uint64) << np.uint64(32)) | order[first + gap].astype(np.uint64))
    return np.concatenate(found)
