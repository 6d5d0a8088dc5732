"""A text for each row of a table, from its other columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.corpus.duplicates.words import words_of
from luthier.corpus.fold import row_key
from luthier.corpus.lines import Problem
from luthier.recipe.synthetic import Columns
from luthier.records import Document, Instruction, Labelled, Record
from luthier.synthetic.base import Asking, Job, Reply, Request, Shown, first_text
from luthier.synthetic.texts import numbers, supported_share

INSTRUCTION = "Write {about} from the facts below. Use only these facts. Reply with the text only."
SHOWN = Shown(
    "city: Aldport\ninhabitants: 12000\nriver: Sel\nfounded: 1310",
    "Aldport is a city of 12000 inhabitants on the river Sel. It was founded in 1310.",
)


@dataclass(frozen=True)
class ColumnsKind:
    """Table row -> Instruction (the facts are its context), or Labelled where a label column is named.

    Rows come as documents whose text is one `column: value` a line, with the label as their title (`table_seeds`).
    """

    settings: Columns
    asking: Asking
    name: str = "columns"

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """One text for each row."""
        instruction = INSTRUCTION.format(about=self.settings.about)
        return [
            Job(
                self.name,
                (self.asking.request(instruction, seed.text, shown=SHOWN),),
                (seed,),
                seed.source,
                f"{instruction} {SHOWN.answer}",
                label=seed.title,
                passage=seed.text,
            )
            for seed in seeds
            if isinstance(seed, Document)
        ]

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The reply's first paragraph, where it says what it must."""
        text = first_text(replies[0])
        if isinstance(text, Problem):
            return text
        invented = numbers(text) - numbers(job.passage)
        if invented:
            return Problem("not_supported", f"numbers that no column has: {', '.join(sorted(invented))}.")
        share = supported_share(text, job.passage)
        if share < self.settings.min_supported_share:
            return Problem("not_supported", f"{share:.0%} of the text's content words stand in the columns.")
        facts = dict(line.split(": ", 1) for line in job.passage.splitlines() if ": " in line)
        for name in self.settings.must_mention:
            if not says(text, facts.get(name, "")):
                return Problem("fact_missing", f'the text does not mention "{name}".')
        if job.label is not None:
            return Labelled(text, job.label, job.source, row_key(text, job.label))
        return Instruction(f"Write {self.settings.about} from the facts below.", job.passage, text, job.source)

    def written(self, record: Record) -> str:
        """The text."""
        assert isinstance(record, Instruction | Labelled)
        return record.response if isinstance(record, Instruction) else record.text

    def check(self, job: Job, record: Record) -> Request | None:
        """Nothing to ask."""
        return None

    def judge(self, job: Job, record: Record, reply: Reply | None) -> Problem | None:
        """Nothing to say."""
        return None


def says(text: str, value: str) -> bool:
    """Whether a value's words stand in a text, one after the other."""
    words, wanted = words_of(text), words_of(value)
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1))
