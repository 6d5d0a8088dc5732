"""From records to tokens for everything that is not classification: conversations, completions, documents.

A conversation is rendered and tokenised whole; the assistant's turns are found by their character spans, end of
turn included. What stands before a turn must be, token for token, what the model is asked with when it serves that
turn: a template that rewrites earlier turns is refused, since training and serving would differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import ModelError
from luthier.prompts.classify import difference
from luthier.prompts.layout import Layout, opening_tokens
from luthier.prompts.spelling import (
    PromptError,
    as_dicts,
    has_tools,
    lost_part,
    marked,
    parts_until,
    places,
    spelled,
    tools_in,
    without_tools,
)
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
CALL_END_TOKENS = 64  # and among this many behind arguments: brackets, closing tags, the call's id


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
        if self.templated:
            template = self.layout.source
            try:
                return self.layout.render(as_dicts(spelled(turns, template), template), ask, tools_in(turns))
            except PromptError:
                raise
            except ModelError as error:
                raise PromptError(str(error)) from error
        if any(turn.tools or turn.calls or turn.reasoning for turn in turns):
            raise PromptError(
                "the row has tools, tool calls or a reasoning, which only a model's own chat template knows how to "
                f"write: {self.no_template()}. Take a model with such a template and layout chat, or write them into "
                "the content of the turns."
            )
        opening = self.tokenizer.bos_token if opening_tokens(self.tokenizer) else ""
        return opening + "".join(self.part(turn) for turn in turns)

    @property
    def templated(self) -> bool:
        """Whether the model's own chat template writes the texts."""
        return self.style == "chat" and self.layout.has_template

    def no_template(self) -> str:
        """Why the model's chat template does not write the texts."""
        return "this model has none" if self.style == "chat" else f"prompt.layout is {self.style}"

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
        if self.templated:
            conversations = [spelled(turns, self.layout.source) for turns in conversations]
        rendered = [self.render(turns, ask=False) for turns in conversations]
        for turns, text in zip(conversations, rendered, strict=True):
            self.refuse_losses(turns, text, ask=False)
        wholes = self.written(rendered)
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
        asked = [self.with_system(tuple(turns)) for turns in prompts]
        rendered = [self.render(turns, ask=True) for turns in asked]
        for turns, text in zip(asked, rendered, strict=True):
            self.refuse_losses(turns, text, ask=True)
        return [tuple(tokens) for tokens, _ in self.layout.encode(rendered)]

    def turn(
        self, turns: Sequence[Message], number: int, texts: tuple[Written, Written], special: frozenset[int]
    ) -> Turn:
        """Where a turn stands in the whole conversation. `texts`: its prompt and the whole."""
        asked, whole = texts
        begin, opened = len(asked.tokens), len(asked.text)
        if not whole.text.startswith(asked.text) or whole.tokens[:begin] != asked.tokens:
            raise PromptError(self.torn(asked.text, whole.text, later=any(n > number for n in learnt(turns))))
        said = self.said_until(turns, number, texts, special)
        if turns[number].calls:
            said = max(said, self.differs_until(turns, number, whole.text))
        behind = bisect_left(whole.starts, said, lo=begin)
        stop = self.ending(whole.tokens, behind, special, bool(turns[number].calls))
        if stop is None:
            raise PromptError(self.endless(whole.text, said))
        if turns[number].calls:
            said = whole.starts[stop - 1]
            self.refuse_bad_call(turns[number], whole.text[opened:said])
        return Turn(begin, stop, turns[number].weight, len(whole.text[opened:said].encode()))

    def said_until(
        self, turns: Sequence[Message], number: int, texts: tuple[Written, Written], special: frozenset[int]
    ) -> int:
        """The character behind what a turn thinks and says, all of which has to stand there; its calls may follow."""
        asked, whole = texts
        begin = end = len(asked.text)
        for said in (turns[number].reasoning, turns[number].content):
            if not said.strip():
                continue
            found = places(said, whole.text, end, asked.text if end == begin else "")
            place = next((p for p in found if self.is_inside(turns, number, (begin, p[0]), whole, special)), None)
            if place is None:
                raise PromptError(rewritten(said, whole.text[end:], later=number + 1 < len(turns)))
            held = next(specials_in(whole, place, special), None)
            if held is not None:
                raise PromptError(self.holds_special(whole.tokens[held]))
            end = place[1]
        return end

    def is_inside(
        self, turns: Sequence[Message], number: int, span: tuple[int, int], whole: Written, special: frozenset[int]
    ) -> bool:
        """Whether what begins at the end of a span belongs to the turn that begins at its start.

        A special token between them may end the turn, or stand in it (the channels of some templates): then what is
        found has to depend on what the turn says.
        """
        if next(specials_in(whole, span, special), None) is None:
            return True
        return span[1] < self.differs_until(turns, number, whole.text)

    def differs_until(self, turns: Sequence[Message], number: int, text: str) -> int:
        """Index up to which the conversation's text depends on what a turn says, or on what it calls with."""
        other = self.render([*turns[:number], marked(turns[number]), *turns[number + 1 :]], ask=False)
        return parts_until(text, other)

    def ending(self, tokens: tuple[int, ...], behind: int, special: frozenset[int], calls: bool) -> int | None:
        """Index behind the token that ends a turn: the next special one.

        Behind calls other special tokens may close these first: then the one that ends answers, if it stands among
        them.
        """
        most = CALL_END_TOKENS if calls else END_TOKENS
        near = range(behind, min(behind + most, len(tokens)))
        first = next((i for i in near if tokens[i] in special), None)
        if first is None or not calls:
            return None if first is None else first + 1
        end = self.answer_end()
        last = first
        while tokens[last] != end and last + 1 < len(tokens) and tokens[last + 1] in special:
            last += 1
        return (last if tokens[last] == end else first) + 1

    def answer_end(self) -> int | None:
        """The token that ends a plain answer; None where the template refuses so plain a conversation."""
        try:
            ((tokens, turns),) = self.encode([[Message("user", "x"), Message("assistant", "x")]])
        except PromptError:
            return None
        return tokens[turns[-1].stop - 1]

    def refuse_losses(self, turns: Sequence[Message], text: str, ask: bool) -> None:
        """PromptError where the template leaves out tools, calls, or what a tool answered."""
        if not self.templated or not has_tools(turns):
            return
        if tools_in(turns) and self.render(without_tools(turns), ask) == text:
            raise PromptError(
                "the chat template leaves out the tools that the row defines (with and without them it writes the "
                "same), so the model would never see them. Take a model whose template knows tools, or leave them out "
                "of the row."
            )
        lost = next(((turn, part) for turn in turns if (part := lost_part(turn, text)) is not None), None)
        if lost is not None:
            what = "a tool's answer" if lost[0].role == "tool" else "a tool call"
            raise PromptError(leaves_out(what, lost[1]))

    def refuse_bad_call(self, turn: Message, text: str) -> None:
        """PromptError where a turn's text does not hold all of its calls, or a call holds a special token."""
        lost = lost_part(turn, text)
        if lost is not None:
            raise PromptError(leaves_out("a tool call", lost))
        called = "".join(call.arguments for call in turn.calls)
        names = (self.tokenizer.convert_ids_to_tokens(token) for token in special_tokens(self.tokenizer))
        held = next((name for name in names if name and name in called), None)
        if held is not None:
            raise PromptError(self.holds_special(self.tokenizer.convert_tokens_to_ids(held)))

    def holds_special(self, token: int) -> str:
        """Why an answer with the text of a special token is not learnt."""
        name = self.tokenizer.convert_ids_to_tokens(token)
        return (
            f'the answer holds the text "{name}", a special token of this model, which would end or open a turn '
            "inside it. Take it out of the row, or leave the row out."
        )

    def torn(self, asked: str, whole: str, later: bool) -> str:
        """Why a prompt is no prefix of its answered conversation."""
        if self.templated:
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
        if self.templated:
            return f"{found}Mend the model's chat_template, or set prompt.layout: hash, which uses the eos token."
        return f"{found}Give the model's tokenizer an eos_token."


