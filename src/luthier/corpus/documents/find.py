"""Files by name, folder or glob."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from luthier.errors import DataError, did_you_mean
from luthier.recipe.reading import expanded

MAGIC = frozenset("*?[")
START = "Paths in a recipe start at its folder."


def find_files(pattern: str) -> list[Path]:
    """The files a path names, sorted: a file itself, all files under a folder, or all that match a glob (`**` too).

    Hidden files and folders are skipped unless the pattern names them. Below a folder or a glob, links that lead
    out of it are not followed, so that a folder somebody else filled cannot pull in other files.

    Raises:
        DataError: nothing is there; the message names what is.
    """
    path = expanded(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        return check_found(sorted(walk(path)), path, f"{path}: the folder holds no files")
    if MAGIC.intersection(pattern):
        return find_glob(path)
    if path.exists():
        raise DataError(f"{path}: is not a regular file (a pipe or a device). Write the rows to a file first.")
    raise missing(path)


def walk(folder: Path) -> list[Path]:
    """All visible files below a folder; linked folders are not entered."""
    found: list[Path] = []
    for root, names, files in os.walk(folder, onerror=refuse_folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return found


def find_glob(path: Path) -> list[Path]:
    """The visible files that match a pattern."""
    plain = list(before_magic(path.parts))
    base, parts = Path(*plain), list(path.parts[len(plain) :])
    if not base.is_dir():
        raise missing(base)
    if parts[-1] == "**":
        parts.append("*")
    asks_hidden = any(part.startswith(".") for part in parts)
    try:
        matches = sorted(set(base.glob("/".join(parts))))
    except ValueError as error:
        raise DataError(f"{path}: not a valid pattern: {error}.") from error
    shown = [match for match in matches if asks_hidden or not is_hidden(match, base)]
    files = [match for match in shown if not match.is_dir()]
    hint = ""
    if not files:
        hint = ". It matches folders only: add /** for the files in them" if shown else there(base)
    return check_found(files, base, f"{path}: no file matches{hint}")


def before_magic(parts: tuple[str, ...]) -> Iterable[str]:
    """The leading parts of a pattern that are plain names."""
    for part in parts:
        if MAGIC.intersection(part):
            return
        yield part


def is_hidden(match: Path, base: Path) -> bool:
    """Whether a name below the base starts with a dot."""
    return any(part.startswith(".") for part in match.relative_to(base).parts)


def check_found(candidates: list[Path], base: Path, nothing: str) -> list[Path]:
    """The regular files that stay below the base; DataError where there is none."""
    inside = base.resolve()
    files = [path for path in candidates if path.is_file()]
    kept = [path for path in files if path.resolve().is_relative_to(inside)]
    if kept:
        return kept
    if files:
        raise DataError(
            f"{base}: all {len(files)} files are links that lead out of the folder, and such links are not followed. "
            "Name the folder they lead to."
        )
    raise DataError(f"{nothing}. Hidden files do not count. {START}")


def there(folder: Path) -> str:
    """`. The folder holds a.txt, b.txt`, at most five names."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return f". The folder {folder} is empty"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f". The folder {folder} holds {', '.join(names[:5])}{more}"


def missing(path: Path) -> DataError:
    """The error for a path that is not there, with the nearest name beside it."""
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"{path}: no such file or folder. There is no folder {folder}. {START}")
    hint = did_you_mean(path.name, [sibling.name for sibling in folder.iterdir()])
    return DataError(f"{path}: no such file or folder.{hint} {START}")


def refuse_folder(error: OSError) -> NoReturn:
    """A folder that cannot be listed would lose its files in silence."""
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions.") from error
