"""A stop on request, after everything was saved. No torch here, so that the CLI can name it cheaply."""

from __future__ import annotations

from luthier.errors import LuthierError


class Stopped(LuthierError):
    """Stopped by Ctrl-C or SIGTERM; the message says what is saved and how to go on.

    `exit_code` is the command's: 128 and the signal's number, 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, said: str, exit_code: int = 130):
        super().__init__(said)
        self.exit_code = exit_code
