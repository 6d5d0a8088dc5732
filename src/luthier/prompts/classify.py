"""The prompt of a classification task: the one object that training, every arm and `predict` share.

The conversation is rendered and tokenised whole, answer included; the trained tokens are found by their
character spans. The prompt alone must be a prefix of that, token for token, or the model is refused: a model
cannot be trained on one prompt and asked with another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.errors import ModelError
from luthier.files import content_hash
from luthier.prompts.layout import Layout, Message
from luthier.recipe import Task, fold_label
from luthier.records import Outcome

Shot = tuple[str, str]  # text, label
# What stays small in a word that begins with a capital: the end of WOMEN'S and WE'RE, of 3RD and of 90S.
SMALL_ENDS = re.compile(r"(?<=\w['’])(?:S|T|D|M|Re|Ve|Ll)\b|(?<=\d)(?:St|Nd|Rd|Th)\b|(?<=0)S\b")


@dataclass(frozen=True)
class Encoded:
    """A whole conversation: tokens up to the end of the answer's turn; the answer's tokens start at `answer_start`.

    `ends_turn` says whether the last token ends the turn: without it a model never learns to stop.
    """

    tokens: tuple[int, ...]
    answer_start: int
    ends_turn: bool


def worded(label: str) -> str:
    """MEDIA_AND_ARTS -> Media And Arts: words that a tokenizer knows, instead of letters."""
    spaced = label.replace("_", " ").strip()
    if not (spaced.isupper() and any(len(word) > 3 for word in spaced.split())):
        return spaced
    return SMALL_ENDS.sub(lambda found: found[0].lower(), spaced.title())


def difference(prompt: str, whole: str) -> str:
    """Why a prompt and its answered conversation do not go together, with the text where they part."""
    at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole)))
    joined = " (the same text, but other tokens where the answer begins)" if at == len(prompt) else ""
    shown = slice(max(0, at - 30), at + 20)
    return (
        "the chat template renders the prompt differently once it is answered, so training and serving would "
        f"differ: the prompt reads {prompt[shown]!r}, the answered conversation {whole[shown]!r}{joined}. "
        "Give a model whose template keeps the prompt as it was, or mend its chat_template."
    )


@dataclass(frozen=True)
class ClassifyPrompt:
    """Instruction, label list, names and worked examples around a text. Frozen; `with_` makes variants."""

    task: Task
    layout: Layout
    instruction: str = ""
    shots: tuple[Shot, ...] = ()
    lists_labels: bool = True

    def with_(self, **changes: Any) -> ClassifyPrompt:
        """The same prompt with another instruction, other shots, or without the list of labels."""
        return replace(self, **changes)

    def answer(self, label: str) -> str:
        """How a label reads as an answer; it folds back to the label (`fold_label`)."""
        return worded(label) if self.task.wording == "auto" else label

    def question(self, text: str, opening: bool) -> str:
        """What the user's turn says; the instruction stands in the opening turn only."""
        task = self.task
        body = f"{task.text_name}: {text}\n{task.answer_name}:"
        if not opening:
            return body
        head = self.instruction or task.instruction
        if self.lists_labels:
            answers = ", ".join(self.answer(label) for label in task.labels)
            head += f"\n{task.answer_name} is one of: {answers}."
        return f"{head}\n\n{body}"

    def messages(self, text: str, label: str | None = None, shots: Sequence[Shot] | None = None) -> list[Message]:
        """The conversation: worked examples as earlier turns, the text, and the label as the answer."""
        turns: list[Message] = []
        for shot_text, shot_label in self.shots if shots is None else shots:
            turns.append({"role": "user", "content": self.question(shot_text, opening=not turns)})
            turns.append({"role": "assistant", "content": self.answer(shot_label)})
        turns.append({"role": "user", "content": self.question(text, opening=not turns)})
        if label is not None:
            turns.append({"role": "assistant", "content": self.answer(label)})
        return turns

    def encode(self, texts: Sequence[str], shots: Sequence[Sequence[Shot]] | None = None) -> list[tuple[int, ...]]:
        """Tokens of each prompt, up to where the answer begins. `shots` gives each text its own examples."""
        rendered = [
            self.layout.render(self.messages(text, shots=None if shots is None else shots[i]), ask=True)
            for i, text in enumerate(texts)
        ]
        return [tuple(tokens) for tokens, _ in self.layout.encode(rendered)]

    def encode_readable(self, texts: Sequence[str]) -> list[tuple[tuple[int, ...], int]]:
        """(tokens, index of the first token of the text's own part) of each prompt, for a head to read."""
        rendered = [self.layout.render(self.messages(text), ask=True) for text in texts]
        bodies = [self.question(text, opening=False) for text in texts]
        return [
            (tuple(tokens), next((i for i, (_, stop) in enumerate(spans) if stop > max(0, whole.rfind(body))), 0))
            for whole, body, (tokens, spans) in zip(rendered, bodies, self.layout.encode(rendered), strict=True)
        ]

    def encode_answered(
        self, texts: Sequence[str], labels: Sequence[str], shots: Sequence[Sequence[Shot]] | None = None
    ) -> list[Encoded]:
        """Whole conversations with their answers. ModelError where the template breaks the prompt's tokens."""
        rows = [None if shots is None else shots[i] for i in range(len(texts))]
        asked = [self.layout.render(self.messages(t, shots=s), ask=True) for t, s in zip(texts, rows, strict=True)]
        whole = [
            self.layout.render(self.messages(t, label, shots=s), ask=False)
            for t, label, s in zip(texts, labels, rows, strict=True)
        ]
        encoded = zip(asked, self.layout.encode(asked), whole, self.layout.encode(whole), strict=True)
        return [self._cut(prompt, tokens, full_text, full) for prompt, (tokens, _), full_text, full in encoded]

    def _cut(
        self,
        prompt: str,
        prompt_tokens: list[int],
        whole: str,
        encoded: tuple[list[int], list[tuple[int, int]]],
    ) -> Encoded:
        """Find the answer in the whole conversation and cut behind the token that ends its turn."""
        tokens, spans = encoded
        start = len(prompt_tokens)
        if not whole.startswith(prompt) or tokens[:start] != prompt_tokens:
            raise ModelError(difference(prompt, whole))
        end = next((i + 1 for i in range(start, len(tokens)) if self.layout.is_special(tokens[i])), None)
        if end is None:
            end = max((i + 1 for i, (_, stop) in enumerate(spans) if stop <= len(whole.rstrip())), default=start)
        return Encoded(tuple(tokens[:end]), start, self.layout.is_special(tokens[end - 1]))

    def parse(self, reply: str) -> tuple[str | None, Outcome]:
        """The label a written reply names, by its first line and folded spelling.

        Exactly one label is an answer; several are `parse_failed` (a label that stands inside a longer one named
        is not named); the task's abstention is `abstained`; text that names none is `out_of_ontology` where it is
        short enough to be meant as a label, else `parse_failed`.
        """
        lines = [line for line in reply.strip().splitlines() if line.strip()]
        folded = fold_label(lines[0]) if lines else ""
        if not folded:
            return None, Outcome.PARSE_FAILED
        if folded == fold_label(self.task.abstention):
            return None, Outcome.ABSTAINED
        spellings = {fold_label(alias): label for alias, label in self.task.aliases.items()}
        spellings |= {fold_label(label): label for label in self.task.labels}
        if folded in spellings:
            return spellings[folded], Outcome.ANSWERED
        spans = [
            (match.start(), match.end(), label)
            for spelling, label in spellings.items()
            for match in re.finditer(rf"(?<!\S){re.escape(spelling)}(?!\S)", folded)
        ]
        named = {label for a, b, label in spans if not any(c <= a and b <= d and (c, d) != (a, b) for c, d, _ in spans)}
        if len(named) == 1:
            return named.pop(), Outcome.ANSWERED
        if named or len(folded.split()) > 4:
            return None, Outcome.PARSE_FAILED
        return None, Outcome.OUT_OF_ONTOLOGY

    @property
    def key(self) -> str:
        """Content hash of everything the model gets to see around a text."""
        return content_hash(
            self.task.model_dump(), self.layout.template, self.instruction, self.shots, self.lists_labels
        )
