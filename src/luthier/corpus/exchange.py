"""What one call does to files: convert, split, audit, and show the first records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

from luthier.corpus.build.units import inputs_of, limits_of
from luthier.corpus.contamination import audit
from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.hub import source_files
from luthier.corpus.documents.tables import write_table
from luthier.corpus.lines import Problem
from luthier.corpus.rows import LIMITS, find_reading, read_file, read_input, readable
from luthier.corpus.shapes.conll import conll_text
from luthier.corpus.shapes.convert import write_as
from luthier.corpus.shapes.registry import SHAPES
from luthier.corpus.wire import kind_of, texts_of, to_json
from luthier.errors import DataError, did_you_mean
from luthier.files import open_aside
from luthier.recipe import absolute, parse_corpus
from luthier.recipe.corpus import Contamination, Corpus, Input, ReadFormat
from luthier.records import Record, Tagged

Pairs = Literal["all", "ends"]


class Losses:
    """What was dropped on the way: a count and a first example for each reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, tuple[str, str]] = {}

    def add(self, source: object, problem: Problem) -> None:
        """One more."""
        self.counts[problem.reason] += 1
        self.first.setdefault(problem.reason, (str(source), problem.detail))

    def __str__(self) -> str:
        return " ".join(f"{entry['count']:,}: {entry['source']}: {entry['detail']}" for entry in self.values().values())

    def values(self) -> dict[str, dict[str, Any]]:
        """By reason, most frequent first."""
        return {
            reason: {"count": count, "source": self.first[reason][0], "detail": self.first[reason][1]}
            for reason, count in self.counts.most_common()
        }


def convert_files(source: Input, target: Path, to: str, pairs: str = "all") -> dict[str, Any]:
    """Write the records of some files in another format: `.jsonl` or `.parquet`, CoNLL as `.conll`, texts as `.txt`.

    Returns rows in and out and what was dropped, by reason: rows_in counts what was read, kept or not.

    Raises:
        DataError: an unknown format or ending, nothing to read, or not one record with a place in the format.
    """
    if to not in SHAPES:
        raise DataError(f'--to: no format "{to}".{did_you_mean(to, SHAPES)} Known: {", ".join(SHAPES)}.')
    if pairs not in ("all", "ends"):
        raise DataError(f'--pairs: "{pairs}" is not allowed; use all or ends (best against worst).')
    losses, counts, shapes = Losses(), Counter[str](), set[str]()

    def records() -> Iterator[Record]:
        for path in source_files(source):
            reading = find_reading(path, source, LIMITS)
            shapes.add(reading.shape)
            for item in read_file(path, source, reading, LIMITS):
                counts["in"] += 1
                if isinstance(item, Unreadable):
                    losses.add(item.source, item.problem)
                else:
                    yield item
        if not counts["out"]:
            raise DataError(f"{source.path}: no record has a place in {to} rows. {losses}")

    def rows() -> Iterator[Mapping[str, object]]:
        for record in records():
            written = write_as(record, SHAPES[to], cast("Pairs", pairs))
            if isinstance(written, Problem):
                losses.add(record.source, written)
                continue
            counts["out"] += len(written)
            yield from written

    ending = target.suffix.lower()
    if to == "conll" and ending not in (".jsonl", ".parquet"):
        write_conll(target, records(), losses, counts)
    elif to == "text" and ending in (".txt", ".md"):
        write_texts(target, records(), counts)
    elif ending in (".jsonl", ".parquet"):
        write_table(target, rows(), cast("Literal['jsonl', 'parquet']", ending[1:]))
    else:
        raise DataError(f'{target}: unknown ending "{ending}". Write .jsonl or .parquet (conll: .conll, text: .txt).')
    return {
        "from": ", ".join(sorted(shapes)),
        "rows_in": counts["in"],
        "rows_out": counts["out"],
        "dropped": losses.values(),
    }


