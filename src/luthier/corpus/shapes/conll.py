"""Words with tags: CoNLL text files (`word ... TAG` lines, a blank line between sentences), and rows of two lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.lines import Line, Problem
from luthier.corpus.shapes.base import Row, RowShape, checked, name_in, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.provenance import filled, provenance_columns
from luthier.records import Source, Tagged

WORD_NAMES = ("words", "tokens", "text")
TAG_NAMES = ("tags", "ner_tags", "pos_tags")
DOCUMENT_MARK = "-DOCSTART-"
# `# date = 2024-05-01`: what this project writes, and CoNLL-U's way to say things of a sentence
COMMENT = re.compile(r"# (\w+) = (.*)")
MAX_SENTENCE_WORDS = 20_000


class Conll(RowShape):
    """Rows of `words` and `tags`: lists of one length, or texts parted by white space."""

    name = "conll"
    kinds = (Tagged,)
    columns = "words, tags"

    def fits(self, row: Row) -> bool:
        """A list of words, or a text, beside tags."""
        worded = next((row[name] for name in WORD_NAMES if row.get(name) is not None), None)
        tags = next((row[name] for name in TAG_NAMES if row.get(name) is not None), None)
        both_texts = isinstance(worded, str) and isinstance(tags, str) and len(worded.split()) == len(tags.split())
        return (isinstance(worded, list) and isinstance(tags, list)) or both_texts

    def records(self, row: Row, source: Source) -> list[Tagged]:
        """The words with their tags."""
        words, tags = name_in(row, WORD_NAMES), name_in(row, TAG_NAMES)
        return [Tagged(read_words(row[words], words), read_words(row[tags], tags), source)]

    def row(self, record: Tagged) -> dict[str, object]:
        """Two lists."""
        return {"words": list(record.words), "tags": list(record.tags)}


def with_tag_names(row: Row, names: Sequence[str]) -> Row | Problem:
    """The row with the names of its tags in the place of their numbers."""
    column = numbered(row)
    if column is None:
        return row
    numbers: Any = row[column]
    wrong = next((number for number in numbers if not 0 <= number < len(names)), None)
    if wrong is not None:
        detail = f'"{column}" holds the number {wrong}, but tag_names names 0 to {len(names) - 1}. Name all of them.'
        return Problem("bad_tag", detail)
    return {**row, column: [names[number] for number in numbers]}


def numbered(row: Row) -> str | None:
    """The column whose tags are whole numbers."""
    for name in TAG_NAMES:
        tags = row.get(name)
        if isinstance(tags, list) and tags and all(type(tag) is int for tag in tags):
            return name
    return None


def read_words(value: object, name: str) -> tuple[str, ...]:
    """A list of texts, or a text parted by white space."""
    if isinstance(value, str):
        return tuple(value.split())
    if not isinstance(value, list | tuple):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be a list of texts.')
    for number, item in enumerate(value, start=1):
        if not isinstance(item, str):
            advice = " Name the tags in their order: tag_names: [O, B-PER, ...]." if name in TAG_NAMES else ""
            raise Refused("wrong_type", f'"{name}" entry {number} is {type_name(item)}; it must be a text.{advice}')
    return tuple(value)


# --- CoNLL text files ----------------------------------------------------------------------------------


@dataclass
class Sentence:
    """Lines of one sentence as far as they are read; `line` is the first one's number."""

    line: int = 0
    words: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    known: dict[str, object] = field(default_factory=dict)
    problem: Problem | None = None

    def add(self, line: Line, max_words: int) -> None:
        """Take a line `word ... TAG` (columns parted by tabs where there is one, else by white space) or a comment."""
        self.line = self.line or line.number
        comment = COMMENT.fullmatch(line.text.strip())
        columns = line.text.rstrip().split("\t") if "\t" in line.text else line.text.split()
        if line.problem is not None:
            self.problem = self.problem or line.problem
        elif comment:
            self.known[comment[1]] = comment[2]
        elif len(columns) < 2:
            detail = f'line {line.number} ("{line.text.strip()[:40]}") has no tag. Write the word, a space and its tag.'
            self.problem = self.problem or Problem("missing_field", detail)
        elif len(self.words) >= max_words:
            detail = f"more than {max_words:,} words without a blank line. Part the sentences by blank lines."
            self.problem = self.problem or Problem("sentence_too_long", detail)
        else:
            self.words.append(columns[0].strip())
            self.tags.append(columns[-1].strip())


def read_conll(lines: Iterable[Line], file: str, max_words: int = MAX_SENTENCE_WORDS) -> Iterator[Tagged | Unreadable]:
    """The sentences of a CoNLL file, one at a time.

    The first column is the word, the last its tag. Sentences below one `-DOCSTART-` line, or `# newdoc`, share a group.
    A sentence with a bad line, or of more than `max_words`, is one Unreadable; reading goes on at the next.
    """
    sentence, documents = Sentence(), 0
    for line in lines:
        marks_document = line.text.startswith((DOCUMENT_MARK, "# newdoc"))
        if marks_document or (line.problem is None and not line.text.strip()):
            yield from finished(sentence, file, documents)
            sentence, documents = Sentence(), documents + marks_document
        else:
            sentence.add(line, max_words)
    yield from finished(sentence, file, documents)


def finished(sentence: Sentence, file: str, documents: int) -> Iterator[Tagged | Unreadable]:
    """The record of a sentence, or its problem; nothing where there were no words."""
    if not sentence.words and sentence.problem is None:
        return
    source = filled(Source(file, sentence.line), [sentence.known])
    if source.group is None and documents:
        source = replace(source, group=f"{file} document {documents}")
    record = checked(Tagged(tuple(sentence.words), tuple(sentence.tags), source))
    problem = sentence.problem or (record if isinstance(record, Problem) else None)
    if problem is not None:
        yield Unreadable(source, problem, " ".join(sentence.words))
    elif isinstance(record, Tagged):
        yield record


def conll_text(record: Tagged) -> str | Problem:
    """A sentence as CoNLL lines, with the blank line that ends it; what is known of it stands above, as comments."""
    lines = []
    for name, value in provenance_columns(record.source).items():
        lines.append(f"# {name} = {' '.join(str(value).split())}")
    for number, (word, tag) in enumerate(zip(record.words, record.tags, strict=True), start=1):
        if len(word.split()) != 1 or len(tag.split()) != 1:
            return Problem(
                "white_space", f'word {number} ("{word}" with "{tag}") holds white space, which parts columns.'
            )
        lines.append(f"{word} {tag}")
    return "\n".join(lines) + "\n\n"
