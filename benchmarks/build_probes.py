"""Writes src/luthier/corpus/probes/hashes.npz: hashes of runs of words of public benchmarks, and no row of them.

python benchmarks/build_probes.py FOLDER [--check]

FOLDER holds the benchmarks' files as named in SETS. `--check` writes nothing and exits with 1 where the file differs
from what would be written. Runs that stand in more than TEMPLATE_ROWS rows of a benchmark (its fixed instruction), and
runs with fewer than LETTER_WORDS words of letters (tables, sums), are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from luthier.corpus import probes
from luthier.corpus.duplicates.words import hash_words, words_of
from luthier.corpus.probes import PROBE_WORDS, Probes, load_probes, probe_runs

TARGET = Path(probes.__file__).with_name("hashes.npz")
TEMPLATE_ROWS = 10
LETTER_WORDS = 6

# name: file, and the text of a row that gives the benchmark away (the question, not the answer options)
SETS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "gsm8k": ("gsm8k/test.jsonl", lambda row: row["question"]),
    "medmcqa": ("medmcqa_dev/medmcqa.jsonl", lambda row: row["question"]),
    "pubmedqa": ("pubmedqa/pqal.jsonl", lambda row: row["question"]),
    "ifeval": ("ifeval/ifeval.jsonl", lambda row: row["prompt"]),
    "mt_bench": ("mt_bench/mt_bench_questions.jsonl", lambda row: "\n".join(row["turns"])),
    "vicuna_bench": ("mt_bench/vicuna_bench_questions.jsonl", lambda row: "\n".join(row["turns"])),
    "arc_challenge": ("probes/arc_challenge.jsonl", lambda row: row["query"]),
    "arc_easy": ("probes/arc_easy.jsonl", lambda row: row["query"]),
    "boolq": ("probes/boolq.jsonl", lambda row: row["query"]),
    "hellaswag": ("probes/hellaswag.jsonl", lambda row: row["query"]),
    "lambada": ("probes/lambada.jsonl", lambda row: row["context"]),
    "mmlu_dev": ("probes/mmlu_dev.jsonl", lambda row: row["query"]),
    "mmlu_medical": ("probes/mmlu_medical_sample.jsonl", lambda row: row["query"]),
    "mmlu": ("probes/mmlu_test_sample.jsonl", lambda row: row["query"]),
    "openbook_qa": ("probes/openbook_qa.jsonl", lambda row: row["query"]),
    "svamp": ("probes/svamp.jsonl", lambda row: row["question"]),
    "winogrande": ("probes/winogrande.jsonl", lambda row: f"{row['context_options'][0]} {row['continuation']}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    built = build(arguments.folder)
    if arguments.check:
        sys.exit(0 if same(built, load_probes()) else "hashes.npz differs; run this program without --check.")
    arrays = {"names": np.array(built.names), "hashes": built.hashes_G, "name": built.name_G, "row": built.row_G}
    np.savez_compressed(TARGET, **arrays)  # type: ignore[arg-type]
    for number, name in enumerate(built.names):
        rows = np.unique(built.row_G[built.name_G == number])
        print(f"{name:16} {len(rows):6,} rows {int((built.name_G == number).sum()):8,} hashes")
    print(f"{len(built.hashes_G):,} hashes, {TARGET.stat().st_size:,} bytes")


def same(built: Probes, written: Probes) -> bool:
    """Whether two sets of probes agree."""
    arrays = ("hashes_G", "name_G", "row_G")
    return built.names == written.names and all(
        np.array_equal(getattr(built, name), getattr(written, name)) for name in arrays
    )


def build(folder: Path) -> Probes:
    """All benchmarks' hashes, sorted."""
    hashes, name_numbers, rows = [], [], []
    for number, (file, text_of) in enumerate(SETS.values()):
        lines = (folder / file).read_text(encoding="utf-8").strip("\n").split("\n")
        found, row_numbers = hashes_of([text_of(json.loads(line)) for line in lines])
        hashes.append(found)
        rows.append(row_numbers)
        name_numbers.append(np.full(len(found), number, dtype=np.uint8))
    order = np.lexsort((np.concatenate(rows), np.concatenate(name_numbers), np.concatenate(hashes)))
    return Probes(
        tuple(SETS),
        np.concatenate(hashes)[order],
        np.concatenate(name_numbers)[order],
        np.concatenate(rows)[order].astype(np.uint16),
    )


def hashes_of(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The hashes kept of one benchmark's rows, and each one's row number (from 1)."""
    words_by_row = [words_of(text) for text in texts]
    letters = [[word for word in words if any(char.isalpha() for char in word)] for words in words_by_row]
    hashes, rows = [], []
    for num_words, row_G, hash_G in probe_runs(hash_words(words_by_row)):
        needed = min(LETTER_WORDS, num_words)
        common = {
            value for value, count in zip(*np.unique(hash_G, return_counts=True), strict=True) if count > TEMPLATE_ROWS
        }
        keep = [value not in common and len(letters[row]) >= needed for row, value in zip(row_G, hash_G, strict=True)]
        hashes.append(hash_G[keep])
        rows.append(row_G[keep] + 1)
    assert PROBE_WORDS >= LETTER_WORDS
    return np.concatenate(hashes), np.concatenate(rows)


if __name__ == "__main__":
    main()
