"""The arrays of a unit as .npy files in a folder, opened by memory map: only what is looked at is read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.errors import DataError


def save_arrays(value: Any, folder: Path) -> None:
    """Write each field of a dataclass of arrays as `<name>.npy` into an existing folder."""
    for field in fields(value):
        np.save(folder / f"{field.name}.npy", getattr(value, field.name), allow_pickle=False)


def open_arrays(kind: type[Any], folder: Path) -> dict[str, npt.NDArray]:
    """The fields of such a dataclass by name; DataError where a file is missing or damaged."""
    return {field.name: open_array(folder / f"{field.name}.npy") for field in fields(kind)}


def open_array(path: Path) -> npt.NDArray:
    """One .npy file by memory map."""
    try:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # an empty array cannot be mapped
            return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: the duplicate index is missing or damaged ({error}). Delete its unit's folder and run again."
        ) from error
