"""A stop on request, after everything was saved. No torch here, so that the CLI can name it cheaply."""

from __future__ import annotations

from luthier.errors import LuthierError


class Stopped(LuthierError):
    """Stopped by Ctrl-C or SIGTERM; the message says what is saved and how to go on."""
