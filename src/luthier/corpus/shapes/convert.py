"""One kind of record from another, where nothing is invented and nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal

from luthier.corpus.lines import Problem
from luthier.corpus.shapes.base import Shape, checked, siblings
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import asked, plain_answer, plain_prompt, spoken_only, untrained
from luthier.corpus.wire import KINDS, kind_of, whole_text
from luthier.errors import DataError, did_you_mean
from luthier.records import (
    Completion,
    Conversation,
    Document,
    Instruction,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    Source,
)

Pairs = Literal["all", "ends"]


def convert(record: Record, to: str, pairs: Pairs = "all") -> list[Record] | Problem:
    """Records of another kind that say the same (a preference gives two ratings, a ranking many preferences).

    `to` is a kind as files call it (`conversation`, `preference`, ...). `pairs`: of a ranking, every two answers of
    different rank, or only the best against the worst.

    Raises:
        DataError: no such kind.
    """
    if to not in KINDS:
        raise DataError(f'no record kind "{to}".{did_you_mean(to, KINDS)} Known: {", ".join(KINDS)}.')
    kind = kind_of(record)
    if kind == to:
        return [record]
    try:
        if kind == "ranking" and to == "preference":
            assert isinstance(record, Ranking), "by its kind"
            made: Sequence[Record] = preferences(record, pairs)
        elif to == "document":
            made = [Document(whole_text(record), record.source)]
        else:
            made = steps(kind, to)(record)
    except Refused as refused:
        return refused.problem
    items = [checked(item) for item in made]
    problem = next((item for item in items if isinstance(item, Problem)), None)
    return problem or [item for item in siblings(items, record.source) if not isinstance(item, Problem)]


def write_as(record: Record, shape: Shape, pairs: Pairs = "all") -> list[dict[str, object]] | Problem:
    """Rows of a record in a shape; where the shape has no place for its kind, of the first kind it can become."""
    first = shape.write(record)
    if not isinstance(first, Problem):
        return [first]
    for kind in shape.kinds:
        made = convert(record, kind.__name__.lower(), pairs) if not isinstance(record, kind) else Problem("", "")
        rows = [] if isinstance(made, Problem) else [shape.write(item) for item in made]
        whole = [row for row in rows if not isinstance(row, Problem)]
        if whole and len(whole) == len(rows):
            return whole
    return first


def steps(kind: str, to: str) -> Callable[[Any], Sequence[Record]]:
    """The change from one kind to another, by way of a conversation where there is no direct one."""
    if (kind, to) in CHANGES:
        return CHANGES[kind, to]
    if (kind, "conversation") in CHANGES and ("conversation", to) in CHANGES:
        first, second = CHANGES[kind, "conversation"], CHANGES["conversation", to]
        return lambda record: [made for middle in first(record) for made in second(middle)]
    reachable = [name for name in KINDS if name != kind and can_become(kind, name)]
    can = f"It can become: {', '.join(reachable)}." if reachable else "It can become no other kind."
    raise Refused("no_conversion", f'no "{to}" can be made of a record of the kind "{kind}". {can}')


def can_become(kind: str, to: str) -> bool:
    """Whether there is a change from one kind to another."""
    if to == "document" or (kind, to) in CHANGES or (kind, to) == ("ranking", "preference"):
        return True
    return (kind, "conversation") in CHANGES and ("conversation", to) in CHANGES


# --- changes -------------------------------------------------------------------------------------------


def conversation(user: str, assistant: str, source: Source) -> list[Record]:
    """One question and its answer."""
    return [Conversation((Message("user", user), Message("assistant", assistant)), source)]


def exchange(record: Conversation, to: str) -> tuple[str, str]:
    """The one question and answer of a conversation; Refused where there is more in it."""
    if [turn.role for turn in record.messages] != ["user", "assistant"]:
        roles = ", ".join(turn.role for turn in record.messages)
        detail = f"only one question and its answer can become a {to}; this conversation has the turns {roles}."
        raise Refused("several_turns", detail)
    return plain_prompt(record.messages[:1], to), plain_answer(record.messages[1:], to)


def as_instruction(record: Conversation) -> list[Record]:
    """The question as the instruction; what was its context is not known any more."""
    question, answer = exchange(record, "instruction")
    return [Instruction(question, "", answer, record.source)]


def as_completion(record: Conversation) -> list[Record]:
    """The texts without their roles."""
    question, answer = exchange(record, "completion")
    return [Completion(question, answer, record.source)]


def preferences(record: Ranking, pairs: Pairs) -> list[Record]:
    """Pairs of answers of different rank and text, the better one chosen."""
    known = record.scores
    scores = known or tuple(-float(index) for index in range(len(record.answers)))
    places = [(0, len(record.answers) - 1)] if pairs == "ends" else list(combinations(range(len(record.answers)), 2))
    made: list[Record] = [
        Preference(
            record.prompt,
            answer_turn(record.answers[best]),
            answer_turn(record.answers[worst]),
            record.source,
            (scores[best], scores[worst]) if known else None,
        )
        for best, worst in places
        if scores[best] > scores[worst] and record.answers[best] != record.answers[worst]
    ]
    if not made:
        raise Refused("same_answers", "no two answers of the ranking differ in rank and text.")
    return made


def answer_turn(text: str) -> tuple[Message, ...]:
    """An answer as the assistant's turn."""
    return (Message("assistant", text),)


