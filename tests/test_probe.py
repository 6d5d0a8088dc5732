"""A linear probe: kept features equal computed ones, the model runs once a row, and what comes out answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.adapters import Plain
from luthier.errors import RecipeError, TrainingError
from luthier.methods.base import MAIN, Example
from luthier.methods.heads import ClassifyHead
from luthier.models import load_model
from luthier.pipeline import run
from luthier.predictor import load as load_run
from luthier.prompts import Dialogue, Layout
from luthier.recipe.methods import Classify
from luthier.recipe.stages import parse_stages
from luthier.recipe.training import Training
from luthier.records import Labelled, Sequence, Source
from luthier.stages import train
from luthier.training.learner import Learner, load_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.probe import ProbeLearner
from luthier.training.step import evaluate, one_step
from tiny import tiny_folder

SPORTS = ["a goal won the match", "the team won the match", "a new goal by the team", "the match won by a team"]
POLITICS = ["the senate passed a law", "a vote on the law", "a new law passed", "the vote in the senate"]


def labelled(text: str, label: str) -> Labelled:
    return Labelled(text, label, Source("rows.jsonl", 1), f"{text} {label}")


ROWS = [labelled(t, "S") for t in SPORTS] + [labelled(t, "P") for t in POLITICS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def probe(folder: Path, kept: Path) -> tuple[ProbeLearner, ClassifyHead, list[Example]]:
    model = load_model(str(folder))
    method = ClassifyHead(settings=Classify()).fitted(ROWS)
    examples = method.view(Dialogue(Layout(model.tokenizer)), ROWS)
    return ProbeLearner(model, method.heads(model.hidden_size), "auto", kept, 1.0), method, examples


def passes(learner: ProbeLearner) -> list[int]:
    """Counts the passes of the model's body from here on."""
    counted: list[int] = []
    learner.lm.model.register_forward_hook(lambda *_: counted.append(1))
    return counted


def test_kept_features_equal_those_of_a_fresh_pass(folder, tmp_path):
    learner, _, examples = probe(folder, tmp_path / "features")
    learner.prepare(examples, 64)
    batch = learner.batch(examples)
    kept = learner(batch).logits_PL
    learner.kept.places.clear()
    assert torch.allclose(kept, learner(batch).logits_PL, atol=1e-6)
    alone = torch.cat([learner(learner.batch([example])).logits_PL for example in examples])
    assert torch.allclose(kept, alone, atol=1e-6)


def test_the_model_runs_once_for_each_row_and_never_again(folder, tmp_path):
    learner, method, examples = probe(folder, tmp_path / "features")
    counted = passes(learner)
    learner.prepare(examples, 64)
    first = len(counted)
    assert first > 0 and len(list((tmp_path / "features").rglob("*.safetensors"))) == 1
    settings = Training(batch_size=4, head_learning_rate=0.05)
    optimizer = make_optimizer(learner, settings)
    before, _ = evaluate(learner, method, examples, 4096)
    for step in range(30):
        one_step(learner, method, examples[step % 2 :: 2], optimizer, 1.0, settings, step)
    after, figures = evaluate(learner, method, examples, 4096)
    assert len(counted) == first and after < 0.3 * before and figures["accuracy"] == 1.0
    again, _, _ = probe(folder, tmp_path / "features")
    counted = passes(again)
    again.prepare(examples, 64)
    assert not counted
    more = replace(examples[0], sequences=(replace(examples[0].sequences[0], tokens=(5, 6, 7), reads=((0, 3),)),))
    again.prepare([*examples, more], 64)
    assert len(counted) == 1


def test_only_the_head_is_trained(folder, tmp_path):
    learner, _, _ = probe(folder, tmp_path / "features")
    assert {name.split(".")[0] for name in learner.trained()} == {"heads"}


def test_a_method_without_a_head_is_refused(folder, tmp_path):
    with pytest.raises(TrainingError, match="trains a head only, and this method has none. Use it with classify"):
        ProbeLearner(load_model(str(folder)), {}, "auto", tmp_path, 1.0)


def test_a_stage_with_a_probe_leaves_a_head_that_answers_alone(folder, tmp_path):
    rows = tmp_path / "rows.csv"
    lines = [f"{text},{label}" for label, texts in (("S", SPORTS), ("P", POLITICS)) for text in texts]
    rows.write_text("text,label\n" + "\n".join(lines) + "\n")
    recipe = tmp_path / "probe.yaml"
    recipe.write_text(
        f"model: {folder}\nprecision: float32\nstages:\n  - method: classify\n"
        f"    data: {{train: {rows}, test_share: 0.25, validation_share: 0.25}}\n"
        "    tune: {epochs: 20, batch_size: 4, head_learning_rate: 0.05, adapter: {kind: none}}\n"
    )
    result = train(recipe, tmp_path / "run")
    left = Path(result["adapter"])
    assert not (left / "adapter_model.safetensors").exists()
    assert result["stages"][0]["training"]["trainable_parameters"] == 32 * 2 + 2
    learner = load_learner(load_model(str(folder)), left, "auto")
    assert isinstance(learner.heads[MAIN], nn.Linear) and not learner.trained()


