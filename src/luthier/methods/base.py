"""What a method is: a view (record -> sequences), a loss (a pure function), and its figures. One file each."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.forest.tree import Forest, build_forest, common_prefix
from luthier.records import Sequence

MAIN = "main"  # the task of a run that has only one


@dataclass(frozen=True)
class Candidates:
    """A teacher's likeliest tokens for each of Q positions, K of them, with their log-probabilities at `temperature`.

    Places that hold no candidate have log-probability -inf.
    """

    tokens_QK: NDArray[np.int32]
    logprobs_QK: NDArray[np.float32]
    temperature: float = 1.0


@dataclass(frozen=True)
class Example:
    """One row as a method sees it.

    `gold` is what a head should answer: the index of a label, a number, one or several for each read span, as the
    method's loss takes them. `reference_S` is the reference model's log-probability of each sequence (the weighted
    sum over its targets), where a method asks for it. `num_bytes` is the size of the text that the targets with a
    weight spell, in UTF-8; special tokens spell none. `task` names the task it belongs to, and `key` the record,
    wherever the row lands in a batch.
    Rows of one `group` (answers to one prompt) are no independent witnesses; without one, a row is its own.
    `annotation` is what the method noted on the row before the step (`Annotating`). `teacher` has candidates for each
    target of the row's one sequence.
    """

    sequences: tuple[Sequence, ...]
    gold: tuple[float, ...] = ()
    reference_S: tuple[float, ...] = ()
    num_bytes: int = 0
    task: str = MAIN
    key: str = ""
    group: str = ""
    annotation: float | None = None
    teacher: Candidates | None = field(default=None, compare=False)

    @property
    def num_trained(self) -> int:
        """Tokens or spans that carry a loss."""
        return sum(len(sequence.targets) + len(sequence.reads) for sequence in self.sequences)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.tokens) for sequence in self.sequences)


@dataclass(frozen=True)
class Batch:
    """A forest of B examples of one task.

    row_M, role_M, sequence_M: row, role and sequence of each target; weight_M its weight. row_S, role_S: of each
    sequence; reference_S its log-probability under the reference (empty where no example has one). row_P: the row
    of each read span. gold_G: the examples' gold one after the other; row_G: whose it is. bytes_B: text scored.
    annotation_B: what the method noted on each row (empty where it noted nothing). teacher_M: the teacher's log p of
    each target that is a candidate of its, NaN for the rows' own; None where no row has a teacher.
    """

    forest: Forest
    task: str
    num_rows: int
    row_M: Tensor
    role_M: Tensor
    sequence_M: Tensor
    weight_M: Tensor
    row_S: Tensor
    role_S: Tensor
    reference_S: Tensor
    row_P: Tensor
    gold_G: Tensor
    row_G: Tensor
    bytes_B: Tensor
    annotation_B: Tensor
    teacher_M: Tensor | None = None

    @property
    def gold_B(self) -> Tensor:
        """The label index of each row, where a row has exactly one."""
        assert len(self.gold_G) == self.num_rows, "one label a row"
        return self.gold_G.long()


@dataclass(frozen=True)
class Outputs:
    """What a method computes its loss from.

    logprobs_M: log p of each target, where there are targets. logits_PL: what the task's head says of each read
    span, where it has one.
    """

    logprobs_M: Tensor | None = None
    logits_PL: Tensor | None = None


@dataclass(frozen=True)
class LossOut:
    """Sum of the loss over a batch, and the weight it is to be divided by (once, globally)."""

    total: Tensor
    weight: float


# A figure is a ratio of sums over rows: numerator_B and denominator_B. Accuracy: hits over ones; bits per byte:
# bits over bytes; F1: 2 TP over 2 TP + FP + FN. So every figure has an interval by resampling rows. A mean over labels
# (macro-F1) has a ratio for each: numerator_BL and denominator_BL; labels with nothing to divide by have no part in it.
Scores = dict[str, tuple[Tensor, Tensor]]


class Objective(Protocol):
    """What the loop needs of a method. A method is frozen, so its attributes are read only."""

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        ...

    def weight(self, example: Example) -> float:
        """What the row counts in the normalisation; the loss's weight is the sum over its rows."""
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """The pure loss."""
        ...

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """The figures of each row, by name. Computed without gradient, on validation and test rows."""
        ...


Ask = Callable[[ManyOf[Example]], list[tuple[Outputs, Batch]]]


@runtime_checkable
class Annotating(Protocol):
    """An objective that has to see all rows of an optimizer step before the first is learnt from."""

    def annotated(self, ask: Ask, rows: ManyOf[Example]) -> list[Example]:
        """The rows, in their order, with what is the same however the step is cut into micro-batches.

        `ask` runs the model as it is, without gradient, over examples of the method's making; its batches come in
        any order.
        """
        ...


