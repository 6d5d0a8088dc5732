"""Near-duplicates: what is found among natural pairs of known similarity, and how fast a large corpus is done.

python benchmarks/near_duplicates.py pairs PATH/near_dup_natural/pairs.jsonl
python benchmarks/near_duplicates.py speed FOLDER... [--documents N] [--peer datasketch] [--peer text-dedup --python P]

`pairs` exits with 1 where a bar is missed: of the pairs with a Jaccard similarity of at least 0.8, 97 % found; of
those under 0.4, at most 1 % merged. The similarity in the file is that of word 3-grams over [a-z0-9]+.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.corpus.build import prepare_corpus
from luthier.corpus.duplicates.clusters import Clusters, bands_and_rows, find_clusters
from luthier.corpus.duplicates.signatures import bytes_a_document, open_signatures, save_signatures, sign
from luthier.corpus.duplicates.words import words_of
from luthier.recipe import corpus_of
from luthier.recipe.corpus import Duplicates

UNIT_RECORDS = 5_000
HIGH, LOW = 0.8, 0.4
RECALL_BAR, FALSE_BAR = 0.97, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pairs = commands.add_parser("pairs", help="recall and false merges on pairs of known similarity")
    pairs.add_argument("file", type=Path)
    speed = commands.add_parser("speed", help="documents a second and peak memory, beside a peer")
    speed.add_argument("folders", type=Path, nargs="+", help="folders of .jsonl and .txt files to make documents of")
    speed.add_argument("--documents", type=int, default=20_000)
    speed.add_argument("--peer", action="append", default=[], choices=["datasketch", "text-dedup"])
    speed.add_argument("--prepare", action="store_true", help="also time `luthier data prepare` on the same documents")
    speed.add_argument("--python", default=sys.executable, help="python of the environment that has text-dedup")
    child = commands.add_parser("child", help="one side of `speed`, in a process of its own")
    child.add_argument("side", choices=sorted(SIDES))
    child.add_argument("corpus", type=Path)
    child.add_argument("python")
    arguments = parser.parse_args()
    if arguments.command == "pairs":
        sys.exit(natural_pairs(arguments.file))
    if arguments.command == "child":
        print(json.dumps(SIDES[arguments.side](arguments.corpus, arguments.python)))
    else:
        speed_beside_peers(arguments)


# --- natural pairs ---------------------------------------------------------------------------------------------------


def natural_pairs(file: Path) -> int:
    """Both ways of putting the question; 1 where a bar is missed in either."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    texts = [row[side] for row in rows for side in ("text1", "text2")]
    settings = Duplicates()
    bands, band_rows = bands_and_rows(settings.near, settings.permutations)
    print(f"{len(rows)} pairs; near {settings.near}, {settings.permutations} permutations, {bands} bands x {band_rows}")
    alone = [find_clusters([sign(texts[2 * n : 2 * n + 2], settings)], settings) for n in range(len(rows))]
    together = find_clusters([sign(texts, settings)], settings)
    links = {frozenset(link) for link in together.links_E2.tolist()}
    leaders = together.leader_N.tolist()
    missed = report("each pair a corpus of its own", rows, [result.twin_N[1] == 0 for result in alone], None)
    merged = [bool(together.twin_N[2 * n] == together.twin_N[2 * n + 1]) for n in range(len(rows))]
    linked = [merged[n] or frozenset(leaders[2 * n : 2 * n + 2]) in links for n in range(len(rows))]
    missed += report(f"all {len(texts)} texts one corpus", rows, linked, merged)
    print(f"one corpus: {together.stays_N.sum()} of {len(texts)} stay, {together.exact_N.sum()} go as exact copies")
    return int(missed > 0)


