"""A run is a folder: stages that are done stay done while their inputs do not change. No torch here."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier import processes
from luthier.errors import RunError
from luthier.files import content_hash, explain_os_errors, make_lasting, restore_below, write_json, write_text
from luthier.locks import Lock
from luthier.signals import heed

NOT_CODE_OF_RESULTS = ("cli", "report")
LOCK = "run.lock"  # in a run folder: held by the process that works there
HELD: dict[Path, int] = {}  # the run folders that this process works in, and the thread that does
MARK = "inputs.txt"  # in the folder of a training: the key of what it depends on


class RunFolder:
    """Paths and finished stages of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.let_go: Callable[[], object] = lambda: None

    @property
    def training(self) -> Path:
        """Checkpoints and the best adapter so far."""
        return self.path / "training"

    @property
    def adapter(self) -> Path:
        """The finished adapter with its prompt."""
        return self.path / "adapter"

    def prepare(self, recipe_text: str) -> None:
        """Make the folder, proving that it can be written before anything is computed."""
        with processes.first_goes_first():
            self.claim(recipe_text)

    def claim(self, recipe_text: str) -> None:
        """The folder is this run's, or an error; what a killed run left half-written goes."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file. Give another folder with --out.")
        others = [entry for entry in self.path.iterdir() if entry.name != LOCK] if self.path.is_dir() else []
        if others and not (self.path / "recipe.yaml").is_file():
            raise RunError(f"{self.path}: holds other files and is not a run folder. Give another folder with --out.")
        if processes.is_first():  # the others come by while it writes already
            self.let_go = weakref.finalize(self, locked(self.path))
            restore_below(self.path)
        write_text(self.path / "recipe.yaml", recipe_text)

    def release(self) -> None:
        """Let others work in the folder: this process is done with it."""
        self.let_go()

    def stage(self, name: str, inputs: Any, compute: Callable[[], Any], together: bool = False) -> tuple[Any, bool]:
        """(value, whether it was done before): a stage is computed once for its inputs and the code's version.

        Of several processes the first computes it and tells the others, or all do so `together`.
        """
        path = self.path / "stages" / f"{name}.json"
        key = content_hash(inputs, code_hash())
        stored = processes.told(read_stage(path))
        if stored is not None and stored["key"] == key:
            return stored["value"], True
        heed()
        value = processes.told(compute() if together or processes.is_first() else None)
        write_json(path, {"key": key, "value": value})
        processes.wait()
        heed()
        return value, False

    def value(self, name: str) -> Any:
        """The value of a stage that is done."""
        stored = read_stage(self.path / "stages" / f"{name}.json")
        assert stored is not None, f"stage {name} comes first"
        return stored["value"]

    def forget(self, name: str) -> None:
        """Let a stage be done again: what it left is damaged."""
        if processes.is_first():
            (self.path / "stages" / f"{name}.json").unlink(missing_ok=True)
        processes.wait()

    def done(self, name: str, inputs: Any) -> bool:
        """Whether a stage is finished for these inputs."""
        stored = read_stage(self.path / "stages" / f"{name}.json")
        return stored is not None and stored["key"] == content_hash(inputs, code_hash())

    def take_up(self, name: str, folder: Path, inputs: Any, caches: Sequence[str] = ()) -> str:
        """Make `folder` that of stage `name` with these inputs; what the user should know, empty where it was already.

        What another training left there must not be resumed. Finished, it goes. Unfinished, it is set aside in
        FOLDER.earlier, and comes back when the inputs are as they were. `caches` are patterns of folders whose files
        are known by their content: they stay.
        """
        return processes.told(self.settle(name, folder, inputs, caches) if processes.is_first() else "")

    def settle(self, name: str, folder: Path, inputs: Any, caches: Sequence[str]) -> str:
        """`take_up`, by one process."""
        key, mark = content_hash(inputs, code_hash()), folder / MARK
        there, aside = read_mark(mark), folder.with_name(f"{folder.name}.earlier")
        if there == key:
            return ""
        stored = read_stage(self.path / "stages" / f"{name}.json")
        valuable = any(folder.glob("**/checkpoints/step-*")) and (stored is None or stored["key"] != there)
        gone, coming = (folder.with_name(f".{folder.name}.{word}") for word in ("gone", "coming"))
        back = read_mark(coming / MARK) == key  # a kill can have come between the renames below
        if read_mark(aside / MARK) == key:
            shutil.rmtree(coming, ignore_errors=True)
            aside.rename(coming)
            back = True
        old = aside if valuable else gone
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        if back:
            coming.rename(folder)
        make_lasting(folder)
        keep_caches(old, folder, caches)
        shutil.rmtree(gone, ignore_errors=True)
        write_text(mark, key)
        told = f"the training with these settings, set aside earlier, is taken up again in {folder}. " if back else ""
        if valuable:
            told += (
                f"Rows, settings or code are not those of the unfinished training that was in {folder}: it is set "
                f"aside in {aside}. Put things back as they were to take it up again, or delete it."
            )
        return told.strip()


def locked(path: Path) -> Callable[[], None]:
    """Take a run folder for this thread, and return what lets go of it; the lock goes with the process at the latest.

    Who holds it is not told by the process's number, which two containers share. A thread that has it may come again:
    it does not do two things at once. Where the file system knows no locks, nobody is kept out.

    Raises:
        RunError: another process or thread works there.
    """
    lock, place, thread = Lock(path / LOCK), path.resolve(), threading.get_ident()
    try:
        with explain_os_errors(path):
            is_free = lock.taken()
    except OSError:
        return lock.release
    if is_free:
        HELD[place] = thread

        def release() -> None:
            lock.release()
            HELD.pop(place, None)

        return release
    if HELD.get(place) != thread:
        who = "a thread of this process" if place in HELD else f"process {lock.holder() or 'unknown'}"
        raise RunError(
            f"{path}: another luthier ({who}) works in this folder. Wait until it is done, or give another folder with "
            "--out."
        )
    return lambda: None


def keep_caches(old: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Move the folders that match a pattern from an old folder into the new one, where it has none of its own."""
    for path in [found for pattern in patterns for found in old.glob(pattern)]:
        kept = folder / path.relative_to(old)
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.rename(kept)


def read_mark(path: Path) -> str | None:
    """The key of the training in a folder, or None where it has none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def read_stage(path: Path) -> dict[str, Any] | None:
    """A stored stage, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and "key" in value and "value" in value else None


@functools.cache
def code_hash(*packages: str) -> str:
    """Content hash of the package's own source, but for what only prints or draws; or of some packages of it."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if relative.parts[0] in packages if packages else relative.parts[0] not in NOT_CODE_OF_RESULTS:
            digest.update(f"{relative} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
