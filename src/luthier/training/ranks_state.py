"""Checkpoints of several ranks, through torch.distributed.checkpoint in safetensors files: no pickle.

Beside `state.safetensors`, which the first rank writes, a checkpoint of shards has a folder `shards` with a file a
rank; each tensor's place in the whole stands in the file. Any number of ranks reads what any number has written:
whole tensors are cut, shards are put together or cut anew.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from luthier.processes import gathered, is_first, num_processes, rank
from luthier.training.ranks import STATE

SHARDS = "shards"
RANDOM = "random"  # names of random states begin so; those of other ranks have `@RANK` behind them


def write_state(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a checkpoint's tensors into a folder that all ranks see. Called by all of them."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(RANDOM)}
    others = {f"{name}@{i}": value for i, part in enumerate(gathered(own)) if i for name, value in part.items()}
    shards: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    if is_first():
        whole = {name: tensor for name, tensor in tensors.items() if name not in shards}
        save_file({**whole, **others}, str(folder / STATE))
    if shards:
        save(shards, storage_writer=HuggingFaceStorageWriter(str(folder / SHARDS), save_distributed=True))


def read_state(folder: Path, trained: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """A checkpoint's tensors, cut as the parameters they are of. Random states are this rank's own, if it has one."""
    found: dict[str, Any] = {}
    for place in (folder, folder / SHARDS):
        if not place.is_dir():
            continue
        reader = HuggingFaceStorageReader(str(place))
        wanted = {
            name: empty_like(trained, name, entry)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if len(entry.size)  # type: ignore[union-attr]
        }
        fill(wanted, reader)
        found |= wanted
    with safe_open(str(folder / STATE), framework="pt") as file:
        found |= {name: file.get_tensor(name) for name in file.keys() if name not in found}  # noqa: SIM118
    return own_random(found)


def fill(wanted: dict[str, Any], reader: HuggingFaceStorageReader) -> None:
    """Fill tensors; a single process reads alone, which torch warns of."""
    alone = num_processes() == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(wanted, storage_reader=reader, no_dist=alone)


def empty_like(trained: dict[str, nn.Parameter], name: str, entry: Any) -> Tensor:
    """Where a stored tensor is read into: cut as its parameter, where that is cut and they have one shape."""
    parameter = next((trained[part] for part in suffixes(name) if part in trained), None)
    if isinstance(parameter, DTensor) and parameter.shape == entry.size:
        return torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
    return torch.zeros(entry.size, dtype=entry.properties.dtype)


def suffixes(name: str) -> list[str]:
    """What a parameter's name may be in `weight.NAME` and `optimizer.SLOT.NAME`."""
    return [name.split(".", count)[-1] for count in (1, 2)]


def own_random(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only this rank's random states, under their plain names; the present one where it has written none."""
    others = {name: tensor for name, tensor in tensors.items() if name.startswith(RANDOM)}
    kept = {name: tensor for name, tensor in tensors.items() if name not in others}
    number = rank()
    mine = {
        name.partition("@")[0]: tensor
        for name, tensor in others.items()
        if name.partition("@")[2] == (str(number) if number else "")
    }
    return {**kept, **(mine or {RANDOM: torch.random.get_rng_state()})}
