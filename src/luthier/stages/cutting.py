"""Training rows that are too long, cut to what may be read of them: `data.too_long: cut`."""

from __future__ import annotations

from dataclasses import replace

from luthier.methods.base import Example
from luthier.records import Sequence


def cut(example: Example, most: int) -> Example | None:
    """The example with the first `most` tokens of each sequence; None where nothing is left to learn from it.

    That is so where a sequence loses all its targets, a head one of several spans or the whole of its one, and where
    answers that are set against each other are the same as far as they are read.
    """
    if all(len(sequence.tokens) <= most for sequence in example.sequences):
        return example
    parts = [shortened(sequence, most) for sequence in example.sequences]
    left = [part for part in parts if part is not None]
    if len(left) < len(parts) or len({part.tokens for part in left}) < len({s.tokens for s in example.sequences}):
        return None
    return replace(example, sequences=tuple(left))


def shortened(sequence: Sequence, most: int) -> Sequence | None:
    """The beginning of a sequence with the targets and spans in it."""
    if len(sequence.tokens) <= most:
        return sequence
    kept = [place for place, index in enumerate(sequence.targets) if index < most]
    reads = tuple((start, min(stop, most)) for start, stop in sequence.reads if start < most)
    if (sequence.targets and not kept) or len(reads) < len(sequence.reads):
        return None
    wanted, temperatures = sequence.wanted, sequence.temperatures
    return replace(
        sequence,
        tokens=sequence.tokens[:most],
        targets=tuple(sequence.targets[place] for place in kept),
        weights=tuple(sequence.weights[place] for place in kept),
        wanted=None if wanted is None else tuple(wanted[place] for place in kept),
        temperatures=None if temperatures is None else tuple(temperatures[place] for place in kept),
        reads=reads,
    )
