"""New rows for rare labels, written after worked examples that are drawn by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from luthier.corpus.lines import Problem
from luthier.files import content_hash
from luthier.recipe.synthetic import Examples
from luthier.records import Labelled, Message, Record
from luthier.synthetic.base import Asking, Job, Reply, Request, joint_source, user
from luthier.synthetic.kinds.labelling import Labelling
from luthier.synthetic.kinds.paraphrases import labelled

INSTRUCTION = (
    "Write one text of the category {label}, each time about something else and in the same style. "
    "Reply with the text only."
)
AGAIN = "Another one of the category {label}, about something else."


@dataclass(frozen=True)
class ExamplesKind:
    """Labelled rows of one label -> one more Labelled row."""

    settings: Examples
    asking: Asking
    labelling: Labelling
    seed: int
    name: str = "examples"

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """For each label under the target, `attempts` jobs a missing row."""
        rows: dict[str, list[Labelled]] = defaultdict(list)
        for seed in seeds:
            if isinstance(seed, Labelled):
                rows[seed.label].append(seed)
        return [
            self.job(label, rows[label], number)
            for label in sorted(rows)
            for number in range(math.ceil(self.missing(len(rows[label])) * self.settings.attempts))
        ]

    def missing(self, count: int) -> int:
        """Rows a label lacks."""
        return max(self.settings.target - count, 0)

    def job(self, label: str, rows: Sequence[Labelled], number: int) -> Job:
        """One row; which examples it is shown follows from the seed, the label and its number."""
        draw = np.random.default_rng(int(content_hash(self.seed, label, number)[:16], 16))
        chosen = draw.permutation(len(rows))[: self.settings.shots]
        shots = [rows[int(i)] for i in chosen]
        instruction = INSTRUCTION.format(label=label)
        request = self.asking.dialogue(self.turns(label, instruction, shots), number)
        source = joint_source([shot.source for shot in shots])
        texts = tuple(shot.text for shot in shots)
        return Job(self.name, (request,), tuple(shots), source, instruction, label=label, not_to_copy=texts)

    def turns(self, label: str, instruction: str, shots: Sequence[Labelled]) -> tuple[Message, ...]:
        """The examples as earlier answers: a list of them tempts small models to go on with it, or to repeat it."""
        again = self.asking.said(AGAIN.format(label=label))
        asked = [self.asking.said(instruction), *[again] * len(shots)]
        answers = [Message("assistant", shot.text) for shot in shots]
        earlier = [turn for text, answer in zip(asked, answers, strict=False) for turn in (*user(text), answer)]
        return (*earlier, *user(asked[-1]))

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The reply's first paragraph under the label."""
        return labelled(job, replies[0])

    def written(self, record: Record) -> str:
        """The text."""
        assert isinstance(record, Labelled)
        return record.text

    def check(self, job: Job, record: Record) -> Request | None:
        """The question for the label, where the writer is asked."""
        return self.labelling.request(self.written(record)) if self.settings.round_trip else None

    def judge(self, job: Job, record: Record, reply: Reply | None) -> Problem | None:
        """Whether the label came back."""
        assert isinstance(record, Labelled)
        return self.labelling.judge(record.text, record.label, reply) if self.settings.round_trip else None

    def quota(self, seeds: Sequence[Record]) -> dict[str, int]:
        """How many rows each label may still take; what is written beyond is surplus."""
        counts: dict[str, int] = defaultdict(int)
        for seed in seeds:
            if isinstance(seed, Labelled):
                counts[seed.label] += 1
        return {label: self.missing(count) for label, count in counts.items()}
