"""The nouns of synthetic data: a request and its reply, a job and the kind of record it asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.files import content_hash
from luthier.generation.sampling import Sampling
from luthier.records import Message, Record, Source
from luthier.synthetic.texts import chatters

Classify = Callable[[Sequence[str]], Sequence[str]]  # texts to their labels
Score = Callable[["Job", str], float]  # how good an answer is; only the order counts


@dataclass(frozen=True)
class Request:
    """One reply that is wanted. `sample` tells requests apart that are otherwise the same."""

    messages: tuple[Message, ...]
    sampling: Sampling
    max_new_tokens: int
    sample: int = 0

    @cached_property
    def prompt_key(self) -> str:
        """Hash of the turns alone."""
        return content_hash([(message.role, message.content) for message in self.messages])

    @cached_property
    def key(self) -> str:
        """Hash of all that the reply depends on, the generator aside."""
        drawn = self.sampling
        values = (drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed, self.max_new_tokens, self.sample)
        return content_hash(self.prompt_key, *values)


@dataclass(frozen=True)
class Reply:
    """What came back. An `error` is an outcome of this one request; `text` is then empty."""

    text: str
    finish_reason: Literal["stop", "length", "error"] = "stop"
    error: str | None = None


def failed(error: str) -> Reply:
    """The reply of a request that got none."""
    return Reply("", "error", error)


class Generator(Protocol):
    """Something that answers requests, many at a time."""

    @property
    def name(self) -> str:
        """The model, as the records' provenance will name it."""
        ...

    @property
    def identity(self) -> str:
        """What tells its replies from another model's: part of the journal's keys."""
        ...

    @property
    def batch_rows(self) -> int:
        """Requests to hand over at a time."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request. A request that fails gives an error reply.

        Raises:
            ModelError: nothing can work before the user changes something (no key, no such model).
        """
        ...


@dataclass(frozen=True)
class Job:
    """One record that is asked for: what to ask, and the seeds it is made from.

    `requests`: one reply each. `instruction` is the part of the prompt that is ours, which must not turn up in what
    is written. `label` is the label the record shall have. `passage` is what the record must keep to; `not_to_copy`
    are texts of which it must not be made.
    """

    kind: str
    requests: tuple[Request, ...]
    seeds: tuple[Record, ...]
    source: Source
    instruction: str
    label: str | None = None
    passage: str = ""
    not_to_copy: tuple[str, ...] = ()


class Kind(Protocol):
    """The contract of a kind of record. All of it is pure."""

    @property
    def name(self) -> str:
        """What stands behind the generator's name in the records' provenance."""
        ...

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """A job for each record that is asked for, from the seeds that fit."""
        ...

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The record in the replies, without its source's mark, or why there is none."""
        ...

    def written(self, record: Record) -> str:
        """The part of a record that the generator wrote: what the filters look at."""
        ...

    def check(self, job: Job, record: Record) -> Request | None:
        """A question whose answer proves the record (the way back), or None."""
        ...

    def judge(self, job: Job, record: Record, reply: Reply | None) -> Problem | None:
        """What the answer to `check` (None where nothing was asked) says against the record."""
        ...


def marked(source: Source, generator: str, kind: str) -> Source:
    """The seed's source with the mark that never goes away; one that was there already stays in front of it.

    Rows made from one seed share a group with each other: the seed's own, else its file and line.
    """
    mark = f"{generator}/{kind}"
    before = f"{source.synthetic} > " if source.synthetic else ""
    return replace(source, synthetic=before + mark, group=source.group or f"{source.file}:{source.line}")


def joint_source(sources: Sequence[Source]) -> Source:
    """The first seed's source under the licence of all of them: joined where they differ, unknown where one is."""
    licences = {source.licence for source in sources}
    known = sorted(licence for licence in licences if licence is not None)
    licence = " AND ".join(known) if None not in licences else None
    return replace(sources[0], licence=licence)


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Turns as chat templates and servers take them.

    Raises:
        DataError: a turn calls tools, which are not asked for anew.
    """
    if any(message.calls or message.tools for message in messages):
        raise DataError("a row has tools or tool calls, and those cannot be asked of a model yet. Leave such rows out.")
    return [{"role": message.role, "content": message.content} for message in messages]


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


HEADING = re.compile(
    r"\A[^\n:]{0,60}\b(?:text|version|sentence|headline|paraphrase|rewrite|rewritten|rephrased|example)\b[^\n:]{0,30}:\s*",
    re.IGNORECASE,
)
ITEM = re.compile(r"\A(?:\d{1,2}[.)]|[-*•])\s+")
NEXT_ITEM = re.compile(r"\n\s*(?:\d{1,2}[.)]|[-*•])\s")
QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"))


def tidy(reply: str) -> str:
    """The text of a reply without what models put around it: a heading (`Rewritten text:`), a number, quotes."""
    text = ITEM.sub("", HEADING.sub("", reply.strip())).strip()
    for opening, closing in QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in inner:
            return inner.strip()
    return text


def first_text(reply: Reply) -> str | Problem:
    """The first paragraph of a reply, or the first item of its list, tidied.

    `cut_off` where the reply was cut inside it, `chatter` where it talks about the text instead of giving it.
    """
    text, gap, _ = reply.text.strip().partition("\n\n")
    if HEADING.fullmatch(text + "\n") and gap:
        text, gap, _ = reply.text.strip()[len(text) :].strip().partition("\n\n")
    item = NEXT_ITEM.search(text)
    if reply.finish_reason == "length" and not gap and item is None:
        return Problem("cut_off", "the reply was not finished. Raise draws.max_new_tokens.")
    found = tidy(text[: item.start()] if item else text)
    if not found:
        return Problem("empty_reply", "the reply is empty.")
    if chatters(found):
        return Problem("chatter", "the reply talks about the text, or to the user, instead of giving the text.")
    return found


@dataclass(frozen=True)
class Shown:
    """A worked example of what is asked for: small models follow one far better than a description alone."""

    question: str
    answer: str


@dataclass(frozen=True)
class Asking:
    """What all requests of a run share."""

    sampling: Sampling
    max_new_tokens: int
    language: str = ""

    def request(self, instruction: str, text: str, sample: int = 0, shown: Shown | None = None) -> Request:
        """A request to write. The worked example is English, so it is left out where another language is set."""
        asked = user(f"{self.said(instruction)}\n\n{text}")
        if shown is not None and not self.language:
            earlier = (*user(f"{instruction}\n\n{shown.question}"), Message("assistant", shown.answer))
            asked = (*earlier, *asked)
        return Request(asked, self.sampling, self.max_new_tokens, sample)

    def dialogue(self, turns: tuple[Message, ...], sample: int = 0) -> Request:
        """A request to go on with a conversation."""
        return Request(turns, self.sampling, self.max_new_tokens, sample)

    def question(self, text: str) -> Request:
        """A request to check something: always the most likely answer, and a short one."""
        return Request(user(text), Sampling(), min(self.max_new_tokens, 64))

    def said(self, instruction: str) -> str:
        """The instruction, with the language to write in where one is set."""
        return f"{instruction} Write in {self.language}." if self.language else instruction
