"""Sequence-level distillation: the teacher answers the prompts of a stage's rows; the student learns the answers."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.files import content_hash
from luthier.generation.sampling import Sampling
from luthier.progress import Listener
from luthier.prompts import Dialogue
from luthier.recipe.methods import Distil
from luthier.records import Conversation, Dropped, Ledger, Message
from luthier.signals import Stop
from luthier.stages.rows import SHOWN_CHARS, StageRows
from luthier.stages.teacher import load_teacher
from luthier.stages.teacher_endpoint import FIELDS, writer_of
from luthier.synthetic.base import Generator, Reply, Request
from luthier.synthetic.endpoint import EndpointGenerator
from luthier.synthetic.journal import Journal, ask_all
from luthier.synthetic.local import LocalGenerator

ANSWERS = "answers.jsonl"


def with_answers(
    rows: StageRows, prompt: Dialogue, distil: tuple[Distil, str], seed: int, folder: Path, listener: Listener
) -> StageRows:
    """The rows as conversations that end in the teacher's answer; those without one are in the ledger.

    `distil`: the settings, and what the teacher is by content. Answers are kept in `folder` by prompt and teacher, each
    batch as soon as it is there.

    Raises:
        ModelError: the teacher cannot be used.
        DataError: no row of a part got an answer.
    """
    settings, key = distil
    generator = make_answerer(settings, key)
    journal = Journal(folder / ANSWERS, content_hash(key, generator.identity))
    parts = {name: list(getattr(rows, name)) for name in ("train", "validation", "test")}
    with Stop() as stop:

        def ask(requests: ManyOf[Request]) -> list[Reply]:
            return ask_all(generator, requests, journal, listener, stop)

        train, validation, test = (
            tuple(answered(part, name, prompt, (settings, seed), ask, rows.ledger)) for name, part in parts.items()
        )
    return replace(rows, train=train, validation=validation, test=test)


@dataclass(frozen=True, eq=False)
class WaitingAnswerer:
    """A teacher on this machine that is loaded when it is first asked: never, where all its answers are kept."""

    settings: Distil
    identity: str
    batch_rows: int = 16

    @property
    def name(self) -> str:
        """As the recipe has it."""
        return self.settings.teacher

    @cached_property
    def local(self) -> LocalGenerator:
        """The loaded teacher."""
        return LocalGenerator(load_teacher(self.settings), self.batch_rows)

    def generate(self, requests: ManyOf[Request]) -> list[Reply]:
        """Those of the loaded teacher."""
        return self.local.generate(requests)


def make_answerer(settings: Distil, key: str) -> Generator:
    """Who writes: the teacher on this machine, `key` its content, or behind its address."""
    if settings.address is not None:
        return EndpointGenerator.open(writer_of(settings), FIELDS)
    return WaitingAnswerer(settings, f"local {key}")


def answered(
    rows: list[Any],
    split: str,
    prompt: Dialogue,
    asked: tuple[Distil, int],
    ask: Callable[[ManyOf[Request]], list[Reply]],
    ledger: Ledger,
) -> list[Conversation]:
    """Each row's turns up to its own last answer, then the teacher's. `asked`: settings and seed."""
    settings, seed = asked
    turns = [prompts_turns(prompt, row) for row in rows]
    sampling = Sampling(settings.answer_temperature, seed=seed)
    requests = [Request(messages, sampling, settings.max_answer_tokens) for messages in turns]
    kept = []
    for row, messages, reply in zip(rows, turns, ask(requests) if requests else [], strict=True):
        problem = answer_problem(reply, settings.max_answer_tokens)
        if problem is None:
            kept.append(Conversation((*messages, Message("assistant", reply.text.strip())), row.source))
        else:
            ledger.dropped.append(
                Dropped(split, row.source, *problem, (reply.text or messages[-1].content)[:SHOWN_CHARS])
            )
            ledger.kept[split] -= 1
    if rows and not kept:
        first = next(line for line in ledger.dropped if line.split == split and line.source == rows[0].source)
        raise DataError(
            f"data: the teacher answered none of the {len(rows)} {split} rows (first: {first.detail}). Raise "
            "method.max_answer_tokens, or take another teacher."
        )
    return kept


def prompts_turns(prompt: Dialogue, row: Any) -> tuple[Message, ...]:
    """What the teacher is asked: a row's turns without its own last answer."""
    turns = prompt.messages(row)
    return turns[:-1] if turns[-1].role == "assistant" else turns


def answer_problem(reply: Reply, max_tokens: int) -> tuple[str, str] | None:
    """Reason and detail where a reply is no whole answer."""
    if reply.error is not None:
        return "no_answer", reply.error
    if reply.finish_reason == "length":
        return "answer_cut_off", f"the teacher's answer has over {max_tokens} tokens."
    return None if reply.text.strip() else ("empty_answer", "the teacher says nothing.")
