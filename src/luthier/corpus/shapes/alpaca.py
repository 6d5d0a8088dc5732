"""Alpaca rows and their kin: `instruction`, `input` (or `context`), `output` (or `response`, `answer`)."""

from __future__ import annotations

from luthier.corpus.shapes.base import Row, RowShape, has, list_in, name_in, refuse_extras, text_in, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import asked, framed, is_plain
from luthier.records import Conversation, Instruction, Message, Preference, Source

QUESTIONS = ("question", "query", "problem")
CONTEXTS = ("input", "context")
RESPONSES = ("output", "response", "answer", "completion")


class Alpaca(RowShape):
    """One instruction a row; `instances` make several, `system` or `history` a conversation, `chosen` a pair."""

    name = "alpaca"
    kinds = (Instruction,)
    columns = "instruction, input, output"

    def fits(self, row: Row) -> bool:
        """An instruction, and something that answers it; no question beside it, which would go unread."""
        if any(isinstance(row.get(name), str) for name in QUESTIONS):
            return False
        answers = (*RESPONSES, "instances", "chosen")
        return isinstance(row.get("instruction"), str) and any(has(row, name) for name in answers)

    def records(self, row: Row, source: Source) -> list[Instruction | Conversation | Preference]:
        """What the row's columns make of it."""
        refuse_extras(row)
        instruction = text_in(row, "instruction")
        if has(row, "instances"):
            return [self.instance(instruction, item, row, source) for item in list_in(row, "instances")]
        context = self.context(row)
        if has(row, "chosen") or has(row, "rejected"):
            chosen, rejected = text_in(row, "chosen"), text_in(row, "rejected")
            prompt = framed(row, (*earlier_turns(row), Message("user", asked(instruction, context))))
            return [Preference(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), source)]
        response = text_in(row, name_in(row, RESPONSES))
        return [answered(row, Instruction(instruction, context, response, source))]

    def context(self, row: Row) -> str:
        """The context, empty where there is none."""
        found = next((name for name in CONTEXTS if row.get(name) is not None), None)
        return text_in(row, found) if found else ""

    def instance(self, instruction: str, item: object, row: Row, source: Source) -> Instruction | Conversation:
        """One of several inputs to one instruction (the self-instruct layout)."""
        if not isinstance(item, dict):
            raise Refused("wrong_type", f'"instances" holds {type_name(item)}; each must be an object.')
        response = text_in(item, name_in(item, RESPONSES))
        return answered(row, Instruction(instruction, self.context(item), response, source))

    def row(self, record: Instruction) -> dict[str, object]:
        """The three columns."""
        return {"instruction": record.instruction, "input": record.context, "output": record.response}


def answered(row: Row, made: Instruction) -> Instruction | Conversation:
    """The instruction; a conversation where the row has turns before it, a system message or tools."""
    before = earlier_turns(row)
    turns = framed(row, (*before, Message("user", asked(made.instruction, made.context))))
    if is_plain(turns):
        return made
    return Conversation((*turns, Message("assistant", made.response)), made.source)


def earlier_turns(row: Row) -> tuple[Message, ...]:
    """The turns of `history` (pairs of what was asked and what was answered)."""
    turns = []
    for number, pair in enumerate(list_in(row, "history") if has(row, "history") else [], start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Refused("wrong_type", f'"history" entry {number} must be a list of two texts: asked and answered.')
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)
