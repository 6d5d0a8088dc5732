"""Hashes of well-known public benchmarks, to find their rows in training data. No row itself comes with luthier.

`hashes.npz` is written by `benchmarks/build_probes.py`. Of each benchmark row it holds the hash of every STRIDE-th run
of PROBE_WORDS words and of the last one, and of rows of SHORTEST to PROBE_WORDS - 1 words the hash of the whole row. So
every run of PROBE_WORDS + STRIDE - 1 words of a row is found, and every whole row of at least SHORTEST words.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from luthier.corpus.duplicates.words import I64, U64, Ragged, runs

PROBE_WORDS = 13
SHORTEST = 8
STRIDE = 4


@dataclass(frozen=True)
class Probes:
    """`hashes_G`, sorted; for each the benchmark (an index into `names`) and the row's number in it (from 1)."""

    names: tuple[str, ...]
    hashes_G: U64
    name_G: npt.NDArray[np.uint8]
    row_G: npt.NDArray[np.uint16]


def load_probes() -> Probes:
    """The probes that come with luthier."""
    raw = resources.files("luthier.corpus.probes").joinpath("hashes.npz").read_bytes()
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        return Probes(tuple(file["names"].tolist()), file["hashes"], file["name"], file["row"])


def probe_runs(words: Ragged) -> list[tuple[int, I64, U64]]:
    """The hashes to keep of benchmark rows, given as word hashes: (words of the run, row index, hash) by run length."""
    found = []
    for num_words in range(SHORTEST, PROBE_WORDS + 1):
        all_runs = runs(words, num_words)
        row_G = np.repeat(np.arange(len(words.lengths_B)), all_runs.lengths_B)
        place_G = np.arange(len(all_runs.values)) - all_runs.offsets_B1[row_G]
        if num_words < PROBE_WORDS:
            keep_G = words.lengths_B[row_G] == num_words
        else:
            keep_G = (place_G % STRIDE == 0) | (place_G == all_runs.lengths_B[row_G] - 1)
        found.append((num_words, row_G[keep_G], all_runs.values[keep_G]))
    return found
