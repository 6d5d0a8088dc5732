"""From records to tokens for everything that is not classification: conversations, completions, documents.

A conversation is rendered and tokenised whole; the assistant's turns are found by their character spans, end of
turn included. What stands before a turn must be, token for token, what the model is asked with when it serves that
turn: a template that rewrites earlier turns is refused, since training and serving would differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import ModelError
from luthier.prompts.classify import difference
from luthier.prompts.layout import Layout
from luthier.records import Completion, Conversation, Instruction, Message, Prompt, Rating

Talk = Conversation | Completion | Instruction | Prompt | Rating


@dataclass(frozen=True)
class Turn:
    """An assistant's turn: tokens start:stop, what it weighs, and the bytes of what it says."""

    start: int
    stop: int
    weight: float
    num_bytes: int


@dataclass(frozen=True)
class Dialogue:
    """How a row becomes a text: the model's chat template, or a plain layout. One object in training and serving."""

    layout: Layout
    style: str = "chat"  # chat, hash or plain
    system: str = ""

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.layout.tokenizer

    def messages(self, record: Talk) -> tuple[Message, ...]:
        """The turns of a record; an instruction's context stands below it."""
        match record:
            case Conversation() | Prompt():
                turns = record.messages
            case Rating():
                turns = (*record.prompt, Message("assistant", record.answer))
            case Completion():
                turns = (Message("user", record.prompt), Message("assistant", record.completion))
            case Instruction():
                turns = (Message("user", self.asked(record)), Message("assistant", record.response))
        return self.with_system(turns)

    def asked(self, record: Instruction) -> str:
        """What the user says: in the hash layout with its headings, else instruction, blank line, context."""
        if self.style == "hash":
            context = f"\n\n### Context:\n{record.context}" if record.context.strip() else ""
            return f"### Instruction:\n{record.instruction}{context}"
        return f"{record.instruction}\n\n{record.context}" if record.context.strip() else record.instruction

    def with_system(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns behind the system message, where there is one and they have none."""
        if not self.system or turns[0].role == "system":
            return turns
        return (Message("system", self.system), *turns)

    def render(self, turns: Sequence[Message], ask: bool) -> str:
        """The conversation as text; with `ask` it ends where the model's answer begins."""
        if self.style == "chat" and self.layout.has_template:
            return self.layout.render([{"role": turn.role, "content": turn.content} for turn in turns], ask)
        end = self.tokenizer.eos_token or ""
        start = self.tokenizer.bos_token if getattr(self.tokenizer, "add_bos_token", False) else ""
        parts = [start or ""]
        for turn in turns:
            if turn.role == "assistant":
                parts.append(f"{turn.content}{end}")
            elif self.style == "hash":
                heading = "" if turn.content.startswith("### ") else "### Instruction:\n"
                body = f"{turn.content}\n\n" if turn.role == "system" else f"{heading}{turn.content}\n\n### Response:\n"
                parts.append(body)
            else:
                parts.append(turn.content if self.style == "plain" else f"{turn.content}\n")
        return "".join(parts)

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[tuple[int, ...], tuple[Turn, ...]]]:
        """(tokens, assistant's turns) of each whole conversation. ModelError where the template breaks a prompt."""
        whole = [self.render(turns, ask=False) for turns in conversations]
        return [
            self.cut(turns, text, *encoded)
            for turns, text, encoded in zip(conversations, whole, self.layout.encode(whole), strict=True)
        ]

    def encode_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Tokens of each prompt, up to where the answer begins: what the model is asked with."""
        rendered = [self.render(self.with_system(tuple(turns)), ask=True) for turns in prompts]
        return [tuple(tokens) for tokens, _ in self.layout.encode(rendered)]

    def cut(
        self, turns: Sequence[Message], text: str, tokens: list[int], spans: list[tuple[int, int]]
    ) -> tuple[tuple[int, ...], tuple[Turn, ...]]:
        """Find the assistant's turns in a conversation, and leave out what comes after the last of them."""
        found: list[Turn] = []
        starts = [start for start, _ in spans]
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            asked = self.render(turns[:number], ask=True)
            if not text.startswith(asked):
                raise ModelError(difference(asked, text))
            begin = bisect_left(starts, len(asked))
            if begin and spans[begin - 1][1] > len(asked):
                raise ModelError(difference(asked, text))
            stop = self.end_of_turn(tokens, starts, begin, len(asked) + len(turn.content), text)
            found.append(Turn(begin, stop, turn.weight, len(turn.content.encode())))
        last = found[-1].stop if found else len(tokens)
        return tuple(tokens[:last]), tuple(found)

    def end_of_turn(self, tokens: list[int], starts: list[int], begin: int, said: int, text: str) -> int:
        """The index behind the token that ends a turn: the first special one at its end, or its last own token."""
        behind = max(begin, bisect_left(starts, min(said, len(text.rstrip()))))
        for index in range(behind, min(behind + 3, len(tokens))):
            if self.layout.is_special(tokens[index]):
                return index + 1
        return behind
