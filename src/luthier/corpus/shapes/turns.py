"""Turns of a conversation, as rows spell them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

from luthier.corpus.shapes.base import Row, text_in, type_name
from luthier.corpus.shapes.calls import calls_as_rows, read_calls, read_tools, spelled_calls
from luthier.corpus.shapes.checks import POSSESSIVE, Refused
from luthier.errors import nearest
from luthier.records import Completion, Conversation, Message, Source

Role = Literal["system", "user", "assistant", "tool"]
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "ai": "assistant",
    "bot": "assistant", "bing": "assistant", "bard": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
SYSTEM_NAMES = ("system", "system_prompt")
TRAIN_FLAGS = ("train", "training")
REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


def read_turns(value: object, name: str) -> tuple[Message, ...]:
    """Turns from a list of objects with role (or from) and content (or value); `name` is for messages."""
    if value is None:
        raise Refused("missing_field", f'no "{name}". Give the row one, or remove it.')
    if not isinstance(value, list | tuple):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be a list of turns.')
    return tuple(read_turn(turn, f'"{name}" turn {number}') for number, turn in enumerate(value, start=1))


def read_turn(value: object, what: str) -> Message:
    """One turn."""
    if not isinstance(value, Mapping):
        raise Refused("wrong_type", f"{what} is {type_name(value)}; it must be an object with role and content.")
    spelled = value.get("role") if value.get("role") is not None else value.get("from")
    role = read_role(spelled, what)
    given = value.get("content") if value.get("content") is not None else value.get("value")
    calls = read_calls(value, what)
    if not calls and spelled == "function_call" and (calls := spelled_calls(given, what)):
        given = None
    content = "" if given is None and calls else read_content(given, what)
    named = {field: value.get(column) for field, column in (("name", "name"), ("call_id", "tool_call_id"))}
    texts = {field: text for field, text in named.items() if role == "tool" and isinstance(text, str)}
    return Message(role, content, read_weight(value, what), read_reasoning(value, what), calls, **texts)


def read_weight(turn: Row, what: str) -> float:
    """A turn's weight; Axolotl's `train` or `training` is 1 or 0."""
    flags = [turn[name] for name in TRAIN_FLAGS if turn.get(name) is not None]
    if not all(isinstance(flag, bool) for flag in flags) or len(set(flags)) > 1:
        raise Refused("bad_weight", f"{what}: train and training must be true or false, and say the same.")
    weight = turn.get("weight")
    if weight is None:
        return 1.0 if not flags or flags[0] else 0.0
    if flags and bool(weight) != flags[0]:
        raise Refused("bad_weight", f"{what} has the weight {weight!r}, but says that train is {flags[0]}.")
    return cast("float", weight)


def read_reasoning(turn: Row, what: str) -> str:
    """What a turn thinks before it speaks, under any of the names that rows have for it."""
    found = {name: turn[name] for name in REASONING_NAMES if turn.get(name) not in (None, "")}
    if any(not isinstance(text, str) for text in found.values()) or len(set(found.values())) > 1:
        names = " and ".join(f'"{name}"' for name in found)
        raise Refused("bad_reasoning", f"{what}: {names} must be a text, and one only.")
    return next((str(text) for text in found.values()), "")


def framed(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns behind the system message that a row has in a column, with the tools that it defines.

    Raises Refused where the turns begin with another system message.
    """
    name = next((name for name in SYSTEM_NAMES if row.get(name) not in (None, "")), None)
    if name is not None:
        text = text_in(row, name)
        if not turns or turns[0].role != "system":
            turns = (Message("system", text), *turns)
        elif turns[0].content.strip() != text.strip():
            raise Refused("system_differs", f'the turns begin with another system message than "{name}" has.')
    tools = read_tools(row)
    return (replace(turns[0], tools=tools), *turns[1:]) if tools and turns else turns


def read_role(value: object, what: str) -> Role:
    """A role under any of its names."""
    if value is None:
        raise Refused("missing_field", f"{what} has no role.")
    role = ROLES.get(str(value).strip().lower())
    if role is None:
        close = nearest(str(value), ROLES)
        hint = f' Did you mean "{close}"?' if close else ""
        known = "system, user (human), assistant (gpt), tool"
        raise Refused("unknown_role", f'{what} has the role "{value}". Known: {known}.{hint}')
    return role


def read_content(value: object, what: str) -> str:
    """A text, or a list of text parts put together."""
    if value is None:
        raise Refused("missing_field", f"{what} has no content.")
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise Refused("wrong_type", f"{what}: its content is {type_name(value)}; it must be a text or text parts.")
    return "".join(read_part(part, what) for part in value)


def read_part(part: object, what: str) -> str:
    """The text of a content part."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return cast("str", part["text"])
    found = f'a part of type "{part.get("type")}"' if isinstance(part, Mapping) else type_name(part)
    raise Refused("not_text", f"{what} holds {found}; only text parts can be read. Remove the part, or the row.")


def read_prompt(value: object, name: str) -> tuple[Message, ...]:
    """A prompt: a text is the user's one turn, a list is turns."""
    if isinstance(value, str):
        return (Message("user", value),)
    if value is not None and not isinstance(value, list | tuple):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be a text or a list of turns.')
    return read_turns(value, name)


def read_answer(value: object, name: str) -> str:
    """The text of an answer: a text, the assistant's turn, or a list that holds just that."""
    return spoken_only(read_answer_turn(value, name), f'"{name}"')


