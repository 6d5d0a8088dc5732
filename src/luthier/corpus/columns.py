"""A file's columns under luthier's names, and what to write where they are not found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from luthier.corpus.formats import json_type, missing_column
from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.recipe.columns import ANSWERED, ASKED, listed

Row = Mapping[str, object]
Given = Mapping[str, str | list[str]]

# names that a row's question, or its answer, may have: where `columns` names one, the others are not it
RIVALS = (("prompt", "question"), (*ASKED, "query", "problem")), (ANSWERED, (*ANSWERED, "solution"))
TEXTS = (*ASKED, *ANSWERED, "text", "title", "context", "system", "chosen", "rejected", "transcript")
PLAIN_NAME = re.compile(r"[^\W\d][\w -]*")
MOST_LABELS, LABEL_CHARS = 0.5, 60  # of the first rows: so many different short values are a label


def check_columns(file: str, rows: Sequence[Row], columns: Given) -> None:
    """Raise DataError where a column is not in the first rows, or its new name stands there already."""
    found = columns_of(rows)
    taken = {column for given in columns.values() for column in listed(given)}
    for name, given in columns.items():
        for column in listed(given):
            if column not in found:
                raise DataError(missing_column(file, f"columns.{name}", column, found))
        if name in found and name not in taken:
            raise DataError(
                f'{file}: columns gives "{name}" the column {shown(listed(given))}, but the file has a column "{name}" '
                f'of its own. Take "{name}" out of columns to read that one, or rename it in the file.'
            )


def renamed(row: Row, columns: Given, join: str) -> Row | Problem:
    """The row with its columns under luthier's names; several of one name become one text, `join` between them."""
    taken = {column for given in columns.values() for column in listed(given)}
    for names, rivals in RIVALS:
        if any(name in columns for name in names):
            taken |= {name for name in rivals if name not in columns}
    made: dict[str, object] = {name: value for name, value in row.items() if name not in taken}
    for name, given in columns.items():
        value = value_of(row, name, given, join)
        if isinstance(value, Problem):
            return value
        made[name] = value
    return made


def value_of(row: Row, name: str, given: str | list[str], join: str) -> object:
    """What stands under a name: one column's value, for a text also of a number or of a list of texts."""
    parts = [row.get(column) for column in listed(given)]
    plain = isinstance(given, str) and not (is_number(parts[0]) or are_strings(parts[0]))
    if isinstance(given, str) and (plain or name not in TEXTS):
        return parts[0]
    texts: list[str] = []
    for column, part in zip(listed(given), parts, strict=True):
        if part is not None and not (isinstance(part, str) or is_number(part) or are_strings(part)):
            detail = f'"{column}" is {json_type(part)}; what is put together must be texts, numbers or lists of texts.'
            return Problem("wrong_type", detail)
        texts += [] if part is None else part if isinstance(part, list) else [str(part)]
    return join.join(text for text in texts if text.strip()) or None


def is_number(value: object) -> bool:
    """A number that is not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_strings(value: object) -> bool:
    """A list of texts."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# --- for error texts -----------------------------------------------------------------------------------


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The names of all columns, in their order."""
    return list(dict.fromkeys(str(name) for row in rows for name in row))


def shown(names: Sequence[str]) -> str:
    """Names in quotes."""
    return ", ".join(f'"{name}"' for name in names)


def proposal(rows: Sequence[Row]) -> str:
    """The `columns:` lines that the columns of some rows allow, for error texts; empty where there is no text."""
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in columns_of(rows)}
    turns = [name for name, found in values.items() if found and all(are_turns(value) for value in found)]
    labels = [name for name, found in values.items() if are_labels(found)]
    texts = [name for name, found in values.items() if found and name not in labels and are_texts(found)]
    (asks, *_), (answers, *_) = ([name for name in texts if name in rivals] or [""] for _, rivals in RIVALS)
    texts = [name for name in dict.fromkeys((asks, answers, *sorted(texts, key="title".__eq__))) if name]
    turns, labels, texts = ([spelled(name) for name in names] for names in (turns, labels, texts))
    lines = [f"{{messages: {turns[0]}}}"] if turns else []
    lines += [f"{{prompt: {texts[0]}, response: {texts[1]}}}"] if len(texts) > 1 else []
    if texts and labels:
        whole = f"[{texts[0]}, {texts[1]}]" if len(texts) == 2 else texts[0]
        lines.append(f"{{text: {whole}, label: {labels[0]}}}")
    lines += [f"{{text: {texts[0]}}}"] if len(texts) == 1 and not labels else []
    return f" Say what they are in columns, for example columns: {' or columns: '.join(lines)}." if lines else ""


def spelled(name: str) -> str:
    """A column as YAML takes it."""
    return name if PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def are_turns(value: object) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def are_texts(values: Sequence[object]) -> bool:
    """Whether values are texts, not all of them one word."""
    return all(isinstance(value, str) for value in values) and any(" " in str(value).strip() for value in values)


def are_labels(values: Sequence[object]) -> bool:
    """Whether values are short and come again: texts, whole numbers, yes and no."""
    if not values or not all(isinstance(value, str | int) and len(str(value)) <= LABEL_CHARS for value in values):
        return False
    return len(values) > 1 and len(set(values)) <= max(1, MOST_LABELS * len(values))
