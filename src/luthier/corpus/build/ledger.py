"""The ledger of a prepared corpus: every row in is a row kept or a row dropped, by reason. Plain values only."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus.build.decide import PARTS, Decisions
from luthier.corpus.build.deliver import Delivered
from luthier.corpus.build.store import Store
from luthier.corpus.build.units import inputs_of
from luthier.corpus.build.work import Excerpt, dropped_line
from luthier.corpus.wire import whole_text
from luthier.recipe.corpus import Corpus

EXAMPLES = 5
SHOWN_CLUSTERS = 30
SHOWN_MEMBERS = 4
SHOWN_LEAKS = 200
BINS = 30


def build_ledger(store: Store, corpus: Corpus, found: Decisions, done: Delivered, excerpt: Excerpt) -> dict[str, Any]:
    """All figures of a preparation, checked to add up."""
    dropped = dropped_by_reason(store, found, done, excerpt)
    rows_in = sum(tally["rows_in"] for tally in store.tallies)
    rows = {part: len(found.numbers(number)) for number, part in enumerate(PARTS)}
    for number in done.no_place:
        rows[PARTS[found.part_N[number]]] -= 1
    parts = {part: count for part, count in rows.items() if count}
    kept = sum(parts.values())
    lost = sum(entry["count"] for entry in dropped)
    assert rows_in == kept + lost, f"ledger: {rows_in} rows in, {kept} kept and {lost} dropped"
    findings = summed(store.tallies, "findings")
    rows_found = summed(store.tallies, "rows_found")
    languages = {kind.partition(":")[2]: count for kind, count in findings.pop("language", {}).items()}
    personal: dict[str, int] = findings.pop("personal", Counter())
    return {
        "rows_in": rows_in,
        "rows_kept": kept,
        "parts": parts,
        "written": dict(done.written),
        "pieces": {part: count for part, count in done.pieces.items() if count != done.written[part]},
        "inputs": input_rows(store, corpus),
        "dropped": dropped,
        "findings": findings,
        "languages": languages,
        "personal": {kind: {"count": count, "rows": rows_found["personal"][kind]} for kind, count in personal.items()},
        "lengths": lengths_of(done),
        "clusters": clusters_of(store, found, excerpt),
        "index_bytes_per_row": store.index_bytes / max(1, len(store)),
        "leaks": leaks_of(found, excerpt),
        "num_leaks": len(found.audit.hits) + found.audit.num_left_out,
        "licences": dict(done.licences),
        "synthetic": dict(done.synthetic),
        "settings": corpus.model_dump(),
    }


def dropped_by_reason(store: Store, found: Decisions, done: Delivered, excerpt: Excerpt) -> list[dict[str, Any]]:
    """[{reason, step, count, examples}], most frequent first."""
    counts: Counter[str] = Counter()
    steps: dict[str, str] = {}
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    for tally in store.tallies:
        counts.update(tally["dropped"])
        steps.update(tally["steps"])
    for line in store.dropped_lines():
        value = json.loads(line)
        if len(examples[value["reason"]]) < EXAMPLES:
            examples[value["reason"]].append(value)
    for number, problem in sorted(found.problems.items()):
        counts[problem.reason] += 1
        steps[problem.reason] = "merge"
        if len(examples[problem.reason]) < EXAMPLES:
            record = store.row(number)
            shown = dropped_line("merge", record.source, problem, excerpt(whole_text(record)))
            examples[problem.reason].append(shown)
    for source, problem, text in done.no_place.values():
        counts[problem.reason] += 1
        steps[problem.reason] = "write"
        if len(examples[problem.reason]) < EXAMPLES:
            examples[problem.reason].append(dropped_line("write", source, problem, excerpt(text)))
    return [
        {"reason": reason, "step": steps[reason], "count": count, "examples": examples[reason]}
        for reason, count in counts.most_common()
    ]


def summed(tallies: list[dict[str, Any]], name: str) -> dict[str, Counter[str]]:
    """Counts by step and kind over all units."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for tally in tallies:
        for step, counts in tally[name].items():
            total[step].update(counts)
    return total


def input_rows(store: Store, corpus: Corpus) -> list[dict[str, Any]]:
    """What each input gave."""
    rows: list[dict[str, Any]] = [
        {
            "path": Path(source.path).name,
            "format": source.format,
            "licence": source.licence,
            "rows_in": 0,
            "rows_kept": 0,
            "unreadable": 0,
        }
        for source in inputs_of(corpus)
    ]
    for unit, tally in zip(store.units, store.tallies, strict=True):
        row = rows[unit.input]
        row["format"] = unit.reading.shape
        row["rows_in"] += tally["rows_in"]
        row["rows_kept"] += tally["kept"]
        row["unreadable"] += tally["unreadable"]
    return rows


def lengths_of(done: Delivered) -> dict[str, Any]:
    """A histogram of lengths by part, on common edges."""
    longest = max((max(lengths) for lengths in done.lengths.values() if lengths), default=0)
    edges = np.linspace(0, max(longest, 1), BINS + 1)
    parts = {part: np.histogram(lengths, edges)[0].tolist() for part, lengths in done.lengths.items() if lengths}
    return {"unit": done.unit, "edges": edges.tolist(), "parts": {part: parts[part] for part in PARTS if part in parts}}


def clusters_of(store: Store, found: Decisions, excerpt: Excerpt) -> list[dict[str, Any]]:
    """The first clusters of near copies, texts side by side."""
    clusters = found.clusters
    near = (
        (kept, [(number, float(clusters.similarity_N[number])) for number in copies if not clusters.exact_N[number]])
        for kept, copies in clusters.groups()
    )
    groups = dict(islice(((kept, members) for kept, members in near if members), SHOWN_CLUSTERS))
    return [
        {
            "kept": side(store, kept, excerpt),
            "members": [
                {**side(store, number, excerpt), "similarity": similarity}
                for number, similarity in members[:SHOWN_MEMBERS]
            ],
            "size": len(members) + 1,
        }
        for kept, members in groups.items()
    ]


def leaks_of(found: Decisions, excerpt: Excerpt) -> list[dict[str, Any]]:
    """The first training rows that stand in the test, with the words that agree."""
    return [
        {
            "train_source": str(hit.train),
            "test_source": str(hit.test),
            "how": f"{hit.how}, {hit.num_words} words" if hit.similarity is None else f"{hit.how} {hit.similarity:.2f}",
            "span": excerpt(hit.train_text),
        }
        for hit in found.audit.hits[:SHOWN_LEAKS]
    ]


def side(store: Store, number: int, excerpt: Excerpt) -> dict[str, str]:
    """One text of a pair."""
    record = store.row(number)
    return {"source": str(record.source), "text": excerpt(whole_text(record))}
