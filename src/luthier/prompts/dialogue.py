"""From records to tokens for everything that is not classification: conversations, completions, documents.

A conversation is rendered and tokenised whole; the assistant's turns are found by their character spans, end of
turn included. What stands before a turn must be, token for token, what the model is asked with when it serves that
turn: a template that rewrites earlier turns is refused, since training and serving would differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import ModelError
from luthier.prompts.classify import difference
from luthier.prompts.layout import Layout, opening_tokens
from luthier.records import (
    CONTEXT_HEADING,
    INSTRUCTION_HEADING,
    RESPONSE_HEADING,
    Completion,
    Conversation,
    Instruction,
    Message,
    Prompt,
    Rating,
)

Talk = Conversation | Completion | Instruction | Prompt | Rating
CHUNK = 64  # conversations tokenised together: character spans of many take much memory
END_TOKENS = 3  # the token that ends a turn is sought among this many behind what is said


class PromptError(ModelError):
    """A row that the model's template or tokenizer makes no honest prompt of; others may do."""


@dataclass(frozen=True)
class Turn:
    """An assistant's turn: tokens start:stop with the one that ends it, what it weighs, the bytes of what it says."""

    start: int
    stop: int
    weight: float
    num_bytes: int


@dataclass(frozen=True)
class Written:
    """A text as the model reads it; `starts` has the character at which each token starts."""

    text: str
    tokens: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Dialogue:
    """How a row becomes a text: the model's chat template, or a plain layout. One object in training and serving.

    `hash` has headings (Instruction, Context, Response). `plain` puts turns one after the other as they are, so line
    breaks between them are the row's own; an instruction is followed by a line break, a system message by a blank
    line. Both end answers with the tokenizer's eos token. `chat` of a model without a template does so too, and ends
    all other turns with a line break.
    """

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
        """What the user says: instruction and context, the latter with its heading in the hash layout."""
        heading = CONTEXT_HEADING if self.style == "hash" else ""
        text = f"{record.instruction}\n\n{heading}{record.context}" if record.context.strip() else record.instruction
        return f"{text}\n" if self.style == "plain" else text

    def with_system(self, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """The turns behind the system message, where there is one and they have none."""
        if not self.system or turns[0].role == "system":
            return turns
        return (Message("system", self.system), *turns)

    def render(self, turns: Sequence[Message], ask: bool) -> str:
        """The conversation as text; with `ask` it ends where the model's answer begins."""
        if self.style == "chat" and self.layout.has_template:
            try:
                return self.layout.render([{"role": turn.role, "content": turn.content} for turn in turns], ask)
            except ModelError as error:
                raise PromptError(str(error)) from error
        opening = self.tokenizer.bos_token if opening_tokens(self.tokenizer) else ""
        return opening + "".join(self.part(turn) for turn in turns)

    def part(self, turn: Message) -> str:
        """One turn in a layout of our own."""
        if turn.role == "assistant":
            return f"{turn.content}{self.tokenizer.eos_token or ''}"
        if self.style == "chat":
            return f"{turn.content}\n"
        if turn.role == "system":
            return f"{turn.content}\n\n"
        return turn.content if self.style == "plain" else f"{INSTRUCTION_HEADING}{turn.content}\n\n{RESPONSE_HEADING}"

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[tuple[int, ...], tuple[Turn, ...]]]:
        """(tokens up to the end of the last turn found, the assistant's turns) of each whole conversation.

        Turns of weight 0, and those before the first user's, are context and not looked for.

        Raises:
            PromptError: what stands before a turn is not what the model would be asked with, or nothing ends the turn.
        """
        found = []
        for start in range(0, len(conversations), CHUNK):
            found += self.encode_chunk(conversations[start : start + CHUNK])
        return found

    def encode_chunk(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[tuple[int, ...], tuple[Turn, ...]]]:
        """The same for a few conversations, tokenised together with the prompt of each of their turns."""
        wholes = self.written([self.render(turns, ask=False) for turns in conversations])
        places = [(row, number) for row, turns in enumerate(conversations) for number in learnt(turns)]
        prompts = self.written([self.render(conversations[row][:number], ask=True) for row, number in places])
        found: list[dict[int, Turn]] = [{} for _ in conversations]
        special = special_tokens(self.tokenizer)
        for (row, number), asked in zip(places, prompts, strict=True):
            found[row][number] = self.turn(conversations[row], number, (asked, wholes[row]), special)
        return [(upto(whole.tokens, turns), tuple(turns.values())) for whole, turns in zip(wholes, found, strict=True)]

    def written(self, texts: Sequence[str]) -> list[Written]:
        """Rendered texts with their tokens."""
        encoded = zip(texts, self.layout.encode(texts), strict=True)
        return [Written(text, tuple(ids), tuple(start for start, _ in spans)) for text, (ids, spans) in encoded]

    def encode_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
        """Tokens of each prompt, up to where the answer begins: what the model is asked with."""
        rendered = [self.render(self.with_system(tuple(turns)), ask=True) for turns in prompts]
        return [tuple(tokens) for tokens, _ in self.layout.encode(rendered)]

    def turn(
        self, turns: Sequence[Message], number: int, texts: tuple[Written, Written], special: frozenset[int]
    ) -> Turn:
        """Where a turn stands in the whole conversation. `texts`: its prompt and the whole."""
        asked, whole = texts
        begin, opened = len(asked.tokens), len(asked.text)
        if not whole.text.startswith(asked.text) or whole.tokens[:begin] != asked.tokens:
            raise PromptError(self.torn(asked.text, whole.text, later=any(n > number for n in learnt(turns))))
        at, said = find_answer(turns[number].content, whole.text, opened)
        behind = bisect_left(whole.starts, said, lo=begin)
        inside = next((i for i in range(begin, behind) if whole.tokens[i] in special), None)
        if at < 0 or (inside is not None and whole.starts[inside] < at):
            raise PromptError(rewritten(turns[number].content, whole.text[opened:]))
        if inside is not None:
            name = self.tokenizer.convert_ids_to_tokens(whole.tokens[inside])
            raise PromptError(
                f'the answer holds the text "{name}", a special token of this model, which would end or open a turn '
                "inside it. Take it out of the row, or leave the row out."
            )
        stop = next((i + 1 for i, token in enumerate(whole.tokens[behind : behind + END_TOKENS], behind)
                     if token in special), None)  # fmt: skip
        if stop is None:
            raise PromptError(self.endless(whole.text, said))
        return Turn(begin, stop, turns[number].weight, len(whole.text[opened:said].encode()))

    def torn(self, asked: str, whole: str, later: bool) -> str:
        """Why a prompt is no prefix of its answered conversation."""
        if self.style == "chat" and self.layout.has_template:
            hint = " To learn last answers only, which this template may allow, set method.train_on: last_answer."
            return difference(asked, whole) + (hint if later and not whole.startswith(asked) else "")
        return (
            "the end of the prompt and the beginning of the answer make one token together, so training and serving "
            f"would differ: the prompt ends with {asked[-20:]!r}, and then comes {whole[len(asked) :][:20]!r}. Move "
            "spaces and line breaks at the end of prompts to the beginning of their answers, or the other way round."
        )

    def endless(self, text: str, said: int) -> str:
        """Why an answer would never stop."""
        found = (
            "nothing ends the assistant's turn, so the model would not learn to stop: behind "
            f"{text[max(0, said - 20) : said]!r} comes {text[said : said + 20]!r}, which is no special token. "
        )
        if self.style == "chat" and self.layout.has_template:
            return f"{found}Mend the model's chat_template, or set prompt.layout: hash, which uses the eos token."
        return f"{found}Give the model's tokenizer an eos_token."


def learnt(turns: Sequence[Message]) -> list[int]:
    """The assistant's turns that have a weight and answer something."""
    asked = next((n for n, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [n for n, turn in enumerate(turns) if n > asked and turn.role == "assistant" and turn.weight]


def upto(tokens: tuple[int, ...], turns: Mapping[int, Turn]) -> tuple[int, ...]:
    """The tokens without those behind the last turn found."""
    return tokens[: max(turn.stop for turn in turns.values())] if turns else tokens


def find_answer(content: str, text: str, start: int) -> tuple[int, int]:
    """(first character, character behind) of an answer in a text from `start`; templates may trim. -1 if not there."""
    for said in (content, content.strip()):
        at = text.find(said, start)
        if at >= 0:
            return at, at + len(said)
    return -1, start


def rewritten(content: str, text: str) -> str:
    """Why an answer cannot be learnt as the row has it."""
    return (
        "the chat template writes the answer differently from how the row has it (it drops or moves a part), so the "
        f"model would not learn that: the row says {content[:40]!r}, the text {text[:40]!r}. Leave out of the row what "
        "the template drops, give the turn weight 0, or set method.train_on: last_answer."
    )


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Tokens that end turns or texts rather than being text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))
