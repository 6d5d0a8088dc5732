"""Training records that stand in what the model will be tested on: found, and shown. Nothing is deleted here.

The test records are indexed, the training records stream past. Four ways in which a training text gives away a test
text, the strongest first; a pair of records is reported once, for the strongest:

- `same text`: case and punctuation folded, the two records agree in all texts, or in one of SAME_WORDS words or more.
- `shared run`: a run of `ngram_words` words or more stands in both.
- `short text`: a test text of SHORT_WORDS to `ngram_words` - 1 words stands in the training text, as a whole.
- `near copy`: the records' sets of word 3-grams have a Jaccard similarity of `near` or more.

Every run is compared word by word before it counts. Two things do not count: system prompts, and runs that stand in
more than TEMPLATE_RECORDS test records (an instruction that all rows share), nor any of their words; the audit names
these. A hit is a
question to a person all the same: quotations, boilerplate and common phrases are shared by texts that have nothing
to do with each other. So every hit shows the words that agree.

Axis letters: F texts (fields) of the test records, G runs of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from luthier.corpus.duplicates.clusters import Corpus, Search
from luthier.corpus.duplicates.signatures import Signatures, exact_keys, sign
from luthier.corpus.duplicates.words import I64, U64, Ragged, hash_words, runs, word_spans, words_of
from luthier.corpus.probes import PROBE_WORDS, SHORTEST, Probes, load_probes
from luthier.corpus.wire import texts_of, whole_text
from luthier.recipe.corpus import Contamination, Duplicates
from luthier.records import Conversation, Message, Preference, Prompt, Ranking, Rating, Record, Source, Tagged

How = Literal["same text", "shared run", "short text", "near copy"]
STRENGTH: tuple[How, ...] = ("same text", "shared run", "short text", "near copy")
SAME_WORDS = 5
SHORT_WORDS = 8
TEMPLATE_RECORDS = 10
MAX_HITS_A_RECORD = 20
BATCH_RECORDS = 1_000
BATCH_CHARS = 4_000_000
SHOWN_CHARS = 300
FILTER_BITS = 22


@dataclass(frozen=True)
class Hit:
    """One training record and one test record (or a row of a benchmark probe) that share text.

    `train_index` and `test_index` count the records from 0; `test_index` is -1 for a probe. `test` says where the
    test record is: its source, or `gsm8k row 17`. `num_words` agree (0 for a near copy); `similarity` is the Jaccard
    similarity of a near copy. The texts are the words that agree, as they stand on either side, shortened; of a near
    copy, the whole texts. A probe's own text is not known, so `test_text` is empty.
    """

    how: How
    train_index: int
    train: Source
    test_index: int
    test: Source | str
    num_words: int
    train_text: str
    test_text: str
    similarity: float | None = None
    probe: str | None = None

    def __str__(self) -> str:
        amount = f"{self.num_words} words" if self.similarity is None else f"Jaccard {self.similarity:.2f}"
        lines = [f"{self.train} and {self.test}: {self.how}, {amount}", f"  train: {self.train_text}"]
        return "\n".join([*lines, f"  test:  {self.test_text}"] if self.test_text else lines)


@dataclass(frozen=True)
class Audit:
    """All hits, in the order of the training records. `templates` are shared texts that were not counted.

    `num_left_out` hits are not listed: a training record shows at most MAX_HITS_A_RECORD.
    """

    hits: list[Hit]
    num_train: int
    num_test: int
    templates: tuple[str, ...] = ()
    num_left_out: int = 0

    def counts(self) -> dict[How, int]:
        """Hits by how the texts agree."""
        counted = Counter(hit.how for hit in self.hits)
        return {how: counted[how] for how in STRENGTH if counted[how]}

    def train_indices(self) -> list[int]:
        """The training records that were hit."""
        return sorted({hit.train_index for hit in self.hits})

    def test_indices(self) -> list[int]:
        """The test records that were hit."""
        return sorted({hit.test_index for hit in self.hits if hit.test_index >= 0})


def audit(train: Iterable[Record], test: Iterable[Record], settings: Contamination) -> Audit:
    """Compare every training record with every test record, and with the probes where the settings say so.

    Memory grows with the test records, not with the training records. To use several processes, build one `TestIndex`
    and give each process its part of the training records.
    """
    index = TestIndex(list(test), settings)
    hits: list[Hit] = []
    num_train = num_left_out = 0
    for batch in batches(train):
        found, left_out = index.check(batch, num_train)
        hits += found
        num_train += len(batch)
        num_left_out += left_out
    return Audit(hits, num_train, len(index.records), index.templates, num_left_out)


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Consecutive records: at most BATCH_RECORDS of them, and no more than fill BATCH_CHARS, or one that is longer."""
    batch: list[Record] = []
    num_chars = 0
    for record in records:
        size = sum(map(len, texts_of(record)))
        if batch and (len(batch) == BATCH_RECORDS or num_chars + size > BATCH_CHARS):
            yield batch
            batch, num_chars = [], 0
        batch.append(record)
        num_chars += size
    if batch:
        yield batch


