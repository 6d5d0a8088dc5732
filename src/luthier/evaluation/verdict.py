"""From right/wrong per arm on the same test rows to one sentence: was fine-tuning worth it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from luthier.evaluation.statistics import (
    Correct,
    Interval,
    holm,
    mcnemar_exact,
    paired_difference,
    rows_needed,
    wilson,
)
from luthier.recipe import ArmName

TUNED: ArmName = "tuned"
# rows from which an interval that ends early rules a gain out: its upper end misses in up to 8 % of all cases on
# 5 rows, in under 5 % from here on (2.5 % is its level)
TRUSTED_ROWS = 25
# how sure to be that no larger share of the rows differs than is planned with (Browne 1995: as sure as the power)
ASSURANCE = 0.8


@dataclass(frozen=True)
class Comparison:
    """One arm, the tuned one or else the best, held against another, the reference, on the same n rows.

    `difference` is accuracy(arm) - accuracy(reference), `interval` Tango's score interval (not widened for
    several references), `p` McNemar's exact p and `p_holm` the same adjusted over all comparisons. `only_arm` and
    `only_reference` count the rows that just one of the two has right.
    """

    arm: str
    reference: str
    difference: float
    interval: Interval
    p: float
    p_holm: float
    only_arm: int
    only_reference: int
    n: int

    @property
    def discordant_share(self) -> float:
        """Share of the rows that exactly one of the two arms has right."""
        return (self.only_arm + self.only_reference) / self.n


class VerdictCode(StrEnum):
    """What the test rows say of the tuned arm, or else the best, against the strongest other arm."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE = "no_difference"
    TOO_FEW_ROWS = "too_few_rows"
    NOTHING_TO_COMPARE = "nothing_to_compare"


@dataclass(frozen=True)
class Verdict:
    """The code for programs, the sentence (with its numbers) for people."""

    code: VerdictCode
    sentence: str


def compare_arms(correct: Mapping[str, Correct], confidence: float) -> list[Comparison]:
    """Compare the tuned arm, or the best arm where none was tuned, with every other arm of the run."""
    if not correct:
        raise ValueError("no arm ran; there is nothing to compare.")
    arm = TUNED if TUNED in correct else max(correct, key=lambda name: float(np.mean(correct[name])))
    references = {name: rows for name, rows in correct.items() if name != arm}
    return compare(correct[arm], references, confidence, arm)


def compare(
    arm_correct_B: Correct,
    references: Mapping[str, Correct],
    confidence: float,
    arm: str = TUNED,
) -> list[Comparison]:
    """One arm against each other one: exact McNemar, score interval, Holm over all of them."""
    arm_B = np.asarray(arm_correct_B, dtype=np.bool_)
    wins = {name: discordant_counts(arm, arm_B, name, rows) for name, rows in references.items()}
    n = len(arm_B)
    p_values = [mcnemar_exact(*counts) for counts in wins.values()]
    adjusted = holm(p_values)
    return [
        Comparison(
            arm=arm,
            reference=reference,
            difference=(only_arm - only_reference) / n,
            interval=paired_difference(only_arm, only_reference, n, confidence),
            p=p,
            p_holm=p_holm,
            only_arm=only_arm,
            only_reference=only_reference,
            n=n,
        )
        for (reference, (only_arm, only_reference)), p, p_holm in zip(wins.items(), p_values, adjusted, strict=True)
    ]


def discordant_counts(arm: str, arm_B: Correct, reference: str, reference_B: Correct) -> tuple[int, int]:
    """Rows that only the arm and only the reference has right."""
    reference_B = np.asarray(reference_B, dtype=np.bool_)
    if reference_B.shape != arm_B.shape:
        raise ValueError(
            f"{reference} has {reference_B.size} rows, {arm} has {arm_B.size}; every arm must answer the same rows."
        )
    if not arm_B.size:
        raise ValueError(f"{arm} has 0 rows: at least one scored row is needed.")
    return int(np.sum(arm_B & ~reference_B)), int(np.sum(reference_B & ~arm_B))


def verdict(
    correct: Mapping[str, Correct],
    comparisons: Sequence[Comparison],
    confidence: float,
    minimum_gain: float,
) -> Verdict:
    """The one pre-declared comparison, in words: the tuned arm against the strongest other arm.

    `comparisons` come from `compare_arms(correct, ...)`. The rules, in this order (alpha = 1 - confidence):

    1. p_holm < alpha and difference >= minimum_gain: `better`.
    2. p_holm < alpha and 0 < difference < minimum_gain: `no_difference`, as there is none worth having; the
       sentence says that it is better, by less than that.
    3. p_holm < alpha and difference < 0: `worse`, whatever the size.
    4. The interval ends below minimum_gain, on at least TRUSTED_ROWS rows: `no_difference`; a gain worth
       having is ruled out, and more rows would not bring it.
    5. Fewer rows than would show a gain of minimum_gain (`rows_for`): `too_few_rows`.
    6. Else `no_difference`.

    The strongest rival is picked after seeing these rows. That flatters the rival, so `better` is
    conservative; for `worse` the pick cuts the other way, and Holm over all arms pays for it.

    Without a tuned arm it is the best arm against the second. The winner is then picked on these rows too:
    the unadjusted two-sided test of winner against runner-up keeps its level in exponential families (Hung
    and Fithian 2019), which paired arms are only roughly; the Holm p is never below the unadjusted one.
    """
    if not comparisons:
        (arm,) = correct
        only = with_accuracy(arm, correct, confidence)
        return Verdict(VerdictCode.NOTHING_TO_COMPARE, f"Nothing to compare: only {only} ran. Add arms to the recipe.")
    primary = strongest_rival(comparisons)
    planned = 1 - (1 - confidence) / holm_factor(primary, comparisons)
    code, opening, closing = judge(primary, confidence, planned, minimum_gain)
    return Verdict(code, f"{opening}: {numbers(primary, correct, confidence)}.{closing}")


