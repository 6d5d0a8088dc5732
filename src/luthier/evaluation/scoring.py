"""Scoring the labels of a task by the model's own log-probabilities, through the forest.

The prompt is computed once for all labels; a beginning that all prompts share (instruction, worked examples) is
computed once for all rows and remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from luthier.errors import DataError
from luthier.forest.forward import backbone, hidden_states, logprobs, run_plan
from luthier.forest.plan import Past, plan_forest
from luthier.forest.tree import build_forest, common_prefix, computed_tokens
from luthier.forest.virtual import first_past, virtual_of
from luthier.methods.base import Example, candidate_scores, make_batch, split_by_tokens
from luthier.methods.candidates import candidate_sequences
from luthier.models.encoders import known_positions
from luthier.prompts import ClassifyPrompt, Shot
from luthier.records import Sequence

Floats = NDArray[np.float64]
MIN_SHARED = 24  # tokens; a shorter shared beginning is not worth a pass of its own
SEQUENCES_AT_ONCE = 4096  # of rows times labels, tokenised and held together
CONTENT_FREE = ("N/A", "[MASK]", "...")  # Zhao et al. 2021, section 5
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Beginning:
    """Tokens that prompts begin with, computed once and remembered for later calls."""

    tokens: tuple[int, ...]
    past: Past

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def fits(self, candidates: ManyOf[ManyOf[Sequence]]) -> bool:
        """Whether all prompts begin so, with something left to compute."""
        return all(
            row[0].tokens[: self.size] == self.tokens and first_target(sequence) - 1 >= self.size
            for row in candidates
            for sequence in row
        )


@dataclass(frozen=True)
class Scores:
    """sum_BL: log p of each label's tokens. tokens_L: how many those are. num_tokens: distinct tokens computed.

    `beginning`: what was shared, to be handed to the next call.
    """

    sum_BL: Floats
    tokens_L: NDArray[np.int64]
    num_tokens: int
    beginning: Beginning | None


@torch.no_grad()
def score_labels(
    model: nn.Module,
    backend: str,
    prompt: ClassifyPrompt,
    texts: ManyOf[str],
    batch_tokens: int,
    shots: ManyOf[ManyOf[Shot]] | None = None,
    report: Report | None = None,
    beginning: Beginning | None = None,
) -> Scores:
    """Log-probability of every label after every text, in the order of `texts`."""
    model.eval()
    sums, computed, done = [], 0, 0
    tokens_L = np.zeros(0, dtype=np.int64)

    def tell(count: int) -> None:
        if report is not None:
            report(done + count, len(texts))

    size = max(1, SEQUENCES_AT_ONCE // len(prompt.task.labels))
    for done in range(0, len(texts), size):
        several = slice(done, done + size)
        candidates = candidate_sequences(prompt, texts[several], None if shots is None else shots[several])
        require_room(model, candidates, done + 1)
        tokens_L = np.array([len(sequence.targets) for sequence in candidates[0]])
        if backend != "padded" and (beginning is None or not beginning.fits(candidates)):
            shared = shared_beginning(candidates)
            beginning = remember_beginning(model, candidates[0][0].tokens[:shared]) if shared else None
            computed += shared
        part_BL, num_tokens = score_candidates(model, backend, candidates, batch_tokens, beginning, tell)
        sums.append(part_BL)
        computed += num_tokens
    return Scores(np.concatenate(sums), tokens_L, computed, beginning)


def room_of(model: nn.Module) -> int:
    """Tokens of the longest sequence that a model reads, behind what it has learnt to read before each."""
    virtual = virtual_of(model)
    return known_positions(model.config) - (0 if virtual is None else virtual.num_tokens)


def require_room(model: nn.Module, rows: ManyOf[ManyOf[Sequence]], first: int = 1) -> None:
    """DataError where a text with its prompt is longer than the model reads; `first` numbers the texts."""
    for place, problem in without_room(model, rows).items():
        raise DataError(f"text {first + place}: {problem}")


def without_room(model: nn.Module, rows: ManyOf[ManyOf[Sequence]]) -> dict[int, str]:
    """What is wrong with each text that is longer than the model reads with its prompt, by its place."""
    room = room_of(model)
    longest = [max(len(computed_tokens(sequence)) for sequence in row) for row in rows]
    return {
        place: f"it has {size:,} tokens with its prompt; the model reads {room:,}. Give it in parts."
        for place, size in enumerate(longest)
        if size > room
    }


def score_candidates(
    model: nn.Module,
    backend: str,
    candidates: list[tuple[Sequence, ...]],
    batch_tokens: int,
    beginning: Beginning | None,
    tell: Callable[[int], None],
) -> tuple[Floats, int]:
    """Sums of log p of some rows' labels [B, L], and how many tokens were computed behind the beginning."""
    start, past = (0, None) if beginning is None else (beginning.size, beginning.past)
    examples = [Example(cut(row, start)) for row in candidates]
    order = {id(example): i for i, example in enumerate(examples)}
    sum_BL = np.zeros((len(candidates), len(candidates[0])))
    computed = done = 0
    for micro in split_by_tokens(examples, batch_tokens):
        batch = make_batch(micro, next(model.parameters()).device)
        hidden_ND = hidden_states(model, batch.forest, backend, past)
        scores = candidate_scores(logprobs(model, batch.forest, hidden_ND), batch, len(candidates[0]))
        sum_BL[[order[id(example)] for example in micro]] = scores.double().cpu().numpy()
        computed += batch.forest.num_tokens
        done += len(micro)
        tell(done)
    return sum_BL, computed


