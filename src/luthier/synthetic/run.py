"""Seeds in, synthetic records and their ledger out."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus.lines import Problem
from luthier.corpus.steps.chain import make_steps, masked_excerpt
from luthier.corpus.wire import kind_of, to_json
from luthier.errors import DataError
from luthier.files import open_aside, write_json
from luthier.progress import Listener, Silent
from luthier.recipe.synthetic import Synthetic, Writer
from luthier.records import Record
from luthier.signals import Stop
from luthier.synthetic.base import Classify, Generator, Job, Kind, Reply, Score
from luthier.synthetic.filters import Quota, Sieve, Twins
from luthier.synthetic.journal import Journal, ask_all
from luthier.synthetic.kinds import ColumnsKind, ExamplesKind, kinds_of
from luthier.synthetic.seeds import Seeds, read_seeds

SHOWN_CHARS = 300
EXAMPLES = 5


@dataclass(frozen=True)
class Tools:
    """What a Python caller may bring along: seeds, the generator, a classifier for the way back, a score of answers."""

    seeds: Seeds | None = None
    generator: Generator | None = None
    classify: Classify | None = None
    score: Score | None = None


@dataclass
class Outcome:
    """One job with what became of it; `reply` is what the ledger shows of a dropped one."""

    kind: Kind
    job: Job
    reply: str = ""
    record: Record | None = None
    problem: Problem | None = None

    def settle(self, found: Record | Problem) -> None:
        """Note a record or a problem."""
        if isinstance(found, Problem):
            self.drop(found)
        else:
            self.record = found

    def drop(self, problem: Problem) -> None:
        """The record goes."""
        self.record, self.problem = None, problem


@dataclass
class Desk:
    """Who answers, where answers are kept, and who listens."""

    generator: Generator
    journal: Journal
    listener: Listener
    stop: Stop = field(default_factory=Stop)

    def ask(self, stage: str, requests: Sequence[Any]) -> list[Reply]:
        """All replies of one stage."""
        before = len(self.journal)
        self.listener.begin(stage)
        replies = ask_all(self.generator, requests, self.journal, self.listener, self.stop)
        fresh = len(self.journal) - before
        failures = sum(reply.error is not None for reply in replies)
        self.listener.end(stage, fresh == 0, f"{len(replies):,} replies, {fresh:,} of them new, {failures:,} errors")
        return replies


def synthesize(
    settings: Synthetic, out: Path, listener: Listener | None = None, tools: Tools | None = None
) -> dict[str, Any]:
    """Write synthetic records to `out` (luthier's own JSON lines) and return the ledger.

    The ledger also stands in `out` + `.ledger.json`, the raw replies in `out` + `.replies.jsonl`: a second call
    reuses them, so that a killed run goes on where it was, and other filters cost no new replies.

    Raises:
        DataError: there is no seed for a kind that the recipe asks for.
        ModelError: the generator cannot be used.
        Stopped: on Ctrl-C or SIGTERM; the replies so far are kept.
    """
    listener, tools = listener or Silent(), tools or Tools()
    listener.plan(["seeds", "write", "check"])
    key = os.environ.get(settings.steps.personal.key_variable, "").encode() or None
    steps = make_steps(settings.steps, key)
    listener.begin("seeds")
    seeds = tools.seeds or read_seeds(settings)
    refuse_missing(settings, tools)
    kinds = kinds_of(settings, seeds.records, tools.classify, tools.score)
    outcomes = [Outcome(kind, job) for kind in kinds for job in kind.jobs(seeds_for(kind, seeds, settings))]
    refuse_idle(kinds, outcomes)
    listener.end("seeds", False, f"{len(seeds.records) + len(seeds.table):,} seeds, {len(outcomes):,} records wanted")
    generator = tools.generator or make_generator(settings.writer)
    desk = Desk(generator, Journal(beside(out, ".replies.jsonl"), generator.identity), listener)
    with desk.stop:
        sieve = Sieve.of(settings.filters, steps, generator.name, [*seeds.records, *seeds.table])
        write(outcomes, desk, sieve)
        check(outcomes, desk)
    sort_out(outcomes, settings, seeds.records)
    ledger = ledger_of(outcomes, seeds, settings, generator)
    deliver(outcomes, out)
    write_json(beside(out, ".ledger.json"), ledger)
    return ledger


def seeds_for(kind: Kind, seeds: Seeds, settings: Synthetic) -> Sequence[Record]:
    """The seeds a kind works on: all of them for rare labels (which have to be counted), else up to `most_seeds`.

    Which ones are left out is drawn by seed; their order stays.
    """
    if isinstance(kind, ColumnsKind):
        found: Sequence[Record] = seeds.table
    else:
        found = seeds.records
    if isinstance(kind, ExamplesKind) or not settings.most_seeds:
        return found
    fitting = [seed for seed in found if kind.jobs([seed])]
    chosen = np.random.default_rng(settings.seed).permutation(len(fitting))[: settings.most_seeds]
    return [fitting[int(i)] for i in sorted(chosen)]


def refuse_missing(settings: Synthetic, tools: Tools) -> None:
    """A round trip by a classifier needs one, and one that nobody asks is a mistake."""
    round_trips = any(part is not None and part.round_trip for part in (settings.paraphrases, settings.examples))
    wanted = settings.labels_by == "classifier"
    if wanted and tools.classify is None:
        raise DataError(
            "data.synthetic.labels_by: classifier, but none was given. Name a finished run with --classifier RUN, or "
            "set labels_by: writer."
        )
    if tools.classify is not None and not (wanted and round_trips):
        raise DataError(
            "a classifier was given, but the recipe does not ask it. Set labels_by: classifier, and round_trip: true "
            "under paraphrases or examples."
        )


def refuse_idle(kinds: Sequence[Kind], outcomes: Sequence[Outcome]) -> None:
    """A kind with nothing to do is a mistake in the recipe, unless no label is rare."""
    busy = {id(outcome.kind) for outcome in outcomes}
    for kind in kinds:
        if id(kind) not in busy and not isinstance(kind, ExamplesKind):
            section = kind.name.partition("-")[0]
            raise DataError(
                f"data.synthetic.{section}: none of the seeds fits. Questions are made from documents, paraphrases and "
                "examples from labelled rows, preferences from prompts, instructions and conversations (with an "
                "answer where decide is reference), columns from a table's rows without a text."
            )


def make_generator(settings: Writer) -> Generator:
    """The generator a recipe names."""
    if settings.engine == "endpoint":
        from luthier.synthetic.endpoint import EndpointGenerator

        return EndpointGenerator.open(settings)
    from luthier.synthetic.local import LocalGenerator

    return LocalGenerator.load(settings.model, settings.batch_rows)


def write(outcomes: Sequence[Outcome], desk: Desk, sieve: Sieve) -> None:
    """Ask for every job's replies, and read the records out of them."""
    replies = iter(desk.ask("write", [request for outcome in outcomes for request in outcome.job.requests]))
    for outcome in outcomes:
        found = [next(replies) for _ in outcome.job.requests]
        outcome.reply = "\n---\n".join(reply.error or reply.text for reply in found)
        outcome.settle(sieve.record(outcome.kind, outcome.job, found))


def check(outcomes: Sequence[Outcome], desk: Desk) -> None:
    """The way back, for the records that are left."""
    left = [(outcome, outcome.record) for outcome in outcomes if outcome.record is not None]
    asked = [outcome.kind.check(outcome.job, record) for outcome, record in left]
    requests = [request for request in asked if request is not None]
    replies = iter(desk.ask("check", requests) if requests else ())
    for (outcome, record), request in zip(left, asked, strict=True):
        reply = next(replies) if request is not None else None
        problem = outcome.kind.judge(outcome.job, record, reply)
        if problem is not None:
            outcome.drop(problem)


def sort_out(outcomes: Sequence[Outcome], settings: Synthetic, seeds: Sequence[Record]) -> None:
    """Drop twins and what is beyond a label's target, in the order of the jobs."""
    twins = Twins(settings.filters.max_own_similarity)
    quotas = {id(o.kind): Quota(o.kind.quota(seeds)) for o in outcomes if isinstance(o.kind, ExamplesKind)}
    for outcome in outcomes:
        if outcome.record is None:
            continue
        problem = twins.problem(outcome.kind, outcome.record)
        if problem is None and id(outcome.kind) in quotas:
            problem = quotas[id(outcome.kind)].problem(outcome.record)
        if problem is not None:
            outcome.drop(problem)


def deliver(outcomes: Sequence[Outcome], out: Path) -> None:
    """The kept records as JSON lines, whole or not at all."""
    with open_aside(out) as file:
        for outcome in outcomes:
            if outcome.record is not None:
                file.write(json.dumps(to_json(outcome.record), ensure_ascii=False).encode("utf-8") + b"\n")


def ledger_of(outcomes: Sequence[Outcome], seeds: Seeds, settings: Synthetic, generator: Generator) -> dict[str, Any]:
    """Counts by kind of record and by reason, with examples of what was dropped; checked to add up."""
    excerpt = masked_excerpt(settings.steps, SHOWN_CHARS)
    kinds: dict[str, dict[str, Any]] = {}
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for outcome in outcomes:
        entry = kinds.setdefault(outcome.kind.name, {"requested": 0, "kept": 0, "dropped": Counter()})
        entry["requested"] += 1
        if outcome.problem is None:
            entry["kept"] += 1
            continue
        entry["dropped"][outcome.problem.reason] += 1
        if len(examples[outcome.problem.reason]) < EXAMPLES:
            examples[outcome.problem.reason].append(
                {
                    "source": str(outcome.job.source),
                    "kind": outcome.kind.name,
                    "detail": excerpt(outcome.problem.detail),
                    "reply": excerpt(outcome.reply),
                }
            )
    dropped: Counter[str] = Counter()
    for name, entry in kinds.items():
        lost = sum(entry["dropped"].values())
        assert entry["requested"] == entry["kept"] + lost, f"ledger of {name}: {entry}"
        dropped.update(entry["dropped"])
        entry["dropped"] = dict(entry["dropped"].most_common())
    kept = [outcome.record for outcome in outcomes if outcome.record is not None]
    assert len(outcomes) == len(kept) + sum(dropped.values()), "ledger: a record is not accounted for"
    return {
        "requested": len(outcomes),
        "kept": len(kept),
        "dropped": [{"reason": r, "count": n, "examples": examples[r]} for r, n in dropped.most_common()],
        "kinds": kinds,
        "generator": {"name": generator.name, "engine": settings.writer.engine},
        "seeds": {"records": dict(Counter(map(kind_of, seeds.records))), "table_rows": len(seeds.table)},
        "unreadable_seeds": seeds.unreadable,
        "licences": dict(Counter(record.source.licence or "unknown" for record in kept)),
        "synthetic": dict(Counter(str(record.source.synthetic) for record in kept)),
        "settings": settings.model_dump(),
    }


def beside(out: Path, ending: str) -> Path:
    """A file next to the output."""
    return out.with_name(out.name + ending)
