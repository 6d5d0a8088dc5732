"""ShareGPT rows: `conversations` of `from` and `value`; with `chosen` and `rejected`, or `label`, judged answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from luthier.corpus.shapes.base import Row, RowShape, has, name_in, refuse_extras
from luthier.corpus.shapes.calls import tools_column
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.thumbs import rating_of, read_boolean
from luthier.corpus.shapes.turns import framed, has_turns, read_answer_turn, read_turns
from luthier.records import Call, Conversation, Message, Preference, Rating, Source

COLUMN_NAMES = ("conversations", "conversation")
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "tool"}


class ShareGpt(RowShape):
    """A `system` column, where there is one, becomes the first turn. Calls and tools are read as LLaMA-Factory's."""

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
        turns = framed(row, read_turns(row.get(name), name))
        if has(row, "chosen") or has(row, "rejected"):
            chosen, rejected = (read_answer_turn(row.get(side), side) for side in ("chosen", "rejected"))
            return [Preference(turns, (chosen,), (rejected,), source)]
        if has(row, "label"):
            return [rating_of(turns, read_boolean(row, "label"), source)]
        return [Conversation(turns, source)]

    def row(self, record: Conversation | Preference | Rating) -> dict[str, object]:
        """Turns as from and value."""
        if isinstance(record, Conversation):
            return {"conversations": spoken(record.messages), **tools_text(record.messages)}
        if isinstance(record, Rating):
            turns = (*record.prompt, Message("assistant", record.answer))
            return {"conversations": spoken(turns), "label": record.good, **tools_text(turns)}
        if len(record.chosen) != 1 or len(record.rejected) != 1:
            raise Refused("several_turns", '"sharegpt" rows hold one turn each for chosen and rejected.')
        chosen, rejected = spoken(record.chosen)[0], spoken(record.rejected)[0]
        answers = {"chosen": chosen, "rejected": rejected}
        return {"conversations": spoken(record.prompt), **answers, **tools_text(record.prompt)}


def spoken(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as from and value."""
    return [{**spoken_turn(turn), **({} if turn.weight == 1 else {"weight": turn.weight})} for turn in turns]


def spoken_turn(turn: Message) -> dict[str, Any]:
    """A turn as LLaMA-Factory spells it: calls are the JSON text of a `function_call`, their results observations."""
    if turn.reasoning:
        detail = "a turn has a reasoning, which these rows have no place for"
        raise Refused("reasoning", f'{detail}. Write the rows as "chat", or the reasoning into the content.')
    if turn.calls and turn.content.strip():
        detail = 'a turn says something and calls a tool; "sharegpt" rows hold one of both'
        raise Refused("tool_calls", f'{detail}. Write the rows as "chat".')
    if turn.calls:
        calls = [spoken_call(call) for call in turn.calls]
        value = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
        return {"from": "function_call", "value": value}
    if turn.call_id or turn.name:
        named = {"name": turn.name, "tool_call_id": turn.call_id}
        return {"from": "observation", "value": turn.content, **{name: text for name, text in named.items() if text}}
    return {"from": SPEAKERS[turn.role], "value": turn.content}


def spoken_call(call: Call) -> dict[str, Any]:
    """Name and arguments; the id, which others leave unread, where there is one."""
    spelled = {"name": call.name, "arguments": json.loads(call.arguments)}
    return spelled if call.id is None else {**spelled, "id": call.id}


def tools_text(turns: Sequence[Message]) -> dict[str, str]:
    """The tools' definitions as JSON text, without the frame of OpenAI's, as LLaMA-Factory reads them."""
    tools = tools_column(turns).get("tools", [])
    bare = [tool["function"] if set(tool) == {"type", "function"} else tool for tool in tools]
    return {"tools": json.dumps(bare, ensure_ascii=False)} if bare else {}
