"""How the attention of a forest is cut into parts: dense blocks at the bottom, shared trunks above.

A block is a subtree small enough for one dense, masked product; blocks of similar size are batched together.
A trunk is a node above blocks: its own tokens are a causal block. Where it is short, its keys are copied in front of
those of the blocks below it, which saves a product and a merge of two results. Where it is long, all of its descendants
attend to it in one unmasked product, so its keys and values are read once however many branches share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from luthier.forest.parts import MASKED
from luthier.forest.tree import Forest, Node

BLOCK_TOKENS = 160  # a subtree up to this size is one dense block; a first choice, not tuned
PADDING_SHARE = 0.15  # blocks are batched together while padding stays under this share
FOLDED_KEYS = 256  # a trunk is copied to its blocks while none of them comes to more keys than this
FOLDED_COPIES = 4  # and while the copies are at most so many times the rows below it


@dataclass(frozen=True)
class Block:
    """G subtrees of at most T tokens. index_GT: forest rows, padding repeats row 0; valid_GT: which are real.

    `whole`: there is no padding. keys_GJ: the rows whose keys they read: those of trunks above, then their own.
    mask_G1TJ is additive and None for plain causal runs (padding stands at the end, where nobody looks).
    """

    index_GT: Tensor
    valid_GT: Tensor
    keys_GJ: Tensor
    mask_G1TJ: Tensor | None
    whole: bool


@dataclass(frozen=True)
class Subtree:
    """A block to be: rows `start:end`, a plain run or a tree, below trunks whose rows `above` it reads itself."""

    start: int
    end: int
    is_run: bool
    above: tuple[range, ...] = ()

    @property
    def size(self) -> int:
        """Rows of its own."""
        return self.end - self.start

    @property
    def num_above(self) -> int:
        """Rows copied to it."""
        return sum(map(len, self.above))


@dataclass(frozen=True)
class Cross:
    """All rows `query_start:query_end` attend to all rows `key_start:key_end` (an ancestor)."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int


@dataclass
class Past:
    """Keys and values of earlier passes, per layer [1, K, P, D]: a shared beginning, or what was generated so far.

    `visible_NP` says which of the P past rows each new row sees; None: all of them. `recording` appends what
    the next pass computes.
    """

    positions_P: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    visible_NP: Tensor | None = None
    recording: bool = False


@dataclass(frozen=True)
class HeadRows:
    """Where the heads of the forest's rows stand in the blocks, for tensors with one head row per row and head.

    `rows`: the head row n * H + h of every padded place; the places are those of the first block [G, H, T], then
    those of the next. `place`: the place of every head row, [N * H]. `key_rows`: the head rows of [G, H, J].
    """

    rows: Tensor
    place: Tensor
    key_rows: Tensor


@dataclass(frozen=True)
class Plan:
    """What the attention function needs to know of a forest. `dense` holds the whole mask instead of parts.

    `prefix`: learned keys and values [1, K, V, D] of each layer, which are the first V rows of the plan (its root); the
    pass itself is of the rows behind them.
    """

    positions_N: Tensor
    blocks: tuple[Block, ...]
    crosses: tuple[Cross, ...]
    dense_NN: Tensor | None = None
    past: Past | None = None
    prefix: tuple[tuple[Tensor, Tensor], ...] | None = None
    known_head_rows: dict[int, HeadRows] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        """Rows of this pass."""
        return len(self.positions_N)

    def head_rows(self, heads: int) -> HeadRows:
        """The head rows of the blocks; worked out once for each number of heads."""
        if heads not in self.known_head_rows:
            self.known_head_rows[heads] = head_rows(self.blocks, heads)
        return self.known_head_rows[heads]

    def cut(self, places: Tensor, index: int, heads: int) -> Tensor:
        """Block `index` of a tensor that has one row per padded place of every head: [G, H, T, ...]."""
        return piece([block.index_GT for block in self.blocks[: index + 1]], places, heads)

    def cut_keys(self, places: Tensor, index: int, heads: int) -> Tensor:
        """Block `index` of a tensor that has one row per key of every head: [G, H, J, ...]."""
        return piece([block.keys_GJ for block in self.blocks[: index + 1]], places, heads)


def piece(indices: list[Tensor], places: Tensor, heads: int) -> Tensor:
    """The part of `places` that belongs to the last of these indices, [G, H, rows, ...]."""
    sizes = [index.numel() * heads for index in indices]
    groups, length = indices[-1].shape
    return places[sum(sizes[:-1]) : sum(sizes)].unflatten(0, (groups, heads, length))


def head_rows(blocks: tuple[Block, ...], heads: int) -> HeadRows:
    """The head rows of all blocks, and where each real one is found."""
    device = blocks[0].index_GT.device
    head_H = torch.arange(heads, device=device)[:, None]
    rows = torch.cat([(block.index_GT[:, None] * heads + head_H).flatten() for block in blocks])
    key_rows = torch.cat([(block.keys_GJ[:, None] * heads + head_H).flatten() for block in blocks])
    is_real = torch.cat([block.valid_GT[:, None].expand(-1, heads, -1).flatten() for block in blocks])
    places = torch.nonzero(is_real).flatten()
    place = torch.empty_like(places)
    place[rows[places]] = places
    return HeadRows(rows, place, key_rows)