def strongest_rival(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison with the most accurate other arm; of equals, the one that is hardest to tell apart."""
    return min(comparisons, key=lambda comparison: (comparison.difference, -comparison.p))


def holm_factor(primary: Comparison, comparisons: Sequence[Comparison]) -> int:
    """What Holm multiplies the p of `primary` by: 1 where it is the largest, all of them where it is the smallest."""
    return sum(comparison.p >= primary.p for comparison in comparisons)


def judge(primary: Comparison, confidence: float, planned: float, minimum_gain: float) -> tuple[VerdictCode, str, str]:
    """The rules of `verdict`: code, opening words, closing sentence (with a leading space, or empty).

    `planned` is the confidence that Holm asks of this comparison.
    """
    tuned = primary.arm == TUNED
    worthwhile = f"the gain you called worth having ({points(minimum_gain)})"
    if primary.p_holm < 1 - confidence:
        if primary.difference < 0:
            return VerdictCode.WORSE, "Do not fine-tune" if tuned else f"{primary.arm} is worse", ""
        if primary.difference >= minimum_gain:
            return VerdictCode.BETTER, "Fine-tune" if tuned else f"{primary.arm} is the best arm", ""
        name = "Fine-tuning" if tuned else primary.arm
        return VerdictCode.NO_DIFFERENCE, f"{name} is better, but by less than {worthwhile}", ""
    if rules_out(primary, minimum_gain):
        opening = "No gain worth having" if tuned else "No arm stands out"
        return VerdictCode.NO_DIFFERENCE, opening, f" The interval ends below {worthwhile}."
    num_needed = rows_for(primary, minimum_gain, planned)
    if primary.n < num_needed:
        opening = "Too few test rows to tell" if tuned else "Too few test rows to name a best arm"
        return VerdictCode.TOO_FEW_ROWS, opening, advice(primary, minimum_gain, num_needed, planned)
    return VerdictCode.NO_DIFFERENCE, "No difference shown" if tuned else "No arm stands out", ""


def rules_out(primary: Comparison, minimum_gain: float) -> bool:
    """Whether the interval excludes a gain worth having, on enough rows to say so."""
    return primary.n >= TRUSTED_ROWS and primary.interval.high < minimum_gain


def rows_for(primary: Comparison, gain: float, planned: float) -> int:
    """Rows that would show `gain` (where it is 0: the observed difference); 0 where there is none to show.

    Planned with the upper limit of the discordant share (one-sided, at ASSURANCE), so that fewer rows, which know
    less of it, never ask for fewer. A gain needs at least its own share of discordant rows, whatever these had.
    """
    gain = gain or abs(primary.difference)
    num_discordant = primary.only_arm + primary.only_reference
    share = wilson(num_discordant, primary.n, 2 * ASSURANCE - 1).high
    return rows_needed(gain, max(share, gain), planned) if gain else 0


def advice(primary: Comparison, minimum_gain: float, num_needed: int, planned: float) -> str:
    """How many rows would do: for the gain worth having, and for the larger one that was seen, if any."""
    gain = minimum_gain or abs(primary.difference)
    text = f" About {round_up(num_needed)} rows would do to show a difference of {points(gain)}"
    num_for_seen = rows_for(primary, abs(primary.difference), planned)
    if abs(primary.difference) > gain and num_for_seen > primary.n:
        text += f", about {round_up(num_for_seen)} if it is as large as it looks here"
    return f"{text} (80% power)."


def numbers(primary: Comparison, correct: Mapping[str, Correct], confidence: float) -> str:
    """Both accuracies, the difference and the p value, each with its interval."""
    rival = "the strongest other arm" if primary.arm == TUNED else "the second best"
    adjusted = "Holm-adjusted " if primary.p_holm != primary.p else ""
    rows = f"{primary.n:,} test row{'' if primary.n == 1 else 's'}"
    difference = f"{100 * primary.difference:+.1f} points {bounds(primary.interval)}"
    return (
        f"on {rows}, {with_accuracy(primary.arm, correct, confidence)} against "
        f"{with_accuracy(primary.reference, correct, confidence)}, {rival}; difference {difference}, "
        f"{adjusted}{p_text(primary.p_holm)} ({100 * confidence:g}% intervals)"
    )


def with_accuracy(arm: str, correct: Mapping[str, Correct], confidence: float) -> str:
    """An arm with its accuracy and Wilson interval: `tuned 81.0% [78.1, 83.6]`."""
    correct_B = np.asarray(correct[arm], dtype=np.bool_)
    interval = wilson(int(correct_B.sum()), correct_B.size, confidence)
    return f"{arm} {100 * correct_B.mean():.1f}% {bounds(interval)}"


def bounds(interval: Interval) -> str:
    """An interval of shares in percent."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(share: float) -> str:
    """A share of accuracy in points: 0.02 is `2 points`, 0.01 is `1 point`."""
    text = f"{100 * share:.1f}".removesuffix(".0")
    return f"{text} point{'' if text == '1' else 's'}"


def p_text(p: float) -> str:
    """A p value as papers print it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def round_up(count: int) -> str:
    """A count rounded up to two significant digits, as an estimate deserves: 3,922 is `4,000`."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // step) * step:,}"
