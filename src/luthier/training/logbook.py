"""metrics.jsonl beside the checkpoints: a line a step, written while the training runs, for whoever watches it.

A training that is taken up again goes on with the lines of the steps that it holds: each step stands there once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import RunError
from luthier.files import write_text
from luthier.processes import is_first
from luthier.training.checkpoint import History
from luthier.training.keeper import Say

LOG_FILE = "metrics.jsonl"
Line = dict[str, Any]


class Logbook:
    """The log of one training. What cannot be written is said once and ends nothing."""

    def __init__(self, folder: Path, history: History, say: Say):
        """Keep the lines of the steps that are done, drop those that will be done again, fill in what is missing."""
        self.path, self.say = folder / LOG_FILE, say
        self.open = is_first()
        known = {line["step"]: line for line in stored_lines(self.path)} if self.open else {}
        looks = {entry["step"]: entry for entry in history.validation}
        lines = [
            {**entry, **counters(history, entry["step"]), **known.get(entry["step"], {}), **validation(looks, entry)}
            for entry in history.train
        ]
        self.write("".join(map(written, lines)), anew=True)

    def add(self, history: History) -> None:
        """The step that is done, with its validation if it had one."""
        entry, last = history.train[-1], history.validation[-1:]
        looks = {look["step"]: look for look in last}
        self.write(written({**entry, **counters(history, history.step), **validation(looks, entry)}))

    def write(self, text: str, anew: bool = False) -> None:
        """Add to the file, or write it whole."""
        if not self.open:
            return
        try:
            if anew:
                write_text(self.path, text)
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(text)
        except (OSError, RunError) as error:
            self.open = False
            self.say(f"{self.path} cannot be written ({error}); the training goes on without it.")


def counters(history: History, step: float) -> Line:
    """What has been counted up to the last step; of earlier ones it is not known any more."""
    if step != history.step:
        return {}
    return {
        "trained_tokens": history.trained_tokens,
        "computed_tokens": history.computed_tokens,
        "seconds": round(history.seconds, 3),
        "validation_seconds": round(history.validation_seconds, 3),
    }


def validation(looks: Mapping[float, Mapping[str, float]], entry: Mapping[str, float]) -> Line:
    """The validation after a step, if there was one."""
    look = looks.get(entry["step"])
    return {} if look is None else {"validation": {name: value for name, value in look.items() if name != "step"}}


def stored_lines(path: Path) -> Iterator[Line]:
    """The whole lines of a log; none where there is no file. A kill can have cut the last one."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def written(line: Line) -> str:
    """A line of JSON; null for a figure that could not be measured."""
    return json.dumps(plain(line), ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The same values, None for numbers that are none."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
