"""Labelled rows said in other words, under the same label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.corpus.fold import row_key
from luthier.corpus.lines import Problem
from luthier.recipe.synthetic import Paraphrases
from luthier.records import Labelled, Record
from luthier.synthetic.base import Asking, Job, Reply, Request, Shown, first_text
from luthier.synthetic.kinds.labelling import Labelling
from luthier.synthetic.texts import numbers

INSTRUCTION = (
    "Rewrite the text in other words. Keep its meaning and all names and numbers. Reply with the new text only."
)
SHOWN = Shown(
    "Text: The meeting on Friday was put off because three of the five members were ill.",
    "With three of its five members ill, Friday's meeting had to be postponed.",
)


@dataclass(frozen=True)
class ParaphrasesKind:
    """Labelled -> Labelled."""

    settings: Paraphrases
    asking: Asking
    labelling: Labelling
    name: str = "paraphrases"

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """`per_seed` paraphrases of each labelled row."""
        return [
            Job(
                self.name,
                (self.asking.request(INSTRUCTION, f"Text: {seed.text}", sample, SHOWN),),
                (seed,),
                seed.source,
                f"{INSTRUCTION} {SHOWN.answer}",
                label=seed.label,
                not_to_copy=(seed.text,),
            )
            for seed in seeds
            if isinstance(seed, Labelled)
            for sample in range(self.settings.per_seed)
        ]

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The reply's first paragraph under the seed's label, where it has the seed's numbers and no others."""
        found = labelled(job, replies[0])
        if isinstance(found, Problem):
            return found
        changed = numbers(found.text) ^ numbers(job.not_to_copy[0])
        if changed:
            return Problem("facts_changed", f"numbers are lost or new: {', '.join(sorted(changed))}.")
        return found

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


def labelled(job: Job, reply: Reply) -> Labelled | Problem:
    """A reply's first paragraph under the job's label."""
    text = first_text(reply)
    if isinstance(text, Problem):
        return text
    assert job.label is not None, "labelled rows are written for a label"
    return Labelled(text, job.label, job.source, row_key(text, job.label))
