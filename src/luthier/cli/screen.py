"""What a run looks like in a terminal: stages with time left, the result table, the peek."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from luthier.processes import is_first
from luthier.progress import Listener
from luthier.recipe.methods import asked_by
from luthier.records import NOT_TAKEN
from luthier.report.numbers import ARM_NAMES, arm_name, level_words, percent, with_arm_names

STEP_NAMES = {"training": "training", "generated": "written answers"}  # steps of a run that are no arms
PLAIN_EVERY_SECONDS = 15.0
MANY = 1_000_000  # from here on the share of a total is easier to read than the count
MOST_LABELS = 40  # that are listed
BESIDE = ("macro_f1",)  # figures that stand beside the deciding one, where a stage has them


@contextlib.contextmanager
def screen(quiet: bool) -> Iterator[Listener]:
    """A live screen on a terminal, plain lines elsewhere; all of it on standard error."""
    console = plain_console(stderr=True)
    quiet = quiet or not is_first()
    if quiet or not console.is_terminal:
        yield Plain(quiet)
        return
    with progress(console) as bars:
        yield Live(bars)


def progress(console: Console) -> Progress:
    """The bars of a live screen."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )


def plain_console(**settings: Any) -> Console:
    """A console that prints texts as they are: those of users may look like markup or emoji codes."""
    return Console(markup=False, emoji=False, **settings)