# --- texts -----------------------------------------------------------------------------------------------------------


def audited_texts(record: Record) -> list[str]:
    """The texts of a record that may be compared: no system prompt, no empty text; tagged words as one text."""
    match record:
        case Tagged():
            texts: tuple[str, ...] = (whole_text(record),)
        case Conversation() | Prompt():
            texts = texts_of(replace(record, messages=without_system(record.messages)))
        case Preference() | Ranking() | Rating():
            texts = texts_of(replace(record, prompt=without_system(record.prompt)))
        case _:
            texts = texts_of(record)
    return [text for text in texts if text.strip()]


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns that are not the system's."""
    return tuple(message for message in messages if message.role != "system")


def shortened(text: str) -> str:
    """At most SHOWN_CHARS characters on one line: the beginning and the end."""
    line = " ".join(text.split())
    half = SHOWN_CHARS // 2
    return line if len(line) <= SHOWN_CHARS else f"{line[:half]} … {line[-half:]}"


def span_text(text: str, start: int, num_words: int) -> str:
    """`num_words` words of a text from word `start` on, as they are written there."""
    spans = word_spans(text)
    return shortened(text[spans[start][0] : spans[start + num_words - 1][1]])


@dataclass(frozen=True)
class Texts:
    """The texts of a run of records, their words as hashes, and each record's signature over all its texts."""

    texts_F: list[str]
    record_F: list[int]
    words: Ragged
    keys_F: list[bytes]
    signatures: Signatures

    def words_of(self, text: int) -> U64:
        """The hashed words of one text."""
        return self.words.values[self.words.offsets_B1[text] : self.words.offsets_B1[text + 1]]


def read_texts(records: Sequence[Record], settings: Duplicates) -> Texts:
    """Everything that is compared."""
    texts_by_record = [audited_texts(record) for record in records]
    texts_F = [text for texts in texts_by_record for text in texts]
    record_F = [number for number, texts in enumerate(texts_by_record) for _ in texts]
    keys_F = [key.tobytes() for key in exact_keys(texts_F)]
    signatures = sign(["\n".join(texts) for texts in texts_by_record], settings)
    return Texts(texts_F, record_F, hash_words(words_of(text) for text in texts_F), keys_F, signatures)


# --- runs of words ---------------------------------------------------------------------------------------------------


class RunTable:
    """Hashes of runs of words, sorted, with a filter in front: nearly all runs that are asked for are not in it."""

    def __init__(self, hashes_G: U64):
        self.order_G = np.argsort(hashes_G, kind="stable")
        self.hashes_G = hashes_G[self.order_G]
        self.filter = np.zeros(1 << FILTER_BITS, dtype=bool)
        self.filter[self.hashes_G >> np.uint64(64 - FILTER_BITS)] = True

    def find(self, hashes: U64) -> Iterator[tuple[int, I64]]:
        """Index of each asked hash that is in the table, and the indices of its entries as they were given."""
        asked = np.flatnonzero(self.filter[hashes >> np.uint64(64 - FILTER_BITS)])
        first = np.searchsorted(self.hashes_G, hashes[asked], side="left")
        last = np.searchsorted(self.hashes_G, hashes[asked], side="right")
        for at in np.flatnonzero(last > first):
            yield int(asked[at]), self.order_G[first[at] : last[at]]


