"""Columns of a file under the names that luthier reads. No torch here."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from luthier.errors import did_you_mean

ASKED, ANSWERED = ("prompt", "question", "instruction", "input"), ("answer", "response", "completion", "output")
PAIR, FRAME = ("chosen", "rejected", "score_chosen", "score_rejected", "margin"), ("system", "tools")
# What each format of rows reads, of the names that an input may give to columns; the others are exports of tools.
NAMES_OF = {
    "columns": ("text", "label", "title"),
    "question_answer": ("prompt", "question", "input", *ANSWERED, "context", *FRAME),
    "prompt_completion": ("prompt", "completion", *FRAME),
    "alpaca": ("instruction", "input", "context", *ANSWERED, "history", *PAIR, *FRAME),
    "chat": ("messages", *FRAME),
    "sharegpt": ("conversations", "label", *PAIR, *FRAME),
    "trl": ("prompt", "question", *PAIR, "completion", "label", "messages", *FRAME),
    "hh_rlhf": ("prompt", *PAIR, "transcript", *FRAME),
    "ranking": ("prompt", "question", "instruction", "answers", "ranks", "scores", *FRAME),
    "thumbs": ("prompt", "question", "instruction", *ANSWERED, "messages", "thumb", "label", *FRAME),
    "conll": ("text", "words", "tokens", "tags"),
    "spans": ("text", "spans", "words"),
}
READ_NAMES = tuple(dict.fromkeys(name for names in NAMES_OF.values() for name in names))


def sound(columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    """The columns by luthier's names, if each name is known, has a column, and no column stands under two."""
    seen: dict[str, str] = {}
    for name, given in columns.items():
        if name not in READ_NAMES:
            hint = did_you_mean(name, READ_NAMES)
            raise ValueError(
                f'"{name}" is not a name that luthier reads.{hint} Known: {", ".join(READ_NAMES)}. Write '
                "luthier's name first, then the file's column, as in {prompt: question, response: answer}"
            )
        for column in listed(given):
            if column in seen:
                raise ValueError(f'the column "{column}" stands under "{seen[column]}" and under "{name}"; keep one')
            seen[column] = name
        if not given:
            raise ValueError(f'"{name}" names no column; write the file\'s column, or leave it out')
    return columns


ColumnNames = Annotated[dict[str, str | list[str]], AfterValidator(sound)]


def listed(given: str | list[str]) -> list[str]:
    """One column or several, as a list."""
    return [given] if isinstance(given, str) else list(given)
