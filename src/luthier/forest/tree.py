"""Building the token forest: sequences that begin with the same tokens share the nodes of that beginning.

Nodes stand in preorder, so the tokens of a node's whole subtree are one contiguous slice: everything the
attention needs is a slice, never a gather.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from luthier.records import Sequence

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PADDING_SHARE, PADDING_TOKENS = 0.125, 64  # padding that a length group may have: of its tokens, and beyond that


@dataclass(frozen=True)
class Node:
    """A run of tokens `start:end` with one parent; its descendants are `end:subtree_end`. Parent -1: a root."""

    start: int
    end: int
    subtree_end: int
    parent: int
    depth: int  # position of the first token in its sequences


@dataclass(frozen=True)
class Forest:
    """A batch of sequences with every shared beginning stored once.

    tokens_N, positions_N   the distinct tokens and their depth in the tree
    nodes                   preorder
    row_M                   the forest row whose hidden state predicts target m
    token_M, sequence_M, weight_M   what it predicts, for which sequence, with which weight
    last_row_S              the forest row of each sequence's last computed token
    causal                  whether a token sees its ancestors only; else (encoders) its whole sequence
    first_N                 where forest row n stands in the padded batch: sequence first_N[n], time positions_N[n]
    """

    tokens_N: Ints
    positions_N: Ints
    nodes: tuple[Node, ...]
    row_M: Ints
    token_M: Ints
    sequence_M: Ints
    weight_M: Floats
    last_row_S: Ints
    first_N: Ints
    sequences: tuple[Sequence, ...]
    causal: bool = True

    @property
    def num_tokens(self) -> int:
        """Distinct tokens."""
        return len(self.tokens_N)

    @property
    def num_sequence_tokens(self) -> int:
        """Tokens of all sequences, nothing shared, no padding."""
        return sum(len(sequence.tokens) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence.tokens) for sequence in self.sequences)

    @property
    def num_padded_tokens(self) -> int:
        """Tokens of the padded batch of the same sequences."""
        return len(self.sequences) * self.longest

    def length_groups(self) -> list[list[int]]:
        """Sequences of nearly one length, longest first: what an encoder pads together. A causal forest is one group.

        A group takes sequences while its padding stays below a share of its tokens, and a handful: each group is a
        pass of its own.
        """
        if self.causal:
            return [list(range(len(self.sequences)))]
        lengths = [len(sequence.tokens) for sequence in self.sequences]
        groups: list[list[int]] = []
        longest = total = 0
        for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
            size = len(groups[-1]) + 1 if groups else 0
            total += lengths[s]
            if not groups or size * longest - total > PADDING_SHARE * total + PADDING_TOKENS:
                groups.append([])
                longest = total = lengths[s]
            groups[-1].append(s)
        return groups

    @property
    def num_grouped_tokens(self) -> int:
        """Tokens of the padded batches of its length groups: what the padded path computes."""
        return sum(len(group) * max(len(self.sequences[s].tokens) for s in group) for group in self.length_groups())

    def padded(self, length: int | None = None) -> tuple[Ints, Ints]:
        """Tokens and mask [S, T] of the padded batch; padding is token 0 under mask 0. `length`: T, else as is."""
        tokens = np.zeros((len(self.sequences), length or self.longest), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for s, sequence in enumerate(self.sequences):
            tokens[s, : len(sequence.tokens)] = sequence.tokens
            mask[s, : len(sequence.tokens)] = 1
        return tokens, mask

    def rows_of(self, sequence: int) -> Ints:
        """The forest rows of one sequence's tokens, in order."""
        rows: list[Ints] = []
        row = int(self.last_row_S[sequence])
        index = bisect_right(self.nodes, row, key=lambda node: node.start) - 1
        end = row + 1
        while index >= 0:
            node = self.nodes[index]
            rows.append(np.arange(node.start, end, dtype=np.int64))
            index = node.parent
            end = self.nodes[index].end if index >= 0 else 0
        return np.concatenate(rows[::-1])

    def visible_NN(self) -> NDArray[np.bool_]:
        """The truth about who sees whom: each token its ancestors and itself. For tests and the dense path."""
        visible = np.zeros((self.num_tokens, self.num_tokens), dtype=bool)
        for node in self.nodes:
            size = node.end - node.start
            own = np.tri(size, dtype=bool) if self.causal else np.ones((size, size), dtype=bool)
            visible[node.start : node.end, node.start : node.end] = own
            visible[node.end : node.subtree_end, node.start : node.end] = True
        return visible


