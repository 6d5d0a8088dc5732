"""What the model says: a few held-out prompts answered before a stage and after it, beside the answer of their row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence as ManyOf
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.corpus.wire import key_of
from luthier.errors import DataError
from luthier.files import write_json
from luthier.processes import is_first, told
from luthier.prompts import Dialogue
from luthier.recipe.methods import SILENT
from luthier.records import Message, Preference, Ranking, Rating
from luthier.stages.answer import CONTINUES, Answerer
from luthier.stages.chain import Start
from luthier.training.learner import Learner

if TYPE_CHECKING:
    from luthier.stages.one import StageRun

FILE = "samples.json"
MOST_TOKENS = 64  # of an answer: enough to see how it speaks
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Sample:
    """Turns that end with the user's, and what the row answers; None where that answer is no good one."""

    turns: tuple[Message, ...]
    reference: str | None


def keep_answers(run: StageRun, start: Start, when: str) -> None:
    """Answer the samples of every task that writes, `before` or `after` its training; done once, then kept."""
    for task in run.tasks.values():
        answers = told(read_answers(task.folder))
        if when in answers or not teaches_answers(task):
            continue
        keys = {example.key for example in run.made["test"]}
        answerer = Answerer(start.learner, task.prompt, False, room_of(start))
        samples = list(chosen(task, answerer, keys))
        update = run.progress(f"answers {when}")
        update(0, len(samples))
        found = told(answered(answerer, samples) if is_first() else [])
        update(len(samples), len(samples))
        write_json(task.folder / FILE, {**answers, when: found})


def sample_values(run: StageRun) -> list[dict[str, Any]]:
    """The samples with their answers as JSON values, each with the name of its task; none where nobody asked."""
    found = []
    for name, task in run.tasks.items():
        answers = told(read_answers(task.folder))
        for before, after in zip(answers.get("before", []), answers.get("after", []), strict=True):
            found.append({**before, "task": name if run.stage.tasks else None, "after": after["said"]})
    return [{("before" if key == "said" else key): value for key, value in one.items()} for one in found]


def teaches_answers(task: StageRun) -> bool:
    """Whether the method is one that a model is asked with afterwards, and samples are wanted."""
    kind = task.stage.method.kind if task.stage.method is not None else ""
    return bool(task.whole.recipe.judge.samples) and kind not in (*SILENT, *CONTINUES)


def room_of(start: Start) -> int:
    """Tokens of a prompt with its answer."""
    return start.base.context_tokens - start.learner.virtual_tokens


def chosen(task: StageRun, answerer: Answerer, keys: set[str]) -> Iterator[Sample]:
    """The first held-out rows with prompts of their own that leave room for an answer."""
    seen: set[tuple[Message, ...]] = set()
    for row in task.rows.test:
        sample = sample_of(task.prompt, row) if key_of(row) in keys else None
        if sample is None or sample.turns in seen or not fits(answerer, sample):
            continue
        seen.add(sample.turns)
        yield sample
        if len(seen) == task.whole.recipe.judge.samples:
            return


def sample_of(prompt: Dialogue, row: Any) -> Sample | None:
    """The turns before a row's last answer, and that answer; None where nobody asks."""
    if isinstance(row, Preference):
        turns, answer = row.prompt, "\n".join(turn.content for turn in row.chosen if turn.role == "assistant")
    elif isinstance(row, Ranking):
        turns, answer = row.prompt, row.answers[0]
    else:
        *before, last = prompt.messages(row)
        turns, answer = (tuple(before), last.content) if last.role == "assistant" else ((*before, last), "")
    turns = tuple(Message(turn.role, turn.content) for turn in prompt.with_system(turns)) if turns else ()
    if not turns or turns[-1].role != "user" or any(t.role not in ROLES or not t.content.strip() for t in turns):
        return None
    bad = isinstance(row, Rating) and not row.good
    return Sample(turns, None if bad or not answer else answer)


def fits(answerer: Answerer, sample: Sample) -> bool:
    """Whether prompt and answer have room in the model's context."""
    try:
        (tokens,) = answerer.prompts([wire(sample)])
    except DataError:
        return False
    return len(tokens) + MOST_TOKENS <= answerer.context_tokens


def answered(answerer: Answerer, samples: ManyOf[Sample]) -> list[dict[str, Any]]:
    """Each sample with what the model says now, always its likeliest token."""
    learner: Learner = answerer.learner
    learner.eval()
    replies = answerer.answer([wire(sample) for sample in samples], MOST_TOKENS) if samples else []
    return [
        {"prompt": wire(sample), "reference": sample.reference, "said": asdict(reply)}
        for sample, reply in zip(samples, replies, strict=True)
    ]


def wire(sample: Sample) -> list[dict[str, str]]:
    """Turns as they are asked."""
    return [{"role": turn.role, "content": turn.content} for turn in sample.turns]


def read_answers(folder: Path) -> dict[str, Any]:
    """What has been answered so far; the folder is that of one set of rows, settings and code."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
