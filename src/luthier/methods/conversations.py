"""Supervised fine-tuning on conversations, instructions and completions: all turns of a conversation in one pass."""

from __future__ import annotations

from collections.abc import Container, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace

from torch import nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.methods.base import Example
from luthier.methods.likelihood import Likelihood
from luthier.prompts import Dialogue, PromptError, Turn
from luthier.prompts.dialogue import Written, learnt, special_tokens
from luthier.recipe.methods import Sft
from luthier.records import Completion, Conversation, Instruction, Message, Preference, Rating, Record, Sequence

Talk = Conversation | Completion | Instruction | Rating
Encoded = tuple[tuple[int, ...], tuple[Turn, ...]]  # tokens, and the answers in them


@dataclass(frozen=True)
class ConversationSft(Likelihood):
    """Next-token cross-entropy on the assistant's turns, end of turn included."""

    name: str = "sft"
    settings: Sft = field(default_factory=Sft)
    primary: str = "bits_per_byte"
    higher_is_better: bool = False
    needs_reference: bool = False
    may_part: bool = True  # a row may be several sequences, one for each answer

    def accept(self, record: Record) -> list[Talk] | Problem:
        """Conversations, instructions, completions, and answers that were rated good or preferred."""
        if isinstance(record, Rating) and not record.good:
            return Problem("rated_bad", "the answer was rated bad; supervised fine-tuning would learn it. Use kto.")
        if isinstance(record, Preference):
            record = Conversation((*record.prompt, *record.chosen), record.source)
        if isinstance(record, Conversation):
            return self.weight_problem(record.messages) or [record]
        if isinstance(record, Completion | Instruction | Rating):
            return [record]
        detail = f"a {kind_of(record)} has no answer to learn. sft takes conversations, instructions and completions."
        return Problem("wrong_kind", detail)

    def weight_problem(self, turns: ManyOf[Message]) -> Problem | None:
        """A row without an answer to learn, or with weights that `everything` would not heed."""
        if self.settings.train_on == "everything":
            if any(turn.weight != 1 for turn in turns if turn.role == "assistant"):
                detail = "its turns have weights, but train_on: everything learns every token alike. Set it to answers."
                return Problem("weighted_turns", detail)
        elif not learnt(turns):
            return Problem("nothing_to_learn", "no answer to a user's turn has a weight above 0. Leave the row out.")
        return None

    def fitted(self, rows: ManyOf[Talk]) -> ConversationSft:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Talk]) -> list[Example]:
        """One sequence a row, or one for each of its answers: where the template rewrites earlier turns, for instance
        drops what they thought, so that no text of the whole conversation begins with the prompts of all its answers.
        """
        conversations = [prompt.messages(row) for row in rows]
        if self.settings.train_on == "last_answer":
            conversations = [last_answer_only(turns) for turns in conversations]
        if self.settings.train_on == "everything":
            encoded = prompt.encode(conversations)
            whole = prompt.written([prompt.render(turns, ask=False) for turns in conversations])
            special = special_tokens(prompt.tokenizer)
            pairs = zip(whole, encoded, strict=True)
            made = [every_token(tokens, spelled_bytes(text, special, len(tokens))) for text, (tokens, _) in pairs]
        else:
            made = [answers_only(answers) for answers in self.encode(prompt, conversations)]
        return [replace(example, key=key_of(row)) for row, example in zip(rows, made, strict=True)]

    def encode(self, prompt: Dialogue, conversations: ManyOf[tuple[Message, ...]]) -> list[list[Encoded]]:
        """Each conversation whole; one whose template tears it, once up to each of its answers."""
        try:
            return [[whole] for whole in prompt.encode(conversations)]
        except PromptError:
            return [self.encode_one(prompt, turns) for turns in conversations]

    def encode_one(self, prompt: Dialogue, turns: tuple[Message, ...]) -> list[Encoded]:
        """One conversation, whole if it can be."""
        try:
            return prompt.encode([turns])
        except PromptError:
            answers = learnt(turns)
            if not self.may_part or len(answers) < 2:
                raise
            return prompt.encode([last_answer_only(turns[: number + 1]) for number in answers])


def answers_only(encoded: ManyOf[Encoded]) -> Example:
    """The answers as targets, each turn with its weight; one sequence for each text."""
    sequences = []
    for role, (tokens, turns) in enumerate(encoded):
        targets = tuple(index for turn in turns for index in range(turn.start, turn.stop))
        weights = tuple(turn.weight for turn in turns for _ in range(turn.start, turn.stop))
        sequences.append(Sequence(tokens, targets, weights, role=role))
    return Example(tuple(sequences), num_bytes=sum(turn.num_bytes for _, turns in encoded for turn in turns))


def every_token(tokens: tuple[int, ...], num_bytes: int) -> Example:
    """Every token but the first as a target."""
    targets = tuple(range(1, len(tokens)))
    return Example((Sequence(tokens, targets, (1.0,) * len(targets)),), num_bytes=num_bytes)


def spelled_bytes(whole: Written, special: Container[int], num_tokens: int) -> int:
    """UTF-8 bytes of the text that a conversation's tokens spell, from the second to the last of `num_tokens`.

    Headings and the names of roles are text; special tokens are none. A character of several tokens is counted once.
    """
    ends = [*whole.starts[1:], len(whole.text)]
    return sum(
        len(whole.text[whole.starts[index] : ends[index]].encode())
        for index in range(1, num_tokens)
        if whole.tokens[index] not in special
    )


def last_answer_only(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns up to the last answer that has a weight, all others' set to 0."""
    last = learnt(turns)[-1]
    return tuple(turn if n == last else replace(turn, weight=0.0) for n, turn in enumerate(turns[: last + 1]))
