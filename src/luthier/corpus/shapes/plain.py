"""Rows of plain texts: prompt and completion, named columns, and text alone."""

from __future__ import annotations

from luthier.corpus.fold import row_key
from luthier.corpus.formats import read_label
from luthier.corpus.labels import written_list
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.base import Row, RowShape, has, text_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import completion, framed
from luthier.corpus.wire import whole_text
from luthier.records import (
    Completion,
    Conversation,
    Document,
    Instruction,
    Labelled,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    Source,
    Tagged,
)


class PromptCompletion(RowShape):
    """Two texts, without a chat template."""

    name = "prompt_completion"
    kinds = (Completion,)
    columns = "prompt, completion"

    def fits(self, row: Row) -> bool:
        """Both are texts, and there is no verdict beside them."""
        return isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str) and not has(row, "label")

    def records(self, row: Row, source: Source) -> list[Completion | Conversation]:
        """The texts as they stand, white space too; as turns where a system message or tools stand before them."""
        return [completion(row, framed(row, (Message("user", text_in(row, "prompt")),)), source)]

    def row(self, record: Completion) -> dict[str, object]:
        """The two texts."""
        return {"prompt": record.prompt, "completion": record.completion}


class Columns(RowShape):
    """A text, and its label where a column is named for it; the names are the input's settings."""

    name = "columns"
    kinds = (Labelled, Document)
    columns = "text, label"

    def __init__(self, text: str = "text", label: str | None = None, title: str = "title"):
        self.text, self.label, self.title = text, label, title

    def fits(self, row: Row) -> bool:
        """The text column holds a text."""
        return isinstance(row.get(self.text), str) and (self.label is None or has(row, self.label))

    def records(self, row: Row, source: Source) -> list[Labelled | Document]:
        """A labelled text, or a document where no label column is named."""
        text = text_in(row, self.text)
        if self.label is None:
            title = row.get(self.title)
            return [Document(text, source, title if isinstance(title, str) and title.strip() else None)]
        label, problem = read_several(row, self.label)
        if problem is not None or label is None:
            raise Refused(problem.reason if problem else "missing_field", problem.detail if problem else "no label.")
        return [Labelled(text, label.strip(), source, row_key(text, label.strip()))]

    def row(self, record: Labelled | Document) -> dict[str, object]:
        """One column for each thing known."""
        if isinstance(record, Labelled):
            return {self.text: record.text, self.label or "label": record.label}
        return {self.text: record.text, **({self.title: record.title} if record.title else {})}


def read_several(row: Row, column: str) -> tuple[str | None, Problem | None]:
    """A label, or a list of labels as one text."""
    value = row.get(column)
    if not isinstance(value, list):
        return read_label(row, column)
    read = [read_label({column: item}, column) for item in value]
    problem = next((problem for _, problem in read if problem), None)
    return written_list(label for label, _ in read if label), problem


class Text(RowShape):
    """Text alone, to read on as documents: every record can leave this way, and nothing comes back but its text."""

    name = "text"
    kinds = (
        Document, Labelled, Conversation, Completion, Instruction, Prompt, Preference, Ranking, Rating, Tagged,
    )  # fmt: skip
    columns = "text"

    def fits(self, row: Row) -> bool:
        """A text and nothing beside it."""
        return set(row) == {"text"} and isinstance(row["text"], str)

    def records(self, row: Row, source: Source) -> list[Document]:
        """A document."""
        return [Document(text_in(row, "text"), source)]

    def row(self, record: Record) -> dict[str, object]:
        """All texts of the record, one after the other."""
        return {"text": whole_text(record)}