@runtime_checkable
class Varying(Protocol):
    """An objective that learns from a row in another form each time: a masked text with other tokens masked."""

    def varied(self, rows: ManyOf[Example], seed: int, step: int) -> list[Example]:
        """The rows, in their order, as they are learnt from in this step: a pure function of its arguments.

        Rows that are only scored stay as `view` made them.
        """
        ...


PromptT = TypeVar("PromptT", contravariant=True)
RowT = TypeVar("RowT", contravariant=True)


class Method(Objective, Protocol[PromptT, RowT]):
    """An objective with its view: rows of a kind of record, through a prompt, to examples."""

    def view(self, prompt: PromptT, rows: ManyOf[RowT]) -> list[Example]:
        """Sequences of each row, with their targets or spans."""
        ...


def make_batch(examples: ManyOf[Example], device: torch.device | str = "cpu", causal: bool = True) -> Batch:
    """The forest of some examples of one task, rows numbered from 0 in their order."""
    assert len({example.task for example in examples}) == 1, "a batch is of one task"
    sequences = [
        replace(s, group=row, role=role)
        for row, example in enumerate(examples)
        for role, s in enumerate([with_candidates(example)] if example.teacher else example.sequences)
    ]
    forest = build_forest(sequences, causal)
    row_S = torch.tensor([sequence.group for sequence in sequences], device=device)
    role_S = torch.tensor([sequence.role for sequence in sequences], device=device)
    sequence_M = torch.from_numpy(forest.sequence_M).to(device)
    spans_S = torch.tensor([len(sequence.reads) for sequence in sequences], device=device)
    golds_B = torch.tensor([len(example.gold) for example in examples], device=device)
    references = [number for example in examples for number in example.reference_S]
    assert len(references) in (0, len(sequences)), "a reference for every sequence, or for none"
    annotations = [example.annotation for example in examples if example.annotation is not None]
    assert len(annotations) in (0, len(examples)), "an annotation for every row, or for none"
    return Batch(
        forest=forest,
        task=examples[0].task,
        num_rows=len(examples),
        row_M=row_S[sequence_M],
        role_M=role_S[sequence_M],
        sequence_M=sequence_M,
        weight_M=torch.from_numpy(forest.weight_M).to(device, torch.float32),
        row_S=row_S,
        role_S=role_S,
        reference_S=torch.tensor(references, device=device, dtype=torch.float64),
        row_P=torch.repeat_interleave(row_S, spans_S),
        gold_G=torch.tensor([g for example in examples for g in example.gold], device=device, dtype=torch.float64),
        row_G=torch.repeat_interleave(torch.arange(len(examples), device=device), golds_B),
        bytes_B=torch.tensor([example.num_bytes for example in examples], device=device, dtype=torch.float64),
        annotation_B=torch.tensor(annotations, device=device, dtype=torch.float64),
        teacher_M=teacher_logprobs(examples, device),
    )


def with_candidates(example: Example) -> Sequence:
    """The row's sequence with the teacher's candidates as further targets, position by position, behind its own."""
    assert example.teacher is not None and len(example.sequences) == 1, "a teacher speaks of one sequence"
    (own,), teacher = example.sequences, example.teacher
    assert len(teacher.tokens_QK) == len(own.targets), "candidates for every target"
    position_C, place_C = np.nonzero(np.isfinite(teacher.logprobs_QK))
    return replace(
        own,
        targets=own.targets + tuple(np.array(own.targets, np.int64)[position_C].tolist()),
        weights=own.weights + tuple(np.array(own.weights, np.float64)[position_C].tolist()),
        wanted=own.wanted_tokens() + tuple(teacher.tokens_QK[position_C, place_C].tolist()),
        temperatures=(1.0,) * len(own.targets) + (teacher.temperature,) * len(position_C),
    )


def teacher_logprobs(examples: ManyOf[Example], device: torch.device | str) -> Tensor | None:
    """`Batch.teacher_M`, in the order of `with_candidates`."""
    teachers = [example.teacher for example in examples if example.teacher is not None]
    assert len(teachers) in (0, len(examples)), "a teacher for every row, or for none"
    if not teachers:
        return None
    columns = []
    for teacher in teachers:
        found_C = teacher.logprobs_QK[np.isfinite(teacher.logprobs_QK)]
        columns += [np.full(len(teacher.tokens_QK), np.nan), found_C.astype(np.float64)]
    return torch.from_numpy(np.concatenate(columns)).to(device)