@dataclass(frozen=True)
class Runs:
    """All runs of one length in the test texts that are looked for, with the text and place each begins at."""

    num_words: int
    table: RunTable
    text_G: I64
    place_G: I64


def test_runs(texts: Texts, num_words: int, whole_only: bool) -> tuple[Runs, list[str]]:
    """The runs of one length, or only texts of just that length; and the texts of those that are templates."""
    found = runs(texts.words, num_words)
    text_G = np.repeat(np.arange(len(texts.texts_F)), found.lengths_B)
    place_G = np.arange(len(found.values)) - found.offsets_B1[text_G]
    if whole_only:
        keep_G = texts.words.lengths_B[text_G] == num_words
        text_G, place_G = text_G[keep_G], place_G[keep_G]
        found = Ragged(found.values[keep_G], found.offsets_B1)
    template_G = in_many_records(found.values, np.array(texts.record_F, dtype=np.int64)[text_G])
    templates = template_texts(texts, text_G[template_G], place_G[template_G], num_words)
    kept_G = ~touching(texts, text_G, place_G, template_G, num_words)
    return Runs(num_words, RunTable(found.values[kept_G]), text_G[kept_G], place_G[kept_G]), templates


def in_many_records(hashes_G: U64, record_G: I64) -> npt.NDArray[np.bool_]:
    """Whether each run stands in more than TEMPLATE_RECORDS different records."""
    if not len(hashes_G):
        return np.zeros(0, dtype=bool)
    _, number_G = np.unique(hashes_G, return_inverse=True)
    pairs = np.unique(np.stack([number_G, record_G], axis=1), axis=0)
    return np.bincount(pairs[:, 0])[number_G] > TEMPLATE_RECORDS


def touching(
    texts: Texts, text_G: I64, place_G: I64, template_G: npt.NDArray[np.bool_], num_words: int
) -> npt.NDArray[np.bool_]:
    """Whether each run has a word of a template run: else an instruction and one more word would be a run."""
    first_G = texts.words.offsets_B1[text_G] + place_G
    ends = np.zeros(len(texts.words.values) + 1, dtype=np.int64)
    np.add.at(ends, first_G[template_G], 1)
    np.add.at(ends, first_G[template_G] + num_words, -1)
    before = np.concatenate([[0], np.cumsum(np.cumsum(ends) > 0)])  # template words before each word
    return before[first_G + num_words] > before[first_G]


def template_texts(texts: Texts, text_G: I64, place_G: I64, num_words: int) -> list[str]:
    """The distinct passages that template runs make up, as they stand in the first text they were seen in."""
    passages: dict[bytes, str] = {}
    start = 0
    while start < len(text_G):
        end = start + 1
        while end < len(text_G) and text_G[end] == text_G[start] and place_G[end] == place_G[end - 1] + 1:
            end += 1
        text, place, length = int(text_G[start]), int(place_G[start]), num_words + end - start - 1
        words = texts.words_of(text)[place : place + length].tobytes()
        if words not in passages:
            passages[words] = span_text(texts.texts_F[text], place, length)
        start = end
    return list(passages.values())


def common_length(first: U64, second: U64, place: int, other: int) -> int:
    """How many words agree from word `place` of `first` and word `other` of `second` on."""
    ahead = min(len(first) - place, len(second) - other)
    different = np.flatnonzero(first[place : place + ahead] != second[other : other + ahead])
    return int(different[0]) if len(different) else ahead


# --- the index -------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Training records under comparison, and what was found: at most one hit a pair of records."""

    records: Sequence[Record]
    first_index: int
    texts: Texts
    hits: dict[tuple[int, int | str], Hit] = field(default_factory=dict)


