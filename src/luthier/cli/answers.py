"""Answers to many texts: the rows that get none, what is printed, and the file of them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from luthier.cli.texts import COMMAND_LINE, Asked
from luthier.errors import DataError
from luthier.files import open_aside

OUT_ENDINGS = (".csv", ".tsv", ".jsonl")
MOST_NAMED = 10  # bad rows in an error or a note
LEFT_OUT = 3  # exit code where bad rows were left out
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes spreadsheets run a cell (OWASP, "CSV injection")
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?%?")


@dataclass(frozen=True)
class Told:
    """A text and its answer by name (label, probability, ...); None where there is none."""

    asked: Asked
    answer: Mapping[str, Any] | None


# --- which rows get an answer ------------------------------------------------------------------------------------


def answered(
    asked: Sequence[Asked],
    problems: Callable[[list[str]], Mapping[int, str]],
    answer: Callable[[list[str]], Iterable[Mapping[str, Any]]],
    skip_bad: bool,
) -> list[Told]:
    """Every text with its answer, in their order. DataError where some are bad, unless those are to be skipped."""
    require_good(asked, skip_bad)
    good = [place for place, one in enumerate(asked) if not one.problem]
    found = problems([asked[place].text for place in good])
    bad = {good[place]: problem for place, problem in found.items()}
    asked = [replace(one, problem=bad.get(place, one.problem)) for place, one in enumerate(asked)]
    require_good(asked, skip_bad)
    answers = iter(answer([one.text for one in asked if not one.problem]))
    return [Told(one, None if one.problem else next(answers)) for one in asked]


def require_good(rows: Sequence[Asked], skip_bad: bool) -> None:
    """DataError that names the bad rows, unless they are to be skipped and others are left."""
    bad = [row for row in rows if row.problem and not row.blank]
    if not bad or (skip_bad and any(not row.problem for row in rows)):
        return
    advice = "" if skip_bad or len(rows) == 1 else " To leave such rows out, give --skip-bad."
    if len(bad) == 1:
        raise DataError(f"{bad[0]}: {bad[0].problem}{advice}")
    raise DataError(f"{len(bad):,} of {len(rows):,} rows cannot be used.{advice}\n{named(bad)}")


def named(bad: Sequence[Asked]) -> str:
    """The first bad rows, one a line."""
    lines = [f"  - {row}: {row.problem}" for row in bad[:MOST_NAMED]]
    return "\n".join(lines + [f"  ... and {len(bad) - MOST_NAMED:,} more."] * (len(bad) > MOST_NAMED))


# --- on the screen -----------------------------------------------------------------------------------------------


def tell(
    told: Sequence[Told], lines: Iterable[str], values: Sequence[Mapping[str, Any]], as_json: bool, out: Path | None
) -> None:
    """Print the answers as lines or JSON values, or write their file; exit code 3 where bad rows were left out."""
    if out is not None:
        write_out(out, told)
        say_written(out, told, as_json)
    elif as_json:
        typer.echo(json.dumps(values, ensure_ascii=False, default=str))
    else:
        for line in lines:
            typer.echo(line)
    say_unanswered([one.asked for one in told])


def answer_values(told: Sequence[Told]) -> list[dict[str, Any]]:
    """The answers as JSON values, each with its file and line, the other columns of its row, and why there is none."""
    nothing = dict.fromkeys(answer_names(told))
    return [
        {
            "file": None if one.asked.file == COMMAND_LINE else one.asked.file,
            "line": one.asked.line,
            "text": one.asked.text,
            **(nothing if one.answer is None else one.answer),
            "reason": one.asked.problem or None,
            "columns": {name: value for name, value in one.asked.columns.items() if name != one.asked.column},
        }
        for one in told
    ]


def answer_names(told: Sequence[Told]) -> list[str]:
    """What answers consist of."""
    return list(dict.fromkeys(name for one in told for name in one.answer or ()))


def say_written(out: Path, told: Sequence[Told], as_json: bool) -> None:
    """Where the answers are."""
    num_rows, num_answered = len(told), sum(one.answer is not None for one in told)
    if as_json:
        typer.echo(json.dumps({"out": str(out), "rows": num_rows, "answered": num_answered}))
    else:
        typer.echo(f"{out}: {num_rows:,} rows, {num_answered:,} of them answered.")


def say_unanswered(rows: Sequence[Asked]) -> None:
    """On standard error: how many rows have no answer; exit code 3 where they are bad ones, not merely blank."""
    blank = [row for row in rows if row.blank]
    bad = [row for row in rows if row.problem and not row.blank]
    if blank:
        typer.echo(f"note: {len(blank):,} of {len(rows):,} texts blank, no answer; first: {blank[0]}.", err=True)
    if bad:
        typer.echo(f"note: {len(bad):,} of {len(rows):,} rows left out:\n{named(bad)}", err=True)
        raise typer.Exit(LEFT_OUT)


def label_lines(told: Sequence[Told]) -> list[str]:
    """Of each text its label (labels, number, tags), its probability where it has one, and itself, parted by tabs."""
    lines = []
    for one in told:
        answer = dict(one.answer or {})
        probability = answer.pop("probability", None)
        value = next(iter(answer.values()), "–")
        shown = f"{value:g}" if isinstance(value, float) else value
        if isinstance(value, list):
            shown = (", " if "labels" in answer else " ").join(value) or "none"
        text = one_line(one.asked.text) if one.answer else f"({one.asked.problem})"
        lines.append(f"{shown}\t{'' if probability is None else f'{probability:.3f}'}\t{text}")
    return lines


def reply_lines(told: Sequence[Told]) -> list[str]:
    """Each reply; of several, below the text that it answers, with a blank line between."""
    replies = []
    for one in told:
        reply = f"({one.asked.problem})"
        if one.answer:
            reply = one.answer["answer"] + ("" if one.answer["finished"] else " [...]")
        replies.append(reply if len(told) == 1 else f"> {one_line(one.asked.text)}\n{reply}")
    return "\n\n".join(replies).split("\n")


def one_line(text: str) -> str:
    """A text without line ends, tabs and white space side by side."""
    return " ".join(text.split())


# --- the file of answers -----------------------------------------------------------------------------------------


def check_out(out: Path | None, file: Path | str | None) -> None:
    """DataError where the answers cannot be written to a file of that name, before anything is computed."""
    if out is None:
        return
    if out.suffix.lower() not in OUT_ENDINGS:
        raise DataError(f"--out {out}: name a file that ends in {', '.join(OUT_ENDINGS)}.")
    if out.is_dir():
        raise DataError(f"--out {out}: is a folder. Name a file in it.")
    if file is not None and out.exists() and Path(file).exists() and out.samefile(file):
        raise DataError(f"--out {out}: is the file that is read. Give another one.")


def write_out(out: Path, told: Sequence[Told]) -> None:
    """Each row with its columns and its answer, aside and then renamed; of texts without columns, line and text.

    Where a column has the name of a part of the answer, that part is called `predicted_...`.
    """
    rows = [dict(one.asked.columns) or {"line": one.asked.line, "text": one.asked.text} for one in told]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    names = {name: free_name(name, columns) for name in [*answer_names(told), "reason"]}
    for row, one in zip(rows, told, strict=True):
        parts = {**(one.answer or {}), "reason": one.asked.problem or None}
        row |= {written: parts.get(name) for name, written in names.items()}
    if out.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    else:
        text = csv_text(rows, [*columns, *names.values()], "\t" if out.suffix.lower() == ".tsv" else ",")
    with open_aside(out) as file:
        file.write(text.encode("utf-8"))


def free_name(name: str, taken: Sequence[str]) -> str:
    """A name that no column has."""
    while name in taken:
        name = f"predicted_{name}"
    return name


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], delimiter: str) -> str:
    """Rows as a table with a head; the probabilities of all labels are for JSON alone."""
    columns = [name for name in columns if not any(isinstance(row.get(name), dict) for row in rows)]
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter)
    writer.writerow([safe_cell(name) for name in columns])
    writer.writerows([safe_cell(row.get(name)) for name in columns] for row in rows)
    return written.getvalue()


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet runs: a text that begins as a formula gets a quote before it, numbers stay."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    return value if NUMBER.fullmatch(value) else f"'{value}"
