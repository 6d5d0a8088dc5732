"""Turns as chat templates take them, and whether a text says what a turn says.

A template that does not know tools, calls or a field of reasoning leaves them out without a word. What is trained has
to stand in the text, so it is looked for there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from luthier.errors import ModelError
from luthier.prompts.layout import Message as Dict
from luthier.records import Call, Message

# fields under which templates look for what a turn thinks, the most common first
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
TAG = re.compile(r"(</?[^<>\s]+>|\[/?[A-Z_]+\])")  # <think>, </think>, [THINK]: templates set white space beside them
MARKER = {"luthier": "\u2042"}  # arguments that no row has


class PromptError(ModelError):
    """A row that the model's template or tokenizer makes no honest prompt of; others may do."""


def spelled(turns: Sequence[Message], template: str) -> tuple[Message, ...]:
    """The turns with each reasoning where the template reads it: in its field, or in the content between <think> tags.

    Raises:
        PromptError: the template knows neither.
    """
    if not any(turn.reasoning for turn in turns) or reasoning_field(template):
        return tuple(turns)
    if "<think>" not in template:
        raise PromptError(
            'a turn has a reasoning, but the chat template has no place for it (no field "reasoning_content" and no '
            "<think> tag). Write it into the content as the model is to write it, or leave it out of the row."
        )
    return tuple(
        replace(turn, content=f"<think>\n{turn.reasoning.strip()}\n</think>\n\n{turn.content}", reasoning="")
        if turn.reasoning else turn
        for turn in turns
    )  # fmt: skip


def reasoning_field(template: str) -> str | None:
    """The field of a turn under which a template looks for what it thinks."""
    return next((name for name in REASONING_FIELDS if re.search(rf"""[.'"]{name}\b""", template)), None)


def as_dicts(turns: Sequence[Message], template: str) -> list[Dict]:
    """Turns as a template takes them; a tool's answer has the name of the call that it names."""
    names = {call.id: call.name for turn in turns for call in turn.calls if call.id}
    field = reasoning_field(template)
    found = []
    for turn in turns:
        known = {"name": turn.name or names.get(turn.call_id, ""), "tool_call_id": turn.call_id}
        known |= {field: turn.reasoning} if field else {}
        calls = {"tool_calls": [call_dict(call) for call in turn.calls]} if turn.calls else {}
        filled = {name: text for name, text in known.items() if text}
        found.append({"role": turn.role, "content": turn.content, **filled, **calls})
    return found


def call_dict(call: Call) -> Dict:
    """A call with its arguments as an object, which templates write as JSON, or field by field."""
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {**({"id": call.id} if call.id else {}), "type": "function", "function": function}


def tools_in(turns: Sequence[Message]) -> list[Any] | None:
    """The tools that a conversation defines."""
    tools = next((turn.tools for turn in turns if turn.tools), "")
    return json.loads(tools) if tools else None


def has_tools(turns: Sequence[Message]) -> bool:
    """Whether anything of a conversation has to do with tools."""
    return any(turn.tools or turn.calls or turn.role == "tool" for turn in turns)


def without_tools(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The same turns, with no tools to call."""
    return tuple(replace(turn, tools="") for turn in turns)


def marked(turn: Message) -> Message:
    """The turn with other arguments in its calls; one without calls says something else."""
    if not turn.calls:
        return replace(turn, content=MARKER["luthier"], reasoning="")
    return replace(turn, calls=tuple(replace(call, arguments=json.dumps(MARKER)) for call in turn.calls))


def parts_until(text: str, other: str) -> int:
    """Index up to which two texts differ: what comes after it is the end of both."""
    shared = next((n for n, (a, b) in enumerate(zip(reversed(text), reversed(other), strict=False)) if a != b), None)
    return len(text) - (min(len(text), len(other)) if shared is None else shared)


def lost_part(turn: Message, text: str) -> str | None:
    """A part of a call, or of a tool's answer, that a text does not hold: as it is, or as JSON writes it."""
    said = [turn.content] if turn.role == "tool" else [part for call in turn.calls for part in call_parts(call)]
    return next((part for part in said if not stands_in(part, text)), None)


def call_parts(call: Call) -> Iterator[str]:
    """The name of a call, and every text and number among its arguments."""
    yield call.name
    left = [json.loads(call.arguments)]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield value if isinstance(value, str) else json.dumps(value)


def stands_in(part: str, text: str) -> bool:
    """Whether a text holds a part, white space at its ends aside."""
    said = part.strip()
    return any(way in text for way in (said, json.dumps(said, ensure_ascii=False)[1:-1], json.dumps(said)[1:-1]))


def places(said: str, text: str, start: int, asked: str) -> Iterator[tuple[int, int]]:
    """(first character, character behind) of what is said, in a text from `start`, which the prompt `asked` opens.

    Templates may trim, set white space beside tags, and leave out a tag that their prompt has opened already.
    """
    for exact in (said, said.strip()):
        at = text.find(exact, start)
        if at >= 0:
            yield at, at + len(exact)
    pieces = [piece.strip() for piece in TAG.split(said) if piece.strip()]
    if pieces and TAG.fullmatch(pieces[0]) and asked.rstrip().endswith(pieces[0]):
        pieces = pieces[1:]
    found = re.compile(r"\s*".join(map(re.escape, pieces))).search(text, start) if pieces else None
    if found:
        yield found.span()
