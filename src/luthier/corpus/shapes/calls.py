"""Tool calls and tool definitions, as rows spell them, and back to the spelling of OpenAI's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.corpus.shapes.base import Row, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.records import Call, Message

TOOL_COLUMNS = ("tools", "functions")
EMPTY: tuple[object, ...] = (None, "", "[]", "null", [], (), {})


def read_calls(turn: Row, what: str) -> tuple[Call, ...]:
    """The calls of a turn: `tool_calls`, or the one of `function_call`."""
    found = turn.get("tool_calls")
    if found in EMPTY:
        found = [turn["function_call"]] if turn.get("function_call") not in EMPTY else []
    found = opened(found, f"{what}: its tool_calls")
    if not isinstance(found, list | tuple):
        raise Refused("bad_call", f"{what}: its tool_calls are {type_name(found)}; they must be a list of calls.")
    return tuple(read_call(call, f"{what}: call {number}") for number, call in enumerate(found, start=1))


def read_call(value: object, what: str) -> Call:
    """A call with `function`, or with the function's own fields."""
    inner = value.get("function") if isinstance(value, Mapping) and value.get("function") is not None else value
    if not isinstance(value, Mapping) or not isinstance(inner, Mapping):
        raise Refused("bad_call", f"{what} is {type_name(value)}; it must be an object with a function.")
    name, id_ = inner.get("name"), value.get("id")
    if not isinstance(name, str) or not name.strip():
        raise Refused("bad_call", f'{what} has no name of a function. Write {{"name": ..., "arguments": ...}}.')
    if id_ is not None and not isinstance(id_, str):
        raise Refused("bad_call", f"{what}: its id is {type_name(id_)}; it must be a text.")
    given: Any = next((inner[key] for key in ("arguments", "args", "parameters") if inner.get(key) is not None), {})
    if given == "":
        given = {}
    return Call(name, given if isinstance(given, str) else json.dumps(given, ensure_ascii=False), id_)


def spelled_calls(text: object, what: str) -> tuple[Call, ...]:
    """The calls that a text spells as JSON (`{"name": ..., "arguments": ...}`, or a list of them); none in other texts.

    LLaMA-Factory's rows have such texts as what `function_call` says.
    """
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return ()
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return ()
    return tuple(read_call(call, f"{what}: call {number}") for number, call in enumerate(calls, start=1))


def read_tools(row: Row) -> str:
    """The tools that a row defines, as the text of a JSON list in OpenAI's spelling; empty where it has none."""
    name = next((name for name in TOOL_COLUMNS if row.get(name) not in EMPTY), None)
    if name is None:
        return ""
    tools = opened(row[name], f'"{name}"')
    if not isinstance(tools, list | tuple):
        raise Refused("bad_tools", f'"{name}" is {type_name(tools)}; it must be a list of tool definitions.')
    read = [read_tool(tool, f'"{name}" entry {number}') for number, tool in enumerate(tools, start=1)]
    return json.dumps(read, ensure_ascii=False) if read else ""


def read_tool(value: object, what: str) -> dict[str, Any]:
    """A definition with `function`, or the function alone, which is given that frame."""
    value = opened(value, what)
    inner = value.get("function") if isinstance(value, Mapping) and "function" in value else value
    if not isinstance(value, Mapping) or not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise Refused("bad_tools", f'{what} is no definition of a function: {{"name": ..., "parameters": ...}}.')
    return dict(value) if inner is not value else {"type": "function", "function": dict(value)}


def opened(value: object, what: str) -> Any:
    """A value that may be JSON text, as tables hold it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Refused("broken_json", f"{what}: a text that is not JSON.") from None


def calls_as_rows(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as OpenAI's rows spell them."""
    return [
        {
            **({} if call.id is None else {"id": call.id}),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def tools_column(turns: Sequence[Message]) -> dict[str, Any]:
    """The column of the tools that a conversation defines, if it does."""
    return {"tools": json.loads(turns[0].tools)} if turns and turns[0].tools else {}