def test_a_task_without_a_head_is_scored_by_the_model_as_it_is(folder, tmp_path):
    learner, _, _ = probe(folder, tmp_path / "features")
    written = Example((Sequence((5, 6, 7, 8), (2, 3), (1.0, 1.0)),))
    plain = Learner(Plain(load_model(str(folder)).model.eval()), {}, "grouped")
    outputs, wanted = (one(one.batch([written])) for one in (learner, plain))
    assert outputs.logits_PL is None and not outputs.logprobs_M.requires_grad
    assert torch.allclose(outputs.logprobs_M, wanted.logprobs_M, atol=1e-6)


@pytest.mark.parametrize("start", ["stack", "merge", "continue"])
def test_a_probe_after_a_stage_without_a_head_leaves_its_score(start, folder, tmp_path):
    """The matrix has the first task after the probe as it was before: nothing of the model has changed."""
    labels, talks = tmp_path / "rows.jsonl", tmp_path / "talks.jsonl"
    labels.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))
    talks.write_text("".join(json.dumps({"prompt": row.text, "completion": row.label}) + "\n" for row in ROWS))
    shares = {"test_share": 0.25, "validation_share": 0.25}
    tune = {"epochs": 2, "batch_size": 4, "memory": {"predict": False}}
    stages = [
        {"method": "sft", "data": {"train": str(talks), **shares}, "tune": {**tune, "learning_rate": 0.01}},
        {"method": "classify", "data": {"train": str(labels), **shares}, "start": start,
         "tune": {**tune, "adapter": {"kind": "none"}}},
    ]  # fmt: skip
    values = {"model": str(folder), "precision": "float32", "stages": stages, "judge": {"resamples": 200}}
    first, second = train(parse_stages(values), tmp_path / "run")["matrix"]["rows"]
    assert second["scores"][0]["value"] == pytest.approx(first["scores"][0]["value"], rel=1e-5)
    assert second["scores"][1]["value"] is not None


DATA = {"train": "rows.jsonl"}
PROBE = {"adapter": {"kind": "none"}}


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([{"method": "sft", "data": DATA, "tune": PROBE}],
         "stages.0.method: sft has no head, and tune.adapter.kind: none trains a head only. Use it with classify, tag"),
        ([{"tasks": {"a": {"method": "tag", "data": DATA}, "b": {"method": "clm", "data": DATA}}, "tune": PROBE}],
         "stages.0.tasks.b.method: clm has no head"),
        ([{"method": "sft", "data": DATA},
          {"method": "classify", "data": DATA, "tune": PROBE, "keep": {"replay_share": 0.2}}],
         "stages.1.keep.replay_share: sft learnt a task without a head, and tune.adapter.kind: none trains heads only"),
        ([{"method": "tag", "data": DATA}, {"method": "classify", "data": DATA, "tune": PROBE, "start": "continue",
                                            "keep": {"penalty": "ewc"}}],
         "stages.1.keep.penalty: holds weights, and tune.adapter.kind: none changes none of them. Leave it out."),
    ],
)  # fmt: skip
def test_what_a_probe_cannot_learn_is_refused_in_the_recipe(stages, told):
    with pytest.raises(RecipeError) as error:
        parse_stages({"stages": stages})
    assert told in str(error.value)


def test_a_probe_may_replay_tasks_with_heads():
    parse_stages({"stages": [{"method": "tag", "data": DATA}, {"method": "classify", "data": DATA, "tune": PROBE,
                                                               "keep": {"replay_share": 0.2}}]})  # fmt: skip


def test_a_run_with_a_probe_answers_after_it_was_saved(folder, tmp_path):
    """`luthier run`: two trainings (the second on all rows) and one pass of the model for each row of them."""
    rows, test = tmp_path / "rows.csv", tmp_path / "test.csv"
    texts = [(f"{text}{end}", label) for label, texts in (("S", SPORTS), ("P", POLITICS)) for text in texts
             for end in ("", " in a match", " by the senate")]  # fmt: skip
    rows.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    test.write_text(
        "text,label\na team won,S\nthe law,P\na goal in the match,S\nthe senate,P\none vote,P\na new goal,S\n"
    )
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"model: {folder}\nprecision: float32\ntask: {{labels: [S, P]}}\narms: [majority, tuned]\n"
        f"data: {{train: {rows}, test: {test}, validation_share: 0.25}}\n"
        "tune: {adapter: none, epochs: 20, batch_size: 4, head_learning_rate: 0.05}\n"
    )
    result = run(recipe, tmp_path / "run")
    left = tmp_path / "run" / "adapter"
    assert (left / "head.safetensors").is_file() and not (left / "adapter_model.safetensors").exists()
    predictor = load_run(tmp_path / "run")
    assert result["arms"]["tuned"]["n"] == 6
    assert result["training"]["trainable_parameters"] == 32 * 2 + 2
    assert predictor.predict(["a team won"])
