"""A reward model that a run left: its scale is of the rows it was not trained on, and it scores rows of any shape."""

import itertools
import json

import numpy as np
import pytest

from luthier.errors import DataError, RunError
from luthier.methods.registry import make_stage_method
from luthier.recipe.stages import parse_stages
from luthier.records import (
    Completion,
    Conversation,
    Document,
    Instruction,
    Message,
    Preference,
    Ranking,
    Rating,
    Source,
)
from luthier.stages import load_reward, train
from luthier.stages.rows import gather
from luthier.stages.score import read_answers

WORDS = ["goal", "team", "won", "vote", "law", "senate", "painter", "museum", "match", "song"]
NAMES = list(itertools.islice(itertools.permutations(WORDS, 2), 0, 90, 4))
PAIRS = [{"prompt": f"the {a} of the {b}", "chosen": f"a {a} won", "rejected": f"{b} passed"} for a, b in NAMES]
SOURCE = Source("x.jsonl", 7)
ASKED = (Message("user", "the goal of the team"),)
SAID = "a goal won"


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe_of(folder, model, validation_share: float):
    shares = {"validation_share": validation_share, "test": written(folder / "test.jsonl", PAIRS[18:])}
    stage = {
        "method": "reward",
        "data": {"train": written(folder / "train.jsonl", PAIRS[:18]), **shares},
        "prompt": {"system": "Say little."},
        "tune": {"epochs": 2, "batch_size": 6, "learning_rate": 5e-3, "adapter": {"rank": 2}},
    }
    return parse_stages({"model": str(model), "precision": "float32", "stages": [stage], "judge": {"resamples": 500}})


@pytest.fixture(scope="module")
def run(tiny_path, tmp_path_factory):
    """Folder, recipe and result of a reward stage without validation rows."""
    folder = tmp_path_factory.mktemp("reward")
    recipe = recipe_of(folder, tiny_path, 0.0)
    return folder, recipe, train(recipe, folder / "run")


def test_rewards_of_the_training_rows_have_mean_0_and_deviation_1_where_none_are_set_aside(run):
    folder, _, result = run
    scorer = load_reward(folder / "run")
    found = scorer.score(read_answers(folder / "train.jsonl"))
    normalised, rewards = (np.array([one[name] for one in found]) for name in ("normalised", "reward"))
    assert len(found) == 36 and np.unique(rewards.round(6)).size > 10
    assert normalised.mean() == pytest.approx(0, abs=1e-4) and normalised.std() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(normalised, (rewards - rewards.mean()) / rewards.std(), atol=1e-4)
    stored = json.loads((folder / "run" / "stages" / "01-reward" / "adapter" / "method.json").read_text())
    assert stored["mean"] == pytest.approx(rewards.mean(), abs=1e-5) and stored["method"] == "reward"
    held = scorer.score(read_answers(folder / "test.jsonl"))
    wins = [better["reward"] > worse["reward"] for better, worse in zip(held[::2], held[1::2], strict=True)]
    figures = result["stages"][0]["figures"]
    assert np.mean(wins) == pytest.approx(figures["accuracy"]["after"]["value"]), "and they are those of the figures"
    assert np.mean([one["reward"] for one in held]) == pytest.approx(figures["reward"]["after"]["value"], rel=1e-4)


def test_the_scale_is_of_the_validation_rows_where_there_are_any(tiny_path, tmp_path):
    recipe = recipe_of(tmp_path, tiny_path, 0.3)
    train(recipe, tmp_path / "run")
    rows = gather(recipe.stages[0].data, make_stage_method(recipe.stages[0].method), recipe.seed)
    scorer = load_reward(tmp_path / "run", "reward")
    validation, trained = (
        np.array([one["normalised"] for one in scorer.score(part)]) for part in (rows.validation, rows.train)
    )
    assert 4 < len(validation) < len(trained)
    assert validation.mean() == pytest.approx(0, abs=1e-4) and validation.std() == pytest.approx(1, abs=1e-4)
    assert abs(trained.mean()) > 1e-3 or abs(trained.std() - 1) > 1e-3


