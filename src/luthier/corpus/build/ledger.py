"""The ledger of a prepared corpus: every row in is a row kept or a row dropped, by reason. Plain values only."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus.build.decide import PARTS, Decisions
from luthier.corpus.build.deliver import Delivered
from luthier.corpus.build.store import Store
from luthier.corpus.build.units import inputs_of
from luthier.corpus.build.work import Excerpt, dropped_line
from luthier.corpus.steps.chain import masked_excerpt
from luthier.corpus.wire import whole_text
from luthier.recipe.corpus import Corpus
from luthier.records import Record

EXAMPLES = 5
SHOWN_CLUSTERS = 30
SHOWN_MEMBERS = 4
SHOWN_LEAKS = 200
BINS = 30
COMPARED_CHARS = 1200  # of each side of a pair of near copies; the page compares them, and shows the first of them
CHARS_BEFORE = 200  # where a text has no more before the first word that differs, it is shown from its beginning
WORDS_BEFORE = 8  # that agree, before the first that does not
MASKED_CHARS, WORDS_MASKED = 8000, 200  # what is masked to show that much: from so many words before
WORD = re.compile(r"\S+\s*|\s+")
CUT_BEFORE, CUT_BEHIND = "[...] ", " [...]"


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
        "clusters": clusters_of(store, found, masked_excerpt(corpus.steps, MASKED_CHARS)),
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
                {**differing(store.row(kept), store.row(number), excerpt), "similarity": similarity}
                for number, similarity in members[:SHOWN_MEMBERS]
            ],
            "size": len(members) + 1,
        }
        for kept, members in groups.items()
    ]


def differing(kept: Record, dropped: Record, excerpt: Excerpt) -> dict[str, str]:
    """A near copy and the row that was kept in its place, both from shortly before the first word that differs.

    Texts are masked from well before that, so that no half of a value is left at an end.
    """
    whole = [whole_text(record) for record in (kept, dropped)]
    same = agreeing([WORD.findall(text) for text in whole])
    slices = [text_around(text, same) for text in whole]
    words = [WORD.findall(excerpt(text)) for text, _ in slices]
    alike = agreeing(words)
    fits = same <= WORDS_MASKED and len("".join(words[0][:alike])) <= CHARS_BEFORE
    first = 0 if fits else max(0, alike - WORDS_BEFORE)
    shown = ["".join(some[first:]) for some in words]
    ours, theirs = (
        (CUT_BEFORE if first or same > WORDS_MASKED else "") + cut_behind(text, more)
        for text, (_, more) in zip(shown, slices, strict=True)
    )
    return {"source": str(dropped.source), "text": theirs, "kept_text": ours}


def agreeing(words: Sequence[Sequence[str]]) -> int:
    """With how many equal words two texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0].strip() == pair[1].strip(), zip(*words, strict=False)))


def text_around(text: str, word: int) -> tuple[str, bool]:
    """Some thousand characters of a text from well before a word on, and whether it goes on behind them."""
    words = WORD.findall(text)
    part = "".join(words[max(0, word - WORDS_MASKED) :])
    return part[:MASKED_CHARS], len(part) > MASKED_CHARS


def cut_behind(text: str, more: bool) -> str:
    """The text up to the end of a word, with a sign that it goes on where it does."""
    if len(text) <= COMPARED_CHARS and not more:
        return text
    return (text[:COMPARED_CHARS].rpartition(" ")[0] or text[:COMPARED_CHARS]) + CUT_BEHIND


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
