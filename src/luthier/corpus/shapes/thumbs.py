"""Thumbs: a prompt, one answer, and whether it was liked."""

from __future__ import annotations

from luthier.corpus.shapes.base import ANSWER_NAMES, PROMPT_NAMES, Row, RowShape, has, name_in, refuse_extras, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import (
    framed,
    has_turns,
    prompt_as_value,
    read_answer,
    read_prompt,
    read_turns,
    spoken_only,
)
from luthier.records import Message, Rating, Source

VERDICTS = ("thumb", "thumbs", "rating", "feedback", "vote", "label")
GOOD = (
    "up",
    "thumbs_up",
    "thumbs up",
    "thumbsup",
    "\U0001f44d",
    "good",
    "positive",
    "like",
    "liked",
    "true",
    "1",
    "+1",
)
BAD = ("down", "thumbs_down", "thumbs down", "thumbsdown", "\U0001f44e", "bad", "negative", "dislike", "disliked",
       "false", "-1")  # fmt: skip


class Thumbs(RowShape):
    """The verdict is up or down in one of many spellings; 0 and stars are refused, since they may mean anything."""

    name = "thumbs"
    kinds = (Rating,)
    columns = "prompt, answer, thumb"

    def fits(self, row: Row) -> bool:
        """A verdict beside an answer, and not the columns of TRL."""
        verdict = next((row[name] for name in VERDICTS if row.get(name) is not None), None)
        if as_verdict(verdict) is None or {"prompt", "completion", "label"} <= set(row):
            return False
        answered = any(has(row, name) for name in PROMPT_NAMES) and any(has(row, name) for name in ANSWER_NAMES)
        return answered or has_turns(row, "messages")

    def records(self, row: Row, source: Source) -> list[Rating]:
        """One rating."""
        refuse_extras(row)
        good = read_verdict(row)
        if has(row, "messages"):
            return [rating_of(framed(row, read_turns(row["messages"], "messages")), good, source)]
        asked, answered = name_in(row, PROMPT_NAMES), name_in(row, ANSWER_NAMES)
        prompt = framed(row, read_prompt(row[asked], asked))
        return [Rating(prompt, read_answer(row[answered], answered), good, source)]

    def row(self, record: Rating) -> dict[str, object]:
        """Up or down."""
        prompt = prompt_as_value(record.prompt)
        return {"prompt": prompt, "answer": record.answer, "thumb": "up" if record.good else "down"}


def as_verdict(value: object) -> bool | None:
    """Whether a value says good or bad; None where it says neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {1.0: True, -1.0: False}.get(value)
    folded = value.strip().lower().rstrip("\ufe0f") if isinstance(value, str) else None
    return True if folded in GOOD else False if folded in BAD else None


def read_verdict(row: Row) -> bool:
    """The verdict of a row."""
    name = name_in(row, VERDICTS)
    good = as_verdict(row[name])
    if good is None:
        known = 'Write "up" or "down" (or true or false, 1 or -1).'
        raise Refused("bad_verdict", f'"{name}" is {shown(row[name])}, which is neither up nor down. {known}')
    return good


def read_boolean(row: Row, name: str) -> bool:
    """True or false, also as a text (CSV has no other way); nothing else."""
    value = row.get(name)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise Refused("not_a_boolean", f'"{name}" is {shown(value)}; it must be true or false.')


def shown(value: object) -> str:
    """A short value as it stands, a long one by its type."""
    short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 40)
    return f'"{value}"' if short and isinstance(value, str) else str(value) if short else type_name(value)


def rating_of(turns: tuple[Message, ...], good: bool, source: Source) -> Rating:
    """A verdict on the last turn of a conversation."""
    if not turns or turns[-1].role != "assistant":
        raise Refused("no_answer", "there is a verdict, but the last turn is not the assistant's.")
    return Rating(turns[:-1], spoken_only(turns[-1], "the last turn"), good, source)
