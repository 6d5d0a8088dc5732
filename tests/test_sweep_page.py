"""The page of a sweep: what it says at any time, and its drawings worked out by hand."""

import re

import pytest

from luthier.report.charts import Scale, nice_ticks, tick_words
from luthier.report.numbers import alike
from luthier.report.sweep_charts import (
    Point,
    best_so_far,
    bounds,
    mark_words,
    parallel_plot,
    track_of_numbers,
    track_of_words,
    trials_plot,
)
from luthier.report.sweep_page import render_sweep_page, short_names, sweep_view, verdict

SPACE = {
    "tune.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "step": None, "choices": []},
    "tune.adapter": {"low": None, "high": None, "log": False, "step": None, "choices": ["lora", "<b>{rank: 2}"]},
}


def trial(number: int, value: float | None, state: str = "complete", **changes) -> dict:
    values = {
        "tune.learning_rate": 10 ** (-2 - number % 3),
        "tune.adapter": SPACE["tune.adapter"]["choices"][number % 2],
    }
    return {
        "number": number, "state": state, "value": value, "values": values, "seconds": 61.0, "best_step": 4,
        "curve": [[0.5, 1.0], [1.0, value or 0.0]], "error": None, "worker": "here:1", "attempts": 1, "folder": None,
    } | changes  # fmt: skip


def result(trials: list[dict], higher: bool = False, **changes) -> dict:
    done = [one for one in trials if one["state"] == "complete"]
    best = (max if higher else min)(done, key=lambda one: one["value"], default=None)
    states = ("complete", "pruned", "failed", "running")
    return {
        "name": "Sports & <news>", "kind": "run", "created": "2026-11-21T10:00:00+00:00", "seed": 0, "model": "small",
        "study": "s", "storage": "sqlite:///x", "sampler": "tpe", "pruner": "median",
        "metric": {"name": "loss", "higher_is_better": higher, "rows": 40}, "space": SPACE, "default_space": False,
        "own": {"tune.learning_rate": 1e-3, "tune.adapter": "lora"}, "wanted": 6,
        "counts": {state: sum(one["state"] == state for one in trials) for state in states},
        "seconds": 244.0, "seconds_left": 120.0, "trials": trials,
        "best": best and {**best, "recipe": "out/best.yaml"},
        "baseline": {"number": 0, "value": trials[0]["value"]} if done and done[0]["number"] == 0 else None,
        "best_recipe": "name: x\n" if best else None, "importance": None, "importance_note": "Too few trials.",
        "final": None, "environment": {"python": "3.13"},
    } | changes  # fmt: skip


SOME = [
    trial(0, 0.5), trial(1, 0.4), trial(2, 0.9, "pruned"), trial(3, 0.3),
    trial(4, None, "failed", error="loss <nan>; lower it"), trial(5, None, "running", seconds=None),
]  # fmt: skip


def test_the_page_holds_everything_and_loads_nothing():
    shares = {"tune.learning_rate": 0.9, "tune.adapter": 0.1}
    page = render_sweep_page(result(SOME, importance=shares))
    assert "Trial 3 is the best: validation loss 0.3, 0.5 with the recipe as it stands." in page
    assert "6 of 6" in page and "3 done, 1 ended early, 1 failed, 1 running" in page
    assert "loss &lt;nan&gt;; lower it" in page and "&lt;b&gt;{rank: 2}" in page and "<b>{rank" not in page
    assert "Sports &amp; &lt;news&gt;" in page and "luthier run out/best.yaml" in page
    assert page.count('class="chart"') == 6, "three drawings, each for a column and for a phone"
    assert not re.search(r'(src|href)="(?!#)', page) and "http" not in page.replace("http-equiv", "")
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_a_page_before_anything_is_done():
    page = render_sweep_page(result([trial(0, None, "running")]))
    assert "There is no best recipe yet." in page and 'class="chart"' not in page
    assert "best.yaml" not in page and "Too few trials." in page
    assert list(sweep_view(result([]))["sections"]) == ["space", "environment"]


def test_the_full_run_takes_the_place_of_the_advice():
    final = {"folder": "out/final-0003", "verdict": "Better: by 4 points.", "metric": "accuracy"}
    page = render_sweep_page(result(SOME, final=final))
    assert "Better: by 4 points." in page and "out/final-0003/report.html" in page
    assert "looks a little better on validation rows" not in page


def test_the_sentence_on_top():
    assert verdict(result([trial(0, 0.2), trial(1, 0.4)]))["sentence"].startswith("Nothing better than the recipe")
    assert verdict(result([trial(0, 0.2), trial(1, 0.4)], higher=True))["name"] == "Highest validation loss"
    told = verdict(result([trial(1, 0.2), trial(2, 0.4)]))["sentence"]
    assert told == "Trial 1 is the best of 2 that were trained in full: validation loss 0.2."


def test_a_lower_figure_alone_is_called_no_improvement():
    told = verdict(result([trial(0, 3.69034), trial(1, 3.68917), trial(2, 3.7)]))
    assert (told["code"], told["name"]) == ("open", "Lowest validation loss")
    assert told["sentence"].startswith(
        "Trial 1 is the best: validation loss 3.689, 3.690 with the recipe as it stands."
    )
    assert "only held-out rows can say" in told["sentence"]


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([3.69034, 3.68917, 3.7, None], ["3.690", "3.689", "3.700", "–"]),
        ([0.30001, 0.30002, 0.9], ["0.30001", "0.30002", "0.90000"]),
        ([0.25, 0.25 + 1e-12, 0.5], ["0.25", "0.25", "0.50"]),
        ([12345.6, -1.0], ["12,346", "−1"]),
        ([float("nan"), 0.0], ["–", "0"]),
        ([], []),
    ],
)
def test_figures_of_a_column_have_the_digits_that_tell_them_apart(values, written):
    write = alike(values)
    assert [write(value) for value in values] == written


