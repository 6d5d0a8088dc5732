"""Supervised fine-tuning on conversations, instructions and completions: all turns of a conversation in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field

from torch import nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.methods.base import Example
from luthier.methods.likelihood import Likelihood
from luthier.prompts import Dialogue, Turn
from luthier.recipe.methods import Sft
from luthier.records import Completion, Conversation, Instruction, Message, Preference, Rating, Record, Sequence

Talk = Conversation | Completion | Instruction | Rating


@dataclass(frozen=True)
class ConversationSft(Likelihood):
    """Next-token cross-entropy on the assistant's turns, end of turn included."""

    name: str = "sft"
    settings: Sft = field(default_factory=Sft)
    primary: str = "bits_per_byte"
    higher_is_better: bool = False
    needs_reference: bool = False

    def accept(self, record: Record) -> list[Talk] | Problem:
        """Conversations, instructions, completions, and answers that were rated good or preferred."""
        if isinstance(record, Rating) and not record.good:
            return Problem("rated_bad", "the answer was rated bad; supervised fine-tuning would learn it. Use kto.")
        if isinstance(record, Conversation | Completion | Instruction | Rating):
            return [record]
        if isinstance(record, Preference):
            return [Conversation((*record.prompt, *record.chosen), record.source)]
        detail = f"a {kind_of(record)} has no answer to learn. sft takes conversations, instructions and completions."
        return Problem("wrong_kind", detail)

    def fitted(self, rows: ManyOf[Talk]) -> ConversationSft:
        """Nothing to learn from the rows beforehand."""
        return self

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """None."""
        return {}

    def view(self, prompt: Dialogue, rows: ManyOf[Talk]) -> list[Example]:
        """One sequence a row."""
        conversations = [prompt.messages(row) for row in rows]
        return [
            self.example(tokens, turns, messages, key_of(row))
            for row, messages, (tokens, turns) in zip(rows, conversations, prompt.encode(conversations), strict=True)
        ]

    def example(self, tokens: tuple[int, ...], turns: tuple[Turn, ...], said: ManyOf[Message], key: str) -> Example:
        """The targets that `train_on` asks for."""
        if self.settings.train_on == "everything":
            targets, weights = tuple(range(1, len(tokens))), (1.0,) * (len(tokens) - 1)
            num_bytes = sum(len(message.content.encode()) for message in said)
            return Example((Sequence(tokens, targets, weights),), num_bytes=num_bytes, key=key)
        chosen = [turn for turn in turns if turn.weight > 0]
        chosen = chosen[-1:] if self.settings.train_on == "last_answer" else chosen
        targets = tuple(index for turn in chosen for index in range(turn.start, turn.stop))
        weights = tuple(turn.weight for turn in chosen for _ in range(turn.start, turn.stop))
        return Example((Sequence(tokens, targets, weights),), num_bytes=sum(turn.num_bytes for turn in chosen), key=key)
