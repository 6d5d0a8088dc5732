"""Files that are whole or not there: atomic writes, checksums, content hashes. No torch here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from luthier.errors import RunError
from luthier.processes import is_first, is_first_here

CHECKSUMS = "checksums.json"  # in a folder that was filled aside: the SHA-256 of each other file
NOWHERE = "luthier-nowhere-"  # begins the name of what a process fills that does not write
PARTIAL = ".partial"  # ends the name of what is being written or deleted: worth nothing after a kill
REPLACED = ".old"  # ends the name of a folder that another is taking the place of


@contextlib.contextmanager
def open_aside(path: Path, every_process: bool = False) -> Iterator[BinaryIO]:
    """Write aside, sync, rename: a reader sees the old file or the new one, never half of it.

    Of several processes one writes; what the others write here and in `new_folder` goes nowhere, but for files that
    `every_process` writes under a name of its own.
    """
    if not (every_process or is_writer(path)):
        with tempfile.TemporaryFile() as nowhere:
            yield nowhere
        return
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = name_aside(path)
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def name_aside(path: Path) -> Path:
    """A name that nothing has, beside `path`; what is made there has the permissions that the user's umask leaves."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{PARTIAL}")


def write_text(path: Path, text: str) -> None:
    """A whole text file, or what stood there before."""
    with open_aside(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder aside; it takes the place of `path` only when the block ends well, with a checksum file in it."""
    if not is_writer(path):
        with tempfile.TemporaryDirectory(prefix=NOWHERE) as nowhere:
            yield Path(nowhere)
        return
    with explain_os_errors(path):
        make_lasting(path.parent)
        aside = name_aside(path)
        aside.mkdir()
        old = path.with_name(f".{path.name}{REPLACED}")
        try:
            yield aside
            write_checksums(aside)
            sync_folder(aside)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            sync_entries(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(aside, ignore_errors=True)
            raise


def write_checksums(folder: Path) -> None:
    """The checksums of all files of a folder, into it."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / CHECKSUMS]
    write_json(folder / CHECKSUMS, {str(file.relative_to(folder)): sha256(file) for file in files})


def restore_below(folder: Path) -> None:
    """Undo what killed writers left anywhere below: half-written things go, a folder being replaced comes back.

    For folders with one writer only: what another is writing would go too.
    """
    for left in list(folder.rglob(f".*{PARTIAL}")):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    for old in list(folder.rglob(f".*{REPLACED}")):
        path = old.with_name(old.name[1:].removesuffix(REPLACED))
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def check_folder(path: Path) -> list[str]:
    """Files of a `new_folder` that are missing or differ from their checksums."""
    try:
        sums = dict(json.loads((path / CHECKSUMS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return [CHECKSUMS]
    return [name for name, value in sums.items() if not (path / name).is_file() or sha256(path / name) != value]


def require_whole(path: Path) -> None:
    """RunError where a file of a `new_folder` is missing or another one; a folder without checksums is not judged."""
    broken = check_folder(path) if (path / CHECKSUMS).is_file() else []
    if broken:
        raise RunError(
            f"{path}: {', '.join(broken)} missing, or not as written. Run the recipe again with the same --out: what "
            "is damaged is made anew."
        )


def sync_folder(path: Path) -> None:
    """Force a folder's files and its entries to disk."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    sync_entries(path)


def is_writer(path: Path) -> bool:
    """Whether it falls to this process to write there: the run's first process, or its machine's first for caches."""
    if any(part.startswith(NOWHERE) for part in path.parts):
        return True  # what `new_folder` gave it may be read again while it is filled
    return is_first_here() if path.absolute().is_relative_to(cache_folder("").absolute()) else is_first()


def make_lasting(folder: Path) -> None:
    """Make a folder, and force its name to disk: what is written into it is lost with the name."""
    if not folder.is_dir():
        make_lasting(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_entries(folder.parent)


def sync_entries(path: Path) -> None:
    """Force the names in a folder to disk, not what they name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a message that says what to do, whoever met it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        causes = {
            28: "the disk is full. Free some space and run the same command again: it goes on where it stopped.",
            122: "the quota is used up. Free some space and run the same command again: it goes on where it stopped.",
            27: "a file may not become this large (ulimit -f). Raise that limit, and run the same command again.",
            30: "the folder is read-only. Give another one with --out.",
            13: "no permission to write there. Give another folder with --out.",
            20: "a part of the path is a file. Give another folder with --out.",
            17: "a file stands where a folder has to be. Give another folder with --out.",
            21: "a folder stands where a file has to be. Move it away, or give another folder with --out.",
            2: "there is no such folder, and none can be made there. Give another one with --out.",
        }
        cause = causes.get(os_error_number(error))
        if cause is None:
            raise
        raise RunError(f"{path}: {cause}") from error


def os_error_number(error: OSError | SafetensorError) -> int:
    """The system's error number; safetensors has it in its text only. 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def cache_folder(name: str) -> Path:
    """A folder of the cache: below `$LUTHIER_HOME`, by default `~/.cache/luthier`."""
    home = os.environ.get("LUTHIER_HOME")
    if home:
        return Path(home).expanduser() / name
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "luthier" / name


def bytes_text(count: float) -> str:
    """A size in the largest unit that it fills: "1.2 GB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*values: Any) -> str:
    """Hex digest of JSON-able values, dict order aside."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