def ratings(record: Preference) -> list[Record]:
    """The chosen answer with a thumb up, the rejected one with a thumb down."""
    pairs = ((record.chosen, True), (record.rejected, False))
    return [Rating(record.prompt, only_turn(turns, "rating"), good, record.source) for turns, good in pairs]


def as_ranking(record: Preference) -> list[Record]:
    """Two answers, best first; scores stay where they say the same."""
    answers = only_turn(record.chosen, "ranking"), only_turn(record.rejected, "ranking")
    agreeing = record.scores is not None and record.scores[0] > record.scores[1]
    return [Ranking(record.prompt, answers, record.source, record.scores if agreeing else None)]


def only_turn(turns: Sequence[Message], to: str) -> str:
    """The text of an answer of one turn."""
    if len(turns) != 1:
        raise Refused("several_turns", f"an answer of {len(turns)} turns has no place in a {to}.")
    return spoken_only(turns[0], "an answer")


def liked(record: Rating) -> list[Record]:
    """The prompt and its answer; a disliked one is nothing to imitate."""
    if not record.good:
        raise Refused("disliked", "an answer with a thumb down is nothing to imitate.")
    return [Conversation((*untrained(record.prompt), *answer_turn(record.answer)), record.source)]


CHANGES: dict[tuple[str, str], Callable[[Any], Sequence[Record]]] = {
    ("instruction", "conversation"): lambda r: conversation(asked(r.instruction, r.context), r.response, r.source),
    ("completion", "conversation"): lambda r: conversation(r.prompt, r.completion, r.source),
    ("labelled", "conversation"): lambda r: conversation(r.text, r.label, r.source),
    ("rating", "conversation"): liked,
    ("preference", "conversation"): lambda r: [Conversation((*untrained(r.prompt), *r.chosen), r.source)],
    ("conversation", "instruction"): as_instruction,
    ("conversation", "completion"): as_completion,
    ("conversation", "prompt"): lambda r: [Prompt(r.messages[:-1], r.source)],
    ("preference", "prompt"): lambda r: [Prompt(r.prompt, r.source)],
    ("ranking", "prompt"): lambda r: [Prompt(r.prompt, r.source)],
    ("rating", "prompt"): lambda r: [Prompt(r.prompt, r.source)],
    ("preference", "rating"): ratings,
    ("preference", "ranking"): as_ranking,
}