def build_forest(sequences: ManyOf[Sequence], causal: bool = True) -> Forest:
    """Merge sequences into a forest. Time O(total tokens) after a sort; sequences must not be empty.

    Tokens from a sequence's last target on, and after its last read span, are only predicted, never read: they get no
    row. A sequence without targets and spans keeps all of its tokens. In an encoder every token sees every other of
    its sequence, so nothing is shared and nothing left out; a target is predicted from its own place.
    """
    assert sequences, "a forest needs at least one sequence"
    read = [computed_tokens(sequence) if causal else sequence.tokens for sequence in sequences]
    arrays = [np.asarray(tokens, dtype=np.int64) for tokens in read]
    assert all(len(array) for array in arrays), "a sequence needs at least one token"
    order = sorted(range(len(sequences)), key=lambda s: read[s])
    grower = _Grower()
    rows_S: list[Ints] = [np.empty(0, np.int64)] * len(sequences)
    previous: Ints = np.empty(0, np.int64)
    rows: Ints = np.empty(0, np.int64)
    for s in order:
        shared = common_prefix(previous, arrays[s]) if causal else 0
        rows = np.concatenate([rows[:shared], grower.add(arrays[s], shared, s)])
        rows_S[s] = rows
        previous = arrays[s]
    before = 1 if causal else 0
    targets = [
        (rows_S[s][index - before], token, s, weight)
        for s, sequence in enumerate(sequences)
        for index, token, weight in zip(sequence.targets, sequence.wanted_tokens(), sequence.weights, strict=True)
    ]
    row_M, token_M, sequence_M = (np.array([t[i] for t in targets], dtype=np.int64) for i in range(3))
    return Forest(
        tokens_N=np.concatenate(grower.tokens),
        positions_N=np.concatenate(grower.positions),
        nodes=grower.finish(),
        row_M=row_M,
        token_M=token_M,
        sequence_M=sequence_M,
        weight_M=np.array([t[3] for t in targets], dtype=np.float64),
        last_row_S=np.array([rows[-1] for rows in rows_S], dtype=np.int64),
        first_N=np.concatenate(grower.owners),
        sequences=tuple(sequences),
        causal=causal,
    )


def computed_tokens(sequence: Sequence) -> tuple[int, ...]:
    """The tokens whose hidden states can matter in a causal model."""
    if not sequence.targets and not sequence.reads:
        return sequence.tokens
    assert 0 not in sequence.targets, "in a causal model a target needs a token before it"
    return sequence.tokens[: max([*sequence.targets, *(stop for _, stop in sequence.reads)])]


def common_prefix(a: Ints, b: Ints) -> int:
    """Number of leading tokens that agree."""
    size = min(len(a), len(b))
    differs = np.nonzero(a[:size] != b[:size])[0]
    return int(differs[0]) if len(differs) else size


class _Grower:
    """Grows nodes from sorted sequences. Splits the open path where the next sequence leaves it."""

    def __init__(self) -> None:
        self.tokens: list[Ints] = []
        self.positions: list[Ints] = []
        self.owners: list[Ints] = []
        self.size = 0
        # a run is [first row, end row, depth, cuts]; cuts are the depths at which later sequences branch off
        self.runs: list[tuple[int, int, int]] = []
        self.branches: set[tuple[int, int]] = set()
        self.path: list[tuple[int, int, int]] = []  # (first row, depth, end depth) of the open path

    def add(self, tokens: Ints, shared: int, owner: int) -> Ints:
        """Append the tokens after the shared prefix; returns their rows."""
        fresh = tokens[shared:]
        while self.path and self.path[-1][1] >= shared:
            self.path.pop()
        if self.path and shared < self.path[-1][2]:
            row, depth, _ = self.path.pop()
            self.path.append((row, depth, shared))
            self.branches.add((row, shared - depth))
        if not len(fresh):
            return fresh
        rows = np.arange(self.size, self.size + len(fresh), dtype=np.int64)
        self.tokens.append(fresh)
        self.positions.append(np.arange(shared, len(tokens), dtype=np.int64))
        self.owners.append(np.full(len(fresh), owner, dtype=np.int64))
        self.runs.append((self.size, self.size + len(fresh), shared))
        self.path.append((self.size, shared, len(tokens)))
        self.size += len(fresh)
        return rows

    def finish(self) -> tuple[Node, ...]:
        """Cut the runs at their branch points and link them into nodes, in preorder."""
        cuts: dict[int, list[int]] = {}
        for row, offset in self.branches:
            cuts.setdefault(row, []).append(offset)
        pieces: list[tuple[int, int, int]] = []
        for start, end, depth in self.runs:
            edges = [0, *sorted(cuts.get(start, [])), end - start]
            pieces += [(start + a, start + b, depth + a) for a, b in pairwise(edges)]
        return _link(pieces)


def _link(pieces: list[tuple[int, int, int]]) -> tuple[Node, ...]:
    """Parents and subtree ends from pieces (start, end, depth) in preorder: a parent ends where a child begins."""
    parents: list[int] = []
    subtree_end: list[int] = [end for _, end, _ in pieces]
    path: list[int] = []
    for index, (start, end, depth) in enumerate(pieces):
        while path and pieces[path[-1]][2] + pieces[path[-1]][1] - pieces[path[-1]][0] > depth:
            path.pop()
        parents.append(path[-1] if path and depth > 0 else -1)
        if depth == 0:
            path.clear()
        path.append(index)
        for ancestor in path:
            subtree_end[ancestor] = end
        assert start < end, "a node has at least one token"
    return tuple(Node(start, end, subtree_end[i], parents[i], depth) for i, (start, end, depth) in enumerate(pieces))