def split_by_tokens(examples: ManyOf[Example], max_tokens: int) -> list[list[Example]]:
    """Micro-batches of one task and at most `max_tokens` distinct tokens each (one example at least).

    Neighbours share their beginning.
    """
    ordered = sorted(examples, key=lambda example: (example.task, example.sequences[0].tokens))
    groups: list[list[Example]] = []
    size = 0
    before: tuple[int, ...] = ()
    for example in ordered:
        fresh = distinct_tokens(example, before if groups else ())
        if not groups or size + fresh > max_tokens or groups[-1][0].task != example.task:
            groups.append([])
            size, fresh = 0, distinct_tokens(example, ())
        groups[-1].append(example)
        size += fresh
        before = example.sequences[0].tokens
    return groups


def distinct_tokens(example: Example, before: tuple[int, ...]) -> int:
    """Tokens this example adds to a forest that already holds the sequence `before`."""
    total, previous = 0, before
    for tokens in sorted(sequence.tokens for sequence in example.sequences):
        total += len(tokens) - common_prefix(np.asarray(tokens), np.asarray(previous))
        previous = tokens
    return total


def weights_of(objective: Objective, examples: ManyOf[Example]) -> dict[str, float]:
    """What the loss of each task is divided by: the weight of its rows in the whole step."""
    weights: dict[str, float] = {}
    for example in examples:
        weights[example.task] = weights.get(example.task, 0.0) + objective.weight(example)
    return weights


# --- pieces that several methods share ----------------------------------------------------------------------------


def per_row(values: Tensor, row: Tensor, num_rows: int) -> Tensor:
    """Sums of some values by row, [B], in float64."""
    return torch.zeros(num_rows, dtype=torch.float64, device=values.device).index_add(0, row, values.double())


def sequence_logprobs(outputs: Outputs, batch: Batch) -> Tensor:
    """log p of each sequence's targets, [S] in float64: the sum of w_m log p_m over its targets m."""
    assert outputs.logprobs_M is not None
    sums_S = torch.zeros(len(batch.row_S), dtype=torch.float64, device=outputs.logprobs_M.device)
    return sums_S.index_add(0, batch.sequence_M, outputs.logprobs_M.double() * batch.weight_M)


def target_counts(batch: Batch) -> Tensor:
    """Sum of the target weights of each sequence, [S]: its length in trained tokens."""
    return torch.zeros(len(batch.row_S), device=batch.weight_M.device).index_add(0, batch.sequence_M, batch.weight_M)


def bits_per_byte(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
    """Bits of the targets and bytes of the text they spell, of each row.

    Targets with a weight above 0 count alike, whatever it is, as their bytes do: rows that are weighed differently stay
    comparable.
    """
    assert outputs.logprobs_M is not None
    nats_B = per_row(-outputs.logprobs_M * (batch.weight_M > 0), batch.row_M, batch.num_rows)
    return nats_B / np.log(2.0), batch.bytes_B


def mean_ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> float:
    """A figure from its sums over rows: a ratio, or the mean of those of L columns; NaN where nothing is below."""
    above_L, below_L = np.atleast_1d(above), np.atleast_1d(below)
    there = below_L != 0
    return float(np.mean(above_L[there] / below_L[there])) if there.any() else float("nan")


def label_f1(given_BL: Tensor, gold_BL: Tensor) -> tuple[Tensor, Tensor]:
    """2 TP and 2 TP + FP + FN of each row and label, of 0 or 1: the macro-F1 of scikit-learn once they are summed."""
    return 2.0 * (given_BL * gold_BL).double(), (given_BL + gold_BL).double()


def hits(predicted_B: Tensor, gold_B: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are right, out of one each."""
    return (predicted_B == gold_B).double(), torch.ones(len(gold_B), dtype=torch.float64, device=gold_B.device)


def candidate_scores(logprobs_M: Tensor, batch: Batch, num_labels: int) -> Tensor:
    """Weighted sum of target log-probabilities of each row's candidates, [B, L]; roles are label indices."""
    flat = torch.zeros(batch.num_rows * num_labels, dtype=logprobs_M.dtype, device=logprobs_M.device)
    flat = flat.index_add(0, batch.row_M * num_labels + batch.role_M, logprobs_M * batch.weight_M)
    return flat.view(-1, num_labels)


def smoothed_cross_entropy(logprobs_BL: Tensor, gold_B: Tensor, smoothing: float) -> Tensor:
    """Sum over rows of -((1 - e) log p_gold + e mean_l log p_l) (Szegedy et al. 2016, section 7), a scalar."""
    gold = logprobs_BL.gather(1, gold_B[:, None]).sum()
    return -((1 - smoothing) * gold + smoothing * logprobs_BL.mean(1).sum())
