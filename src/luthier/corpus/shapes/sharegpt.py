"""ShareGPT rows: `conversations` of `from` and `value`; with `chosen` and `rejected`, or `label`, judged answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.corpus.shapes.base import Row, RowShape, has, name_in, refuse_extras, text_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.thumbs import rating_of, read_boolean
from luthier.corpus.shapes.turns import has_turns, read_answer, read_turns
from luthier.records import Conversation, Message, Preference, Rating, Source

COLUMN_NAMES = ("conversations", "conversation")
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


class ShareGpt(RowShape):
    """A `system` column, where there is one, becomes the first turn."""

    name = "sharegpt"
    kinds = (Conversation, Preference, Rating)
    columns = "conversations"

    def fits(self, row: Row) -> bool:
        """A column of turns under its name."""
        return any(has_turns(row, name) for name in COLUMN_NAMES)

    def records(self, row: Row, source: Source) -> list[Conversation | Preference | Rating]:
        """The conversation, the pair or the rating."""
        refuse_extras(row)
        name = name_in(row, COLUMN_NAMES)
        system = (Message("system", text_in(row, "system")),) if row.get("system") not in (None, "") else ()
        turns = (*system, *read_turns(row.get(name), name))
        if has(row, "chosen") or has(row, "rejected"):
            chosen, rejected = (
                Message("assistant", read_answer(row.get(side), side)) for side in ("chosen", "rejected")
            )
            return [Preference(turns, (chosen,), (rejected,), source)]
        if has(row, "label"):
            return [rating_of(turns, read_boolean(row, "label"), source)]
        return [Conversation(turns, source)]

    def row(self, record: Conversation | Preference | Rating) -> dict[str, object]:
        """Turns as from and value."""
        if isinstance(record, Conversation):
            return {"conversations": spoken(record.messages)}
        if isinstance(record, Rating):
            turns = (*record.prompt, Message("assistant", record.answer))
            return {"conversations": spoken(turns), "label": record.good}
        if len(record.chosen) != 1 or len(record.rejected) != 1:
            raise Refused("several_turns", '"sharegpt" rows hold one turn each for chosen and rejected.')
        chosen, rejected = spoken(record.chosen)[0], spoken(record.rejected)[0]
        return {"conversations": spoken(record.prompt), "chosen": chosen, "rejected": rejected}


def spoken(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as from and value."""
    return [
        {"from": SPEAKERS[turn.role], "value": turn.content, **({} if turn.weight == 1 else {"weight": turn.weight})}
        for turn in turns
    ]
