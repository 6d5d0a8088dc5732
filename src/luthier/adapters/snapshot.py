"""Weights as they were, on disk while an adapter has changed them in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from luthier.errors import ModelError


class Snapshot:
    """A copy of some tensors in a temporary file that has no name: it goes with the process, however that ends.

    In memory it would cost as much again as the weights that learn.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.file = tempfile.TemporaryFile(prefix="luthier-")  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self.names = list(tensors)
        try:
            for tensor in tensors.values():
                self.file.write(raw(tensor.detach().cpu().contiguous()).numpy().data)
            self.file.flush()
        except OSError as error:
            size = sum(tensor.nbytes for tensor in tensors.values())
            raise ModelError(
                f"the weights that learn are kept as they were in {tempfile.gettempdir()} ({size / 1e9:.1f} GB), and "
                f"that failed: {error.strerror}. Make room, or set TMPDIR to a folder with room."
            ) from error

    def __deepcopy__(self, memo: object) -> Snapshot:
        """A copy of the model (training/ranks_shard.py) has the same past."""
        return self

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the copies back into the tensors of the same names, in place."""
        self.file.seek(0)
        for name in self.names:
            tensor = tensors[name]
            copy = torch.frombuffer(bytearray(self.file.read(tensor.nbytes)), dtype=tensor.dtype)
            tensor.copy_(copy.view(tensor.shape))


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8)
