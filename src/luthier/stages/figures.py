"""What a stage was worth, as JSON values: figures before and after with their intervals, rivals, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from luthier.evaluation.held_out import Figures, by_group, change, change_p, figure
from luthier.evaluation.rivals import Beside
from luthier.methods.base import Example
from luthier.methods.stage import StageMethod
from luthier.recipe.stages import StageJudge
from luthier.runtime import peak_memory_bytes
from luthier.stages.beside import add_rivals, moved_words, shown_word, verdict_beside
from luthier.training.checkpoint import History
from luthier.training.curves import history_values


def figure_values(
    scores: tuple[Figures, Figures], groups: list[str], judge: StageJudge, seed: int, rivals: Sequence[Beside] = ()
) -> dict[str, Any]:
    """Each figure before and after training, its change and its p, on the same groups; rivals beside them."""
    draws = (judge.resamples, seed, judge.confidence)
    found: dict[str, Any] = {}
    for name in scores[1]:
        before, after = (by_group(part[name], groups) for part in scores)
        found[name] = {
            "before": asdict(figure(before, *draws)),
            "after": asdict(figure(after, *draws)),
            "change": asdict(change(before, after, *draws)),
            "p": change_p(before, after, judge.resamples, seed),
            "n": len(after[0]),
        }
    if rivals:
        add_rivals(found, rivals, scores[1], groups, draws)
    return found


def training_values(history: History, trainable_parameters: int, memory: dict[str, Any]) -> dict[str, Any]:
    """What training took. `memory`: what memory.json says of it."""
    return {
        **history_values(history),
        "peak_rss_bytes": peak_memory_bytes(),
        "memory": memory,
        "trainable_parameters": trainable_parameters,
    }


def plain(value: Any) -> Any:
    """JSON values with None for a number that could not be measured (a precision where nothing was found)."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def group_of(example: Example) -> str:
    """What is drawn together when rows are resampled: all examples of one row, all rows of one prompt."""
    return example.group or example.key


def verdict(method: StageMethod, found: dict[str, Any], confidence: float, rivals: Sequence[Beside] = ()) -> str:
    """One sentence: what the deciding figure did on the held-out rows, beside the strongest rival if there is one.

    A change is shown where its interval leaves zero out and its p agrees: an interval over a row or two knows nothing.
    """
    before, after, moved = found["before"]["value"], found["after"]["value"], found["change"]
    name = method.primary.replace("_", " ")
    if not math.isfinite(after):
        return f"{name} could not be measured on {found['n']} held-out rows."
    if rivals and math.isfinite(found["rival"]["value"]):
        return verdict_beside(method.primary, method.higher_is_better, found, rivals[-1].name, confidence)
    better = moved["value"] > 0 if method.higher_is_better else moved["value"] < 0
    word = shown_word(moved, found["p"], found["n"], better, confidence)
    share = f" ({moved['value'] / before:+.1%})" if before else ""
    return (
        f"{word}: {name} {before:.4g} -> {after:.4g}{share} on {found['n']} held-out rows, "
        f"change {moved_words(moved, found['p'], confidence)}."
    )
