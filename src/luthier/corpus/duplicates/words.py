"""Texts to words and to 64-bit hashes of words and runs of words: what every comparison of texts is made on.

Arrays carry the letter W for the words of many texts, one after the other, and G for their runs of n words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Scripts that put no space between words: each of their letters counts as a word.
# Thai, Lao, Tibetan, Burmese, Khmer, Japanese kana, Chinese characters with their extensions, half-width kana.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U000323af"
)
BASIC_PLANE = 0x10000  # accents beyond it belong to historic scripts, and would make the pattern slow
NO_WORD = ""  # fills up texts that have fewer words than a shingle; no text holds it
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@cache
def word_pattern() -> re.Pattern[str]:
    """A run of letters and digits with the accents and invisible characters in it, or one unspaced letter."""
    marks = [char for char in map(chr, range(BASIC_PLANE)) if unicodedata.category(char) in ("Mn", "Mc", "Cf")]
    mark = f"[{''.join(map(re.escape, marks))}]"
    return re.compile(rf"(?![\W_])(?:[{UNSPACED}]{mark}*|(?:(?![{UNSPACED}_])\w{mark}*)+)")


def words_of(text: str) -> list[str]:
    """The folded words of a text: `Don’t STOP` is `don`, `t`, `stop`. Compatibility forms and case agree."""
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    return [fold_word(word) for word in word_pattern().findall(text)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end, in characters, of each word of `words_of(text)`."""
    pattern = re.compile(r"[A-Za-z0-9]+") if text.isascii() else word_pattern()
    return [match.span() for match in pattern.finditer(text)]


def fold_word(word: str) -> str:
    """NFKC, case folded, without invisible format characters (soft hyphens, joiners)."""
    if word.isascii():
        return word.lower()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    return "".join(char for char in folded if unicodedata.category(char) != "Cf")


class WordHashes(dict[str, int]):
    """64-bit hash of a word, the same on every machine; each word is hashed once in the life of the table."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
        self[word] = value
        return value


@dataclass(frozen=True)
class Ragged:
    """Rows of unequal length: row b of `values` is `values[offsets_B1[b] : offsets_B1[b + 1]]`."""

    values: U64
    offsets_B1: I64

    @property
    def lengths_B(self) -> I64:
        """How many values each row has."""
        return np.diff(self.offsets_B1)


def hash_words(rows: Iterable[Sequence[str]]) -> Ragged:
    """The hash of every word of every row; the words of one row are held at a time."""
    table = WordHashes()
    hashed = [np.fromiter(map(table.__getitem__, row), dtype=np.uint64, count=len(row)) for row in rows]
    offsets_B1 = offsets_of([len(row) for row in hashed])
    return Ragged(np.concatenate([np.zeros(0, dtype=np.uint64), *hashed]), offsets_B1)


def runs(words: Ragged, num_words: int) -> Ragged:
    """The hash of every run of `num_words` words that lies within one row; shorter rows have none.

    Word hashes h_0 ... h_n-1 make the polynomial (n * K^n + h_0 * K^n-1 + ... + h_n-1) mod 2^64, mixed at the end.
    Run g of row b starts at word g of that row.
    """
    counts_B = np.maximum(words.lengths_B - num_words + 1, 0)
    offsets_B1 = offsets_of(counts_B)
    starts_G = ragged_positions(words.offsets_B1[:-1], counts_B)
    num_starts = max(len(words.values) - num_words + 1, 0)
    total = np.full(num_starts, num_words, dtype=np.uint64)
    for place in range(num_words):
        total *= MULTIPLIER
        total += words.values[place : place + num_starts]
    return Ragged(mix(total[starts_G]), offsets_B1)


def mix(values: U64) -> U64:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def offsets_of(lengths_B: Sequence[int] | I64) -> I64:
    """Where each row begins, and where the last ends."""
    offsets_B1 = np.zeros(len(lengths_B) + 1, dtype=np.int64)
    np.cumsum(lengths_B, out=offsets_B1[1:])
    return offsets_B1


def ragged_positions(starts_B: I64, counts_B: I64) -> I64:
    """`starts_B[b], starts_B[b] + 1, ...`, `counts_B[b]` of them, for each b in turn."""
    shifts_B = starts_B - offsets_of(counts_B)[:-1]
    return np.repeat(shifts_B, counts_B) + np.arange(int(np.sum(counts_B)), dtype=np.int64)
