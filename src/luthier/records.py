"""The typed records that travel between the floors of the house. No torch here.

Axis letters used in names all over the project (shape suffix of a tensor or array):

    N  distinct tokens of a forest, flat          M  targets (trained or scored positions)
    R  distinct hidden rows that targets read     S  sequences
    B  rows (examples) of a batch                 T  time, padded
    V  vocabulary                                 D  hidden width
    H  query heads                                K  key/value heads
    L  labels or outputs of a head                P  spans that a head reads
    C  bootstrap resamples or chunks, said at the place

Units stand in names: `*_seconds`, `*_bytes`, `num_*`, `*_every` (steps, 0 = off), `*_share` (0 to 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True)
class Source:
    """Where a record came from: a file and its line (1-based), and what is known of it.

    `group` keeps rows of one document, author or conversation on one side of a split. `date` is ISO 8601.
    `synthetic` names the generator of a record that no person wrote; it never goes away again.
    """

    file: str
    line: int
    licence: str | None = None
    group: str | None = None
    date: str | None = None
    url: str | None = None
    synthetic: str | None = None

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True)
class Labelled:
    """A text with its label in the task's canonical spelling. `key` is a hash of text and label."""

    text: str
    label: str
    source: Source
    key: str


@dataclass(frozen=True)
class Document:
    """Plain text to read: a page, a paper, a chapter of one."""

    text: str
    source: Source
    title: str | None = None


@dataclass(frozen=True)
class Call:
    """A call of a tool: its name, the text of a JSON object of arguments, and the id that its result may name."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `weight` 0 keeps an assistant's turn from being trained on.

    The assistant's: `reasoning` is what it thinks before `content`, `calls` are the tools that it calls after it;
    beside calls the content may be empty. A tool's: `name` is its own, `call_id` names the call that it answers.
    The first turn's: `tools` defines the tools that there are, as the text of a JSON list.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    weight: float = 1.0
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    name: str = ""
    call_id: str = ""
    tools: str = ""

    @property
    def said(self) -> tuple[str, ...]:
        """Everything that the turn says: two turns of one role that say the same are the same to a model."""
        calls = [text for call in self.calls for text in (call.name, call.arguments)]
        return (self.content, *([self.reasoning] if self.reasoning else []), *calls)


@dataclass(frozen=True)
class Conversation:
    """Turns between a user and an assistant; the last is the assistant's."""

    messages: tuple[Message, ...]
    source: Source


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on, without a chat template."""

    prompt: str
    completion: str
    source: Source


@dataclass(frozen=True)
class Instruction:
    """An instruction, the context it speaks of (may be empty), and the response."""

    instruction: str
    context: str
    response: str
    source: Source


# how an instruction is written out with hash headings: one spelling for prepared data and for training
INSTRUCTION_HEADING, CONTEXT_HEADING, RESPONSE_HEADING = "### Instruction:\n", "### Context:\n", "### Response:\n"


@dataclass(frozen=True)
class Prompt:
    """Turns that wait for an answer; the last is the user's."""

    messages: tuple[Message, ...]
    source: Source


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the first preferred. Answers are the turns that follow the prompt.

    `scores` of chosen and rejected, where known. Their difference counts: a file's margin alone is (margin, 0).
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: Source
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt, best first. `scores`, where known, falls with them (equal scores are ties)."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    source: Source
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Rating:
    """A thumb up or down for one answer."""

    prompt: tuple[Message, ...]
    answer: str
    good: bool
    source: Source


@dataclass(frozen=True)
class Tagged:
    """Words with one tag each (BIO or plain)."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: Source


Record = Document | Labelled | Conversation | Completion | Instruction | Prompt | Preference | Ranking | Rating | Tagged


class Outcome(StrEnum):
    """What became of one question to a model. Anything but `answered` counts as wrong, and is shown."""

    ANSWERED = "answered"
    ABSTAINED = "abstained"
    PARSE_FAILED = "parse_failed"
    OUT_OF_ONTOLOGY = "out_of_ontology"
    BACKEND_ERROR = "backend_error"


@dataclass(frozen=True)
class Prediction:
    """One arm's answer on one row.

    `label` is None unless `outcome` is `answered`. `probabilities` follow `task.labels` (they sum to 1),
    or are None where the arm has none. `reply` is the raw text of a generated answer.
    """

    label: str | None
    outcome: Outcome
    probabilities: tuple[float, ...] | None = None
    reply: str | None = None


@dataclass(frozen=True)
class Sequence:
    """Tokens, which of them are targets, and where a head reads.

    `targets` are indices into `tokens`: in a causal model (each >= 1) the token at that index is predicted from the
    ones before it, in an encoder from its own place. `weights` has one number per target. `wanted` names the token
    each target asks for, where that is not the one that stands there (a masked word, a teacher's other candidates);
    an index may then stand several times. `temperatures` divides the logits of each target's distribution, where that
    is not 1 for all.

    `reads` are spans (start, stop): a head reads the mean hidden state over each. `group` names the row (example)
    the sequence belongs to, and `role` tells the sequences of one row apart (a candidate label's index, 0 chosen and
    1 rejected, a rank).
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    group: int = 0
    role: int = 0
    wanted: tuple[int, ...] | None = None
    reads: tuple[tuple[int, int], ...] = ()
    temperatures: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.targets) == len(self.weights), "one weight per target"
        assert self.wanted is None or len(self.wanted) == len(self.targets), "one wanted token per target"
        assert self.temperatures is None or len(self.temperatures) == len(self.targets), "one temperature per target"
        assert all(0 <= index < len(self.tokens) for index in self.targets), "a target stands in the sequence"
        assert all(0 <= start < stop <= len(self.tokens) for start, stop in self.reads), "a span holds tokens"

    def wanted_tokens(self) -> tuple[int, ...]:
        """The token each target asks for."""
        return self.wanted if self.wanted is not None else tuple(self.tokens[index] for index in self.targets)


@dataclass(frozen=True)
class Dropped:
    """A row that did not make it into the training or test set, and why."""

    split: str
    source: Source
    reason: str
    detail: str
    text: str


NOT_TAKEN = "not_taken"  # stands among the reasons, but such a row is not dropped: it is as good as the others


@dataclass
class Ledger:
    """Every row is accounted for: rows in = rows kept + rows dropped + rows not taken, for each split."""

    rows_in: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_taken: dict[str, int] = field(default_factory=dict)  # good rows beyond the number that was asked for
    taken: dict[str, int] = field(default_factory=dict)  # rows that were left to use once all were read

    def reasons(self, split: str) -> dict[str, int]:
        """Rows of one split that are not kept, counted by reason; those not taken come last."""
        counts: dict[str, int] = {}
        for row in self.dropped:
            if row.split == split:
                counts[row.reason] = counts.get(row.reason, 0) + 1
        untaken = self.not_taken.get(split, 0)
        return {**counts, NOT_TAKEN: untaken} if untaken else counts

    def check(self) -> None:
        """Our own invariant: nothing vanished."""
        for split, count in self.rows_in.items():
            total = self.kept.get(split, 0) + sum(self.reasons(split).values())
            assert count == total, f"ledger of {split}: {count} rows in, {total} accounted for"
