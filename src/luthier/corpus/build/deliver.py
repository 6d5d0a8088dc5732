"""What leaves the merge: shards of records, the ledger, the list of dropped rows, the data sheet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus.build.decide import PARTS, Decisions
from luthier.corpus.build.originals import Originals
from luthier.corpus.build.store import Store
from luthier.corpus.build.units import REPLAY, inputs_of
from luthier.corpus.build.work import Excerpt, dropped_line
from luthier.corpus.documents.tables import write_table
from luthier.corpus.lines import Problem
from luthier.corpus.mixture import mixture
from luthier.corpus.partition import TRAIN
from luthier.corpus.shapes.convert import write_as
from luthier.corpus.shapes.registry import SHAPES
from luthier.corpus.steps.chunking import Chunker, TokenCounter
from luthier.corpus.templates import Template, hash_layout
from luthier.corpus.wire import whole_text
from luthier.errors import RecipeError
from luthier.files import new_folder, open_aside
from luthier.recipe.corpus import Corpus, Templating
from luthier.records import Document, Record, Source

TEXTS_AT_ONCE = 500


@dataclass
class Delivered:
    """What was written: rows and lengths by part, and the records, by row number, without a place in the shape."""

    written: Counter[str] = field(default_factory=Counter)
    pieces: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    unit: str = "words"
    no_place: dict[int, tuple[Source, Problem, str]] = field(default_factory=dict)
    licences: Counter[str] = field(default_factory=Counter)
    synthetic: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Making:
    """What is done to a record on its way out."""

    chunker: Chunker | None
    template: Template | None
    count_tokens: TokenCounter | None
    originals: Originals | None = None

    def rows(self, number: int, record: Record, write: str) -> Sequence[dict[str, Any]] | Problem:
        """The rows of a record on its way out."""
        as_read = self.originals.rows(number) if self.originals is not None else None
        return write_as(record, SHAPES[write]) if as_read is None else as_read


def make_template(settings: Templating) -> Template | None:
    """The template that is asked for."""
    if settings.layout == "own":
        return Template(settings.prompt, settings.completion)
    return hash_layout() if settings.layout == "hash" else None


def deliver(store: Store, corpus: Corpus, found: Decisions, out: Path, count_tokens: TokenCounter | None) -> Delivered:
    """Write the parts' shards under `out/records`; replaces what stood there, whole."""
    done = Delivered(unit="words" if count_tokens is None else "tokens")
    chunker = make_chunker(corpus, count_tokens)
    template = make_template(corpus.template)
    originals = Originals(store, corpus, out / "work" / "as-read.jsonl") if corpus.as_read else None
    making = Making(chunker, template, count_tokens, originals)
    with new_folder(out / "records") as aside:
        for number, part in enumerate(PARTS):
            numbers = found.numbers(number)
            if number == TRAIN and corpus.mixing.enabled:
                numbers = mixed(store, corpus, numbers)
            elif number != TRAIN:
                if not len(numbers):
                    continue
                numbers = shuffled(numbers, corpus.seed)
            write_shards(aside, part, shaped(store, corpus, numbers, part, done, making), corpus)
    if originals is not None:
        originals.close()
    return done


def shuffled(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Held-out rows in a seeded order, so that the first hundred are as good as any."""
    return np.random.default_rng(seed).permutation(numbers)


def mixed(store: Store, corpus: Corpus, numbers: np.ndarray) -> np.ndarray:
    """Training rows in the order of the mixture; the replay file's rows are an input of their own."""
    inputs = store.inputs()[numbers]
    by_task: dict[str, list[np.ndarray]] = {}
    weights: dict[str, float] = {}
    for index, source in enumerate(inputs_of(corpus)):
        task = source.task or Path(source.path).name
        by_task.setdefault(task, []).append(numbers[inputs == index])
        weights[task] = source.weight
    rows = {task: np.concatenate(parts) for task, parts in by_task.items()}
    rows = {task: found for task, found in rows.items() if len(found)}
    replay = REPLAY if corpus.mixing.replay is not None else None
    weights = {task: weight for task, weight in weights.items() if task in rows and task != replay}
    order = mixture({task: len(found) for task, found in rows.items()}, weights, corpus.mixing, corpus.seed, replay)
    return np.array([rows[task][index] for task, index in order], np.int64)


def make_chunker(corpus: Corpus, count_tokens: TokenCounter | None) -> Chunker | None:
    """What cuts documents, where that is asked."""
    if not corpus.steps.chunking.max_tokens:
        return None
    if count_tokens is None:
        raise RecipeError("steps.chunking", ["needs a tokenizer: name a model in steps.chunking.model."])
    return Chunker(corpus.steps.chunking, count_tokens)


def shaped(
    store: Store,
    corpus: Corpus,
    numbers: np.ndarray,
    part: str,
    done: Delivered,
    making: Making,
) -> Iterator[dict[str, Any]]:
    """Rows in the asked shape, counted on their way."""
    for first in range(0, len(numbers), TEXTS_AT_ONCE):
        chosen = numbers[first : first + TEXTS_AT_ONCE]
        texts: list[str] = []
        for number, record in zip(chosen.tolist(), store.rows(chosen), strict=True):
            placed = 0
            for piece in pieces_of(record, making.chunker):
                made = piece if making.template is None else making.template.render(piece)
                written = made if isinstance(made, Problem) else making.rows(number, made, corpus.write)
                if isinstance(written, Problem):
                    done.no_place[number] = (record.source, written, whole_text(record))
                    break
                placed += 1
                texts.append(whole_text(piece))
                yield from written
            if placed:
                done.written[part] += 1
                done.pieces[part] += placed
                done.licences[record.source.licence or "unknown"] += 1
                if record.source.synthetic:
                    done.synthetic[record.source.synthetic] += 1
        counts = making.count_tokens(texts) if making.count_tokens and texts else [len(text.split()) for text in texts]
        done.lengths.setdefault(part, []).extend(counts)


def pieces_of(record: Record, chunker: Chunker | None) -> Iterable[Record]:
    """A document's pieces, or the record itself."""
    if chunker is None or not isinstance(record, Document):
        return [record]
    return chunker.pieces(record)


def write_shards(folder: Path, part: str, rows: Iterator[dict[str, Any]], corpus: Corpus) -> None:
    """Shards of at most `shard_rows` rows, numbered from 0; an empty part is one empty shard."""
    number = 0
    pending = next(rows, None)
    while pending is not None or number == 0:
        shard = folder / f"{part}-{number:05d}.{corpus.output}"
        batch = [] if pending is None else [pending]
        batch += islice(rows, corpus.shard_rows - len(batch))
        write_table(shard, batch, corpus.output)
        pending = next(rows, None)
        number += 1


def write_dropped(out: Path, store: Store, found: Decisions, done: Delivered, excerpt: Excerpt) -> None:
    """All dropped rows, one JSON object a line, in `dropped.jsonl`."""
    with open_aside(out / "dropped.jsonl") as file:
        file.writelines(store.dropped_lines())
        numbers = sorted(found.problems)
        for number, record in zip(numbers, store.rows(numbers), strict=True):
            problem = found.problems[number]
            file.write(line_of("merge", record.source, problem, excerpt(whole_text(record))))
        for source, problem, text in done.no_place.values():
            file.write(line_of("write", source, problem, excerpt(text)))


def line_of(step: str, source: Source, problem: Problem, text: str) -> bytes:
    """One line of dropped.jsonl, as bytes."""
    return json.dumps(dropped_line(step, source, problem, text), ensure_ascii=False).encode() + b"\n"
