"""Records as plain JSON values and back, and their texts by position: what steps and files need of any record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast, get_args

from luthier.corpus.fold import fold_text, row_key
from luthier.errors import DataError
from luthier.files import content_hash
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

KINDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in get_args(Record)}
MESSAGE_FIELDS = ("messages", "prompt", "chosen", "rejected")
TUPLE_FIELDS = ("answers", "scores", "words", "tags")


def kind_of(record: Record) -> str:
    """The record's kind, as files call it: `document`, `labelled`, `conversation`, ..."""
    return type(record).__name__.lower()


def to_json(record: Record) -> dict[str, Any]:
    """A plain JSON object: `kind`, the record's fields, and `source` without its empty fields.

    A pair without scores has no such field.
    """
    value = asdict(record)
    if isinstance(record, Preference) and record.scores is None:
        del value["scores"]
    value["source"] = {name: item for name, item in value["source"].items() if item is not None}
    return {"kind": kind_of(record), **value}


def from_json(value: Mapping[str, Any]) -> Record:
    """The record `to_json` wrote.

    Raises:
        DataError: not such an object.
    """
    values = dict(value)
    kind = KINDS.get(str(values.pop("kind", None)))
    if kind is None:
        raise DataError(f'no record kind "{value.get("kind")}". Known: {", ".join(KINDS)}.')
    try:
        values["source"] = Source(**values["source"])
        for name in MESSAGE_FIELDS:
            if name in values and not isinstance(values[name], str):
                values[name] = tuple(Message(**message) for message in values[name])
        for name in TUPLE_FIELDS:
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cast("Record", kind(**values))
    except (TypeError, KeyError, AttributeError) as error:
        names = ", ".join(field.name for field in fields(kind))
        raise DataError(f"not a {value['kind']} record ({error}); its fields are {names}.") from error


def texts_of(record: Record) -> tuple[str, ...]:
    """Every text of a record that a person could have written, in a fixed order.

    Labels, tags, roles and scores are not among them; a Tagged record's words are (one text each).
    """
    match record:
        case Document() | Labelled():
            return (record.text,)
        case Conversation() | Prompt():
            return contents(record.messages)
        case Completion():
            return (record.prompt, record.completion)
        case Instruction():
            return (record.instruction, record.context, record.response)
        case Preference():
            return contents(record.prompt) + contents(record.chosen) + contents(record.rejected)
        case Ranking():
            return contents(record.prompt) + record.answers
        case Rating():
            return (*contents(record.prompt), record.answer)
        case Tagged():
            return record.words


def with_texts(record: Record, texts: Sequence[str]) -> Record:
    """The record with other texts, in the order of `texts_of`."""
    assert len(texts) == len(texts_of(record)), "one text for each"
    rest = iter(texts)
    match record:
        case Document():
            return replace(record, text=next(rest))
        case Labelled():
            text = next(rest)
            return replace(record, text=text, key=row_key(text, record.label))
        case Conversation() | Prompt():
            return replace(record, messages=refilled(record.messages, rest))
        case Completion():
            return replace(record, prompt=next(rest), completion=next(rest))
        case Instruction():
            return replace(record, instruction=next(rest), context=next(rest), response=next(rest))
        case Preference():
            prompt, chosen = refilled(record.prompt, rest), refilled(record.chosen, rest)
            return replace(record, prompt=prompt, chosen=chosen, rejected=refilled(record.rejected, rest))
        case Ranking():
            return replace(record, prompt=refilled(record.prompt, rest), answers=tuple(rest))
        case Rating():
            return replace(record, prompt=refilled(record.prompt, rest), answer=next(rest))
        case Tagged():
            return replace(record, words=tuple(rest))


def contents(messages: Sequence[Message]) -> tuple[str, ...]:
    """The texts of some turns."""
    return tuple(message.content for message in messages)


def refilled(messages: Sequence[Message], texts: Any) -> tuple[Message, ...]:
    """The turns with their next texts."""
    return tuple(replace(message, content=next(texts)) for message in messages)


def whole_text(record: Record) -> str:
    """All texts of a record in one: what duplicates, language and quality are judged on."""
    return (" " if isinstance(record, Tagged) else "\n").join(texts_of(record))


def key_of(record: Record) -> str:
    """Hash of a record's folded texts; equal for exact duplicates. What it is labelled with does not count."""
    return content_hash(kind_of(record), [fold_text(text) for text in texts_of(record)])