def plan_forest(
    forest: Forest,
    backend: str = "grouped",
    device: torch.device | str = "cpu",
    block_tokens: int | None = None,
    past: Past | None = None,
) -> Plan:
    """Cut a forest into parts (`grouped`), or keep the whole mask (`dense`, the reference)."""
    offset = 0 if past is None or not len(past.positions_P) else int(past.positions_P.max()) + 1
    positions_N = torch.from_numpy(forest.positions_N + offset).to(device)
    if backend == "dense":
        visible = torch.from_numpy(forest.visible_NN()).to(device)
        return Plan(positions_N, (), (), visible, past)
    assert backend == "grouped", f"no forest backend {backend}"
    subtrees, crosses = fold(list(cut(forest.nodes, BLOCK_TOKENS if block_tokens is None else block_tokens)))
    blocks = tuple(make_block(forest, group, device) for group in batch_by_size(subtrees))
    return Plan(positions_N, blocks, tuple(crosses), None, past)


def cut(nodes: tuple[Node, ...], block_tokens: int) -> Iterator[tuple[Node, int]]:
    """(first node, end row) of each block: the whole subtree where it is small, else the node alone."""
    covered = 0
    for node in nodes:
        if node.start < covered:
            continue
        small = node.subtree_end - node.start <= block_tokens
        end = node.subtree_end if small else node.end
        covered = end
        yield node, end


def fold(pieces: list[tuple[Node, int]]) -> tuple[list[Subtree], list[Cross]]:
    """The blocks with the short trunks above each, and one cross for every long trunk. `pieces` as `cut` gives them."""
    starts = np.array([node.start for node, _ in pieces])
    sizes = np.array([end for _, end in pieces]) - starts
    above: list[list[range]] = [[] for _ in pieces]
    num_keys = sizes.copy()
    crosses = []
    for node, end in reversed(pieces):  # the nearest trunk of a block comes first
        if end == node.subtree_end:
            continue
        first, last = np.searchsorted(starts, (end, node.subtree_end))
        length, copies = end - node.start, last - first
        is_short = num_keys[first:last].max() + length <= FOLDED_KEYS
        if is_short and length * copies <= FOLDED_COPIES * (node.subtree_end - end):
            num_keys[first:last] += length
            for rows in above[first:last]:
                rows.insert(0, range(node.start, end))
        else:
            crosses.append(Cross(end, node.subtree_end, node.start, end))
    subtrees = [
        Subtree(node.start, end, end == node.end, tuple(rows)) for (node, end), rows in zip(pieces, above, strict=True)
    ]
    return subtrees, crosses[::-1]


def batch_by_size(subtrees: list[Subtree]) -> Iterator[list[Subtree]]:
    """Group blocks of similar size, plain causal runs apart from those that need a mask."""
    for needs_mask in (False, True):
        chosen = [item for item in subtrees if needs_mask == (not item.is_run or item.num_above > 0)]
        group: list[Subtree] = []
        for item in sorted(chosen, key=lambda item: (item.size, item.num_above), reverse=True):
            if group and padding_share([*group, item]) > PADDING_SHARE:
                yield group
                group = []
            group.append(item)
        if group:
            yield group


def padding_share(group: list[Subtree]) -> float:
    """The larger share of padding, of the queries or of the keys, in a batch of blocks."""
    sizes = np.array([item.size for item in group])
    keys = sizes.max() + np.array([item.num_above for item in group])
    return float(1 - min(sizes.mean() / sizes.max(), keys.mean() / keys.max()))


def make_block(forest: Forest, group: list[Subtree], device: torch.device | str) -> Block:
    """Index, keys, validity and mask of one batch of blocks."""
    longest = max(item.size for item in group)
    num_above = max(item.num_above for item in group)
    offsets = np.arange(longest)
    starts = np.array([item.start for item in group])[:, None]
    ends = np.array([item.end for item in group])[:, None]
    valid = starts + offsets < ends
    index = np.where(valid, starts + offsets, 0)
    above = np.zeros((len(group), num_above), dtype=index.dtype)
    for g, item in enumerate(group):
        above[g, : item.num_above] = [row for rows in item.above for row in rows]
    mask = None
    if num_above or not all(item.is_run for item in group):
        inside = {item.start: i for i, item in enumerate(group)}
        visible = np.zeros((len(group), longest, num_above + longest), dtype=bool)
        fill_visible(forest.nodes, group, inside, visible[:, :, num_above:])
        for g, item in enumerate(group):
            visible[g, :, : item.num_above] = True
        visible[:, offsets, num_above + offsets] = True
        mask = torch.from_numpy(np.where(visible, 0.0, MASKED)[:, None]).to(device, torch.float32)
    index_GT, valid_GT, keys_GJ = (
        torch.from_numpy(array).to(device) for array in (index, valid, np.concatenate([above, index], axis=1))
    )
    return Block(index_GT, valid_GT, keys_GJ, mask, bool(valid.all()))


def fill_visible(nodes: tuple[Node, ...], group: list[Subtree], inside: dict[int, int], visible: np.ndarray) -> None:
    """Set visible[g, query, key] for every node of every block of the group, in place."""
    end_of = {item.start: item.end for item in group}
    current, base, limit = -1, 0, 0
    for node in nodes:
        if node.start in inside:
            current, base, limit = inside[node.start], node.start, end_of[node.start]
        if current < 0 or node.start >= limit:
            continue
        a, b, c = node.start - base, node.end - base, node.subtree_end - base
        visible[current, a:b, a:b] = np.tri(b - a, dtype=bool)
        visible[current, b:c, a:b] = True
