"""A text with labelled stretches of it, as Prodigy, doccano, spaCy and Presidio write them: to words with BIO tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.corpus.shapes.base import Row, RowShape, has, list_in, name_in, refuse_extras, text_in, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.label_studio import is_words
from luthier.corpus.shapes.spans import Span, spans_of, tag_spans
from luthier.records import Source, Tagged

TEXTS = ("text", "full_text")
COLUMNS = ("spans", "entities", "label", "labels")
STARTS, ENDS = ("start", "start_offset", "start_position", "begin"), ("end", "end_offset", "end_position", "stop")
LABELS = ("label", "type", "entity", "entity_type", "entity_group", "tag")


class Spans(RowShape):
    """Spans are objects with start, end and label (or type, entity), or lists of the three; characters, end not in."""

    name = "spans"
    kinds = (Tagged,)
    columns = "text, spans"

    def fits(self, row: Row) -> bool:
        """A text and a column of spans; of none, where the column can be nothing else."""
        name = column_of(row)
        return name is not None and any(isinstance(row.get(text), str) for text in TEXTS)

    def records(self, row: Row, source: Source) -> list[Tagged]:
        """Words and BIO tags."""
        refuse_extras(row)
        if row.get("answer") in ("reject", "ignore"):  # Prodigy's verdict on the annotation
            raise Refused("not_accepted", f'the annotation was not accepted ("answer" is "{row["answer"]}").')
        text = text_in(row, name_in(row, TEXTS))
        items = list_in(row, column_of(row) or name_in(row, COLUMNS))
        spans = [read_span(item, number) for number, item in enumerate(items, start=1)]
        words: Any = row.get("words")
        found = tag_spans(text, spans, words if is_words(words) else None)
        return [Tagged(tuple(found[0]), tuple(found[1]), source)]

    def row(self, record: Tagged) -> dict[str, object]:
        """The words with one space between them, and their spans."""
        text, spans = spans_of(record.words, record.tags)
        found = [{"start": span.start, "end": span.end, "label": span.label} for span in spans]
        return {"text": text, "spans": found, "words": list(record.words)}


def column_of(row: Row) -> str | None:
    """The column that holds spans."""
    for name in COLUMNS:
        value = row.get(name)
        if isinstance(value, list) and all(is_span(item) for item in value) and (value or name in COLUMNS[:2]):
            return name
    return None


def is_span(item: object) -> bool:
    """Whether something looks like a span."""
    if isinstance(item, Mapping):
        return any(has(item, name) for name in STARTS) and any(has(item, name) for name in ENDS)
    return isinstance(item, list) and len(item) == 3 and isinstance(item[0], int) and isinstance(item[2], str)


def read_span(item: object, number: int) -> Span:
    """A span of either form."""
    if isinstance(item, list) and len(item) == 3:
        start, end, label = item
    elif isinstance(item, Mapping):
        start, end, label = (item[name_in(item, names)] for names in (STARTS, ENDS, LABELS))
    else:
        raise Refused(
            "bad_span", f"span {number} is {type_name(item)}; it must be an object with start, end and label."
        )
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in (start, end))
    if not whole or not isinstance(label, str) or not label.strip():
        raise Refused("bad_span", f"span {number} has no start and end in characters, or no label.")
    return Span(start, end, label.strip())
