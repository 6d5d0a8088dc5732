"""What is kept of each text to find its copies: an exact key, its set of shingles, its MinHash signature.

Everything is computed from the text and the settings alone, so units of a corpus can be signed by any number of
processes or machines. A unit's arrays are saved as .npy files and opened by memory map when copies are looked for.

A text's shingles are its runs of `shingle_words` words. A text with fewer words is one shingle; one without any
word (emoji, signs) is one shingle of its characters. Similarity means the Jaccard similarity of these sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from luthier.corpus.duplicates.arrays import open_arrays, save_arrays
from luthier.corpus.duplicates.words import I64, NO_WORD, U64, Ragged, hash_words, mix, offsets_of, runs, words_of
from luthier.corpus.fold import fold_text
from luthier.recipe.corpus import Duplicates

U32 = npt.NDArray[np.uint32]
CHUNK_CHARS = 4_000_000  # texts are signed in pieces of about this size: some 100 MB of memory
BLOCK_SHINGLES = 32_768  # of these at a time: they and their products stay in the processor's cache


@dataclass(frozen=True)
class Signatures:
    """One unit of B texts. Row b's shingles, sorted and distinct, are `shingles[offsets_B1[b] : offsets_B1[b + 1]]`."""

    keys_B2: U64
    lengths_B: I64  # characters
    shingles: U32
    offsets_B1: I64
    minhash_PB: U32

    def __len__(self) -> int:
        return len(self.lengths_B)


def bytes_a_document(settings: Duplicates, num_shingles: float) -> float:
    """Size of the saved index for a document of `num_shingles` distinct shingles.

    16 for the key, 8 each for the length and the offset, 4 a permutation, 4 a shingle.
    """
    near = 4 * settings.permutations + 4 * num_shingles if settings.near else 0
    return 16 + 8 + 8 + near


def sign(texts: Sequence[str], settings: Duplicates, keys: Sequence[str] | None = None) -> Signatures:
    """The signatures of a unit's texts, in their order.

    `keys` are hex hashes (32 digits or more; the rest is not used) that agree where two records are the same
    (`wire.key_of`); without them, the folded texts are hashed. With `settings.near` 0 there are no shingles.
    """
    keys_B2 = exact_keys(texts) if keys is None else hex_keys(keys)
    lengths_B = np.array([len(text) for text in texts], dtype=np.int64)
    multipliers_P, shifts_P = permutations(settings.permutations)
    sets: list[Ragged] = []
    minhashes: list[U32] = []
    for chunk in chunks(texts if settings.near else []):
        found = shingles_of(chunk, settings.shingle_words)
        sets.append(found)
        minhashes.append(minhash(found, multipliers_P, shifts_P))
    if not settings.near:
        empty = np.zeros(0, dtype=np.uint32)
        no_rows = np.zeros(len(texts) + 1, dtype=np.int64)
        return Signatures(keys_B2, lengths_B, empty, no_rows, np.zeros((0, len(texts)), dtype=np.uint32))
    return Signatures(
        keys_B2,
        lengths_B,
        np.concatenate([np.zeros(0, np.uint32), *(part.values for part in sets)]).astype(np.uint32),
        offsets_of(np.concatenate([np.zeros(0, np.int64), *(part.lengths_B for part in sets)])),
        np.concatenate([np.zeros((settings.permutations, 0), np.uint32), *minhashes], axis=1),
    )


def chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts, each chunk of about CHUNK_CHARS characters, or one text that is longer."""
    start = size = 0
    for end, text in enumerate(texts):
        if size and size + len(text) > CHUNK_CHARS:
            yield texts[start:end]
            start, size = end, 0
        size += len(text) + 1
    if start < len(texts):
        yield texts[start:]


def exact_keys(texts: Sequence[str]) -> U64:
    """128-bit hashes of the folded texts, as [B, 2]: equal where texts agree but for case and punctuation."""
    encoded = (fold_text(text).encode("utf-8", "surrogatepass") for text in texts)
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in encoded)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64).reshape(-1, 2)


def hex_keys(keys: Sequence[str]) -> U64:
    """The first 128 bits of hex digests, as [B, 2]."""
    digits = b"".join(bytes.fromhex(key[:32]) for key in keys)
    return np.frombuffer(digits, dtype="<u8").astype(np.uint64).reshape(-1, 2)


def shingles_of(texts: Sequence[str], shingle_words: int) -> Ragged:
    """Each text's shingles as sorted distinct 32-bit hashes; no row is empty.

    32 bits are enough to compare two texts: of two sets of 1,000, 0.0002 shingles agree by chance.
    """
    rows = (padded(words_of(text) or [" ".join(text.split())], shingle_words) for text in texts)
    found = runs(hash_words(rows), shingle_words)
    row_G = np.repeat(np.arange(len(texts), dtype=np.uint64), found.lengths_B)
    distinct = np.unique((row_G << np.uint64(32)) | (found.values >> np.uint64(32)))
    lengths_B = np.bincount((distinct >> np.uint64(32)).astype(np.int64), minlength=len(texts))
    return Ragged(distinct & np.uint64(0xFFFFFFFF), offsets_of(lengths_B))


def padded(words: list[str], num_words: int) -> list[str]:
    """At least `num_words` words."""
    return words + [NO_WORD] * (num_words - len(words))


def permutations(num_permutations: int) -> tuple[U64, U64]:
    """Odd multipliers and shifts, [P] each; the first p of them do not depend on how many there are."""
    counter_P2 = np.arange(1, 2 * num_permutations + 1, dtype=np.uint64).reshape(-1, 2)
    random_P2 = mix(counter_P2 * np.uint64(0x9E3779B97F4A7C15))
    return random_P2[:, 0] | np.uint64(1), random_P2[:, 1]


def minhash(shingles: Ragged, multipliers_P: U64, shifts_P: U64) -> U32:
    """[P, B]: the smallest of each row's shingles x under the hash (a_p * x + b_p mod 2^64) >> 32.

    The hash is Dietzfelbinger's multiply-shift. Two rows agree in a permutation with the probability of their
    Jaccard similarity (Broder, 1997).
    """
    num_rows = len(shingles.offsets_B1) - 1
    minhash_PB = np.empty((len(multipliers_P), num_rows), dtype=np.uint32)
    first = 0
    while first < num_rows:
        begin = shingles.offsets_B1[first]
        last = int(np.searchsorted(shingles.offsets_B1, begin + BLOCK_SHINGLES, side="right")) - 1
        last = min(max(last, first + 1), num_rows)
        values = shingles.values[begin : shingles.offsets_B1[last]]
        starts = shingles.offsets_B1[first:last] - begin
        for row_B, multiplier, shift in zip(minhash_PB, multipliers_P, shifts_P, strict=True):
            hashed = values * multiplier
            hashed += shift
            hashed >>= np.uint64(32)
            row_B[first:last] = np.minimum.reduceat(hashed, starts)
        first = last
    return minhash_PB


def save_signatures(signatures: Signatures, folder: Path) -> None:
    """Write a unit's arrays into an existing folder, as .npy files."""
    save_arrays(signatures, folder)


def open_signatures(folder: Path) -> Signatures:
    """A saved unit, by memory map.

    Raises:
        DataError: a file is missing or damaged.
    """
    return Signatures(**open_arrays(Signatures, folder))
