"""The verdict's rules, one case each, with the arithmetic written out; and its error rate by simulation."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import multinomial

from luthier.evaluation.statistics import mcnemar_exact, paired_difference, rows_needed, wilson
from luthier.evaluation.verdict import (
    TRUSTED_ROWS,
    Comparison,
    Verdict,
    VerdictCode,
    compare,
    compare_arms,
    strongest_rival,
    verdict,
)


def paired_rows(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [True] * both + [True] * only_a + [False] * only_b + [False] * neither
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    return np.array(a), np.array(b)


def decide(correct: Mapping[str, np.ndarray], minimum_gain: float = 0.02, confidence: float = 0.95) -> Verdict:
    comparisons = compare_arms(correct, confidence)
    return verdict(correct, comparisons, confidence, minimum_gain)


def decide_pair(*counts: int, minimum_gain: float = 0.02, confidence: float = 0.95) -> Verdict:
    tuned, tfidf = paired_rows(*counts)
    return decide({"tfidf": tfidf, "tuned": tuned}, minimum_gain, confidence)


# --- comparisons


def test_comparison_by_hand() -> None:
    tuned, tfidf = paired_rows(4, 5, 1, 2)
    (comparison,) = compare(tuned, {"tfidf": tfidf}, 0.95)
    assert comparison == Comparison(
        arm="tuned",
        reference="tfidf",
        difference=4 / 12,
        interval=paired_difference(5, 1, 12, 0.95),
        p=14 / 64,
        p_holm=14 / 64,
        only_arm=5,
        only_reference=1,
        n=12,
    )
    assert comparison.discordant_share == 6 / 12
    assert comparison.interval.low < 4 / 12 < comparison.interval.high


def test_holm_runs_over_all_arms_and_order_is_kept() -> None:
    tuned, near = paired_rows(80, 14, 4, 2)
    far = np.zeros(100, bool)
    near_first = compare(tuned, {"near": near, "far": far}, 0.95)
    assert [comparison.reference for comparison in near_first] == ["near", "far"]
    p_near, p_far = mcnemar_exact(14, 4), mcnemar_exact(94, 0)
    assert [comparison.p for comparison in near_first] == pytest.approx([p_near, p_far])
    assert [comparison.p_holm for comparison in near_first] == pytest.approx([p_near, 2 * p_far])


def test_an_arm_is_judged_alike_whichever_others_ran() -> None:
    tuned, near = paired_rows(80, 14, 4, 2)
    alone = compare(tuned, {"near": near}, 0.95)[0]
    beside = compare(tuned, {"other": ~near, "near": near}, 0.95)[1]
    assert (alone.interval, alone.p) == (beside.interval, beside.p)


def test_the_tuned_arm_else_the_best_is_compared_with_the_others() -> None:
    worst, best = paired_rows(10, 0, 20, 10)
    assert {row.arm for row in compare_arms({"best": best, "tuned": worst}, 0.95)} == {"tuned"}
    assert {row.arm for row in compare_arms({"worst": worst, "best": best}, 0.95)} == {"best"}


def test_the_rival_is_the_most_accurate_arm_and_of_equals_the_hardest_to_tell_apart() -> None:
    tuned = np.array([True] * 30 + [False] * 10)
    weak = np.array([True] * 20 + [False] * 20)
    far = np.array([False] * 6 + [True] * 24 + [True] * 4 + [False] * 6)
    near = np.array([False] * 2 + [True] * 28 + [False] * 10)
    rivals = {"weak": weak, "far": far, "near": near}
    assert far.sum() == near.sum() == 28
    # 2 : 0 has p = 0.5, 6 : 4 has p = 0.75
    assert strongest_rival(compare(tuned, rivals, 0.95)).reference == "far"


# --- the rules, one by one


def test_better_says_all_its_numbers() -> None:
    tuned, tfidf = paired_rows(450, 198, 30, 122)
    correct = {"majority": np.zeros(800, bool), "tuned": tuned, "tfidf": tfidf}
    comparisons = compare_arms(correct, 0.95)
    interval = comparisons[1].interval
    found = verdict(correct, comparisons, 0.95, 0.02)
    # 648 and 480 of 800
    of_tuned, of_tfidf = wilson(648, 800, 0.95), wilson(480, 800, 0.95)
    assert found == Verdict(
        VerdictCode.BETTER,
        "Fine-tune: on 800 test rows, "
        f"tuned 81.0% [{100 * of_tuned.low:.1f}, {100 * of_tuned.high:.1f}] against "
        f"tfidf 60.0% [{100 * of_tfidf.low:.1f}, {100 * of_tfidf.high:.1f}], the strongest other arm; "
        f"difference +21.0 points [{100 * interval.low:.1f}, {100 * interval.high:.1f}], "
        "p < 0.001 (95% intervals).",
    )
    assert found.code == "better"
    # +-1.96 sqrt((0.285 - 0.21^2) / 800) = 3.4 points
    assert (interval.low, interval.high) == pytest.approx((0.21 - 0.034, 0.21 + 0.034), abs=0.003)


def test_better_by_less_than_what_was_called_worth_having() -> None:
    # 700 : 560 of 10,000: +1.4 points, p < 0.001
    found = decide_pair(7000, 700, 560, 1740)
    assert found.code == VerdictCode.NO_DIFFERENCE
    opening = "Fine-tuning is better, but by less than the gain you called worth having (2 points): on 10,000 "
    assert found.sentence.startswith(opening)
    assert "difference +1.4 points" in found.sentence
    assert decide_pair(7000, 700, 560, 1740, minimum_gain=0.01).code == VerdictCode.BETTER


def test_worse_whatever_the_size() -> None:
    found = decide_pair(400, 30, 120, 250)
    assert found.code == VerdictCode.WORSE
    assert found.sentence.startswith("Do not fine-tune: on 800 test rows, tuned 53.8% ")
    assert "difference -11.2 points [-14." in found.sentence
    assert decide_pair(7000, 560, 700, 1740).code == VerdictCode.WORSE


def test_a_gain_just_worth_having_is_worth_having() -> None:
    """25 : 5 of 1,000 are +2 points, p < 0.001."""
    assert decide_pair(600, 25, 5, 370, minimum_gain=0.02).code == VerdictCode.BETTER
    assert decide_pair(600, 25, 5, 370, minimum_gain=0.0201).code == VerdictCode.NO_DIFFERENCE


def test_a_gain_at_which_the_interval_ends_is_not_ruled_out() -> None:
    high = paired_difference(210, 200, 4000, 0.95).high
    assert decide_pair(3000, 210, 200, 590, minimum_gain=high).sentence.startswith("Too few test rows to tell: ")
    above = float(np.nextafter(high, 1))
    assert decide_pair(3000, 210, 200, 590, minimum_gain=above).sentence.startswith("No gain worth having: ")


def test_as_many_rows_as_are_needed_are_enough() -> None:
    """14 : 6 of 100, p = 0.12; the gain worth having is one that just 100 rows show, and one that 101 do."""
    share = wilson(20, 100, 0.6).high
    gains = {rows_needed(gain, share): float(gain) for gain in np.linspace(0.12, 0.15, 1000)}
    assert decide_pair(60, 14, 6, 20, minimum_gain=gains[100]).code == VerdictCode.NO_DIFFERENCE
    assert decide_pair(60, 14, 6, 20, minimum_gain=gains[101]).code == VerdictCode.TOO_FEW_ROWS


def test_a_gain_worth_having_is_ruled_out() -> None:
    # 210 : 200 of 4,000: +0.25 points, standard error sqrt(410) / 4000 = 0.5; 2,108 rows would do
    found = decide_pair(3000, 210, 200, 590)
    assert rows_needed(0.02, 410 / 4000) == 2108
    assert found.code == VerdictCode.NO_DIFFERENCE
    assert found.sentence.startswith("No gain worth having: ")
    assert found.sentence.endswith(" The interval ends below the gain you called worth having (2 points).")


def test_ruled_out_on_fewer_rows_than_a_small_gain_would_need() -> None:
    # 50 : 70 of 800: -2.5 points, standard error 1.4: p = 0.08, but +2 points are out of reach
    assert rows_needed(0.02, 120 / 800) > 800
    found = decide_pair(500, 50, 70, 180)
    assert found.code == VerdictCode.NO_DIFFERENCE
    assert found.sentence.startswith("No gain worth having: ")


def test_too_few_rows_names_a_number_from_the_largest_likely_share() -> None:
    # 12 : 8 of 100: discordant share 0.20, at most 0.236 at 80 %: 4,723 rows for 2 points, 1,204 for the 4 seen
    found = decide_pair(60, 12, 8, 20)
    share = wilson(20, 100, 0.6).high
    assert share == pytest.approx(0.2357, abs=1e-4)
    assert (rows_needed(0.02, share), rows_needed(0.04, share)) == (4723, 1204)
    assert found.code == VerdictCode.TOO_FEW_ROWS
    assert found.sentence.startswith("Too few test rows to tell: on 100 test rows, tuned 72.0% [62.5, 79.9]")
    assert "p = 0.503" in found.sentence
    assert found.sentence.endswith(
        " About 4,800 rows would do to show a difference of 2 points, "
        "about 1,300 if it is as large as it looks here (80% power)."
    )


def test_no_difference_needs_enough_rows() -> None:
    # 110 : 82 of 2,200: +1.3 points, p = 0.05, the interval reaches beyond 2 points; 1,911 rows would do
    found = decide_pair(1700, 110, 82, 308)
    assert rows_needed(0.02, wilson(192, 2200, 0.6).high) == 1911
    assert found.code == VerdictCode.NO_DIFFERENCE
    assert found.sentence.startswith("No difference shown: on 2,200 test rows, ")
    assert decide_pair(1300, 110, 82, 308, minimum_gain=0.02).code == VerdictCode.TOO_FEW_ROWS


def test_the_holm_p_decides_not_the_raw_one() -> None:
    # raw p = 0.031 against the strongest, but a second arm close by doubles the smaller and lifts the other
    tuned, first = paired_rows(70, 14, 4, 112)
    second = np.concatenate([np.ones(69, bool), first[69:]])
    second[69] = False
    alone = decide({"tuned": tuned, "first": first}, minimum_gain=0.01)
    beside = compare_arms({"tuned": tuned, "first": first, "second": second}, 0.95)
    assert mcnemar_exact(14, 4) == pytest.approx(0.0309, abs=1e-4)
    assert alone.code == VerdictCode.BETTER
    # second: 15 : 4, p = 0.0192, doubled 0.0384
    assert [row.p_holm for row in beside] == pytest.approx([2 * mcnemar_exact(15, 4)] * 2)
    arms = {"tuned": tuned, "first": first, "second": second}
    sentence = verdict(arms, beside, 0.95, 0.01).sentence
    assert "Holm-adjusted p = 0.038" in sentence
    assert decide(arms, minimum_gain=0.01, confidence=0.965).code == VerdictCode.TOO_FEW_ROWS
    assert decide({"tuned": tuned, "first": first}, 0.01, 0.965).code == VerdictCode.BETTER


# --- edges


@pytest.mark.parametrize("counts", [(5, 0, 0, 0), (0, 0, 0, 5), (0, 5, 0, 0), (0, 0, 5, 0), (1, 0, 0, 0)])
def test_a_handful_of_rows_is_too_few(counts: tuple[int, int, int, int]) -> None:
    assert decide_pair(*counts).code == VerdictCode.TOO_FEW_ROWS


def test_six_rows_can_just_decide() -> None:
    # 6 : 0 has p = 2 / 64
    assert decide_pair(0, 6, 0, 0).code == VerdictCode.BETTER
    assert decide_pair(0, 0, 6, 0).code == VerdictCode.WORSE


@pytest.mark.parametrize("counts", [(900, 0, 0, 100), (1000, 0, 0, 0), (0, 0, 0, 1000)])
def test_arms_that_agree_on_many_rows_do_not_differ(counts: tuple[int, int, int, int]) -> None:
    # +-1.96^2 / (1000 + 1.96^2) = 0.38 points, of which two are no part
    found = decide_pair(*counts)
    assert found.code == VerdictCode.NO_DIFFERENCE
    assert found.sentence.startswith("No gain worth having: ")
    assert "difference +0.0 points [-0.4, 0.4], p = 1.000" in found.sentence


def test_one_row_knows_next_to_nothing() -> None:
    # +-1.96^2 / (1 + 1.96^2) = 79 points. A share of 0 of 1 is at most 0.84^2 / (1 + 0.84^2) = 0.415 at 80 %
    found = decide_pair(1, 0, 0, 0)
    assert "on 1 test row, " in found.sentence
    assert "difference +0.0 points [-79.3, 79.3], p = 1.000" in found.sentence
    assert rows_needed(0.02, 0.415) == pytest.approx(8230, abs=20)
    assert "About 8,300 rows would do to show a difference of 2 points" in found.sentence


def planned_rows(*counts: int) -> int:
    return int(re.search(r"About ([\d,]+) rows", decide_pair(*counts).sentence)[1].replace(",", ""))


@pytest.mark.parametrize("unit", [(1, 0, 0, 0), (4, 1, 0, 0), (1, 1, 1, 0), (1, 2, 0, 0)])
def test_fewer_rows_of_the_same_shares_never_ask_for_fewer(unit: tuple[int, int, int, int]) -> None:
    several = [size for size in (1, 2, 3, 6, 20) if decide_pair(*(size * part for part in unit)).code == "too_few_rows"]
    planned = [planned_rows(*(size * part for part in unit)) for size in several]
    assert len(planned) > 1
    assert planned == sorted(planned, reverse=True)
    assert planned[0] > planned[-1]


@pytest.mark.parametrize(("counts", "expected"), [((1, 2, 0, 0), "about 16 if"), ((0, 5, 0, 0), "about 6 if")])
def test_what_would_do_is_what_the_exact_test_can_pass_with(counts: tuple[int, int, int, int], expected: str) -> None:
    # 2 : 0 of 3: at most 0.841 of the rows differ, 16 rows have 13 of those; 6 : 0 is the first with p < 0.05
    assert expected in decide_pair(*counts).sentence


def test_holm_asks_for_more_rows() -> None:
    # three arms that agree with tuned on all rows: equal p, so Holm leaves each a third of the level
    rows = np.ones(24, bool)
    share = wilson(0, 24, 0.6).high
    alone, beside = rows_needed(0.02, share), rows_needed(0.02, share, 1 - 0.05 / 3)
    assert (alone, beside) == (657, 845)
    assert "About 660 rows" in decide({"tuned": rows, "first": rows}).sentence
    assert "About 850 rows" in decide({"tuned": rows, "first": rows, "second": rows, "third": rows}).sentence


def test_without_a_minimum_gain_the_observed_difference_stands_in() -> None:
    assert decide_pair(60, 12, 8, 20, minimum_gain=0.0).sentence.endswith(
        " About 1,300 rows would do to show a difference of 4 points (80% power)."
    )
    assert decide_pair(60, 8, 8, 24, minimum_gain=0.0).code == VerdictCode.NO_DIFFERENCE


def errors_of_the_upper_end(n: int) -> float:
    """The largest probability, over a grid of shares, that the interval ends below the true difference."""
    counts = np.array([(a, b) for a in range(n + 1) for b in range(n + 1 - a)])
    high = np.array([paired_difference(int(a), int(b), n, 0.95).high for a, b in counts])
    grid = [(share * part, share * (1 - part)) for share in (0.05, 0.2, 0.5, 0.9) for part in (0.5, 0.75, 0.9, 1.0)]
    full = np.column_stack([counts, n - counts.sum(1)])
    return max(float(multinomial.pmf(full, n, [a, b, 1 - a - b])[high < a - b - 1e-12].sum()) for a, b in grid)


def test_the_interval_rules_out_from_as_many_rows_as_it_can() -> None:
    assert errors_of_the_upper_end(5) > 0.08
    assert max(errors_of_the_upper_end(n) for n in (TRUSTED_ROWS, 40)) < 0.05
    # 0 : 5, p = 0.06: the interval ends below 0 in both
    assert decide_pair(0, 0, 5, TRUSTED_ROWS - 6).code == VerdictCode.TOO_FEW_ROWS
    assert decide_pair(0, 0, 5, TRUSTED_ROWS - 5).sentence.startswith("No gain worth having: ")


# --- runs without a tuned arm, runs with one arm


def test_without_a_tuned_arm_the_best_is_held_against_the_second() -> None:
    best, second = paired_rows(450, 198, 30, 122)
    arms = {"majority": np.zeros(800, bool), "tfidf": second, "few_shot": best}
    found = decide(arms)
    assert found.code == VerdictCode.BETTER
    assert found.sentence.startswith("few_shot is the best arm: on 800 test rows, few_shot 81.0% ")
    assert "against tfidf 60.0% [56.6, 63.3], the second best; " in found.sentence


@pytest.mark.parametrize(
    ("counts", "code", "opening"),
    [
        ((60, 12, 8, 20), VerdictCode.TOO_FEW_ROWS, "Too few test rows to name a best arm: "),
        ((3000, 210, 200, 590), VerdictCode.NO_DIFFERENCE, "No arm stands out: "),
        ((1700, 110, 82, 308), VerdictCode.NO_DIFFERENCE, "No arm stands out: "),
        (
            (7000, 700, 560, 1740),
            VerdictCode.NO_DIFFERENCE,
            "zero_shot is better, but by less than the gain ",
        ),
    ],
)
def test_without_a_tuned_arm_the_same_rules_hold(counts, code: VerdictCode, opening: str) -> None:
    best, second = paired_rows(*counts)
    found = decide({"tfidf": second, "zero_shot": best})
    assert found.code == code
    assert found.sentence.startswith(opening)


def test_one_arm_has_nothing_to_be_compared_with() -> None:
    found = decide({"tuned": np.array([True, True, True, False])})
    assert found.code == VerdictCode.NOTHING_TO_COMPARE
    assert found.sentence == "Nothing to compare: only tuned 75.0% [30.1, 95.4] ran. Add arms to the recipe."


# --- how often it errs


@pytest.mark.parametrize("tuned_ran", [True, False])
@pytest.mark.parametrize("num_arms", [2, 4])
def test_equal_arms_are_rarely_told_apart(num_arms: int, tuned_ran: bool) -> None:
    # arms of one true accuracy on rows of differing difficulty; the rival (and the winner) are picked after
    # seeing. 300 runs: the standard error of a rate of 0.04 is 0.011
    rng = np.random.default_rng(num_arms)
    names = ["tuned" if tuned_ran else "first", "second", "third", "fourth"][:num_arms]
    decided = 0
    for _ in range(300):
        difficulty_B = rng.normal(size=200)
        rows = difficulty_B + rng.normal(size=(num_arms, 200)) > -0.5
        correct = dict(zip(names, rows, strict=True))
        comparisons = compare_arms(correct, 0.95)
        decided += verdict(correct, comparisons, 0.95, 0.0).code in {"better", "worse"}
    assert decided / 300 <= 0.06


# --- what is refused


@pytest.mark.parametrize(
    ("correct", "message"),
    [
        ({}, "no arm ran; there is nothing to compare."),
        (
            {"tuned": np.ones(100, bool), "tfidf": np.ones(99, bool)},
            "tfidf has 99 rows, tuned has 100; every arm must answer the same rows.",
        ),
        (
            {"tuned": np.ones(0, bool), "tfidf": np.ones(0, bool)},
            "tuned has 0 rows: at least one scored row is needed.",
        ),
    ],
)
def test_errors_teach(correct: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        compare_arms(correct, 0.95)