def test_a_reward_model_that_was_learnt_beside_another_task(tiny_path, tmp_path, luthier):
    recipe = recipe_of(tmp_path, tiny_path, 0.2)
    reward = recipe.stages[0]
    labels = [{"text": f"{a} {b}", "label": "art" if a in WORDS[:2] else "other"} for a, b in NAMES]
    tasks = {
        "wins": {"method": "reward", "data": reward.data.model_dump(), "prompt": {"system": "Say little."}},
        "topic": {"method": "classify", "data": {"train": written(tmp_path / "labels.jsonl", labels)}},
    }
    stage = {"name": "both", "tasks": tasks, "tune": {"epochs": 1, "batch_size": 8, "adapter": {"rank": 2}}}
    model = str(tiny_path)
    result = train(parse_stages({"model": model, "precision": "float32", "stages": [stage]}), tmp_path / "run")
    scorer = load_reward(tmp_path / "run", task="wins")
    held = scorer.score(read_answers(tmp_path / "test.jsonl"))
    figures = result["stages"][0]["figures"]
    wins = [better["reward"] > worse["reward"] for better, worse in zip(held[::2], held[1::2], strict=True)]
    assert np.mean(wins) == pytest.approx(figures["wins/accuracy"]["after"]["value"])
    assert np.mean([one["reward"] for one in held]) == pytest.approx(figures["wins/reward"]["after"]["value"], rel=1e-4)
    assert load_reward(tmp_path / "run").score(read_answers(tmp_path / "test.jsonl")) == held, "the only one"
    with pytest.raises(RunError, match=r'no such task "topic" \(those to be asked so: wins\)'):
        load_reward(tmp_path / "run", task="topic")
    code, out, _ = luthier("predict", tmp_path / "run", "--task", "topic", "--text", "a song")
    assert code == 0 and out.split("\t")[0] in {"art", "other"}
    code, out, _ = luthier("score", tmp_path / "run", tmp_path / "test.jsonl", "--task", "wins", "--json")
    assert code == 0 and json.loads(out) == [pytest.approx(one) for one in held]


def test_one_answer_has_one_reward_in_whatever_shape_it_comes(run):
    folder, _, _ = run
    other = (Message("assistant", "team passed"),)
    answer = (Message("assistant", SAID),)
    rows = [
        Preference(ASKED, answer, other, SOURCE),
        Ranking(ASKED, ("in a song", SAID), SOURCE),
        Rating(ASKED, SAID, False, SOURCE),
        Conversation((*ASKED, Message("assistant", SAID, weight=0.0)), SOURCE),
        Completion(ASKED[0].content, SAID, SOURCE),
        Instruction(ASKED[0].content, "", SAID, SOURCE),
    ]
    scorer = load_reward(folder / "run")
    found = scorer.score(rows)
    assert [one["answer"] for one in found] == [SAID, "team passed", "in a song", *[SAID] * 5]
    assert {(one["file"], one["line"]) for one in found} == {("x.jsonl", 7)}
    same = [one["reward"] for one in found if one["answer"] == SAID]
    assert same == pytest.approx([same[0]] * 6, abs=1e-5)
    assert abs(found[1]["reward"] - same[0]) > 1e-3 and scorer.score([]) == []
    longer = Conversation((*ASKED, Message("assistant", "team passed"), *ASKED, Message("assistant", SAID)), SOURCE)
    (last,) = scorer.score([longer])
    assert last["answer"] == SAID and abs(last["reward"] - same[0]) > 1e-3, "what stands before is read too"


