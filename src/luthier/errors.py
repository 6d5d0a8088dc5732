"""Errors a user can act on. Each says what is wrong, where, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LuthierError(Exception):
    """Base of every error that is the user's to mend; the CLI prints it without a traceback."""


class RecipeError(LuthierError):
    """The recipe cannot be run as written. `problems` holds every problem found, one line each."""

    def __init__(self, source: str, problems: Iterable[str]):
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))
        self.source = source

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, list[str]]]:
        """So that it comes whole out of a worker process."""
        return type(self), (self.source, self.problems)


class DataError(LuthierError):
    """Rows that cannot be read or used: the message names file, line and field."""


class ModelError(LuthierError):
    """A model, tokenizer or adapter that cannot be found, loaded or used this way."""


class TrainingError(LuthierError):
    """Training stopped before a bad update (a NaN, nothing to train); the last good state is saved."""


class Diverged(TrainingError):
    """A loss or a gradient that is no number; the update was not made."""


class RunError(LuthierError):
    """The run folder cannot be written, read or resumed."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None where nothing is close."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` with a leading space, or an empty string."""
    found = nearest(name, known)
    return f' Did you mean "{found}"?' if found else ""
