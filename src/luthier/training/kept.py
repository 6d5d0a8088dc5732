"""Rows of numbers that are computed once and kept on disk, by content: features, hidden states.

A store is a folder of shards. A shard is a safetensors file named by the hash of its content: it is whole or not there,
what was damaged since is noticed on opening, dropped and computed anew, and no index can disagree with it. Shards are
mapped into memory, so only the rows that are read take any.

    states [N, D]     the rows                       keys [S, 32]   what each of S entries is the content of
    rows [sum T]      the entries' rows, in order    ends [S]       where in `rows` each entry ends
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ManyOf
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from luthier.errors import TrainingError
from luthier.files import open_aside, sha256
from luthier.processes import gathered, is_first, num_processes

SHARD_BYTES, SHARD_SECONDS = 32 << 20, 30.0  # what is not on disk yet is never more than this much work
GIGABYTE = 1_000_000_000

Rows = NDArray[np.int64]


class RowStore:
    """Entries of rows [T, D] by key, in `folder`. `identity` says what they depend on beside their key.

    What lies in `folder` under another identity is of no use any more and removed.
    """

    def __init__(self, folder: Path, identity: str, most_bytes: int):
        self.folder = folder / identity[:32]
        self.most_bytes = most_bytes
        self.blocks: list[Tensor] = []
        self.shards: list[Path] = []
        self.places: dict[bytes, tuple[int, Rows]] = {}  # block, and rows in it
        self.unsaved: dict[int, Mapping[bytes, Rows]] = {}  # blocks that are in no shard yet
        self.saved_at = time.monotonic()
        if folder.is_dir():
            for other in folder.iterdir() if is_first() else ():
                if other != self.folder and other.is_dir():
                    shutil.rmtree(other)
        for file in sorted(self.folder.glob("*.safetensors")):
            if sha256(file) == file.stem:
                self.open(file)
            elif is_first():
                file.unlink()

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    @property
    def num_bytes(self) -> int:
        """All rows there are."""
        return sum(block.nbytes for block in self.blocks)

    def reserve(self, num_bytes: int) -> None:
        """TrainingError where so many further bytes are not allowed, or not free on the disk."""
        wanted = self.num_bytes + num_bytes
        if wanted > self.most_bytes:
            raise TrainingError(
                f"tune.cache_gigabytes: what is computed once of these rows takes {in_gigabytes(wanted)}, and "
                f"{in_gigabytes(self.most_bytes)} are allowed. Raise it, or keep less (tune.cache_below: false, or "
                "fewer rows)."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise TrainingError(
                f"{self.folder}: what is computed once of these rows takes {in_gigabytes(num_bytes)}, and "
                f"{in_gigabytes(free)} are free there. Free some, give another --out, or set tune.cache_below: false."
            )

    def add(self, states_ND: Tensor, entries: Mapping[bytes, Rows]) -> None:
        """Take in some rows and the entries that consist of them; on disk no later than at the next `flush`."""
        self.unsaved[len(self.blocks)] = entries
        self.places |= {key: (len(self.blocks), rows) for key, rows in entries.items()}
        self.blocks.append(states_ND.detach().cpu().contiguous())
        size = sum(self.blocks[block].nbytes for block in self.unsaved)
        if size >= SHARD_BYTES or time.monotonic() - self.saved_at >= SHARD_SECONDS:
            self.flush()

    def gather(self, wanted: ManyOf[tuple[bytes, Rows]]) -> Tensor:
        """For each (key, places in its entry) those rows, one after the other: [sum, D]."""
        found = [(block, rows[places]) for (block, rows), places in ((self.places[k], p) for k, p in wanted)]
        block_P = np.repeat([block for block, _ in found], [len(rows) for _, rows in found])
        row_P = np.concatenate([rows for _, rows in found])
        first = self.blocks[found[0][0]]
        if (block_P == block_P[0]).all():
            return first[torch.from_numpy(row_P)]
        out_PD = first.new_empty(len(row_P), first.shape[1])
        for block in np.unique(block_P):
            (chosen,) = np.nonzero(block_P == block)
            out_PD[torch.from_numpy(chosen)] = self.blocks[block][torch.from_numpy(row_P[chosen])]
        return out_PD

    def entry(self, key: bytes) -> Tensor:
        """All rows of one entry, [T, D]."""
        block, rows = self.places[key]
        return self.blocks[block][torch.from_numpy(rows)]

    def flush(self) -> None:
        """Write what is in no shard yet as one, and read it from there from now on."""
        if not self.unsaved:
            return
        starts = np.cumsum([0, *(len(self.blocks[block]) for block in self.unsaved)])
        entries = {
            key: rows + start
            for start, held in zip(starts, self.unsaved.values(), strict=False)
            for key, rows in held.items()
        }
        content = save(
            {
                "states": torch.cat([self.blocks[block] for block in self.unsaved]),
                "rows": torch.from_numpy(np.concatenate(list(entries.values()))),
                "ends": torch.from_numpy(np.cumsum([len(rows) for rows in entries.values()])),
                "keys": torch.from_numpy(np.frombuffer(b"".join(entries), np.uint8).reshape(len(entries), 32).copy()),
            }
        )
        file = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with open_aside(file, every_process=True) as out:
            out.write(content)
        for block in self.unsaved:
            self.blocks[block] = self.blocks[block][:0]
        self.unsaved = {}
        self.open(file)
        self.saved_at = time.monotonic()

    def share(self) -> None:
        """Make the entries known that the run's other processes have flushed."""
        if num_processes() == 1:
            return
        mine = set(self.shards)
        for file in sorted({file for part in gathered(self.shards) for file in part} - mine):
            self.open(file)

    def open(self, file: Path) -> None:
        """Make the entries of a whole shard known."""
        with safe_open(file, framework="pt") as shard:
            states_ND = shard.get_tensor("states")
            rows, ends, keys = (shard.get_tensor(name).numpy() for name in ("rows", "ends", "keys"))
            pieces = np.split(rows.copy(), ends[:-1])
        self.places |= {keys[i].tobytes(): (len(self.blocks), piece) for i, piece in enumerate(pieces)}
        self.blocks.append(states_ND)
        self.shards.append(file)


def in_gigabytes(num_bytes: int) -> str:
    """A size for people."""
    return f"{num_bytes / GIGABYTE:.3g} GB"


def key_of(tokens: ManyOf[int], spans: Iterable[tuple[int, int]] = ()) -> bytes:
    """The content of an entry: tokens of a sequence, and the spans that are read of it."""
    digest = hashlib.sha256(np.asarray(tokens, np.int32).tobytes())
    digest.update(np.asarray([edge for span in spans for edge in span], np.int64).tobytes())
    return digest.digest()


def weights_hash(tensors: Iterable[tuple[str, Tensor]], *also: str) -> str:
    """Content of some weights, and of words that say how they are computed with."""
    digest = hashlib.sha256(" ".join(also).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_weights(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers of a module by name, tied ones once."""
    yield from module.named_parameters()
    yield from module.named_buffers()
