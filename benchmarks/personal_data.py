"""The search for personal data: recall and precision by type, false alarms on general rows, characters a second.

    python benchmarks/personal_data.py --data FOLDER [--json]

FOLDER holds `pii_presidio/pii.jsonl` (rows with `text` and `spans` of `start`, `end`, `type`) and
`dolly_6400/dolly.jsonl` (rows of general text, `instruction` and `response`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import phonenumbers

from luthier.corpus.personal.registry import OWN_TYPES, Wanted, find_personal

# the labelled set's types, and ours that answer to them
ANSWERS = {
    "CREDIT_CARD": ("card",),
    "PHONE_NUMBER": ("phone",),
    "EMAIL_ADDRESS": ("email",),
    "IBAN_CODE": ("iban",),
    "US_SSN": ("us_ssn",),
    "IP_ADDRESS": ("ip",),
    "DOMAIN_NAME": ("domain", "url", "url_credentials"),
}
BARRED = tuple(name for answers in ANSWERS.values() for name in answers)
BAR, FEW_SPANS, MIN_IOU = 0.95, 20, 0.5
GENERAL_ROWS = 1000
MAX_ALARM_SHARE = 0.01

Place = tuple[int, int]


@dataclass
class Score:
    """Spans of one type: how many there are, how many were found, and how many of those are right."""

    type: str
    labelled: int = 0
    found: int = 0
    exact: int = 0
    overlapping: int = 0

    def recall(self, hits: int) -> float:
        """Share of the labelled spans that were found."""
        return hits / self.labelled if self.labelled else 1.0

    def precision(self, hits: int) -> float:
        """Share of the found spans that are labelled."""
        return hits / self.found if self.found else 1.0

    def passes(self, hits: int) -> bool:
        """The bar; with few spans, at most one error."""
        if self.labelled < FEW_SPANS:
            return (self.labelled - hits) + (self.found - hits) <= 1
        return self.recall(hits) >= BAR and self.precision(hits) >= BAR


def overlap(one: Place, other: Place) -> float:
    """Intersection over union of two stretches of text."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, shared) / (max(one[1], other[1]) - min(one[0], other[0]))


def num_overlapping(labelled: Sequence[Place], found: Sequence[Place]) -> int:
    """Pairs of one labelled and one found span with enough overlap; no span in two pairs."""
    left = list(found)
    count = 0
    for place in labelled:
        hit = next((other for other in left if overlap(place, other) >= MIN_IOU), None)
        if hit is not None:
            left.remove(hit)
            count += 1
    return count


def read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SystemExit(f"{path}: no such file. Give the folder that holds it with --data.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def score_rows(rows: Iterable[dict[str, Any]], what: Wanted, misses: list[str]) -> list[Score]:
    """One score a labelled type; what was missed or is too much goes to `misses` as row number, type and place."""
    scores = {name: Score(name) for name in ANSWERS}
    for number, row in enumerate(rows):
        spans = find_personal(row["text"], what)
        for name, answers in ANSWERS.items():
            labelled = [(span["start"], span["end"]) for span in row["spans"] if span["type"] == name]
            found = [(span.start, span.end) for span in spans if span.type in answers]
            score = scores[name]
            score.labelled += len(labelled)
            score.found += len(found)
            score.exact += len(set(labelled) & set(found))
            score.overlapping += num_overlapping(labelled, found)
            misses += [f"missed row {number} {name} {place}" for place in set(labelled) - set(found)]
            misses += [f"extra row {number} {name} {place}" for place in set(found) - set(labelled)]
    return list(scores.values())


def others(rows: Iterable[dict[str, Any]], what: Wanted) -> tuple[Counter[str], Counter[str]]:
    """Labelled types that have no detector here, and found types that are not labelled: counts."""
    rows = list(rows)
    unlooked = Counter(span["type"] for row in rows for span in row["spans"] if span["type"] not in ANSWERS)
    unlabelled = Counter(
        span.type for row in rows for span in find_personal(row["text"], what) if span.type not in BARRED
    )
    return unlooked, unlabelled


def alarms(rows: Sequence[dict[str, Any]], what: Wanted) -> list[tuple[int, str, str]]:
    """(row, type, value) of all that is found in rows of general text."""
    return [
        (number, span.type, text[span.start : span.end])
        for number, row in enumerate(rows)
        for text in (f"{row['instruction']}\n{row['response']}",)
        for span in find_personal(text, what)
    ]


def speed(rows: Sequence[dict[str, Any]], what: Wanted) -> float:
    """Characters of general text a second, the best of three passes."""
    texts = [f"{row['instruction']}\n{row['response']}" for row in rows]
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for text in texts:
            find_personal(text, what)
        best = max(best, sum(map(len, texts)) / (time.perf_counter() - start))
    return best


def phone_spellings() -> dict[str, float]:
    """Recall on the example numbers of all countries that the phonenumbers library knows, by way of writing.

    Independent of the labelled set: 489 numbers, fixed and mobile, after "phone number" or without any such word.
    """
    formats = phonenumbers.PhoneNumberFormat
    kinds = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE)
    numbers = [
        (region, number)
        for region in sorted(phonenumbers.SUPPORTED_REGIONS)
        for kind in kinds
        if (number := phonenumbers.example_number_for_type(region, kind))
    ]
    result = {}
    for spelling, form in (("international", formats.INTERNATIONAL), ("national", formats.NATIONAL)):
        for before in ("My phone number is ", "Ask for "):
            hits = 0
            for region, number in numbers:
                written = phonenumbers.format_number(number, form)
                what = Wanted(frozenset(["phone"]), (region,))
                places = [(span.start, span.end) for span in find_personal(f"{before}{written}.", what)]
                hits += (len(before), len(before) + len(written)) in places
            result[f"{spelling}, {before.strip()} ..."] = hits / len(numbers)
    return result


