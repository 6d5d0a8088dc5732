"""Records as plain JSON values and back, and their texts by position: what steps and files need of any record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast, get_args

from luthier.corpus.fold import fold_text, row_key
from luthier.corpus.leaves import text_leaves, with_leaves
from luthier.errors import DataError
from luthier.files import content_hash
from luthier.records import (
    Call,
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

    A pair without scores has no such field, and a turn only those of its fields that say something.
    """
    value = asdict(record)
    for name in MESSAGE_FIELDS:
        if not isinstance(value.get(name, ""), str):
            value[name] = [plain_turn(turn) for turn in value[name]]
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
                values[name] = tuple(turn_of(message) for message in values[name])
        for name in TUPLE_FIELDS:
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cast("Record", kind(**values))
    except (TypeError, KeyError, AttributeError) as error:
        names = ", ".join(field.name for field in fields(kind))
        raise DataError(f"not a {value['kind']} record ({error}); its fields are {names}.") from error


def plain_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn's fields without those that say nothing."""
    return {name: value for name, value in turn.items() if name in ("role", "content", "weight") or value}


def turn_of(value: Mapping[str, Any]) -> Message:
    """The turn that `plain_turn` wrote."""
    return Message(**{**value, "calls": tuple(Call(**call) for call in value.get("calls", ()))})


def texts_of(record: Record) -> tuple[str, ...]:
    """Every text of a record that a person could have written, in a fixed order.

    Labels, tags, roles and scores are not among them; a Tagged record's words are (one text each). Of a turn: what it
    says, what it thinks if it does, and the texts in the arguments of its calls.
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
    return tuple(text for message in messages for text in turn_texts(message))


def turn_texts(message: Message) -> list[str]:
    """What a turn says, what it thinks, and the texts in its calls."""
    thought = [message.reasoning] if message.reasoning else []
    return [message.content, *thought, *(text for call in message.calls for text in text_leaves(call.arguments))]


def refilled(messages: Sequence[Message], texts: Any) -> tuple[Message, ...]:
    """The turns with their next texts."""
    return tuple(refilled_turn(message, texts) for message in messages)


def refilled_turn(message: Message, texts: Any) -> Message:
    """One turn, in the order of `turn_texts`."""
    content = next(texts)
    thought = next(texts) if message.reasoning else ""
    calls = tuple(replace(call, arguments=with_leaves(call.arguments, texts)) for call in message.calls)
    return replace(message, content=content, reasoning=thought, calls=calls)


def whole_text(record: Record) -> str:
    """All texts of a record in one: what duplicates, language and quality are judged on."""
    return (" " if isinstance(record, Tagged) else "\n").join(texts_of(record))


def key_of(record: Record) -> str:
    """Hash of a record's folded texts; equal for exact duplicates. What it is labelled with does not count.

    Calls count whole, with the tools that there are to call.
    """
    called = [(turn.tools, [(call.name, call.arguments) for call in turn.calls]) for turn in turns_in(record)]
    more = [called] if any(tools or calls for tools, calls in called) else []
    return content_hash(kind_of(record), [fold_text(text) for text in texts_of(record)], *more)


def turns_in(record: Record) -> tuple[Message, ...]:
    """All turns of a record, none for one that has texts only."""
    found = [getattr(record, name, ()) for name in MESSAGE_FIELDS]
    return tuple(turn for turns in found if isinstance(turns, tuple) for turn in turns)
