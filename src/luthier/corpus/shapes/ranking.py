"""Rankings: one prompt, two or more answers, and their order by ranks, by scores, or as they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.corpus.shapes.base import ANSWER_NAMES, PROMPT_NAMES, Row, RowShape, has, list_in, name_in, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import framed, prompt_as_value, read_prompt
from luthier.records import Ranking, Source

ORDERED_NAMES = ("answers", "ranked_answers")
LIST_NAMES = (*ORDERED_NAMES, "responses", "completions", "candidates", "outputs")
RANK_NAMES = ("ranks", "rank")
SCORE_NAMES = ("scores", "score", "rewards", "reward", "ratings")
TEXT_NAMES = (*ANSWER_NAMES, "text", "content")


class Rankings(RowShape):
    """Ranks count from the best (1); scores rise with it. `answers` and `ranked_answers` may go without: best first."""

    name = "ranking"
    kinds = (Ranking,)
    columns = "prompt, answers, ranks | scores"

    def fits(self, row: Row) -> bool:
        """A prompt and a list of answers that says its order."""
        name = next((name for name in LIST_NAMES if isinstance(row.get(name), list)), None)
        if name is None or not any(has(row, prompt) for prompt in PROMPT_NAMES):
            return False
        items: Any = row[name]
        inner = any(isinstance(item, Mapping) and order_of(item) for item in items)
        return name in ORDERED_NAMES or order_of(row) is not None or inner

    def records(self, row: Row, source: Source) -> list[Ranking]:
        """The answers, best first."""
        asked, listed = name_in(row, PROMPT_NAMES), name_in(row, LIST_NAMES)
        items = list_in(row, listed)
        answers = tuple(read_item(item, f'"{listed}" entry {number}') for number, item in enumerate(items, start=1))
        scores = read_scores(row, listed, items)
        prompt = framed(row, read_prompt(row[asked], asked))
        return [ranked(prompt, answers, scores, source)]

    def row(self, record: Ranking) -> dict[str, object]:
        """Answers best first, with scores where they are known."""
        row: dict[str, object] = {"prompt": prompt_as_value(record.prompt), "answers": list(record.answers)}
        return row if record.scores is None else {**row, "scores": list(record.scores)}


def ranked(
    prompt: tuple[Any, ...], answers: tuple[str, ...], scores: tuple[float, ...] | None, source: Source
) -> Ranking:
    """A ranking whose answers go by falling scores; answers of one score stay in their order."""
    if scores is None:
        return Ranking(prompt, answers, source)
    order = sorted(range(len(answers)), key=lambda index: -scores[index])
    return Ranking(prompt, tuple(answers[i] for i in order), source, tuple(scores[i] for i in order))


def order_of(row: Mapping[str, object]) -> str | None:
    """The column that says the order, if any."""
    return next((name for name in (*RANK_NAMES, *SCORE_NAMES) if row.get(name) is not None), None)


def read_item(item: object, what: str) -> str:
    """An answer: a text, or an object that holds one."""
    if isinstance(item, str):
        return item
    if not isinstance(item, Mapping):
        raise Refused("wrong_type", f"{what} is {type_name(item)}; it must be a text or an object.")
    text = item[name_in(item, TEXT_NAMES)]
    if not isinstance(text, str):
        raise Refused("wrong_type", f"{what}: its text is {type_name(text)}; it must be a text.")
    return text


def read_scores(row: Row, listed: str, items: list[Any]) -> tuple[float, ...] | None:
    """Scores, one an answer. Ranks become scores: the negative rank."""
    name = order_of(row)
    if name is not None:
        values = list_in(row, name)
    else:
        name = next((found for item in items if isinstance(item, Mapping) and (found := order_of(item))), None)
        values = [item.get(name) if isinstance(item, Mapping) else None for item in items] if name else []
    if name is None:
        if listed in ORDERED_NAMES:
            return None
        advice = 'Add them, or call the column "answers", best first.'
        detail = f'"{listed}" has no "ranks" (1 is the best) or "scores". {advice}'
        raise Refused("no_order", detail)
    if len(values) != len(items):
        raise Refused("unequal_lengths", f'{len(items)} answers, but {len(values)} values in "{name}".')
    numbers = tuple(read_number(value, f'"{name}" entry {number}') for number, value in enumerate(values, start=1))
    if name not in RANK_NAMES:
        return numbers
    return tuple(-number for number in numbers)


def read_number(value: object, what: str) -> float:
    """A number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("wrong_type", f"{what} is {type_name(value)}; it must be a number.")
    return float(value)