def write_conll(target: Path, records: Iterator[Record], losses: Losses, counts: Counter[str]) -> None:
    """Tagged words as lines."""
    with open_aside(target) as file:
        for record in records:
            text: str | Problem = Problem("wrong_kind", f"a {kind_of(record)} has no tags.")
            if isinstance(record, Tagged):
                text = conll_text(record)
            if isinstance(text, Problem):
                losses.add(record.source, text)
                continue
            counts["out"] += 1
            file.write(text.encode())


def write_texts(target: Path, records: Iterator[Record], counts: Counter[str]) -> None:
    """All texts, a blank line between records."""
    with open_aside(target) as file:
        for record in records:
            counts["out"] += 1
            file.write("\n".join(texts_of(record)).encode() + b"\n\n")


def split_corpus(
    sources: list[str], settings: Mapping[str, object], columns: Mapping[str, str | None], seed: int
) -> Corpus:
    """A corpus that only splits: rows stay as they are, exact copies go. `columns`: of `text`, `label` and `group`."""
    off = {
        "repair": {"enabled": False},
        "language": {"enabled": False},
        "personal": {"action": "off"},
    }
    named = [input_of(absolute(source), columns.get("text"), columns.get("label")) for source in sources]
    inputs = [{**source.model_dump(exclude_unset=True), "group": columns.get("group")} for source in named]
    values = {
        "seed": seed,
        "inputs": inputs,
        "steps": off,
        "duplicates": {"near": 0.0},
        "split": dict(settings),
        "contamination": {"probes": False},
        "as_read": True,
    }
    return parse_corpus(values, "the command")


def audit_files(train: Input, test: Input, settings: Mapping[str, object]) -> dict[str, Any]:
    """Which records of `train` stand in `test`: by whole text, shared run of words, or Jaccard; all as plain values."""
    chosen = Contamination.model_validate(dict(settings))
    found = audit(readable(train, LIMITS), readable(test, LIMITS), chosen)
    return {
        "num_train": found.num_train,
        "num_test": found.num_test,
        "train_rows_hit": len(found.train_indices()),
        "test_rows_hit": len(found.test_indices()),
        "counts": found.counts(),
        "not_listed": found.num_left_out,
        "hits": [
            {
                "train": str(hit.train),
                "test": str(hit.test),
                "how": hit.how,
                "amount": f"{hit.num_words} words" if hit.similarity is None else f"Jaccard {hit.similarity:.2f}",
                "train_text": hit.train_text,
                "test_text": hit.test_text,
            }
            for hit in found.hits
        ],
    }


def input_of(path: str, text: str | None = None, label: str | None = None, read_as: str = "auto") -> Input:
    """An input from the words of a command.

    Raises:
        DataError: an unknown format.
    """
    if read_as not in get_args(ReadFormat):
        raise DataError(f'--from: no format "{read_as}".{did_you_mean(read_as, get_args(ReadFormat))}')
    if text is not None or label is not None:
        read_as = "columns"
    return Input.model_validate({"path": path, "format": read_as, "text": text or "text", "label": label})


def with_columns(corpus: Corpus, text: str | None, label: str | None) -> Corpus:
    """The corpus with its inputs read as plain columns, where a command names some."""
    if text is None and label is None:
        return corpus
    return corpus.model_copy(update={"inputs": [input_of(source.path, text, label) for source in corpus.inputs]})


def first_records(corpus: Corpus, num_rows: int) -> list[dict[str, Any]]:
    """The first records of each input as JSON values, and what could not be read among them."""
    shown: list[dict[str, Any]] = []
    for source in inputs_of(corpus):
        for item in islice(read_input(source, limits_of(corpus)), num_rows):
            if isinstance(item, Unreadable):
                problem = {"reason": item.problem.reason, "detail": item.problem.detail}
                source_of = {"file": item.source.file, "line": item.source.line}
                shown.append({"kind": "unreadable", "source": source_of, **problem})
            else:
                shown.append(to_json(item))
    return shown
