"""Sizes that come again, for passes of a model whose products are rounded on a CPU.

oneDNN makes a kernel for every number of rows that such a product meets, and keeps it: over half a megabyte for each
kind of layer, pinned wherever the heap had room, and milliseconds to make. A long training, or a server, meets
thousands of sizes. So passes are filled up to one of few (docs/memory.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import nn

from luthier.forest.tree import Forest, Node

MARK = "evens_up_to"  # the attribute of a model whose passes are filled up: the positions it knows
STEPS = 16  # sizes from a power of two to the next


def mark_even(model: nn.Module, positions: int) -> None:
    """From here on passes of this model, which knows so many positions, are filled up."""
    setattr(model, MARK, positions)


def even_size(model: nn.Module, size: int) -> int:
    """The rows of a pass that needs `size` of them: a sixteenth more at most."""
    if not hasattr(model, MARK):
        return size
    step = max((1 << size.bit_length() - 1) // STEPS, 1)
    return -(-size // step) * step


def even_length(model: nn.Module, longest: int) -> int:
    """The length that a batch is padded to: such a size, within the positions that the model knows."""
    return max(longest, min(even_size(model, longest), getattr(model, MARK, longest)))


def filled_up(model: nn.Module, forest: Forest) -> Forest:
    """The forest with a tree of idle rows behind its own: nobody reads them, and nothing flows back from them."""
    idle = even_size(model, forest.num_tokens) - forest.num_tokens
    if not idle:
        return forest
    start, end = forest.num_tokens, forest.num_tokens + idle
    nothing = np.zeros(idle, np.int64)
    return replace(
        forest,
        tokens_N=np.concatenate([forest.tokens_N, nothing]),
        positions_N=np.concatenate([forest.positions_N, nothing]),
        nodes=(*forest.nodes, Node(start, end, end, -1, 0)),
        first_N=np.concatenate([forest.first_N, nothing]),
    )