class Live:
    """One bar for the stage at work; finished stages become lines."""

    def __init__(self, bars: Progress):
        self.bars = bars
        self.stages: list[str] = []
        self.task: TaskID | None = None
        self.started = time.monotonic()

    def plan(self, stages: list[str]) -> None:
        """Remember the order, to say 3 of 9."""
        self.stages = stages

    def begin(self, stage: str) -> None:
        """A new bar."""
        self.started = time.monotonic()
        self.task = self.bars.add_task(f"{place(stage, self.stages)} {step_name(stage)}", total=None, note="")

    def update(self, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        if self.task is not None:
            self.bars.update(self.task, completed=done, total=total, note=note)

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        """Replace the bar by a line."""
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        self.bars.console.print(end_line(stage, self.stages, cached, note, time.monotonic() - self.started))

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bars.console.print(Text.assemble(("note", "yellow"), f" {text}"))


class Pace:
    """How long the rest of some work takes, by the pace since it was first heard of.

    Work of another size (or work that falls back) is new work: a stage scores rows, trains, scores again. What was done
    before it was first heard of, by a run that was stopped, says nothing of the pace.
    """

    def __init__(self, now: float):
        self.begun = self.last = now
        self.done = self.total = 0
        self.first: tuple[float, int] | None = None

    def left(self, now: float, done: int, total: int) -> float:
        """Seconds, at `now`; 0 where nothing is done."""
        if total != self.total or done < self.done:
            self.begun, self.first = self.last, None
        elif self.first is None and 0 < self.done < done:
            self.first = (self.last, self.done)
        self.last, self.done, self.total = now, done, total
        since, before = self.first or (self.begun, 0)
        return (now - since) / (done - before) * (total - done) if done else 0.0


class Plain:
    """Lines for logs: a stage's end, and progress every quarter minute."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.stages: list[str] = []
        self.stage = ""
        self.started = self.last = time.monotonic()
        self.pace = Pace(self.started)

    def plan(self, stages: list[str]) -> None:
        """Remember the order."""
        self.stages = stages

    def begin(self, stage: str) -> None:
        """Note the start."""
        self.stage, self.started, self.last = stage, time.monotonic(), time.monotonic()
        self.pace = Pace(self.started)

    def update(self, done: int, total: int, note: str = "") -> None:
        """A line now and then, with time left."""
        now = time.monotonic()
        left = self.pace.left(now, done, total)
        if now - self.last < PLAIN_EVERY_SECONDS or not done:
            return
        self.last = now
        self.write(
            f"{place(self.stage, self.stages)} {self.stage}: {so_far(done, total)}, {clock(left)} left"
            + (f", {note}" if note else "")
        )

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        """The stage's line."""
        self.write(end_line(stage, self.stages, cached, note, time.monotonic() - self.started))

    def say(self, text: str) -> None:
        """A note."""
        self.write(f"note: {text}")

    def write(self, line: str) -> None:
        """To standard error, unless quiet."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def step_name(stage: str) -> str:
    """What a step of a run is called: an arm as on the page, a stage as in its recipe."""
    return ARM_NAMES.get(stage, STEP_NAMES.get(stage, stage))


def so_far(done: int, total: int) -> str:
    """`3/9`; of bytes and the like the share."""
    return f"{done}/{total}" if total < MANY else f"{done / total:.0%}"


def place(stage: str, stages: list[str]) -> str:
    """[3/9]"""
    return f"[{stages.index(stage) + 1}/{len(stages)}]" if stage in stages else ""


def end_line(stage: str, stages: list[str], cached: bool, note: str, seconds: float) -> str:
    """One finished stage."""
    took = "as before" if cached else clock(seconds)
    return f"{place(stage, stages)} {step_name(stage)}: {note} ({took})"


def clock(seconds: float) -> str:
    """1:05, or 0.3 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def print_result(result: dict[str, Any], folder: Path) -> None:
    """The table of arms, the verdict, and where the page is."""
    console = plain_console(highlight=False)
    level = level_words(result["confidence"])
    table = Table(
        "way",
        "accuracy",
        f"{level} interval",
        "macro-F1",
        "ms a row",
        f"{result['currency']} / 1,000",
        box=None,
        pad_edge=False,
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, arm in sorted(result["arms"].items(), key=lambda item: item[1]["accuracy"]):
        table.add_row(
            arm_name(name),
            percent(arm["accuracy"]),
            f"{percent(arm['low'])} to {percent(arm['high'])}",
            f"{arm['macro_f1']:.3f}",
            f"{arm['seconds_per_row'] * 1000:.1f}",
            f"{arm['cost_per_1000']:.4f}",
            style="bold" if name == "tuned" else None,
        )
    count = next(iter(result["arms"].values()))["n"]
    console.print(f"\n{result['name']}: {count} held-out rows\n")
    console.print(table)
    console.print(f"\n{with_arm_names(result['verdict'], result['arms'])}\n")
    if told := weighed(result):
        console.print(f"{told}\n")
    console.print(f"Page:    {folder / 'report.html'}", soft_wrap=True)
    if result["training"] is not None:
        console.print(f'Use it:  luthier predict {shlex.quote(str(folder))} --text "..."', soft_wrap=True)


def weighed(result: dict[str, Any]) -> str:
    """A sentence on what expected shares of the labels did to the answers, where they are set."""
    plain = {name: arm["as_scored"]["accuracy"] for name, arm in result["arms"].items() if arm["as_scored"]}
    if not plain:
        return ""
    told = ", ".join(f"{arm_name(name)} {percent(accuracy)}" for name, accuracy in plain.items())
    return (
        "Answers are weighted by the texts of the test rows, so that labels come in the shares of data.class_prior. "
        f"Without weights: {told}."
    )


def print_stages(result: dict[str, Any], folder: Path) -> None:
    """Each stage's deciding figure before and after, the last verdict, and where the adapter is."""
    console = plain_console(highlight=False)
    level = level_words(result["confidence"])
    table = Table("stage", "figure", "before", "after", "change", f"{level} interval", "rows", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for name, figure, found in deciding_figures(result["stages"]):
        table.add_row(
            name,
            figure.replace("_", " "),
            measured(found["before"]["value"]),
            measured(found["after"]["value"]),
            measured(found["change"]["value"], "+"),
            interval(found["change"]),
            f"{found['n']}",
        )
    console.print(f"\n{result['name']}\n")
    console.print(table)
    rivals = [rival["name"] for rival in result["stages"][-1].get("rivals") or []]
    console.print(f"\n{with_arm_names(result['verdict'], rivals)}\n")
    console.print(f"Page:    {folder / 'report.html'}", soft_wrap=True)
    console.print(f"Adapter: {result['adapter']}", soft_wrap=True)
    for number, command in enumerate(how_to_ask(result["stages"][-1], folder)):
        console.print(f"{'Use it: ' if not number else '        '} {command}", soft_wrap=True)


def how_to_ask(stage: dict[str, Any], folder: Path) -> Iterator[str]:
    """The commands that ask what a stage left, one for each of its tasks; none for what only fills gaps."""
    tasks = {name: task["method"] for name, task in (stage.get("tasks") or {}).items()}
    given = {"predict": '--text "..."', "answer": '--text "..."', "score": "ROWS"}
    for task, method in tasks.items() or [("", stage["method"])]:
        if command := asked_by(method):
            which = f" --task {task}" if task else ""
            yield f"luthier {command} {shlex.quote(str(folder))} {given[command]}{which}"


def deciding_figures(stages: list[dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(stage, figure, its values) of each stage, or of each task of one that learnt several; macro-F1 beside it."""
    for stage in stages:
        tasks = stage.get("tasks") or {}
        primary = {f"{name}/": task["primary_metric"] for name, task in tasks.items()} or {"": stage["primary_metric"]}
        for task, first in primary.items():
            for figure in dict.fromkeys(f"{task}{name}" for name in (first, *BESIDE)):
                if figure in stage["figures"]:
                    yield stage["name"], figure, stage["figures"][figure]


def interval(found: dict[str, Any]) -> str:
    """Both ends of a change's interval, if it has one."""
    if found["low"] is None or found["high"] is None:
        return "none"
    return f"{measured(found['low'], '+')} to {measured(found['high'], '+')}"


def measured(value: float | None, sign: str = "") -> str:
    """Four digits of a figure; a dash for one that could not be measured."""
    return "–" if value is None else f"{value:{sign}.4g}"


def print_peek(found: dict[str, Any]) -> None:
    """Ledger, labels, lengths, rows."""
    console = plain_console(highlight=False)
    print_rows_ledger(console, found["ledger"])
    names = list(found["labels"])
    table = Table("label", *names, box=None, pad_edge=False)
    for label in found["labels"]["train"]:
        table.add_row(label, *(str(found["labels"][name].get(label, 0)) for name in names))
    console.print(table)
    lengths = found["prompt_tokens"]
    console.print(
        f"\nprompt tokens: shortest {lengths['p0']}, median {lengths['p50']}, "
        f"95 % {lengths['p95']}, longest {lengths['p100']}\n"
    )
    for row in found["rows"]:
        console.print(f"{row['source']} ({row['label']})", style="bold")
        console.print(marked_text(row["parts"], brackets(console)))
        console.print()
    print_legend(console, "the class head's answer" if found["method"] == "head" else "trained tokens")


def print_peek_stages(found: list[dict[str, Any]]) -> None:
    """The same of each stage, or task of one."""
    console = plain_console(highlight=False)
    for stage in found:
        console.print(f"{stage['stage']}: {stage['method']}", style="bold")
        print_rows_ledger(console, stage["ledger"])
        print_labels(console, stage)
        lengths, counts = stage["tokens"], ", ".join(f"{count:,} {name}" for name, count in stage["examples"].items())
        trained = "read by a head" if stage["read_by_head"] else f"{stage['trained_tokens']:,} trained in an epoch"
        console.print(
            f"examples: {counts}; tokens: shortest {lengths['p0']}, median {lengths['p50']}, 95 % {lengths['p95']}, "
            f"longest {lengths['p100']}; {trained}\n"
        )
        for row in stage["rows"]:
            if "answer" in row:
                console.print(f"{row['source']}: {row['answer']}", style="bold")
            for runs in row["sequences"]:
                console.print(marked_text(runs, brackets(console)))
                console.print()
    print_legend(console, "trained tokens, or what a head reads")


def print_labels(console: Console, stage: dict[str, Any]) -> None:
    """How often each label comes in each part; of numbers, where they lie."""
    if stage["labels"]:
        parts = list(stage["examples"])
        table = Table("label", *parts, box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for label, rows in list(stage["labels"].items())[:MOST_LABELS]:
            table.add_row(label, *(f"{rows[part]:,}" for part in parts))
        console.print(table)
        if len(stage["labels"]) > MOST_LABELS:
            console.print(f"and {len(stage['labels']) - MOST_LABELS:,} rarer labels; --json has them all.")
        console.print()
    for part, found in stage["numbers"].items():
        console.print(
            f"{part}: numbers from {found['lowest']:g} to {found['highest']:g}, mean {found['mean']:.4g}, "
            f"median {found['median']:g}"
        )


def print_rows_ledger(console: Console, ledger: dict[str, Any]) -> None:
    """Rows in and kept, the dropped ones by reason with some of them, notes."""
    for split, count in ledger["rows_in"].items():
        counts = dict(ledger["reasons"][split])
        untaken = counts.pop(NOT_TAKEN, 0)
        reasons = ", ".join(f"{reason} {number}" for reason, number in counts.items())
        console.print(
            f"{split}: {count} rows in, {ledger['kept'].get(split, 0)} kept"
            + (f", {untaken} not taken" if untaken else "")
            + (f"; dropped: {reasons}" if reasons else "")
        )
    for row in ledger["examples"]:
        console.print(f"  dropped {row['source']}: {row['reason']}. {row['detail']}", style="dim")
    for note in ledger["notes"]:
        console.print(f"note: {note}")
    console.print()


def brackets(console: Console) -> tuple[str, str]:
    """What stands around trained tokens where the console has no colours: in a pipe, a file, or with NO_COLOR."""
    if console.color_system is not None and not console.no_color:
        return "", ""
    return ("[[", "]]") if console.options.ascii_only else ("⟦", "⟧")


def marked_text(parts: list[dict[str, Any]], around: tuple[str, str]) -> Text:
    """Runs of text, those that are trained on marked by colour, and by what stands around them."""
    text = Text()
    for part in parts:
        if part["trained"]:
            text.append(part["text"].join(around), style="black on green")
        else:
            text.append(part["text"], style="dim")
    return text


def print_legend(console: Console, trained: str) -> None:
    """What the two colours, or the brackets, mean."""
    if any(around := brackets(console)):
        console.print(f"{' '.join(around)} = {trained}; the rest is read only")
        return
    console.print(Text.assemble(("grey", "dim"), " = read only, ", ("green", "black on green"), f" = {trained}"))


def print_ledger(ledger: dict[str, Any], out: Path) -> None:
    """What became of the rows of a corpus."""
    console = plain_console()
    parts = ", ".join(f"{count:,} {part}" for part, count in ledger["parts"].items())
    console.print(f"{ledger['rows_in']:,} rows in, {ledger['rows_kept']:,} kept ({parts})")
    if ledger["dropped"]:
        table = Table("dropped", "rows", "by", "for example", box=None, pad_edge=False)
        for entry in ledger["dropped"]:
            example = entry["examples"][0] if entry["examples"] else None
            shown = "" if example is None else f"{example['source']}: {example['detail']}"
            table.add_row(entry["reason"], f"{entry['count']:,}", entry["step"], shown)
        console.print(table)
    if ledger["personal"]:
        found = ", ".join(f"{kind} {entry['count']:,}" for kind, entry in ledger["personal"].items())
        console.print(f"personal data: {found}")
    if ledger["num_leaks"]:
        console.print(f"{ledger['num_leaks']:,} training rows stand in test rows or known benchmarks", style="yellow")
    page = out / "data.html"
    console.print(f"records: {out / 'records'}" + (f"\npage:    {page}" if page.is_file() else ""), soft_wrap=True)


def print_records(records: list[dict[str, Any]]) -> None:
    """Records as they were read."""
    console = plain_console()
    for record in records:
        source = record["source"]
        console.print(Text.assemble((record["kind"], "bold"), f"  {source['file']} line {source['line']}"))
        for name, value in record.items():
            if name not in ("kind", "source") and value not in (None, ""):
                console.print(f"  {name}: {value}", soft_wrap=True)