def learnt(turns: Sequence[Message]) -> list[int]:
    """The assistant's turns that have a weight and answer something."""
    asked = next((n for n, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [n for n, turn in enumerate(turns) if n > asked and turn.role == "assistant" and turn.weight]


def upto(tokens: tuple[int, ...], turns: Mapping[int, Turn]) -> tuple[int, ...]:
    """The tokens without those behind the last turn found."""
    return tokens[: max(turn.stop for turn in turns.values())] if turns else tokens


def specials_in(whole: Written, span: tuple[int, int], special: frozenset[int]) -> Iterator[int]:
    """Indices of the special tokens that begin in a span of characters."""
    inside = range(bisect_left(whole.starts, span[0]), bisect_left(whole.starts, span[1]))
    return (index for index in inside if whole.tokens[index] in special)


def leaves_out(what: str, part: str) -> str:
    """Why a row whose calls a template drops is not learnt."""
    return (
        f"the chat template leaves out {what}, or a part of it: {part[:60]!r} does not stand in the text. Take a model "
        "whose template knows tools, or leave the row out."
    )


def rewritten(content: str, text: str, later: bool) -> str:
    """Why an answer cannot be learnt as the row has it; `later`: turns follow it."""
    hint = ", give the turn weight 0, or set method.train_on: last_answer." if later else ", or leave the row out."
    return (
        "the chat template writes the answer differently from how the row has it (it drops or moves a part), so the "
        f"model would not learn that: the row says {content[:40]!r}, the text {text[:40]!r}. Leave out of the row what "
        f"the template drops{hint}"
    )


def special_tokens(tokenizer: Any) -> frozenset[int]:
    """Tokens that end turns or texts rather than being text."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))