def shared_beginning(candidates: ManyOf[ManyOf[Sequence]]) -> int:
    """Number of tokens that all prompts begin with, short of the first predicted token's predecessor."""
    first = np.asarray(candidates[0][0].tokens)
    size = min(first_target(sequence) - 1 for row in candidates for sequence in row)
    for row in candidates:
        size = min(size, common_prefix(first, np.asarray(row[0].tokens)))
    return size if size >= MIN_SHARED and len(candidates) > 1 else 0


def first_target(sequence: Sequence) -> int:
    """Index of the first token that must be computed anew, plus one: the first target, or where a head reads from."""
    if sequence.targets:
        return sequence.targets[0]
    return sequence.reads[0][0] + 1 if sequence.reads else len(sequence.tokens)


@torch.no_grad()
def remember_beginning(model: nn.Module, tokens: tuple[int, ...]) -> Beginning:
    """Keys and values of a beginning, to be seen by everything that follows."""
    device = next(model.parameters()).device
    forest = build_forest([Sequence(tokens)])
    past = first_past(model, backbone(model))
    plan = plan_forest(forest, "grouped", device, past=past)
    run_plan(model, torch.from_numpy(forest.tokens_N).to(device), plan)
    past.positions_P, past.recording = torch.cat([past.positions_P, plan.positions_N]), False
    return Beginning(tokens, past)


def cut(row: tuple[Sequence, ...], start: int) -> tuple[Sequence, ...]:
    """Sequences without their first `start` tokens."""
    if not start:
        return row
    return tuple(
        replace(
            s,
            tokens=s.tokens[start:],
            targets=tuple(t - start for t in s.targets),
            reads=tuple((a - start, b - start) for a, b in s.reads),
        )
        for s in row
    )


# --- how sums become label probabilities -----------------------------------------------------------------------

NORMALISATIONS = ("sum", "mean per token", "contextual calibration", "batch calibration")


def label_logprobs(scores: Scores, normalisation: str, constant_L: Floats | None = None) -> Floats:
    """log p(label | text) [B, L], normalised over the labels.

    `sum`: of token log-probabilities. `mean per token`: length-normalised (Brown et al. 2020, section 2.4).
    `contextual calibration`: minus the log of the label's mean probability after content-free texts, which is dividing
    the probabilities by that (Zhao et al. 2021, eq. 2 with W = diag(p_cf)^-1). `batch calibration`: minus the log of
    its mean probability over a batch, here the validation rows (Zhou et al. 2024, eq. 4). Those that a mean is taken of
    are probabilities over the labels.
    """
    values = scores.sum_BL
    if normalisation == "mean per token":
        values = values / scores.tokens_L
    elif normalisation != "sum":
        assert constant_L is not None, normalisation
        values = values - constant_L
    return values - np.logaddexp.reduce(values, axis=1, keepdims=True)
