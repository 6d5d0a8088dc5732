"""What a generated record must pass, in order, cheapest first. What does not pass goes with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.corpus.duplicates.words import words_of
from luthier.corpus.fold import fold_text
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.checks import Refused, check_record
from luthier.corpus.steps.base import Step
from luthier.corpus.wire import texts_of
from luthier.recipe.synthetic import Filters
from luthier.records import Labelled, Record
from luthier.synthetic.base import Job, Kind, Reply, marked
from luthier.synthetic.texts import Similar, copied_share, leaks, refuses


@dataclass
class Sieve:
    """Filters with what they compare with: the seeds' texts, and what was kept so far of each kind."""

    settings: Filters
    steps: Sequence[Step]
    generator: str
    seeds: Similar
    seed_names: Sequence[str]
    exact_seeds: frozenset[str]

    @classmethod
    def of(cls, settings: Filters, steps: Sequence[Step], generator: str, seeds: Sequence[Record]) -> Sieve:
        """With the seeds' single texts, and all of a seed's texts."""
        texts = [(text, str(seed.source)) for seed in seeds for text in texts_of(seed) if text.strip()]
        names = [name for _, name in texts]
        exact = frozenset(fold_text(text) for text, _ in texts)
        return cls(settings, steps, generator, Similar(text for text, _ in texts), names, exact)

    def record(self, kind: Kind, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The finished, marked record in a job's replies, or the first problem."""
        for reply in replies:
            if reply.error is not None:
                return Problem("backend_error", reply.error)
            if refuses(reply.text[:400]):
                return Problem("refusal", "the reply talks of being a model, or does not do what was asked.")
        found = kind.parse(job, replies)
        if isinstance(found, Problem):
            return found
        written = kind.written(found)
        problem = self.look(written, job)
        if problem is not None:
            return problem
        source = marked(found.source, self.generator, kind.name)
        return self.stepped(kind, replace(found, source=source))

    def look(self, written: str, job: Job) -> Problem | None:
        """Leaked prompts, length, likeness to the seeds."""
        if leaks(written, job.instruction, self.settings.leak_words):
            return Problem("prompt_leak", "the text repeats the instruction or a chat template's marks.")
        count = len(words_of(written))
        if count < self.settings.min_words:
            return Problem("too_short", f"{count} words; filters.min_words is {self.settings.min_words}.")
        if count > self.settings.max_words:
            return Problem("too_long", f"{count} words; filters.max_words is {self.settings.max_words}.")
        copied = copied_share(written, job.not_to_copy)
        if copied >= self.settings.max_seed_similarity:
            return Problem("too_similar_to_seed", f"{copied:.0%} of its runs of three words are copied from the seeds.")
        return self.like_a_seed(written)

    def like_a_seed(self, written: str) -> Problem | None:
        """Whether a seed says nearly the same."""
        if fold_text(written) in self.exact_seeds:
            return Problem("too_similar_to_seed", "a seed has the same text.")
        place, similarity = self.seeds.nearest(written)
        if place >= 0 and similarity >= self.settings.max_seed_similarity:
            return Problem("too_similar_to_seed", f"Jaccard {similarity:.2f} with {self.seed_names[place]}.")
        return None

    def stepped(self, kind: Kind, record: Record) -> Record | Problem:
        """The record after the corpus steps, which may change it or drop it."""
        for step in self.steps:
            passed = step(record)
            if passed.record is None:
                assert passed.problem is not None, f"step {step.name} gave neither record nor problem"
                return passed.problem
            record = passed.record
        try:
            check_record(record)
        except Refused as refused:
            return refused.problem
        return record


class Twins:
    """Finds records that say what a record kept before says, within one kind."""

    def __init__(self, highest: float):
        self.highest = highest
        self.exact: dict[str, set[str]] = {}
        self.near: dict[str, Similar] = {}

    def problem(self, kind: Kind, record: Record) -> Problem | None:
        """`duplicate`, or None; then the record is remembered."""
        written = kind.written(record)
        exact, near = self.exact.setdefault(kind.name, set()), self.near.setdefault(kind.name, Similar())
        folded = fold_text(written)
        _, similarity = near.nearest(written)
        if folded in exact or similarity >= self.highest:
            return Problem("duplicate", f"Jaccard {similarity:.2f} with a record that was kept before.")
        exact.add(folded)
        near.add(written)
        return None


class Quota:
    """Rows that rare labels still take; what is written beyond is surplus."""

    def __init__(self, left: dict[str, int]):
        self.left = dict(left)

    def problem(self, record: Record) -> Problem | None:
        """`surplus` once a label has what it lacked; counts the record otherwise."""
        if not isinstance(record, Labelled):
            return None
        if self.left.get(record.label, 0) <= 0:
            return Problem("surplus", f'"{record.label}" has reached examples.target.')
        self.left[record.label] -= 1
        return None