def spoken_only(turn: Message, what: str) -> str:
    """What a turn says; Refused where it calls tools or thinks, which has no place beside a verdict or a rank."""
    if turn.calls or turn.reasoning:
        kind, reason = ("calls a tool", "tool_calls") if turn.calls else ("has a reasoning", "reasoning")
        raise Refused(reason, f"{what} {kind}; rated and ranked answers are texts. Give pairs, or leave the row out.")
    return turn.content


def read_answer_turn(value: object, name: str) -> Message:
    """The same as a turn, with what it calls and thinks."""
    if isinstance(value, str):
        return Message("assistant", value)
    turns = read_turns([value] if isinstance(value, Mapping) else value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise Refused("several_turns", f'"{name}" has {len(turns)} turns; it must be one turn, the assistant\'s.')
    if turns[0].weight != 1:
        detail = f'"{name}" has the weight {turns[0].weight!r}, but an answer that was judged counts whole.'
        raise Refused("weighted_turns", f"{detail} Leave the weight out, or the row.")
    return turns[0]


def turns_as_rows(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as objects with role and content, and what else they have; the weight is written where it is not 1."""
    return [{"role": turn.role, "content": turn.content, **extras(turn)} for turn in turns]


def extras(turn: Message) -> dict[str, Any]:
    """What a turn has beside role and content, as columns; tools stand in a column of the row."""
    columns = {"name": turn.name, "tool_call_id": turn.call_id, "reasoning_content": turn.reasoning}
    found: dict[str, Any] = {name: text for name, text in columns.items() if text}
    if turn.calls:
        found["tool_calls"] = calls_as_rows(turn.calls)
    return found if turn.weight == 1 else {**found, "weight": turn.weight}


def prompt_as_value(turns: Sequence[Message]) -> str | list[dict[str, Any]]:
    """A prompt as a text where it is the user's one turn, else as turns; Refused where it defines tools."""
    if turns and turns[0].tools:
        raise Refused("tool_calls", "the prompt defines tools, which these rows have no place for.")
    return turns[0].content if is_plain(turns) else turns_as_rows(turns)


def is_plain(turns: Sequence[Message]) -> bool:
    """Whether turns are the user's one turn and nothing more."""
    return len(turns) == 1 and turns[0].role == "user" and not turns[0].tools


def plain_prompt(turns: Sequence[Message], shape: str, instead: str = "") -> str:
    """The prompt as one text; Refused where it is more than one turn."""
    if turns and turns[0].tools:
        raise Refused("tool_calls", f'the prompt defines tools, and "{shape}" rows hold texts only.{instead}')
    if not is_plain(turns):
        detail = f'the prompt has {len(turns)} turns, and "{shape}" rows hold one text of the user\'s.{instead}'
        raise Refused("several_turns", detail)
    return turns[0].content


def plain_answer(turns: Sequence[Message], shape: str, instead: str = "") -> str:
    """The answer as one text; Refused where it is more than one turn."""
    if len(turns) != 1:
        raise Refused("several_turns", f'an answer has {len(turns)} turns, and "{shape}" rows hold one text.{instead}')
    if turns[0].calls or turns[0].reasoning:
        kind, reason = ("calls a tool", "tool_calls") if turns[0].calls else ("has a reasoning", "reasoning")
        raise Refused(reason, f'an answer {kind}, and "{shape}" rows hold texts only.{instead}')
    return turns[0].content


def asked(instruction: str, context: str) -> str:
    """An instruction and its context as one user's turn."""
    return f"{instruction}\n\n{context}" if context.strip() else instruction


def completion(row: Row, prompt: tuple[Message, ...], source: Source) -> Completion | Conversation:
    """Two texts; as turns where a system message or tools stand before them, which a completion has no place for."""
    text = text_in(row, "completion")
    if is_plain(prompt):
        return Completion(prompt[0].content, text, source)
    return Conversation((*prompt, Message("assistant", text)), source)


def untrained(turns: Sequence[Message]) -> tuple[Message, ...]:
    """A prompt's turns in a conversation: the assistant's own are not trained on, as only the answer was given."""
    return tuple(replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in turns)


def parted(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """The prompt that two whole conversations share (their longest common beginning), and the two answers.

    Both answers begin with the assistant's turn. Raises Refused where the conversations part anywhere else.
    """
    if chosen == rejected:
        raise Refused("same_answers", "chosen and rejected are the same. Remove the row.")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    ours, theirs = chosen[shared : shared + 1], rejected[shared : shared + 1]
    if ours and theirs and (ours[0].role, theirs[0].role) != ("assistant", "assistant"):
        role = ours[0].role if ours[0].role != "assistant" else theirs[0].role
        where = f"turn {shared + 1}, {POSSESSIVE[role]}"
        raise Refused(
            "prompt_differs", f"the prompts of chosen and rejected differ at {where}. They must be one prompt."
        )
    while shared > 0 and not (assistant_at(chosen, shared) and assistant_at(rejected, shared)):
        shared -= 1  # one goes on where the other ends: the last shared answer belongs to both
    if shared == 0:
        raise Refused(
            "no_prompt", "chosen and rejected share no beginning, so there is no prompt. Add a prompt column."
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def assistant_at(turns: Sequence[Message], index: int) -> bool:
    """Whether there is an assistant's turn at an index."""
    return index < len(turns) and turns[index].role == "assistant"


def has_turns(row: Row, name: str) -> bool:
    """Whether a column looks like a list of turns."""
    value = row.get(name)
    return isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Mapping)
