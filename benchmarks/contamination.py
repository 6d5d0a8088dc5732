"""Shared texts of two news files: does the audit find all of them, and what else does it say?

python benchmarks/contamination.py HUFFPOST_RAW/news.jsonl HUFFPOST_KILI [--show] [--all]

The training texts are `headline. short_description` of the raw file; the test texts are those of `curie1.txt` and
`curie2.txt` (`text|LABEL`). Exits with 1 unless all 236 test texts that stand in the raw file as well (149 and 87, case
and punctuation folded; counted here anew, without the audit) are found. `--show` prints each pair, `--all` every hit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from luthier.corpus.contamination import audit
from luthier.corpus.fold import fold_text
from luthier.recipe.corpus import Contamination
from luthier.records import Document, Source

EXPECTED = {"curie1.txt": 149, "curie2.txt": 87}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("kili", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    train, missed = raw_news(arguments.raw), 0
    folded_train = {fold_text(record.text) for record in train}
    for name, expected in EXPECTED.items():
        test = kili_news(arguments.kili / name)
        shared = {number for number, record in enumerate(test) if fold_text(record.text) in folded_train}
        started = time.perf_counter()
        result = audit(train, test, Contamination())
        seconds = time.perf_counter() - started
        found = {hit.test_index for hit in result.hits if hit.how == "same text"}
        others = [hit for hit in result.hits if hit.how != "same text"]
        print(f"{name}: {len(shared)} of {len(test)} test texts stand in the raw file (expected {expected}).")
        print(f"  found {len(found & shared)}, not found {len(shared - found)}, wrongly {len(found - shared)}")
        print(f"  hits by kind: {result.counts()}; templates: {len(result.templates)}")
        print(f"  test texts hit in any way: {len(result.test_indices())}")
        print(f"  {len(train):,} training texts in {seconds:.1f} s, {len(train) / seconds:,.0f} a second")
        missed += len(shared ^ found) + abs(len(shared) - expected)
        for hit in result.hits if arguments.all else [hit for hit in result.hits if hit.how == "same text"]:
            if arguments.show or arguments.all:
                print(hit)
        print(*(f"  e.g. {hit}" for hit in others[:3]), sep="\n")
    sys.exit(1 if missed else 0)


def raw_news(file: Path) -> list[Document]:
    """Headline and description as one text, as the other files have it."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    texts = [f"{row['headline']}. {row['short_description']}" for row in rows]
    return [Document(text, Source(file.name, line)) for line, text in enumerate(texts, start=1)]


def kili_news(file: Path) -> list[Document]:
    """The texts of a `text|LABEL` file."""
    lines = [line for line in file.read_text(encoding="utf-8").strip("\n").split("\n") if line.strip()]
    texts = [line.rpartition("|")[0] for line in lines]
    return [Document(text, Source(file.name, number)) for number, text in enumerate(texts, start=1)]


if __name__ == "__main__":
    main()