def print_scores(scores: Sequence[Score]) -> None:
    print(f"{'type':<16}{'spans':>6}{'found':>7}{'recall':>9}{'precision':>11}{'recall*':>9}{'precision*':>12}  bar")
    for score in scores:
        print(
            f"{score.type:<16}{score.labelled:>6}{score.found:>7}{score.recall(score.exact):>9.3f}"
            f"{score.precision(score.exact):>11.3f}{score.recall(score.overlapping):>9.3f}"
            f"{score.precision(score.overlapping):>12.3f}  {'met' if score.passes(score.exact) else 'NOT MET'}"
        )
    print(f"* at least {MIN_IOU:.0%} overlap instead of the exact span. Bar: {BAR:.0%} on exact spans.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--misses", action="store_true", help="also print the place of each error")
    parser.add_argument("--regions", default="US,GB", help="countries of national phone numbers")
    args = parser.parse_args()
    what = Wanted(frozenset(OWN_TYPES), tuple(args.regions.split(",")))
    labelled = read(args.data / "pii_presidio" / "pii.jsonl")
    general = read(args.data / "dolly_6400" / "dolly.jsonl")
    misses: list[str] = []
    scores = score_rows(labelled, what, misses)
    unlooked, unlabelled = others(labelled, what)
    found = alarms(general[:GENERAL_ROWS], what)
    rows_with_alarm = len({row for row, kind, _ in found if kind in BARRED})
    share = rows_with_alarm / min(GENERAL_ROWS, len(general))
    characters_per_second = speed(general, what)
    good = all(score.passes(score.exact) for score in scores) and share < MAX_ALARM_SHARE
    if args.json:
        result = {
            "types": [asdict(score) for score in scores],
            "not_looked_for": unlooked,
            "found_unlabelled": unlabelled,
            "alarms": [{"row": row, "type": kind} for row, kind, _ in found],
            "alarm_rows_share": share,
            "phone_spellings_recall": phone_spellings(),
            "characters_per_second": round(characters_per_second),
            "met": good,
        }
        print(json.dumps(result, indent=1))
        sys.exit(not good)
    print_scores(scores)
    print(f"labelled, no detector here: {dict(unlooked.most_common())}")
    print(f"found, of types that are not labelled: {dict(unlabelled.most_common())}")
    for spelling, recall in phone_spellings().items():
        print(f"recall of phone numbers of all countries, {spelling} {recall:.3f}")
    if args.misses:
        print("\n".join(misses))
    print(f"\nfound in {GENERAL_ROWS:,} general rows, by type:")
    for row, kind, value in sorted(found, key=lambda alarm: alarm[1]):
        print(f"  {kind:<14} row {row:<5} {value[:70]!r}")
    print(
        f"rows with a finding of the labelled types: {rows_with_alarm} ({share:.1%}; bar: under {MAX_ALARM_SHARE:.0%})"
    )
    print(f"{characters_per_second / 1e6:.2f} million characters a second")
    sys.exit(not good)


if __name__ == "__main__":
    main()
