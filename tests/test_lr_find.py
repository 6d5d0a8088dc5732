"""`luthier lr-find`: rates by hand, advice on known curves, and real range tests on a tiny model."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import yaml

from luthier.errors import RecipeError, RunError
from luthier.rate_search import find_rate
from luthier.training.lr_find import Point, advice, has_diverged, range_test, rising_rates
from test_training import Training, tune_of

LABELS = ["SPORTS", "POLITICS", "ARTS_AND_CULTURE"]
TEXTS = {
    "SPORTS": ["a goal won the match", "the team won a goal", "the team passed", "the match of the team"],
    "POLITICS": ["the senate passed a law", "a vote in the senate", "one vote won", "a new law"],
    "ARTS_AND_CULTURE": ["a new museum", "the song of a painter", "a song by the painter", "a museum by the team"],
}


def lines(extra: str) -> str:
    return "".join(f"{text} {extra}{i}|{label}\n" for label, texts in TEXTS.items() for i, text in enumerate(texts))


def run_recipe(tmp_path, tiny_path, **tune):
    for name, extra in (("train", "x"), ("test", "y")):
        (tmp_path / f"{name}.txt").write_text(lines(extra))
    values = {
        "name": "small", "model": str(tiny_path), "task": {"labels": LABELS},
        "data": {"train": "train.txt", "test": "test.txt", "validation_share": 0.3},
        "tune": {"batch_size": 4, "memory": {"predict": False}, **tune},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def stage_recipe(tmp_path, tiny_path):
    rows = [{"text": text, "label": label} for label, texts in TEXTS.items() for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"data": {"train": "rows.jsonl", "test_share": 0.2, "validation_share": 0.2}}
    tune = {"batch_size": 4, "epochs": 1, "memory": {"predict": False}}
    stages = [{**stage, "name": name, "method": "classify", "tune": tune} for name in ("first", "second")]
    values = {"name": "steps", "model": str(tiny_path), "stages": stages, "judge": {"resamples": 200}}
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "stages.yaml"


def curve(losses, low=1e-5, high=1.0):
    return [Point(rate, loss, loss) for rate, loss in zip(rising_rates(low, high, len(losses)), losses, strict=True)]


# --- rates and advice ------------------------------------------------------------------------------------------


def test_rates_rise_by_one_factor():
    assert rising_rates(1e-4, 1.0, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_the_lower_of_steepest_and_a_tenth_of_the_lowest():
    """Eleven rates half a decade apart, lowest at 10^-1.5. Over two neighbours the fall is 0.3, 0.75, 0.8, 0.4."""
    losses = [2.0, 2.0, 2.0, 1.95, 1.7, 1.2, 0.9, 0.8, 1.0, 2.0, 4.0]
    found = advice(curve(losses))
    assert found.steepest == pytest.approx(10**-2.5) and found.lowest == pytest.approx(10**-1.5)
    assert found.tenth == pytest.approx(10**-2.5) and found.suggested == 0.0032
    assert found.sentence.startswith("tune.learning_rate: 0.0032, ")
    late = advice(curve([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 0.5, 0.1, 0.08, 3.0]))
    assert late.lowest == pytest.approx(10**-0.5) and late.steepest == pytest.approx(10**-1.5)
    early = advice(curve([2.0, 1.9, 1.0, 0.4, 0.3, 0.29, 0.28, 0.27, 0.26, 0.25, 3.0]))
    assert early.steepest == pytest.approx(1e-4) and early.tenth == pytest.approx(10**-1.5)
    assert early.suggested == 1e-4 and "where it falls most steeply: the lower of the two" in early.sentence


@pytest.mark.parametrize("seed", range(5))
def test_noise_at_the_beginning_is_no_slope(seed):
    """A curve that falls around 10^-3.4 and rises from 10^-1.7 on, with noise on every loss."""
    draw, mean, points = np.random.default_rng(seed), 0.0, []
    for count, rate in enumerate(rising_rates(1e-6, 1.0, 80), 1):
        x = math.log10(rate)
        loss = 2.1 - 1.3 / (1 + math.exp(-2.2 * (x + 3.4))) + 3 * max(0.0, x + 1.7) ** 2 + draw.normal(0, 0.12)
        mean = 0.9 * mean + 0.1 * loss
        points.append(Point(rate, loss, mean / (1 - 0.9**count)))
    found = advice(points)
    assert 10**-3.8 < found.steepest < 10**-2.2 and 10**-2.3 < found.lowest < 10**-1.2


def test_curves_that_say_nothing():
    assert advice(curve([1.0] * 4)).suggested is None
    assert "Only 4 steps were made before it diverged" in advice(curve([1.0] * 4)).sentence
    assert "The loss never fell" in advice(curve([1.0 + i for i in range(12)])).sentence
    falling = advice(curve([12.0 - i for i in range(12)]))
    assert falling.suggested is not None and "still falling at the last rate" in falling.sentence


@pytest.mark.parametrize(
    ("smoothed", "told"),
    [([2.0, 1.0, 3.9], False), ([2.0, 1.0, 4.1], True), ([2.0, 0.0, 0.5], False), ([2.0, 0.0, 0.7], True), ([-1.0, -2.0, 3.9], False), ([-1.0, -2.0, 4.1], True)],
)  # fmt: skip
def test_when_it_has_diverged(smoothed, told):
    assert has_diverged(smoothed) is told


# --- real tests on a tiny model --------------------------------------------------------------------------------


def test_each_step_has_its_rate_and_the_head_its_ratio(tiny_path):
    """Twelve steps: rates by hand, the mean loss by hand, and the first loss that of an untouched learner."""
    training = Training(tiny_path, tune_of(method="head", memory={"predict": False}))
    rates = rising_rates(1e-6, 1e-4, 12)
    heard = []
    points = range_test(
        training.learner, training.method, training.examples, training.tune, 11, rates,
        lambda done, total, note: heard.append((done, total)),
    )  # fmt: skip
    assert [point.rate for point in points] == rates and heard == [(i + 1, 12) for i in range(12)]
    mean = 0.0
    for count, point in enumerate(points, 1):
        mean = 0.9 * mean + 0.1 * point.loss
        assert point.smoothed == pytest.approx(mean / (1 - 0.9**count))
    assert points[0].smoothed == pytest.approx(points[0].loss)


def test_it_stops_where_it_diverges(tiny_path):
    training = Training(tiny_path, tune_of(method="head", optimizer="sgd", clip_norm=0.0, memory={"predict": False}))
    points = range_test(
        training.learner,
        training.method,
        training.examples,
        training.tune,
        11,
        rising_rates(1e-3, 1e6, 40),
        lambda *_: None,
    )
    assert 5 < len(points) < 40 and all(math.isfinite(point.loss) for point in points)


def test_a_run_is_tested_and_left_alone(tiny_path, tmp_path, luthier, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = run_recipe(tmp_path, tiny_path)
    code, out, err = luthier("lr-find", recipe, "--json", "--steps", "20", "--low", "1e-5")
    assert code == 0, err
    told = json.loads(out)
    folder = tmp_path / "runs" / "small-lr-find"
    assert sorted(path.name for path in folder.iterdir()) == ["lr_find.json", "lr_find.svg"]
    assert json.loads((folder / "lr_find.json").read_text()) == told
    assert 10 <= len(told["points"]) <= 20 and told["points"][0]["rate"] == 1e-5
    assert told["suggested"] == pytest.approx(min(told["steepest"], told["tenth"]), rel=0.06)
    assert told["head_learning_rate"] == pytest.approx(4 * told["suggested"])
    root = ElementTree.parse(folder / "lr_find.svg").getroot()  # noqa: S314 our own file
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "steepest" in root.attrib["aria-label"]
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    code, out, _ = luthier("lr-find", recipe, "--steps", "12", "--out", tmp_path / "again")
    assert code == 0 and f"The curve: {tmp_path / 'again' / 'lr_find.svg'}" in out
    assert not (tmp_path / "runs" / "small").exists()


def test_a_later_stage_starts_from_the_one_before(tiny_path, tmp_path):
    from luthier.stages import train

    recipe = stage_recipe(tmp_path, tiny_path)
    with pytest.raises(RunError, match="the stage first is not trained there"):
        find_rate(recipe, tmp_path / "out", stage="second", run=tmp_path / "done", steps=12)
    train(recipe, tmp_path / "done")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "done").rglob("*"))}
    by_name, by_number = (
        find_rate(recipe, tmp_path / "out", stage=stage, run=tmp_path / "done", steps=12, rates=(1e-5, 1e-2))
        for stage in ("second", "2")
    )
    assert by_name == by_number and by_name["name"] == "second"
    first = find_rate(recipe, tmp_path / "out", run=tmp_path / "done", steps=12, rates=(1e-5, 1e-2))
    assert first["name"] == "first" and first["points"][0]["loss"] != by_name["points"][0]["loss"]
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "done").rglob("*"))} == before


def test_a_stage_with_a_teacher_is_tested(tiny_path, tmp_path):
    path = stage_recipe(tmp_path, tiny_path)
    values = yaml.safe_load(path.read_text())
    talks = [{"prompt": f"{text} {i}", "completion": label} for label, texts in TEXTS.items() for i, text in
             enumerate(texts)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    values["stages"] = [{**values["stages"][0], "method": {"kind": "distil", "teacher": str(tiny_path)}}]
    path.write_text(yaml.safe_dump(values))
    found = find_rate(path, tmp_path / "out", steps=12, rates=(1e-5, 1e-2))
    assert found["points"][0]["rate"] == 1e-5 and len(found["points"]) > 1
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["lr_find.json", "lr_find.svg"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 3}, "steps: 3 are too few to read a curve; give 10 or more."),
        ({"rates": (1.0, 1e-3)}, "rates: the lowest (1) must be above 0 and below the highest (0.001)."),
        ({"stage": "sft"}, 'stage: small has no stages, and so no "sft". Leave it out.'),
    ],
)
def test_what_cannot_be_tested(given, told, tiny_path, tmp_path):
    with pytest.raises(RecipeError) as refused:
        find_rate(run_recipe(tmp_path, tiny_path), tmp_path / "out", **given)
    assert told in str(refused.value)


def test_a_stage_that_is_not_there(tiny_path, tmp_path):
    with pytest.raises(RecipeError, match='stage: there is no "third"; steps has first, second'):
        find_rate(stage_recipe(tmp_path, tiny_path), tmp_path / "out", stage="third")
