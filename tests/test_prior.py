"""Class prior: answers weighted so that labels come in the shares that are expected, by texts alone."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from typer.testing import CliRunner

import luthier
from luthier.cli.main import app
from luthier.errors import DataError, RecipeError, RunError
from luthier.evaluation.prior import (
    drift_note,
    label_shares,
    prior_shares,
    prior_weights,
    stored_logprobs,
    weighted,
    weighted_across,
    with_prior,
)
from luthier.records import Labelled, Source
from test_pipeline import LABELS, Heard, recipe, setting, write_rows

__all__ = ["setting"]


def scored(num_rows: int, num_labels: int, seed: int, spread: float = 2.0):
    """Log-probabilities of some model."""
    return log_softmax(np.random.default_rng(seed).normal(0, spread, (num_rows, num_labels)), axis=1)


def by_scaling(logprobs_NL, prior_L, rounds: int = 5000):
    """The weights by another way: scale each label by wanted over found until nothing moves (iterative scaling)."""
    weights_L = np.zeros(len(prior_L))
    for _ in range(rounds):
        weights_L += np.log(prior_L / softmax(logprobs_NL + weights_L, axis=1).mean(0))
    return weights_L - prior_L @ weights_L


@pytest.mark.parametrize("seed", range(5))
def test_labels_come_in_the_expected_shares_and_iterative_scaling_agrees(seed):
    logprobs_NL = scored(300, 6, seed)
    prior_L = np.random.default_rng(seed + 100).dirichlet(np.full(6, 3.0))
    weights_L = prior_weights(logprobs_NL, prior_L)
    assert np.exp(weighted(logprobs_NL, weights_L)).mean(0) == pytest.approx(prior_L, abs=1e-6)
    assert weights_L == pytest.approx(by_scaling(logprobs_NL, prior_L), abs=1e-4)
    assert prior_L @ weights_L == pytest.approx(0, abs=1e-9)


def test_no_other_answers_with_these_shares_are_nearer_to_the_model():
    """It is the projection: any other q with the same mean has a larger sum of KL(q || p)."""
    logprobs_NL, prior_L = scored(40, 3, 7), np.array([0.5, 0.3, 0.2])
    best_NL = np.exp(weighted(logprobs_NL, prior_weights(logprobs_NL, prior_L)))

    def far(q_NL):
        return float((q_NL * (np.log(q_NL) - logprobs_NL)).sum())

    draw = np.random.default_rng(0)
    for _ in range(200):
        moved_NL = draw.normal(0, 1e-3, best_NL.shape)
        moved_NL -= moved_NL.mean(1, keepdims=True)  # rows still add up to one
        moved_NL -= moved_NL.mean(0, keepdims=True)  # and the shares stay
        other_NL = best_NL + moved_NL
        if (other_NL > 0).all():
            assert far(other_NL) > far(best_NL)


def test_a_model_with_the_right_shares_is_left_alone():
    logprobs_NL = scored(200, 4, 3)
    assert prior_weights(logprobs_NL, np.exp(logprobs_NL).mean(0)) == pytest.approx(np.zeros(4), abs=1e-6)


def test_one_label_that_is_always_answered_is_put_right():
    """Rows whose model leans to the first label: most of them are right again, without one gold label."""
    draw = np.random.default_rng(1)
    gold_N = np.repeat(np.arange(4), 100)
    scores_NL = draw.normal(0, 1, (400, 4)) + 2.5 * np.eye(4)[gold_N]
    leaning_NL = log_softmax(scores_NL + np.array([3.0, 0, 0, 0]), axis=1)
    answers_NL = weighted_across(leaning_NL, np.full(4, 0.25), seed=0)
    plain, put_right = ((x.argmax(1) == gold_N).mean() for x in (leaning_NL, answers_NL))
    without_lean = (scores_NL.argmax(1) == gold_N).mean()
    assert plain < 0.65 < put_right and put_right == pytest.approx(without_lean, abs=0.02)


def test_a_row_takes_no_part_in_its_own_weights():
    logprobs_NL, prior_L = scored(60, 3, 5), np.full(3, 1 / 3)
    changed_NL = logprobs_NL.copy()
    changed_NL[17] = log_softmax(np.array([9.0, -9.0, 0.0]))
    before, after = (weighted_across(x, prior_L, seed=2) for x in (logprobs_NL, changed_NL))
    lean_before, lean_after = before[17] - logprobs_NL[17], after[17] - changed_NL[17]
    assert lean_before - lean_before[0] == pytest.approx(lean_after - lean_after[0], abs=1e-6)
    assert not np.allclose(np.delete(before, 17, 0), np.delete(after, 17, 0))


def test_shares_of_a_setting():
    labels = ["a", "b"]
    rows = [Labelled("x", label, str(i), Source("f", i + 1)) for i, label in enumerate("aab" + "a")]
    train_L = label_shares(rows, labels)
    assert train_L.tolist() == [0.75, 0.25]
    assert prior_shares("train", labels, train_L).tolist() == [0.75, 0.25]
    assert prior_shares("uniform", labels, train_L).tolist() == [0.5, 0.5]
    assert prior_shares({"b": 0.1, "a": 0.895}, labels, train_L) == pytest.approx([0.895 / 0.995, 0.1 / 0.995])


def stored(probabilities):
    rows = [
        {"label": "ab"[int(np.argmax(p))], "outcome": "answered", "probabilities": p, "reply": None}
        for p in probabilities
    ]
    return {"predictions": rows, "chosen": "x"}


def test_an_arm_that_reads_no_text_stays_as_it_is():
    same, unknown = stored([[0.7, 0.3]] * 5), {"predictions": [{"label": "a", "probabilities": None}] * 3}
    for arm in (same, unknown):
        assert stored_logprobs(arm["predictions"]) is None
        assert with_prior(arm, ["a", "b"], np.array([0.5, 0.5]), 0) is arm


def test_a_weighted_arm_keeps_its_answers_as_scored():
    arm = stored(np.exp(scored(50, 2, 0) + np.array([1.0, 0])).tolist())
    found = with_prior(arm, ["a", "b"], np.array([0.5, 0.5]), 0)
    assert found["as_scored"] == arm["predictions"] and found["chosen"] == "x"
    assert [row["label"] for row in found["predictions"]] != [row["label"] for row in arm["predictions"]]
    for row in found["predictions"]:
        assert sum(row["probabilities"]) == pytest.approx(1) and row["outcome"] == "answered"
        assert row["label"] == "ab"[int(np.argmax(row["probabilities"]))]


def test_a_drift_is_told_of_only_where_it_is_large():
    train_L = np.array([0.25, 0.25, 0.5])
    said = drift_note(train_L, np.array([0.4, 0.1, 0.5]), 800, ["a", "b", "c"])
    assert said is not None and "expects a in 40.0%" in said and "b in 10.0%" in said and "class_prior: train" in said
    assert drift_note(train_L, np.array([0.29, 0.23, 0.48]), 800, ["a", "b", "c"]) is None  # small
    assert drift_note(train_L, np.array([0.4, 0.1, 0.5]), 20, ["a", "b", "c"]) is None  # may be chance


@pytest.mark.parametrize(
    ("prior", "said"),
    [
        ("unifrom", "uniform"),
        (3, "use train"),
        (["train"], "use train"),
        ({"SPORTS": 1.5, "POLITICS": 0.2, "ARTS & CULTURE": 0.3}, "between 0 and 1 (SPORTS: 1.5)"),
        ({"SPORTS": "many", "POLITICS": 0.2, "ARTS & CULTURE": 0.3}, "SPORTS: 'many'"),
        ({"SPORTS": 0.5, "POLITICS": 0.5}, "no share for ARTS & CULTURE"),
        ({"SPORT": 0.5, "POLITICS": 0.2, "ARTS & CULTURE": 0.3}, '"SPORT" is not in task.labels'),
        ({"SPORTS": 0.5, "POLITICS": 0.2, "ARTS & CULTURE": 0.2}, "add up to 0.9"),
    ],
)
def test_wrong_shares_are_refused_in_words(tmp_path, prior, said):
    with pytest.raises(RecipeError) as caught:
        recipe(tmp_path, data={"train": "a", "class_prior": prior})
    assert said in str(caught.value) and "data.class_prior" in str(caught.value)


def test_too_few_test_rows_are_refused_before_anything_is_computed(setting):
    heard = Heard()
    with pytest.raises(DataError, match="24 test rows are too few to weigh 3 labels by; it takes 30"):
        luthier.run(recipe(setting, data={"class_prior": "uniform"}), setting / "few", listener=heard)
    assert not heard.cached


ARMS = {"arms": ["majority", "tfidf", "tuned"], "ask": {"generate_rows": 0}}


@pytest.fixture(scope="module")
def weighed(setting):
    """A run with shares of its labels, on rows where they are not those of the training rows."""
    write_rows(setting / "more.jsonl", 14, 3)
    shares = {"SPORTS": 0.6, "POLITICS": 0.2, "ARTS & CULTURE": 0.2}
    data = {"test": str(setting / "more.jsonl"), "class_prior": shares}
    settings = {**ARMS, "data": data, "tune": {"epochs": 1, "refit": False, "learning_rate": 1e-4}}
    return setting, settings, luthier.run(recipe(setting, **settings), setting / "weighed")


def test_every_arm_that_reads_texts_is_weighted(weighed):
    folder, _, result = weighed
    assert result["arms"]["majority"]["as_scored"] is None and result["arms"]["majority"]["weights"] is None
    for name in ("tfidf", "tuned"):
        arm = result["arms"][name]
        assert arm["weights"]["SPORTS"] > 1 > arm["weights"]["POLITICS"]
        answered = np.array(arm["confusion"]).sum(0)[:3]
        assert answered[0] > answered[1] + answered[2] - 4  # six of ten, where the rows have one in three
        assert 0 <= arm["as_scored"]["low"] <= arm["as_scored"]["accuracy"] <= arm["as_scored"]["high"] <= 1
    assert result["shares"]["labels"]["SPORTS"]["expected"] == pytest.approx(0.6)
    assert result["shares"]["labels"]["SPORTS"]["test"] == pytest.approx(1 / 3)
    page = (folder / "weighed" / "report.html").read_text()
    assert (
        "without weights the fine-tuned model has" in page
        and "Accuracy without weights" in page
        and "How often each label comes" in page
        and "60.0%" in page
    )


def test_predict_answers_with_the_weights_of_the_run(weighed):
    folder, _, result = weighed
    texts = [json.loads(line)["text"] for line in (folder / "more.jsonl").read_text().splitlines()]
    predictor = luthier.load(folder / "weighed")
    mean = {label: np.mean([a.probabilities[label] for a in predictor.predict(texts)]) for label in LABELS}
    assert mean == pytest.approx({"SPORTS": 0.6, "POLITICS": 0.2, "ARTS & CULTURE": 0.2}, abs=1e-3)
    weights = [result["arms"]["tuned"]["weights"][label] for label in LABELS]
    assert np.exp(predictor.log_weights) == pytest.approx(weights)


def test_labels_are_weighed_anew_for_a_file_of_texts(weighed):
    folder, _, _ = weighed
    texts = [json.loads(line)["text"] for line in (folder / "more.jsonl").read_text().splitlines()]
    predictor = luthier.load(folder / "weighed")
    for prior, wanted in (("uniform", [1 / 3] * 3), ("train", [1 / 3] * 3), ({"SPORTS": 0.2, "POLITICS": 0.3, "ARTS & CULTURE": 0.5}, [0.2, 0.3, 0.5])):  # fmt: skip
        answers = predictor.predict(texts, class_prior=prior)
        mean = [np.mean([answer.probabilities[label] for answer in answers]) for label in LABELS]
        assert mean == pytest.approx(wanted, abs=1e-3), prior
    with pytest.raises(DataError, match="3 texts are too few"):
        predictor.predict(texts[:3], class_prior="uniform")
    with pytest.raises(DataError, match="no share for"):
        predictor.predict(texts, class_prior={"SPORTS": 0.5})
    with pytest.raises(ValueError, match="use train"):
        predictor.predict(texts, class_prior="even")


def test_the_command_weighs_a_file(weighed):
    folder, _, _ = weighed
    texts = [json.loads(line)["text"] for line in (folder / "more.jsonl").read_text().splitlines()]
    file = folder / "texts.txt"
    file.write_text("\n".join(texts) + "\n")
    ran = CliRunner().invoke(
        app, ["predict", str(folder / "weighed"), "--file", str(file), "--class-prior", "uniform", "--json"]
    )
    assert ran.exit_code == 0, ran.output
    mean = np.mean([list(answer["probabilities"].values()) for answer in json.loads(ran.stdout)], axis=0)
    assert mean == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_without_the_setting_stages_are_kept_and_answers_are_as_scored_again(weighed):
    folder, settings, before = weighed
    heard = Heard()
    data = {**settings["data"], "class_prior": None}
    after = luthier.run(recipe(folder, **{**settings, "data": data}), folder / "weighed", listener=heard)
    assert heard.cached["tfidf"] and heard.cached["training"] and heard.cached["tuned"]
    assert not (folder / "weighed" / "adapter" / "prior.json").exists()
    assert luthier.load(folder / "weighed").log_weights == (0.0, 0.0, 0.0)
    for name in ("tfidf", "tuned"):
        assert after["arms"][name]["accuracy"] == before["arms"][name]["as_scored"]["accuracy"]
        assert after["arms"][name]["as_scored"] is None
    luthier.run(recipe(folder, **settings), folder / "weighed")  # as it was, for the tests that come after


def test_arms_are_weighted_without_a_tuned_one_too(weighed):
    folder, settings, _ = weighed
    alone = recipe(folder, **{**settings, "arms": ["majority", "tfidf"]})
    result = luthier.run(alone, folder / "untuned")
    assert result["arms"]["tfidf"]["as_scored"] is not None
    assert result["shares"]["labels"]["SPORTS"]["answered"] is None and result["shares"]["note"] is None
    page = (folder / "untuned" / "report.html").read_text()
    assert "How often each label comes" in page and "Expected by the fine-tuned model" not in page


def test_damaged_weights_are_a_message(weighed):
    folder, _, _ = weighed
    file = folder / "weighed" / "adapter" / "prior.json"
    whole = file.read_text()
    for broken in ("{", "[]", '{"log_weights": {"SPORTS": 1}}'):
        file.write_text(broken)
        with pytest.raises(RunError, match="damaged"):
            luthier.load(folder / "weighed")
    file.write_text(whole)
