"""Ctrl-C and SIGTERM ask for a stop; long work ends at the next safe place, saved."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from luthier.stopped import Stopped

INTERRUPTED = 128 + signal.SIGINT  # exit codes, as a shell gives them


class Stop:
    """Context manager: inside it the first signal only sets `wanted`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.wanted = False
        self.exit_code = INTERRUPTED
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller's own handling stays
                break
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        self.exit_code = 128 + number

    def leave(self, saved: str) -> None:
        """Raise Stopped, saying what is saved."""
        said = f"stopped on request: {saved}. Run the same command again to go on from there."
        raise Stopped(said, self.exit_code)
