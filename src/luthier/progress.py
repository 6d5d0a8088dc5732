"""How long work says where it is. The pipeline speaks to a Listener; the CLI draws one. No torch here."""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """Hears of stages and of work done inside them."""

    def plan(self, stages: list[str]) -> None:
        """All stages of the run, in order."""
        ...

    def begin(self, stage: str) -> None:
        """A stage starts."""
        ...

    def update(self, done: int, total: int, note: str = "") -> None:
        """Work done inside the current stage."""
        ...

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        """A stage is finished; `cached`: it had been done before."""
        ...

    def say(self, text: str) -> None:
        """Something the user should know."""
        ...


class Silent:
    """A Listener that says nothing: the default of the Python API."""

    def plan(self, stages: list[str]) -> None:
        """Nothing."""

    def begin(self, stage: str) -> None:
        """Nothing."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Nothing."""

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""