def test_ticks_have_the_digits_that_tell_them_apart():
    assert tick_words(nice_ticks(3.689, 3.701, 5)) == [
        "3.6875",
        "3.6900",
        "3.6925",
        "3.6950",
        "3.6975",
        "3.7000",
        "3.7025",
    ]
    assert tick_words([0, 2, 4]) == ["0", "2", "4"] and tick_words([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert tick_words([0, 1e-12, 2e-12]) == ["0", "1e-12", "2e-12"]
    assert mark_words([3.689, 3.695, 3.701], log=False) == ["3.689", "3.695", "3.701"]
    assert mark_words([1, 3, 5], log=False) == ["1", "3", "5"]


def test_an_outlier_is_an_arrow_at_the_edge():
    """Of four losses near 0.2 and one of 90, only that lies beyond: its arrow points up, where worse ones lie."""
    points = [Point(n, value, f"{value}") for n, value in enumerate([0.1, 0.2, 0.3, 90.0, 0.2])]
    drawn = trials_plot(points, False, "validation loss", 720, "alt")
    assert drawn.count("<circle") == 4 and drawn.count("<polygon") == 1
    assert "trial 3: 90.0, beyond the edge" in drawn
    ((left, right, tip),) = re.findall(r'<polygon points="[\d.]+,([\d.]+) [\d.]+,([\d.]+) [\d.]+,([\d.]+)"', drawn)
    assert left == right and float(tip) < float(left)


def test_short_names_tell_keys_apart():
    paths = ["stages.0.tune.epochs", "stages.1.tune.epochs", "stages.1.method.beta", "model"]
    assert list(short_names(paths).values()) == ["0.tune.epochs", "1.tune.epochs", "beta", "model"]


def test_far_outliers_do_not_press_the_others_together():
    assert bounds([0.1, 0.2, 0.3], higher=False) == (0.1, 0.3)
    assert bounds([0.1, 0.2, 0.3, 90.0, 0.2], higher=False) == pytest.approx((0.1, 0.4))
    assert bounds([0.9, 0.8, 0.7, 0.4, 0.85], higher=True) == (0.4, 0.9), "not far enough"
    assert bounds([0.9, 0.8, 0.8, -9.0, 0.85], higher=True) == pytest.approx((0.6, 0.9))
    low, high = bounds([2.0], higher=False)
    assert low < high


def test_the_best_so_far_goes_down_in_steps_and_past_trials_that_were_ended():
    """Identity scales: pixels are values. Trial 1 was ended early, so its 0.1 is no best."""
    across, up = Scale(-0.5, 3.5, -0.5, 3.5), Scale(0, 1, 0, 1)
    points = [Point(0, 0.5, ""), Point(1, 0.1, "", pruned=True), Point(2, 0.75, ""), Point(3, 0.25, "", best=True)]
    found = str(best_so_far(points, False, across, up))
    assert 'points="0,0.5 2,0.5 2,0.5 3,0.5 3,0.25 3.5,0.25"' in found
    assert 'points="0,0.5 2,0.5 2,0.75 3,0.75 3,0.75 3.5,0.75"' in str(best_so_far(points, True, across, up))


def test_trials_are_drawn_as_what_they_are():
    points = [Point(0, 0.5, "0.5"), Point(1, 0.9, "0.9", pruned=True), Point(2, 0.4, "0.4", best=True)]
    drawn = trials_plot(points, False, "validation loss", 720, "alt")
    assert drawn.count("dot open") == 1 and drawn.count("dot marked") == 1 and drawn.count('"ring"') == 1
    assert "trial 1: 0.9, ended early" in drawn and "lower is better" in drawn


def test_places_on_parallel_axes():
    track = track_of_numbers("rate", [1e-4, 1e-3, 1e-2], (1e-4, 1e-2), log=True)
    assert track.places == pytest.approx((0, 0.5, 1)) and [label for _, label in track.ticks] == [
        "0.0001",
        "0.001",
        "0.01",
    ]
    assert track_of_numbers("x", [3, 5], (1, 5)).places == (0.5, 1.0)
    assert track_of_numbers("x", [3, 3], (3, 3)).places == (0.5, 0.5)
    assert track_of_words("kind", ["b", "a", "c"], ["a", "b", "c"]).places == (0.5, 0.0, 1.0)
    assert track_of_words("kind", ["a"], ["a"]).places == (0.5,)


def test_a_line_for_each_trial_and_the_best_on_top():
    tracks = [track_of_numbers("x", [1, 2, 3], (1, 3)), track_of_numbers("loss", [3, 2, 1], (1, 3))]
    drawn = parallel_plot(tracks, 2, 428, "alt")
    lines = re.findall(r'<polyline points="([^"]+)" class="(trial[^"]*)" stroke-opacity="([^"]+)"', drawn)
    assert lines == [
        ("14.0,26.0 414.0,84.0", "trial", "0.18"),
        ("214.0,26.0 214.0,84.0", "trial", "0.47"),
        ("414.0,26.0 14.0,84.0", "trial best", "1"),
    ]
