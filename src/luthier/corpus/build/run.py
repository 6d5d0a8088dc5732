"""The whole preparation: plan, units, merge, delivery."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.corpus.build.decide import decide
from luthier.corpus.build.deliver import deliver, make_template, write_dropped
from luthier.corpus.build.ledger import build_ledger
from luthier.corpus.build.store import Store
from luthier.corpus.build.trim import trim
from luthier.corpus.build.units import Unit, inputs_of, limits_of, plan_units
from luthier.corpus.build.work import SHOWN_CHARS, do_unit, is_done
from luthier.corpus.steps.chain import make_steps, masked_excerpt
from luthier.corpus.steps.chunking import TokenCounter
from luthier.corpus.unread import unread_columns, unread_note
from luthier.errors import DataError, RunError
from luthier.files import write_json
from luthier.progress import Listener, Silent
from luthier.recipe.corpus import Corpus
from luthier.run_folder import code_hash
from luthier.runtime import num_cores, peak_memory_bytes
from luthier.signals import Stop

CODE = ("corpus", "records.py", "recipe")
STOP_SECONDS = 0.5


@dataclass(frozen=True)
class Shard:
    """This machine's part of the units: those whose number, divided by `count`, leaves `index` (from 0)."""

    index: int
    count: int


def prepare_corpus(
    corpus: Corpus,
    out: Path,
    listener: Listener | None = None,
    workers: int = 0,
    shard: Shard | None = None,
    count_tokens: TokenCounter | None = None,
) -> dict[str, Any]:
    """Prepare a corpus into `out` and return its ledger (also in `out/ledger.json`).

    Called again it goes on where it stopped: finished units are kept in `out/work` and reused while their bytes and
    settings are the same. `workers` 0 uses all cores. With `shard` only that part of the units is done, and what is
    returned says how many; a later call without it does the rest, and merges. `count_tokens` gives the number of
    tokens of each text; without it lengths are in words.

    Raises:
        DataError: an input that cannot be used, or more rows dropped than `max_dropped_share`.
        Stopped: on Ctrl-C or SIGTERM; finished units are kept.
    """
    listener = listener or Silent()
    started = time.perf_counter()
    prove_writable(out)
    make_steps(corpus.steps, os.environ.get(corpus.steps.personal.key_variable, "").encode() or None)
    make_template(corpus.template)
    listener.plan(["plan", "rows"] if shard else ["plan", "rows", "merge", "write"])
    listener.begin("plan")
    units = plan_units(corpus, code_hash(*CODE), listener.say)
    unread = say_unread(units, corpus, listener)
    listener.end("plan", False, f"{len(units):,} units, {sum(unit.num_bytes for unit in units):,} bytes")
    mine = units if shard is None else units[shard.index :: shard.count]
    do_units(mine, corpus, out / "work", listener, workers or num_cores())
    if shard is not None:
        missing = [unit for unit in units if not is_done(out / "work", unit)]
        return {"units": len(units), "done": len(units) - len(missing), "merged": False}
    listener.begin("merge")
    store = Store(out / "work", units)
    found = decide(store, corpus, listener.say)
    cut = trim(store, corpus, found, out / "work")
    listener.end("merge", False, f"{len(store):,} rows, {len(found.problems):,} of them dropped")
    listener.begin("write")
    excerpt = masked_excerpt(corpus.steps, SHOWN_CHARS)
    done = deliver(store, corpus, found, out, count_tokens)
    write_dropped(out, store, found, done, excerpt)
    ledger = build_ledger(store, corpus, found, done, excerpt)
    for row, columns in zip(ledger["inputs"], unread, strict=True):
        row["unread_columns"] = columns
    ledger |= {"cut_characters": cut, "seconds": time.perf_counter() - started, "peak_bytes": peak_memory_bytes()}
    write_json(out / "ledger.json", ledger)
    listener.end("write", False, ", ".join(f"{count:,} {part}" for part, count in ledger["parts"].items()))
    refuse_losses(ledger, corpus)
    return ledger


