"""How the attention of a forest is cut into parts: dense blocks at the bottom, shared trunks above.

A block is a subtree small enough for one dense, masked product; blocks of similar size are batched together.
A trunk is a node above blocks: its own tokens are one causal part, and all of its descendants attend to it in one
unmasked product, so its keys and values are read once however many branches share them.
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
PADDING_SHARE = 0.25  # blocks are batched together while padding stays under this share


@dataclass(frozen=True)
class Block:
    """G subtrees of at most T tokens. index_GT: forest rows, padding repeats row 0; valid_GT: which are real.

    `whole`: there is no padding.
    mask_G1TT is additive and None for plain causal runs (padding stands at the end, where nobody looks).
    """

    index_GT: Tensor
    valid_GT: Tensor
    mask_G1TT: Tensor | None
    whole: bool


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
    those of the next. `place`: the place of every head row, [N * H].
    """

    rows: Tensor
    place: Tensor


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
        sizes = [block.index_GT.numel() * heads for block in self.blocks[: index + 1]]
        groups, length = self.blocks[index].index_GT.shape
        return places[sum(sizes[:-1]) : sum(sizes)].unflatten(0, (groups, heads, length))


def head_rows(blocks: tuple[Block, ...], heads: int) -> HeadRows:
    """The head rows of all blocks, and where each real one is found."""
    device = blocks[0].index_GT.device
    head_H = torch.arange(heads, device=device)[:, None]
    rows = torch.cat([(block.index_GT[:, None] * heads + head_H).flatten() for block in blocks])
    is_real = torch.cat([block.valid_GT[:, None].expand(-1, heads, -1).flatten() for block in blocks])
    places = torch.nonzero(is_real).flatten()
    place = torch.empty_like(places)
    place[rows[places]] = places
    return HeadRows(rows, place)


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
    subtrees: list[tuple[Node, int]] = []
    crosses: list[Cross] = []
    for node, end in cut(forest.nodes, BLOCK_TOKENS if block_tokens is None else block_tokens):
        subtrees.append((node, end))
        if end < node.subtree_end:
            crosses.append(Cross(end, node.subtree_end, node.start, end))
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


def batch_by_size(subtrees: list[tuple[Node, int]]) -> Iterator[list[tuple[Node, int]]]:
    """Group blocks of similar size, plain causal runs apart from trees."""

    def size(item: tuple[Node, int]) -> int:
        return item[1] - item[0].start

    for is_run in (True, False):
        chosen = sorted((item for item in subtrees if (item[1] == item[0].end) == is_run), key=size, reverse=True)
        group: list[tuple[Node, int]] = []
        total = 0
        for item in chosen:
            if group and 1 - (total + size(item)) / (size(group[0]) * (len(group) + 1)) > PADDING_SHARE:
                yield group
                group, total = [], 0
            group.append(item)
            total += size(item)
        if group:
            yield group


def make_block(forest: Forest, group: list[tuple[Node, int]], device: torch.device | str) -> Block:
    """Index, validity and mask of one batch of blocks."""
    longest = max(end - node.start for node, end in group)
    offsets = np.arange(longest)
    starts = np.array([node.start for node, _ in group])[:, None]
    ends = np.array([end for _, end in group])[:, None]
    valid = starts + offsets < ends
    index = np.where(valid, starts + offsets, 0)
    runs = all(end == node.end for node, end in group)
    mask = None
    if not runs:
        inside = {node.start: i for i, (node, _) in enumerate(group)}
        visible = np.zeros((len(group), longest, longest), dtype=bool)
        fill_visible(forest.nodes, group, inside, visible)
        visible[:, offsets, offsets] = True
        mask = torch.from_numpy(np.where(visible, 0.0, MASKED)[:, None]).to(device, torch.float32)
    index_GT, valid_GT = (torch.from_numpy(array).to(device) for array in (index, valid))
    return Block(index_GT, valid_GT, mask, bool(valid.all()))


def fill_visible(
    nodes: tuple[Node, ...], group: list[tuple[Node, int]], inside: dict[int, int], visible: np.ndarray
) -> None:
    """Set visible[g, query, key] for every node of every block of the group, in place."""
    end_of = {node.start: end for node, end in group}
    current, base, limit = -1, 0, 0
    for node in nodes:
        if node.start in inside:
            current, base, limit = inside[node.start], node.start, end_of[node.start]
        if current < 0 or node.start >= limit:
            continue
        a, b, c = node.start - base, node.end - base, node.subtree_end - base
        visible[current, a:b, a:b] = np.tri(b - a, dtype=bool)
        visible[current, b:c, a:b] = True
