"""A corpus is cut into units of work: what one process reads at a time, what is cached, what is resumed.

The cut follows the bytes of the files and nothing else, so every machine that sees the same files plans the same
units, and `--shard i/n` needs no coordination.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.hub import found_files
from luthier.corpus.rows import DOCUMENT, Block, Limits, Reading, find_reading, read_file
from luthier.errors import DataError
from luthier.files import content_hash
from luthier.recipe.corpus import Corpus, Input
from luthier.records import Record

BLOCK_BYTES = 4 * 1024 * 1024  # of a plain JSON-lines file: some thousand records
FILES_OF_A_UNIT = 50  # documents read together
READ_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Unit:
    """Some files, or one block of a file, read in one way.

    `input` counts the corpus's inputs. `key` hashes all that the unit's result depends on.
    """

    input: int
    files: tuple[str, ...]
    reading: Reading
    num_bytes: int
    block: Block | None = None
    key: str = ""


def limits_of(corpus: Corpus) -> Limits:
    """The corpus's bounds on lines and files."""
    return Limits(corpus.max_line_bytes, corpus.max_file_bytes)


def inputs_of(corpus: Corpus) -> list[Input]:
    """The inputs, the replayed records last."""
    if corpus.mixing.replay is None:
        return list(corpus.inputs)
    return [*corpus.inputs, Input(path=corpus.mixing.replay, task=REPLAY)]


REPLAY = "replay"


def plan_units(corpus: Corpus, code: str, say: Callable[[str], None] = lambda text: None) -> list[Unit]:
    """All units of a corpus, in the order in which their records count as first. `say` hears what is left out.

    Raises:
        DataError: an input that names no file, or whose rows have no known shape.
    """
    units: list[Unit] = []
    for number, source in enumerate(inputs_of(corpus)):
        settings: list[object] = [
            code,
            source.model_dump(exclude={"path", "weight", "task"}),
            corpus.steps.model_dump(),
        ]
        settings += [corpus.duplicates.model_dump(), corpus.max_line_bytes, corpus.max_file_bytes]
        documents: list[Path] = []
        found = found_files(source)
        if found.left_out:
            say(found.left_out)
        for path in found.files:
            reading = find_reading(path, source, limits_of(corpus))
            if reading.shape == DOCUMENT:
                documents.append(path)
                continue
            units += [keyed(unit, settings) for unit in table_units(number, path, reading)]
        for first in range(0, len(documents), FILES_OF_A_UNIT):
            units.append(keyed(document_unit(number, documents[first : first + FILES_OF_A_UNIT]), settings))
    return units


def read_unit(unit: Unit, corpus: Corpus) -> Iterator[Record | Unreadable]:
    """The records of a unit."""
    source = inputs_of(corpus)[unit.input]
    for file in unit.files:
        yield from read_file(Path(file), source, unit.reading, limits_of(corpus), unit.block)


def keyed(unit: Unit, settings: list[object]) -> Unit:
    """The unit with the settings and the names in its key."""
    first = None if unit.block is None else unit.block.first_line
    names = [Path(file).name for file in unit.files]
    return replace(unit, key=content_hash(unit.key, str(unit.reading), first, names, settings))


def document_unit(number: int, paths: list[Path]) -> Unit:
    """Some documents, read together."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(file_hash(path).encode())
    size = sum(path.stat().st_size for path in paths)
    return Unit(number, tuple(map(str, paths)), Reading(DOCUMENT), size, key=digest.hexdigest())


def table_units(number: int, path: Path, reading: Reading) -> Iterator[Unit]:
    """The blocks of one file of rows; a file that cannot be cut is one unit."""
    if path.suffix.lower() in (".jsonl", ".ndjson") and reading.shape != "conll":
        for block, digest in line_blocks(path):
            yield Unit(number, (str(path),), reading, block.end - block.start, block, digest)
    else:
        yield Unit(number, (str(path),), reading, path.stat().st_size, key=file_hash(path))


def line_blocks(path: Path) -> Iterator[tuple[Block, str]]:
    """Blocks that end at line ends, with their hashes, in one pass over the file."""
    start = at = 0
    line = first_line = 1
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(READ_BYTES):
            cut = chunk.rfind(b"\n") + 1 if at + len(chunk) - start >= BLOCK_BYTES else 0
            if cut:
                digest.update(chunk[:cut])
                yield Block(start, at + cut, first_line), digest.hexdigest()
                line += chunk.count(b"\n", 0, cut)
                start, first_line, digest = at + cut, line, hashlib.sha256()
            digest.update(chunk[cut:])
            line += chunk.count(b"\n", cut)
            at += len(chunk)
    if at > start:
        yield Block(start, at, first_line), digest.hexdigest()


def file_hash(path: Path) -> str:
    """Hex digest of a file; DataError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from error
