"""Thumbs: a prompt, one answer, and whether it was liked."""

from __future__ import annotations

import math
from collections.abc import Iterable

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
from luthier.errors import DataError
from luthier.records import Message, Rating, Source

VERDICTS = ("thumb", "thumbs", "rating", "feedback", "vote", "label")
GOOD = {"up", "thumbs_up", "thumbs up", "thumbsup", "\U0001f44d", "good", "positive", "like", "liked", "desirable",
        "accepted", "true", "yes", "1", "1.0", "+1"}  # fmt: skip
BAD = {"down", "thumbs_down", "thumbs down", "thumbsdown", "\U0001f44e", "bad", "negative", "dislike", "disliked",
       "undesirable", "rejected", "false", "no", "0", "0.0", "-1", "-1.0"}  # fmt: skip


class Thumbs(RowShape):
    """The verdict is up or down in one of many spellings (1 and 0 too); stars are refused: they may mean anything."""

    name = "thumbs"
    kinds = (Rating,)
    columns = "prompt, answer, thumb"

    def fits(self, row: Row) -> bool:
        """A verdict beside an answer, and not the columns of TRL."""
        verdict = next((row[name] for name in VERDICTS if row.get(name) is not None), None)
        if as_verdict(verdict) is None or {"prompt", "completion", "label"} <= set(row):
            return False
        return is_judged(row)

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


def is_judged(row: Row) -> bool:
    """Whether a row has an answer and a column for a verdict on it."""
    answered = any(has(row, name) for name in PROMPT_NAMES) and any(has(row, name) for name in ANSWER_NAMES)
    return any(has(row, name) for name in VERDICTS) and (answered or has_turns(row, "messages"))


def as_verdict(value: object) -> bool | None:
    """Whether a value says good or bad; None where it says neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return {1.0: True, 0.0: False, -1.0: False}.get(value)
    folded = value.strip().lower().rstrip("\ufe0f") if isinstance(value, str) else None
    return True if folded in GOOD else False if folded in BAD else None


def read_verdict(row: Row) -> bool:
    """The verdict of a row."""
    name = name_in(row, VERDICTS)
    good = as_verdict(row[name])
    if good is None:
        known = 'Write "up" or "down" (or yes or no, true or false, 1 or 0).'
        raise Refused("bad_verdict", f'"{name}" is {shown(row[name])}, which is neither up nor down. {known}')
    return good


def read_boolean(row: Row, name: str) -> bool:
    """A verdict in any of its spellings."""
    good = as_verdict(row.get(name))
    if good is None:
        raise Refused("not_a_boolean", f'"{name}" is {shown(row.get(name))}; it must be true or false (1 or 0).')
    return good


def check_verdicts(file: str, rows: Iterable[Row]) -> None:
    """Raise DataError where the verdicts of a file's first rows are of a scale that is not up and down."""
    values = [next((row[name] for name in VERDICTS if has(row, name)), None) for row in rows]
    numbers = {number for value in values if (number := as_number(value)) is not None}
    if numbers <= {0, 1} or numbers <= {-1, 1}:
        return
    listed = ", ".join(f"{number:g}" for number in sorted(numbers)[:8])
    if numbers <= {-1, 0, 1}:
        raise DataError(f"{file}: the verdicts are {listed}. Which is down, -1 or 0? Leave out rows of the other one.")
    raise DataError(
        f"{file}: the verdicts are numbers of a scale ({listed}), not up and down. Say which are good: write up and "
        "down (or 1 and 0) in their place, or make pairs or a ranking of the answers to one prompt."
    )


def as_number(value: object) -> float | None:
    """A number that is not true or false, also as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """A short value as it stands, a long one by its type."""
    short = isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 40)
    return f'"{value}"' if short and isinstance(value, str) else str(value) if short else type_name(value)


def rating_of(turns: tuple[Message, ...], good: bool, source: Source) -> Rating:
    """A verdict on the last turn of a conversation."""
    if not turns or turns[-1].role != "assistant":
        raise Refused("no_answer", "there is a verdict, but the last turn is not the assistant's.")
    return Rating(turns[:-1], spoken_only(turns[-1], "the last turn"), good, source)
