"""Several processes of one run: which of them this is, and how they wait for and tell each other. No torch here.

torchrun starts the processes and says so in the environment. One process alone needs nothing of this: torch.distributed
is not imported, and every function here returns at once.

The first process (rank 0) is the only one that writes files and speaks. All of them read the same files, so the run
folder has to be one that all machines see; caches are each machine's own.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from luthier.errors import RunError

PATIENCE = datetime.timedelta(days=1)  # for a process at work alone; one that dies ends the others through torchrun

ValueT = TypeVar("ValueT")


def num_processes() -> int:
    """Processes of this run."""
    return number("WORLD_SIZE", 1)


def rank() -> int:
    """This process's number, from 0."""
    return number("RANK", 0) if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return rank() == 0


def local_rank() -> int:
    """This process's number among those of its machine, from 0."""
    return number("LOCAL_RANK", 0) if num_processes() > 1 else 0


def is_first_here() -> bool:
    """Whether this process fills the caches of its machine."""
    return local_rank() == 0


def num_processes_here() -> int:
    """Processes of this run on this machine."""
    return number("LOCAL_WORLD_SIZE", 1) if num_processes() > 1 else 1


def number(name: str, default: int) -> int:
    """A number that torchrun left in the environment.

    Raises:
        RunError: what stands there is none.
    """
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise RunError(
            f"the environment has {name}={text}, which is no number. Start several processes with torchrun, which "
            f"sets it, or unset {name}."
        ) from None


@cache
def joined() -> Any:
    """torch.distributed, with this process in its group; made at the first call, left when the process ends.

    Raises:
        RunError: the environment says that there are several processes, but not how they find each other.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise RunError(
            f"the environment has WORLD_SIZE={num_processes()}, but no {' and no '.join(missing)}. Start several "
            "processes with torchrun (docs/scale.md), or unset WORLD_SIZE."
        )
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        has_gpus = torch.cuda.is_available()
        distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpus else "gloo", timeout=PATIENCE)
        atexit.register(leave)
    return distributed


def leave() -> None:
    """Out of the group, if still in it."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    if num_processes() > 1:
        import torch

        joined().all_reduce(torch.zeros(1))


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    if num_processes() == 1:
        return flag
    import torch

    count = torch.tensor([float(flag)])
    joined().all_reduce(count)
    return bool(count)


def told(value: ValueT) -> ValueT:
    """The first process's value, in all of them."""
    if num_processes() == 1:
        return value
    held = [value if is_first() else None]
    joined().broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[return-value]


def gathered(value: ValueT) -> list[ValueT]:
    """Every process's value, by rank, in all of them."""
    if num_processes() == 1:
        return [value]
    held: list[Any] = [None] * num_processes()
    joined().all_gather_object(held, value)
    return held


@contextmanager
def first_goes_first(each_machine: bool = False) -> Iterator[None]:
    """The first process does the block before all others, who then find its files there.

    `each_machine`: the first of each machine, where the files are in a cache. Every process has to come by.
    """
    first = is_first_here() if each_machine else is_first()
    if not first:
        wait()
    yield
    if first:
        wait()