class TestIndex:
    """The test records, made ready to be looked for in any number of training records. It can be pickled."""

    __test__ = False  # no test case, whatever its name says to pytest

    def __init__(self, records: Sequence[Record], settings: Contamination, probes: Probes | None = None):
        """`probes` take the place of those that come with luthier."""
        self.records = records
        self.near = Duplicates(near=settings.near)
        self.texts = read_texts(records, self.near)
        self.whole_keys: dict[bytes, list[int]] = {}
        for number in sorted(set(self.texts.record_F)):
            self.whole_keys.setdefault(self.texts.signatures.keys_B2[number].tobytes(), []).append(number)
        self.text_keys, same_templates = self.keys_of_texts()
        self.long_runs, long_templates = test_runs(self.texts, settings.ngram_words, whole_only=False)
        short = [test_runs(self.texts, length, whole_only=True) for length in range(SHORT_WORDS, settings.ngram_words)]
        self.short_runs = [found for found, _ in short if len(found.text_G)]
        all_templates = [*same_templates, *long_templates, *(text for _, texts in short for text in texts)]
        self.templates = tuple(dict.fromkeys(all_templates))
        self.probes = (probes or load_probes()) if settings.probes else None
        self.probe_table = RunTable(self.probes.hashes_G) if self.probes else None

    def keys_of_texts(self) -> tuple[dict[bytes, list[int]], list[str]]:
        """The texts long enough to be compared alone, by key; and those that stand in too many records."""
        by_key: dict[bytes, list[int]] = {}
        for text, key in enumerate(self.texts.keys_F):
            if self.texts.words.lengths_B[text] >= SAME_WORDS:
                by_key.setdefault(key, []).append(text)
        common = [
            key
            for key, texts in by_key.items()
            if len({self.texts.record_F[text] for text in texts}) > TEMPLATE_RECORDS
        ]
        return by_key, [shortened(self.texts.texts_F[by_key.pop(key)[0]]) for key in common]

    def check(self, records: Sequence[Record], first_index: int = 0) -> tuple[list[Hit], int]:
        """The hits of some training records, by record and strength; and how many more there were.

        `first_index` is the index of the first of them among all training records.
        """
        batch = Batch(records, first_index, read_texts(records, self.near))
        self.find_same(batch)
        self.find_runs(batch, self.long_runs, "shared run")
        for short in self.short_runs:
            self.find_runs(batch, short, "short text")
        if self.near.near:
            self.find_near(batch)
        if self.probes:
            self.find_probes(batch, self.probes)
        ordered = sorted(batch.hits.values(), key=lambda hit: (hit.train_index, STRENGTH.index(hit.how)))
        seen: Counter[int] = Counter()
        listed = []
        for hit in ordered:
            seen[hit.train_index] += 1
            if seen[hit.train_index] <= MAX_HITS_A_RECORD:
                listed.append(hit)
        return listed, len(ordered) - len(listed)

    def hit(self, batch: Batch, how: How, pair: tuple[int, int], num_words: int, shown: tuple[str, str]) -> Hit:
        """A hit of a training record of the batch and a test record, each given by its number."""
        train, test = pair
        source, test_source = batch.records[train].source, self.records[test].source
        texts = shortened(shown[0]), shortened(shown[1])
        return Hit(how, batch.first_index + train, source, test, test_source, num_words, *texts)

    def find_same(self, batch: Batch) -> None:
        """Records, or single texts, with one key."""
        for number in sorted(set(batch.texts.record_F)):
            for test in self.whole_keys.get(batch.texts.signatures.keys_B2[number].tobytes(), ()):
                shown = [" ".join(audited_texts(record)) for record in (batch.records[number], self.records[test])]
                pair, num_words = (number, test), len(words_of(shown[0]))
                batch.hits[pair] = self.hit(batch, "same text", pair, num_words, (shown[0], shown[1]))
        for text, key in enumerate(batch.texts.keys_F):
            for test_text in self.text_keys.get(key, ()):
                pair = (batch.texts.record_F[text], self.texts.record_F[test_text])
                if pair not in batch.hits:
                    num_words = int(batch.texts.words.lengths_B[text])
                    shown_texts = batch.texts.texts_F[text], self.texts.texts_F[test_text]
                    batch.hits[pair] = self.hit(batch, "same text", pair, num_words, shown_texts)

    def find_runs(self, batch: Batch, wanted: Runs, how: How) -> None:
        """The longest shared run of each pair of records that has none of a stronger kind."""
        found = runs(batch.texts.words, wanted.num_words)
        text_of_run = np.repeat(np.arange(len(batch.texts.texts_F)), found.lengths_B)
        longest: dict[tuple[int, int], tuple[int, int, int, int, int]] = {}
        covered: dict[tuple[int, int, int], int] = {}
        for run, entries in wanted.table.find(found.values):
            text = int(text_of_run[run])
            place = run - int(found.offsets_B1[text])
            for test_text, other in zip(wanted.text_G[entries].tolist(), wanted.place_G[entries].tolist(), strict=True):
                pair, diagonal = (batch.texts.record_F[text], self.texts.record_F[test_text]), place - other
                if pair in batch.hits or covered.get((text, test_text, diagonal), -1) >= place:
                    continue
                words, test_words = batch.texts.words_of(text), self.texts.words_of(test_text)
                length = common_length(words, test_words, place, other)
                covered[text, test_text, diagonal] = place + length - 1
                if length >= wanted.num_words and length > longest.get(pair, (0,))[0]:
                    longest[pair] = (length, text, place, test_text, other)
        for pair, (length, text, start, test_text, test_start) in longest.items():
            train_shown = span_text(batch.texts.texts_F[text], start, length)
            test_shown = span_text(self.texts.texts_F[test_text], test_start, length)
            batch.hits[pair] = self.hit(batch, how, pair, length, (train_shown, test_shown))

    def find_near(self, batch: Batch) -> None:
        """Near copies: proposed by bands of the MinHash signature, verified by the exact similarity."""
        if not self.records:
            return
        search = Search(Corpus([self.texts.signatures, batch.texts.signatures]), self.near)
        for test, train, similarity in search.pairs_across(len(self.records)):
            pair = (train, test)
            both = batch.records[train], self.records[test]
            texts = [" ".join(audited_texts(record)) for record in both]
            if pair not in batch.hits and all(texts):
                hit = self.hit(batch, "near copy", pair, 0, (texts[0], texts[1]))
                batch.hits[pair] = replace(hit, similarity=similarity)

    def find_probes(self, batch: Batch, probes: Probes) -> None:
        """The longest chain of overlapping runs that a training text shares with a row of a benchmark."""
        assert self.probe_table is not None
        chains: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for num_words in range(SHORTEST, PROBE_WORDS + 1):
            found = runs(batch.texts.words, num_words)
            text_of_run = np.repeat(np.arange(len(batch.texts.texts_F)), found.lengths_B)
            for run, entries in self.probe_table.find(found.values):
                text = int(text_of_run[run])
                start = run - int(found.offsets_B1[text])
                for entry in entries.tolist():
                    key = (text, int(probes.name_G[entry]), int(probes.row_G[entry]))
                    chains.setdefault(key, []).append((start, start + num_words))
        for (text, name, row), pieces in chains.items():
            start, end = longest_chain(pieces)
            self.add_probe_hit(batch, text, f"{probes.names[name]} row {row}", (start, end))

    def add_probe_hit(self, batch: Batch, text: int, place: str, span: tuple[int, int]) -> None:
        """One hit of a training text and a benchmark row, unless the record has a longer one with that row."""
        train, (start, end) = batch.texts.record_F[text], span
        known = batch.hits.get((train, place))
        if known and known.num_words >= end - start:
            return
        how: How = "shared run" if end - start >= PROBE_WORDS else "short text"
        shown = span_text(batch.texts.texts_F[text], start, end - start)
        source, probe = batch.records[train].source, place.rpartition(" row ")[0]
        index = batch.first_index + train
        batch.hits[train, place] = Hit(how, index, source, -1, place, end - start, shown, "", probe=probe)


def longest_chain(pieces: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The longest span that overlapping or touching spans (start, end) make up."""
    best = current = (0, 0)
    for start, end in sorted(pieces):
        current = (current[0], max(current[1], end)) if start <= current[1] and current[1] else (start, end)
        if current[1] - current[0] > best[1] - best[0]:
            best = current
    return best
