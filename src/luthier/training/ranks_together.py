"""Several ranks, started by torchrun, in one training.

Two ways of holding the model (`tune.parallel`). `replicate`: every rank has all of it, and the gradients of the
trained weights are summed after the backward passes. `shard`: PyTorch's FSDP2, ranks_shard.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as ManyOf
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from luthier.errors import TrainingError
from luthier.files import new_folder
from luthier.methods.base import Batch, Example, Outputs, distinct_tokens, split_by_tokens
from luthier.processes import gathered, joined, num_processes, rank, told, wait
from luthier.recipe import Training
from luthier.training.course import Penalty
from luthier.training.learner import Learner
from luthier.training.ranks import Ranks, dealt
from luthier.training.ranks_shard import bring_home, is_sharded, refuse_unsharded, sharded
from luthier.training.ranks_state import read_state, write_state

BUCKET_BYTES = 64 << 20  # gradients that are sent at once


class Together(Ranks):
    """One of several ranks. Every method that talks is called by all of them, in the same order."""

    def __init__(self) -> None:
        joined()
        self.rank = rank()
        self.size = num_processes()

    def laid_out(self, learner: Learner, training: Training, penalty: Penalty | None) -> Learner:
        """Replicas start from the first rank's weights; shards are made of a learner that shares them.

        Raises:
            TrainingError: a setting that one process only can do, or that shards cannot.
        """
        refuse_alone(training)
        for parameter in learner.trained().values():
            joined().broadcast(parameter.data, src=0)
        if way_of(training) == "replicate":
            return learner
        refuse_unsharded(training, penalty)
        return sharded(learner)

    def bring_home(self, working: Learner, learner: Learner) -> None:
        """Gathered from all ranks, where the weights lie in shards."""
        if working is not learner:
            bring_home(working, learner)

    def passes(self, learner: Learner, rows: ManyOf[Example], max_tokens: int) -> list[tuple[list[Example], bool]]:
        """Task by task, so that in each pass all ranks use the same head, and need the same parameters."""
        found: list[tuple[list[Example], bool]] = []
        for task in sorted({row.task for row in rows}):
            own = [row for row in rows if row.task == task]
            pieces = [split_by_tokens(piece, max_tokens) for piece in dealt(own, self.size)]
            mine = pieces[self.rank]
            found += [(micro, True) for micro in mine]
            if is_sharded(learner):
                company = min(own, key=lambda row: distinct_tokens(row, ()))
                found += [([company], False)] * (max(map(len, pieces)) - len(mine))
        return found

    def answers(self, learner: Learner, batches: ManyOf[Batch]) -> list[Outputs]:
        """Batch i is computed by rank i modulo their number, then told to all."""
        mine = {i: moved(learner(batches[i]), "cpu") for i in range(self.rank, len(batches), self.size)}
        if is_sharded(learner) and len(mine) * self.size < len(batches):
            learner(batches[0])  # the others' last pass
        found = {i: outputs for part in gathered(mine) for i, outputs in part.items()}
        return [moved(found[i], learner.device) for i in range(len(batches))]

    def sums(self, *numbers: float) -> tuple[float, ...]:
        """In float64."""
        values = torch.tensor(numbers, dtype=torch.float64)
        joined().all_reduce(values)
        return tuple(values.tolist())

    def add_gradients(self, parameters: ManyOf[nn.Parameter]) -> None:
        """Those of replicas; FSDP has already summed those of shards.

        A parameter that no rank has a gradient for keeps none: the optimizer passes it over, as it would alone.
        """
        plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        there = torch.tensor([float(parameter.grad is not None) for parameter in plain])
        joined().all_reduce(there)
        used = [parameter for parameter, ranks in zip(plain, there.tolist(), strict=True) if ranks]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets([parameter.grad for parameter in used if parameter.grad is not None]):
            add_up(bucket)

    def norm(self, parameters: ManyOf[nn.Parameter]) -> float:
        """Over all shards, each counted once."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        if len(whole) == len(gradients):
            return super().norm(parameters)
        (squares,) = self.sums(sum(float(shard.double().square().sum()) for shard in shards))
        return float((squares + sum(float(g.double().square().sum()) for g in whole)) ** 0.5)

    def clip(self, parameters: ManyOf[nn.Parameter], most: float, norm: float) -> None:
        """Shard by shard."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        factor = min(1.0, most / (norm + 1e-6))  # as torch's clip_grads_with_norm_
        torch._foreach_mul_([g.to_local() if isinstance(g, DTensor) else g for g in gradients], factor)

    def seed(self, seed: int) -> int:
        """The first rank draws as one alone would; the others have streams of their own."""
        return seed if self.rank == 0 else int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    @contextmanager
    def new_folder(self, path: Path) -> Iterator[Path]:
        """The first rank makes it and puts it in its place, once all have written into it."""
        if self.rank == 0:
            with new_folder(path) as aside:
                told(str(aside))
                yield aside
                wait()
        else:
            yield Path(told(""))
            wait()
        wait()

    def save_state(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Shards by the rank that has them, all else by the first; and every rank's random state."""
        write_state(tensors, folder)

    def load_state(self, folder: Path, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """Each rank reads the slices that it is to have."""
        return read_state(folder, trained)


def refuse_alone(training: Training) -> None:
    """TrainingError where a setting is for one process."""
    why = ""
    if training.micro_batch_tokens == "auto":
        why = "tune.micro_batch_tokens: auto tries out what fits, and ranks would find different numbers. Set a number"
    elif training.memory.optimizer_in_backward:
        why = "tune.memory.optimizer_in_backward updates before gradients are summed over the ranks. Set it to false"
    if why:
        raise TrainingError(f"{why}, or train in one process.")


def way_of(training: Training) -> str:
    """`replicate` or `shard`: whole weights are worth cutting up, an adapter's gradients are not."""
    if training.parallel != "auto":
        return training.parallel
    return "shard" if training.adapter.kind == "full" else "replicate"


def moved(outputs: Outputs, device: torch.device | str) -> Outputs:
    """Outputs without their graph, elsewhere."""
    fields = {name: value for name, value in vars(outputs).items() if isinstance(value, Tensor)}
    return replace(outputs, **{name: value.detach().to(device) for name, value in fields.items()})


def add_up(bucket: ManyOf[Tensor]) -> None:
    """Each tensor becomes the sum of the ranks', in one message."""
    if len(bucket) == 1 and bucket[0].is_contiguous():
        joined().all_reduce(bucket[0])
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    joined().all_reduce(flat)
    for gradient, piece in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
        gradient.copy_(piece.view_as(gradient))


def buckets(gradients: ManyOf[Tensor]) -> list[list[Tensor]]:
    """Gradients of one type, together at most BUCKET_BYTES; a larger one has a bucket of its own."""
    found: list[list[Tensor]] = []
    for gradient in gradients:
        last = found[-1] if found else []
        full = sum(other.nbytes for other in last) + gradient.nbytes > BUCKET_BYTES
        if not last or full or last[0].dtype != gradient.dtype:
            found.append([])
        found[-1].append(gradient)
    return found
