"""A finished reward stage as an object that scores answers."""

from __future__ import annotations

from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.rows import LIMITS, read_input
from luthier.corpus.wire import kind_of
from luthier.errors import DataError
from luthier.methods.base import MAIN, Example, split_by_tokens
from luthier.methods.preferences.pairs import Turns, answered
from luthier.methods.preferences.reward import RewardMethod, ranked, read_last
from luthier.prompts import Dialogue, PromptError, layout_of
from luthier.recipe.corpus import Input
from luthier.records import Completion, Conversation, Instruction, Preference, Ranking, Rating, Record, Source
from luthier.stages.answer import DIALOGUE_FILE, read_asking
from luthier.stages.predict import BATCH_TOKENS, Kind, opened
from luthier.training.learner import Learner, load_learner

REWARDS = Kind(
    ("reward",),
    "no stage is a reward model",
    "is no reward model",
    "Heads are asked by `luthier predict`, a model that writes by `luthier answer`.",
)


@dataclass(frozen=True)
class RewardScorer:
    """What `luthier.stages.load_reward(run)` returns."""

    learner: Learner
    method: RewardMethod
    dialogue: Dialogue
    context_tokens: int
    key: str = MAIN

    def score(self, rows: ManyOf[Record]) -> list[dict[str, Any]]:
        """Each answer of each row, in their order: `file`, `line`, `answer` (its text), `reward`, `normalised`.

        A pair gives two answers, the chosen one first; a ranking all of its own. DataError names a row without one.
        """
        return [score for scores in self.score_rows(rows) for score in scores]

    @torch.no_grad()
    def score_rows(self, rows: ManyOf[Record]) -> list[list[dict[str, Any]]]:
        """The same, with the answers of each row together."""
        self.learner.eval()
        asked = [answers_of(self.dialogue, row) for row in rows]
        examples = [
            replace(self.example(row.source, answers), key=str(number))
            for number, (row, answers) in enumerate(zip(rows, asked, strict=True))
        ]
        rewards: dict[int, list[float]] = {}
        for micro in split_by_tokens(examples, BATCH_TOKENS):
            batch = self.learner.batch(micro)
            logits_PL = self.learner(batch).logits_PL
            assert logits_PL is not None, "every answer is read"
            for place, example in enumerate(micro):
                rewards[int(example.key)] = logits_PL[batch.row_P == place, 0].tolist()
        return [
            [
                {"file": row.source.file, "line": row.source.line, "answer": said(turns), **self.method.answer(reward)}
                for (_, turns), reward in zip(answers, rewards[number], strict=True)
            ]
            for number, (row, answers) in enumerate(zip(rows, asked, strict=True))
        ]

    def problem(self, row: Record) -> str:
        """What is wrong with a row that `score` would refuse; empty where nothing is."""
        try:
            self.example(row.source, answers_of(self.dialogue, row))
        except DataError as error:
            return str(error).removeprefix(f"{row.source}: ")
        return ""

    def example(self, source: Source, answers: ManyOf[tuple[Turns, Turns]]) -> Example:
        """The answers to one prompt as one row; DataError where the model cannot read one."""
        try:
            sequences = [read_last(each.sequence) for each in answered(self.dialogue, answers)]
        except PromptError as error:
            raise DataError(f"{source}: {error}") from error
        longest = max(len(sequence.tokens) for sequence in sequences)
        if longest > self.context_tokens:
            size = f"{longest:,} tokens; the model reads {self.context_tokens:,}"
            raise DataError(f"{source}: prompt and answer have {size}. Shorten the row, or leave it out.")
        return Example(tuple(sequences), task=self.key)


def load_reward(
    run: str | Path, stage: str | None = None, task: str | None = None, attention: str = "auto"
) -> RewardScorer:
    """The reward model that a stage of a finished run left: the last one, or the stage of that name.

    `task` names one of a stage that learnt several. Raises RunError where the run is not finished, the stage is no
    reward model, or the model is another one now.
    """
    found = opened(run, stage, task, REWARDS)
    asking = read_asking(found.left / DIALOGUE_FILE, found.task)
    dialogue = Dialogue(layout_of(found.model.tokenizer, asking), asking.layout, asking.system)
    learner = load_learner(found.model, found.left, attention)
    context_tokens = found.model.context_tokens - learner.virtual_tokens
    return RewardScorer(learner, found.method, dialogue, context_tokens, found.key)


def read_answers(file: str | Path) -> list[Record]:
    """The rows of a file of any shape; DataError names the first that cannot be read."""
    rows: list[Record] = []
    for item in read_rows(file):
        if isinstance(item, Unreadable):
            raise DataError(f"{item.source}: {item.problem.detail}")
        rows.append(item)
    return rows


def read_rows(file: str | Path) -> list[Record | Unreadable]:
    """The same, and what cannot be read in its place; DataError where a file cannot be read to its end."""
    rows = list(read_input(Input(path=str(file)), LIMITS))
    for item in rows:
        if isinstance(item, Unreadable) and item.problem.ends_file:
            raise DataError(f"{item.source}: {item.problem.detail}")
    return rows


def answers_of(dialogue: Dialogue, row: Record) -> list[tuple[Turns, Turns]]:
    """(what stands before, the answer) of each answer of a row."""
    if isinstance(row, Preference | Ranking):
        return [(row.prompt, answer) for answer in ranked(row)]
    if isinstance(row, Conversation | Completion | Instruction | Rating):
        turns = dialogue.messages(row)
        return [(turns[:-1], (replace(turns[-1], weight=1.0),))]
    raise DataError(
        f"{row.source}: a {kind_of(row)} has no answer to a prompt. Give conversations, prompt and completion, "
        "prompt with chosen and rejected, rankings, or ratings."
    )


def said(turns: Turns) -> str:
    """What the assistant says in an answer."""
    return "\n".join(text for turn in turns if turn.role == "assistant" for text in turn.said if text)
