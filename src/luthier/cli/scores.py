"""Rewards of the answers in a file, as what a command prints or writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.cli.answers import Told, one_line, require_good
from luthier.cli.texts import Asked
from luthier.corpus.documents.base import Unreadable
from luthier.errors import DataError
from luthier.records import Record

Read = Record | Unreadable


def scored(run_folder: Path, file: str, stage: str | None, task: str | None, skip_bad: bool) -> list[Told]:
    """Every answer of every row with its reward, in their order; of a bad row, where those are skipped, the reason.

    DataError names all bad rows where they are not to be skipped.
    """
    from luthier.stages import load_reward
    from luthier.stages.score import read_rows

    rows = read_rows(file)
    if not rows:
        raise DataError(f"{file}: has no rows, nothing to score.")
    problems = {place: row.problem.detail for place, row in enumerate(rows) if isinstance(row, Unreadable)}
    require_good(places(rows, problems), skip_bad)
    scorer = load_reward(run_folder, stage, task)
    for place, row in enumerate(rows):
        if not isinstance(row, Unreadable) and (problem := scorer.problem(row)):
            problems[place] = problem
    require_good(places(rows, problems), skip_bad)
    good = [row for place, row in enumerate(rows) if place not in problems and not isinstance(row, Unreadable)]
    rewards = iter(scorer.score_rows(good))
    told: list[Told] = []
    for place, asked in enumerate(places(rows, problems)):
        if place in problems:
            told.append(Told(asked, None))
            continue
        for one in next(rewards):
            columns = {name: one[name] for name in ("file", "line", "answer")}
            parts = {name: one[name] for name in ("reward", "normalised")}
            told.append(Told(Asked(one["answer"], asked.file, asked.line, columns), parts))
    return told


def places(rows: Sequence[Read], problems: Mapping[int, str]) -> list[Asked]:
    """Where each row stands, and its problem."""
    return [
        Asked("", row.source.file, row.source.line, {"file": row.source.file, "line": row.source.line, "answer": None},
              problem=problems.get(place, ""))
        for place, row in enumerate(rows)
    ]  # fmt: skip


def score_values(told: Sequence[Told]) -> list[dict[str, object]]:
    """The rewards as JSON values, as `luthier.stages.load_reward` gives them; of a bad row, why there is none."""
    return [
        {**one.asked.columns, **one.answer} if one.answer else {**one.asked.columns, "reason": one.asked.problem}
        for one in told
    ]


def score_line(told: Told) -> str:
    """Normalised reward, reward, line and answer, parted by tabs."""
    answer = told.answer or {}
    figures = [f"{answer[name]:.3f}" if answer else "–" for name in ("normalised", "reward")]
    return "\t".join(
        [*figures, str(told.asked.line), one_line(told.asked.text) if answer else f"({told.asked.problem})"]
    )
