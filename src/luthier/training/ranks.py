"""A training's several processes (ranks): what the loop asks of them. One process answers each question plainly.

Every rank knows all rows of a step and counts their weight, so the loss is divided by the same number everywhere;
each computes its own share of the rows, and gradients are summed. What is learnt is therefore what one process learns
from the same rows, up to the order in which floating-point sums are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as ManyOf
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.errors import TrainingError
from luthier.files import content_hash, new_folder
from luthier.methods.base import Batch, Example, Outputs, distinct_tokens, split_by_tokens
from luthier.processes import gathered, num_processes
from luthier.recipe import Training
from luthier.training.course import Penalty
from luthier.training.learner import Learner

STATE = "state.safetensors"  # in a checkpoint: what is not cut into the ranks' shards


class Ranks:
    """The only process: all rows are its own, and there is nobody to tell."""

    rank = 0
    size = 1

    def laid_out(self, learner: Learner, training: Training, penalty: Penalty | None) -> Learner:
        """The learner that the loop trains, as `tune.parallel` lays it out; see `bring_home`."""
        return learner

    def bring_home(self, working: Learner, learner: Learner) -> None:
        """Put the trained weights of the learner that the loop trains into the whole one it was made from."""

    def passes(self, learner: Learner, rows: ManyOf[Example], max_tokens: int) -> list[tuple[list[Example], bool]]:
        """This rank's micro-batches, and whether each counts.

        One that does not count keeps other ranks company: parameters in shards are gathered by all or by none.
        """
        return [(micro, True) for micro in split_by_tokens(rows, max_tokens)]

    def answers(self, learner: Learner, batches: ManyOf[Batch]) -> list[Outputs]:
        """The learner's outputs for each batch, on every rank."""
        return [learner(batch) for batch in batches]

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """Each number added up over the ranks."""
        return numbers

    def add_gradients(self, parameters: ManyOf[nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum of the ranks'."""

    def norm(self, parameters: ManyOf[nn.Parameter]) -> float:
        """Norm of all gradients, as they are after `add_gradients`."""
        return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def clip(self, parameters: ManyOf[nn.Parameter], most: float, norm: float) -> None:
        """Scale the gradients, whose norm is `norm`, to a norm of `most`."""
        nn.utils.clip_grads_with_norm_(parameters, most, torch.tensor(norm))

    def seed(self, seed: int) -> int:
        """The seed of this rank's random draws (dropout)."""
        return seed

    @contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        """`files.new_folder`, which all ranks fill together."""
        with new_folder(path) as aside:
            yield aside

    def save_state(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write a checkpoint's tensors into its folder."""
        save_file(tensors, str(folder / STATE))

    def load_state(self, folder: Path, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """A checkpoint's tensors, laid out as the parameters they are of; however many ranks have written them."""
        if (folder / "shards").is_dir():
            from luthier.training.ranks_state import read_state

            return read_state(folder, trained)
        return load_file(str(folder / STATE))


def here() -> Ranks:
    """The ranks of this run, as torchrun has started them; without it there is one."""
    if num_processes() == 1:
        return Ranks()
    from luthier.training.ranks_together import Together

    return Together()


def refuse_other_rows(training: Training, parts: ManyOf[ManyOf[Example]]) -> None:
    """Every rank must train on the same rows with the same settings, or it would learn something else in silence.

    Raises:
        TrainingError: some ranks have others than the first.
    """
    if num_processes() == 1:
        return
    rows = [[[list(s.tokens) for s in row.sequences] + [list(row.gold)] for row in part] for part in parts]
    keys = gathered((content_hash(rows), content_hash(training.model_dump())))
    for number, (rows_key, settings_key) in enumerate(keys):
        if (rows_key, settings_key) != keys[0]:
            what = "the same rows" if rows_key != keys[0][0] else "the same settings"
            raise TrainingError(
                f"process {number} has not got {what} as process 0. Give every machine the same recipe, data and "
                "model files, best on a file system that all of them see."
            )


def dealt(rows: ManyOf[Example], size: int) -> list[list[Example]]:
    """Rows in `size` pieces, the largest of which has as few distinct tokens as it can; some may be empty.

    Pieces are runs of the sorted rows, so that rows with one beginning (a shared instruction) stay together. Nothing
    but the rows decides.
    """
    ordered = sorted(rows, key=lambda row: row.sequences[0].tokens)
    before: tuple[int, ...] = ()
    whole, fresh = [], []
    for row in ordered:
        whole.append(distinct_tokens(row, ()))
        fresh.append(distinct_tokens(row, before))
        before = row.sequences[0].tokens
    low, high = max([*whole, -(-sum(fresh) // size)], default=0), sum(whole)
    while low < high:
        middle = (low + high) // 2
        if len(cuts(whole, fresh, middle)) <= size:
            high = middle
        else:
            low = middle + 1
    ends = [*cuts(whole, fresh, low)]
    ends += [len(ordered)] * (size - len(ends))
    return [ordered[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def cuts(whole: ManyOf[int], fresh: ManyOf[int], most: int) -> list[int]:
    """Where pieces of at most `most` tokens end. A row costs `whole` at the head of a piece, else what is `fresh`."""
    ends: list[int] = []
    used = 0
    for i, (alone, added) in enumerate(zip(whole, fresh, strict=True)):
        if i == 0 or used + added > most:
            ends.append(i)
            used = alone
        else:
            used += added
    return [*ends[1:], len(whole)] if whole else []