def report(title: str, rows: Sequence[dict[str, Any]], found: Sequence[bool], merged: Sequence[bool] | None) -> int:
    """Print one way's numbers; how many bars it misses. `merged` differs from `found` where both texts may stay."""
    merged = found if merged is None else merged
    high = [n for n, row in enumerate(rows) if row["jaccard3"] >= HIGH]
    low = [n for n, row in enumerate(rows) if row["jaccard3"] < LOW]
    recall = sum(found[n] for n in high) / len(high)
    false_share = sum(merged[n] for n in low) / len(low)
    print(f"{title}:")
    print(
        f"  pairs >= {HIGH}: {sum(found[n] for n in high)} of {len(high)} found, recall {recall:.4f} (bar {RECALL_BAR})"
    )
    print(f"    of them {sum(merged[n] for n in high)} in one cluster (of the others, both stay or have other twins)")
    print(f"  pairs < {LOW}: {sum(merged[n] for n in low)} of {len(low)} merged, {false_share:.4f} (bar {FALSE_BAR})")
    between = [n for n, row in enumerate(rows) if LOW <= row["jaccard3"] < HIGH]
    print(f"  pairs between: {sum(merged[n] for n in between)} of {len(between)} merged")
    for n in high:
        if not found[n]:
            print(f"  missed: {rows[n]['jaccard3']:.4f} {rows[n]['text1'][:80]!r} / {rows[n]['text2'][:80]!r}")
    return int(recall < RECALL_BAR) + int(false_share > FALSE_BAR)


# --- speed -----------------------------------------------------------------------------------------------------------


def speed_beside_peers(arguments: argparse.Namespace) -> None:
    """One corpus in a file, each side in a fresh process, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        copies = write_corpus(arguments.folders, arguments.documents, corpus)
        print(f"{arguments.documents:,} documents, {copies:,} of them copies made by changing a few words or none")
        for side in ["luthier", *arguments.peer, *(["prepare"] if arguments.prepare else [])]:
            result = run_side(side, corpus, arguments.python)
            rate = arguments.documents / result["seconds"]
            line = f"{side:11} {result['seconds']:7.1f} s {result['cpu_seconds']:7.1f} s CPU {rate:8,.0f} documents/s"
            line += f" {result['peak_mb']:7,.0f} MB peak {result['kept']:9,} kept"
            print(f"{line}  {result.get('note', '')}", flush=True)


def run_side(side: str, corpus: Path, python: str) -> dict[str, Any]:
    """The numbers of one child process."""
    command = [sys.executable, __file__, "child", side, str(corpus), python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def write_corpus(folders: Sequence[Path], num_documents: int, target: Path, seed: int = 13) -> int:
    """Passages of the folders' texts; a third of the documents are copies of earlier ones. How many copies."""
    source = [text for folder in folders for text in passages(folder)]
    rng = random.Random(seed)  # noqa: S311
    rng.shuffle(source)
    num_copies = 0
    written: list[str] = []
    with target.open("w", encoding="utf-8") as file:
        for number in range(num_documents):
            if written and (rng.random() < 1 / 3):
                text = perturbed(rng.choice(written), rng)
                num_copies += 1
            else:
                text = source[number % len(source)]
                if number >= len(source):
                    text = recombined(text, source[rng.randrange(len(source))])
                written.append(text)
            file.write(json.dumps({"text": text}) + "\n")
    return num_copies


def passages(folder: Path, max_words: int = 120) -> list[str]:
    """Every string of 8 words or more in the folder's JSONL and text files, cut into short documents."""
    found: list[str] = []
    for file in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.txt")]):
        for line in file.read_text(encoding="utf-8", errors="ignore").strip("\n").split("\n"):
            values = list(json.loads(line).values()) if file.suffix == ".jsonl" else [line]
            for value in values:
                words = value.split() if isinstance(value, str) else []
                found += [
                    " ".join(words[at : at + max_words])
                    for at in range(0, len(words), max_words)
                    if len(words[at : at + max_words]) >= 8
                ]
    return found


