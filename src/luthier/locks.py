"""Locks that die with their process: whoever holds one is alive, on this machine or on a shared folder's other ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Lock:
    """A file that one process at a time holds. The system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path):
        self.path = path
        self.descriptor: int | None = None

    def taken(self, wait: bool = False) -> bool:
        """Take it, and note who has it; False where another holds it and there is no waiting."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self.descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return True

    def holder(self) -> int | None:
        """The process that took it last; None where that is not known."""
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def release(self) -> None:
        """Let go of it; nothing where it is not held."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside, no other process is at this place; waits for its turn."""
    lock = Lock(path)
    lock.taken(wait=True)
    try:
        yield
    finally:
        lock.release()