def say_unread(units: list[Unit], corpus: Corpus, listener: Listener) -> list[list[str]]:
    """Columns that nothing reads, of the first file of each input; said in a note."""
    found: list[list[str]] = []
    for number, source in enumerate(inputs_of(corpus)):
        first = next((unit for unit in units if unit.input == number), None)
        path = Path(first.files[0]) if first else Path()
        found.append(unread_columns(path, source, first.reading, limits_of(corpus)) if first else [])
        if note := unread_note(path, found[-1], corpus.as_read):
            listener.say(note)
    return found


def prove_writable(out: Path) -> None:
    """Refuse a folder that is not ours before anything is read."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file. Give another folder with --out.")
    known = {"work", "records", "ledger.json", "dropped.jsonl", "data.html", "datasheet.md"}
    strangers = sorted(path.name for path in out.iterdir() if path.name not in known) if out.is_dir() else []
    strangers = [name for name in strangers if not name.startswith(".")]
    if strangers:
        raise RunError(f"{out}: holds other files ({strangers[0]}). Give another folder with --out.")
    write_json(out / "work" / "started.json", {"seconds_since_1970": int(time.time())})


def do_units(units: list[Unit], corpus: Corpus, work: Path, listener: Listener, workers: int) -> None:
    """All units that are not done yet, in some processes; a stop waits for those under way and keeps them."""
    total = sum(unit.num_bytes for unit in units)
    listener.begin("rows")
    waiting = [unit for unit in units if not is_done(work, unit)]
    done = total - sum(unit.num_bytes for unit in waiting)
    cached = ready = len(units) - len(waiting)
    with Stop() as stop:
        for unit in finished(waiting, corpus, work, min(workers, len(waiting)), stop):
            done += unit.num_bytes
            ready += 1
            listener.update(
                done, total, f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {ready:,} of {len(units):,} units"
            )
        left = sum(not is_done(work, unit) for unit in waiting) if stop.wanted else 0
        if left:
            stop.leave(f"{len(units) - left:,} of {len(units):,} units are done and kept")
    listener.end("rows", not waiting, f"{cached:,} of {len(units):,} units were done before" if cached else "")


def finished(waiting: list[Unit], corpus: Corpus, work: Path, workers: int, stop: Stop) -> Iterator[Unit]:
    """Units as they are done. After a stop no new one is begun."""
    if workers <= 1:
        for unit in waiting:
            if stop.wanted:
                return
            do_unit(unit, corpus, str(work))
            yield unit
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=deaf_to_ctrl_c) as pool:
        ahead = iter(waiting)
        running: dict[Future[str], Unit] = {}
        while True:
            while len(running) < 2 * workers and not stop.wanted and (following := next(ahead, None)):
                running[pool.submit(do_unit, following, corpus, str(work))] = following
            if not running:
                return
            ready, _ = wait(running, timeout=STOP_SECONDS, return_when=FIRST_COMPLETED)
            for future in ready:
                unit = running.pop(future)
                future.result()
                yield unit


def deaf_to_ctrl_c() -> None:
    """A worker leaves the stopping to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def refuse_losses(ledger: dict[str, Any], corpus: Corpus) -> None:
    """DataError where more rows were dropped than the recipe allows. Everything is written by then."""
    rows_in, kept = ledger["rows_in"], ledger["rows_kept"]
    share = 1 - kept / rows_in if rows_in else 0.0
    if rows_in == 0 or share > corpus.max_dropped_share:
        reasons = "; ".join(
            f"{entry['reason']} {entry['count']:,} (first: {entry['examples'][0]['source']}: "
            f"{entry['examples'][0]['detail']})"
            for entry in ledger["dropped"][:5]
            if entry["examples"]
        )
        raise DataError(
            f"{share:.0%} of {rows_in:,} rows were dropped; max_dropped_share allows {corpus.max_dropped_share:.0%}. "
            f"Reasons: {reasons or 'no rows at all'}. The whole list is in dropped.jsonl; mend the data, or raise "
            "max_dropped_share."
        )