def test_the_command_line_says_the_same(run, luthier):
    folder, _, _ = run
    found = load_reward(folder / "run").score(read_answers(folder / "test.jsonl"))
    code, out, _ = luthier("score", folder / "run", folder / "test.jsonl", "--json")
    assert (code, json.loads(out)) == (0, found)
    code, out, _ = luthier("score", folder / "run", folder / "test.jsonl", "--stage", "reward")
    first = found[0]
    assert code == 0 and len(out.splitlines()) == len(found)
    assert out.splitlines()[0] == f"{first['normalised']:.3f}\t{first['reward']:.3f}\t1\t{first['answer']}"


def test_rows_that_cannot_be_scored_are_named(run, tmp_path):
    folder, _, _ = run
    scorer = load_reward(folder / "run")
    with pytest.raises(DataError, match=r"^x.jsonl line 7: a document has no answer to a prompt. Give conversations, "):
        scorer.score([Document("text", SOURCE)])
    with pytest.raises(DataError, match=r"^x.jsonl line 7: prompt and answer have [\d,]+ tokens; the model reads 512."):
        scorer.score([Completion("the goal", " goal" * 600, SOURCE)])
    with pytest.raises(DataError, match='^x.jsonl line 7: the answer holds the text "<|im_end|>", a special token'):
        scorer.score([Completion("the goal", "a <|im_end|> b", SOURCE)])
    broken = written(tmp_path / "broken.jsonl", [*PAIRS[:2], {"prompt": "x", "chosen": "a", "rejected": 3}])
    with pytest.raises(DataError, match=r"^broken.jsonl line 3: "):
        read_answers(broken)


def test_bad_rows_are_named_together_or_left_out(run, tmp_path, luthier):
    """Equal answers and a text that is too long: both refused by line; with --skip-bad the others are scored."""
    folder, _, _ = run
    equal, long = {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}, {**PAIRS[1], "chosen": "goal " * 600}
    file = written(tmp_path / "rows.jsonl", [PAIRS[18], equal, PAIRS[19]])
    code, out, err = luthier("score", folder / "run", file)
    assert (code, out) == (1, "") and err.startswith("Error: rows.jsonl line 2: chosen and rejected are the same")
    file = written(tmp_path / "rows.jsonl", [PAIRS[18], equal, long, PAIRS[19]])
    code, out, err = luthier("score", folder / "run", file, "--skip-bad", "--json")
    assert code == 3 and "2 of 6 rows left out" in err and "rows.jsonl line 3: prompt and answer have" in err
    found = json.loads(out)
    expected = load_reward(folder / "run").score(read_answers(folder / "test.jsonl"))[:4]
    assert [one["line"] for one in found] == [1, 1, 2, 3, 4, 4]
    assert [one["reward"] for one in found if "reward" in one] == pytest.approx([one["reward"] for one in expected])
    assert "the same" in found[2]["reason"] and "reward" not in found[2]
    code, out, err = luthier("score", folder / "run", file, "--skip-bad", "--out", tmp_path / "scores.csv")
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert code == 3 and lines[0] == "file,line,answer,reward,normalised,reason" and len(lines) == 7
    assert luthier("score", folder / "run", file, "--skip-bad")[1].splitlines()[2].startswith("–\t–\t2\t(")


def test_what_is_no_reward_model_is_said(run, luthier):
    folder, _, _ = run
    code, _, told = luthier("predict", folder / "run", "--text", "a")
    assert code == 1 and "no stage has a head to label texts with." in told
    assert "a reward model by `luthier score`." in told
    with pytest.raises(RunError, match='no stage "rewards"; there is reward. Did you mean "reward"'):
        load_reward(folder / "run", "rewards")
    result = json.loads((folder / "run" / "result.json").read_text())
    result["stages"].append({**result["stages"][0], "name": "polite", "method": "dpo"})
    (folder / "two").mkdir()
    (folder / "two" / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match='stage "polite" is no reward model; there is reward. Heads are asked by'):
        load_reward(folder / "two", "polite")
    result["stages"] = result["stages"][1:]
    (folder / "two" / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match="no stage is a reward model. Heads are asked by `luthier predict`, a model"):
        load_reward(folder / "two")
