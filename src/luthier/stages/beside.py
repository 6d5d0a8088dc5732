"""What stands beside a trained model's figures: its plain rivals, and the rows that gave it no example."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import asdict
from typing import Any

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of
from luthier.evaluation.held_out import Figures, by_group, change, change_p, figure
from luthier.evaluation.rivals import Beside
from luthier.evaluation.verdict import p_text
from luthier.methods.base import Example
from luthier.records import Ledger
from luthier.stages.rows import dropped

NO_TOKEN = Problem(
    "no_token", "the tokenizer leaves its text, or one of its words, without a token of its own. Mend the text."
)
Draws = tuple[int, int, float]  # resamples, seed, confidence


def account(
    ledger: Ledger, split: str, rows: ManyOf[Any], examples: tuple[ManyOf[Example], ManyOf[Example]], most: int
) -> None:
    """Write the rows of which no example is left into the ledger. `examples`: as viewed, and those kept of them."""
    viewed, kept = ({example.key for example in some} for some in examples)
    for row in rows:
        key = key_of(row)
        if key in viewed and key not in kept:
            detail = f"it has over {most} tokens (data.max_tokens, or the model's context)."
            ledger.dropped.append(dropped(split, row, Problem("too_long", detail)))
            ledger.kept[split] -= 1


def account_unread(
    ledger: Ledger, split: str, rows: ManyOf[Any], viewed: ManyOf[Example], problem: Problem = NO_TOKEN
) -> None:
    """Write the rows of which the method makes no example into the ledger; by default those a head cannot read."""
    there = {example.key for example in viewed}
    for row in rows:
        if key_of(row) not in there:
            ledger.dropped.append(dropped(split, row, problem))
            ledger.kept[split] -= 1


def rows_of(rows: ManyOf[Any], examples: ManyOf[Example]) -> list[Any]:
    """The row of each example. Rows of one text count as one here: a rival sees the text alone."""
    by_key = {key_of(row): row for row in rows}
    return [by_key[example.key] for example in examples]


def add_rivals(
    figures: dict[str, Any], rivals: ManyOf[Beside], after: Figures, groups: ManyOf[str], draws: Draws
) -> None:
    """Each rival's value beside every figure, and against the strongest of them, which is the last, the gain.

    `rivals` {name: figure}; `rival` the strongest one's figure, `gain` after - rival with its interval, `gain_p`.
    """
    for name, found in figures.items():
        sums = {rival.name: by_group(rival.figures[name], groups) for rival in rivals}
        found["rivals"] = {rival: asdict(figure(sums_G, *draws)) for rival, sums_G in sums.items()}
        strongest, trained = sums[rivals[-1].name], by_group(after[name], groups)
        found["rival"] = found["rivals"][rivals[-1].name]
        found["gain"] = asdict(change(strongest, trained, *draws))
        found["gain_p"] = change_p(strongest, trained, draws[0], draws[1])


def shown_word(moved: Mapping[str, float], p: float, num_groups: int, better: bool, confidence: float) -> str:
    """The word of a verdict. `moved`: a difference with its interval; `p` that there is none.

    Turning the signs of G groups gives no p below 2 / 2^G: where that is not below 1 - confidence, no rows of any kind
    could have shown a difference.
    """
    if 2.0 ** (1 - num_groups) >= 1 - confidence:
        return "too few rows"
    shown = (moved["low"] > 0 or moved["high"] < 0) and p < 1 - confidence
    return ("better" if better else "worse") if shown else "no difference shown"


def verdict_beside(name: str, higher_is_better: bool, found: dict[str, Any], rival: str, confidence: float) -> str:
    """One sentence: the deciding figure after training, beside the strongest rival's; an untrained head has none.

    A difference is shown where its interval leaves zero out and its p agrees, as in `figures.verdict`.
    """
    gain = found["gain"]
    better = gain["value"] > 0 if higher_is_better else gain["value"] < 0
    word = shown_word(gain, found["gain_p"], found["n"], better, confidence)
    return (
        f"{word}: {name.replace('_', ' ')} {found['after']['value']:.4g} beside {found['rival']['value']:.4g} of "
        f"{rival} on {found['n']} held-out rows, difference {gain['value']:+.4g} "
        f"[{gain['low']:+.4g}, {gain['high']:+.4g}], {p_text(found['gain_p'])}."
    )