def recombined(first: str, second: str) -> str:
    """A new document: the first half of one, the second half of another."""
    words, others = first.split(), second.split()
    return " ".join(words[: len(words) // 2] + others[len(others) // 2 :])


def perturbed(text: str, rng: random.Random) -> str:
    """The text as it is, or with up to a twentieth of its words changed."""
    words = text.split()
    for _ in range(rng.randrange(len(words) // 20 + 2)):
        words[rng.randrange(len(words))] = f"word{rng.randrange(10_000)}"
    return " ".join(words)


def child_luthier(corpus: Path, python: str) -> dict[str, Any]:
    """Units of 5,000 signed and saved, then opened by memory map and decided over."""
    settings = Duplicates()
    started, started_cpu = time.perf_counter(), cpu_seconds()
    units: list[Path] = []
    num_shingles = num_documents = 0
    with corpus.open(encoding="utf-8") as file:
        while texts := [json.loads(line)["text"] for line, _ in zip(file, range(UNIT_RECORDS), strict=False)]:
            unit = corpus.parent / f"unit{len(units):05}"
            unit.mkdir()
            signatures = sign(texts, settings)
            save_signatures(signatures, unit)
            num_shingles, num_documents = num_shingles + len(signatures.shingles), num_documents + len(texts)
            units.append(unit)
    signed = time.perf_counter()
    clusters: Clusters = find_clusters([open_signatures(unit) for unit in units], settings)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - started_cpu
    state = bytes_a_document(settings, num_shingles / num_documents)
    note = f"(signing {signed - started:.1f} s; index {state:.0f} bytes a document on disk)"
    kept = int(clusters.stays_N.sum())
    return {"seconds": seconds, "cpu_seconds": cpu, "kept": kept, "peak_mb": peak_mb(), "note": note}


def child_datasketch(corpus: Path, python: str) -> dict[str, Any]:
    """MinHashLSH over the same shingles, each candidate verified by the exact Jaccard, the first copy kept."""
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped,unused-ignore]

    settings = Duplicates()
    bands = bands_and_rows(settings.near, settings.permutations)
    started, started_cpu = time.perf_counter(), cpu_seconds()
    index = MinHashLSH(num_perm=settings.permutations, params=bands)
    kept: list[set[str]] = []
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            words = words_of(json.loads(line)["text"])
            count = min(settings.shingle_words, len(words))
            shingles = {" ".join(words[at : at + count]) for at in range(len(words) - count + 1)}
            signature = MinHash(num_perm=settings.permutations)
            signature.update_batch([shingle.encode() for shingle in shingles])
            candidates = (kept[number] for number in index.query(signature))
            if not any(len(shingles & other) >= settings.near * len(shingles | other) for other in candidates):
                index.insert(len(kept), signature, check_duplication=False)
                kept.append(shingles)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - started_cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "kept": len(kept), "peak_mb": peak_mb()}


def child_text_dedup(corpus: Path, python: str) -> dict[str, Any]:
    """Its own program with the same bands. Start and imports are timed apart and taken off."""
    settings = Duplicates()
    bands, rows = bands_and_rows(settings.near, settings.permutations)
    output = corpus.parent / "text-dedup"
    command = [python, "-m", "text_dedup.minhash", "--path", "json", "--data_files", str(corpus)]
    command += [
        "--split",
        "train",
        "--column",
        "text",
        "--output",
        str(output),
        "--cache_dir",
        str(corpus.parent / "cache"),
    ]
    command += ["--ngram", str(settings.shingle_words), "--min_length", "0", "--num_perm", str(settings.permutations)]
    command += ["--b", str(bands), "--r", str(rows), "--hash_func", "xxh3", "--num_proc", "1"]
    started = time.perf_counter()
    subprocess.run([python, "-m", "text_dedup.minhash", "--help"], capture_output=True, check=False)
    imported, imported_cpu = time.perf_counter(), cpu_seconds(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=corpus.parent)
    seconds = time.perf_counter() - imported - (imported - started)
    saved = re.findall(r"Saving the dataset \(1/1 shards\).*?\| (\d+)/(\d+)", done.stdout + done.stderr)
    if done.returncode or not saved:
        sys.exit((done.stdout + done.stderr)[-3000:])
    cpu = cpu_seconds(resource.RUSAGE_CHILDREN) - 2 * imported_cpu
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    kept, note = int(saved[-1][1]), "(candidates not verified)"
    return {"seconds": seconds, "cpu_seconds": cpu, "kept": kept, "peak_mb": peak, "note": note}


def cpu_seconds(of: int = resource.RUSAGE_SELF) -> float:
    """Processor time used so far, by this process or by the children it waited for."""
    usage = resource.getrusage(of)
    return usage.ru_utime + usage.ru_stime


def peak_mb() -> float:
    """The most memory this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_prepare(corpus: Path, python: str) -> dict[str, Any]:
    """The whole preparation with its default steps: repair, language, personal data, copies, split, audit, page."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        settings = corpus_of([str(corpus)], ["split.test_share=0.05"])
        ledger = prepare_corpus(settings, Path(folder) / "out", workers=1)
        seconds = time.perf_counter() - started
    note = f"(whole preparation, one process: {ledger['parts']})"
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds(),
        "kept": ledger["rows_kept"],
        "peak_mb": peak_mb(),
        "note": note,
    }


SIDES: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "luthier": child_luthier,
    "prepare": child_prepare,
    "datasketch": child_datasketch,
    "text-dedup": child_text_dedup,
}

if __name__ == "__main__":
    main()
