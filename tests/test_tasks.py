"""Several tasks over one adapter, each with a head of its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.methods import HeadMethod
from luthier.methods.base import Example, make_batch
from luthier.models import load_model
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Lora
from luthier.training.learner import load_learner, new_learner
from luthier.training.step import evaluate, one_step
from test_training import ROWS, TASK, tune_of


class TwoTasks:
    """Three rows of `left` (3 labels) and five of `right` (2 labels), each with its head, over one adapter."""

    def __init__(self, model_path: Path):
        loaded = load_model(str(model_path))
        torch.manual_seed(6)
        heads = {"left": torch.nn.Linear(32, 3), "right": torch.nn.Linear(32, 2)}
        self.learner = new_learner(loaded, Lora(rank=2, alpha=4.0), 3, "auto", heads)
        rows = HeadMethod().view(ClassifyPrompt(TASK, Layout(loaded.tokenizer)), ROWS[:8])
        self.left = [replace(rows[i], task="left") for i in (0, 3, 6)]
        self.right = [replace(rows[i], gold=(float(i % 2),), task="right") for i in (1, 2, 4, 5, 7)]
        mixed = (self.right[0], self.left[0], *self.right[1:3], *self.left[1:], *self.right[3:])
        self.examples = list(mixed)

    def mean_loss(self, rows: list[Example]) -> torch.Tensor:
        """A task's own, from log-softmax, without the method's code."""
        shares = torch.log_softmax(self.learner(make_batch(rows)).logits_PL, 1)
        return -torch.stack([shares[i, int(row.gold[0])] for i, row in enumerate(rows)]).mean()


@pytest.mark.parametrize("most", [16, 70, 4096])
def test_each_task_of_a_step_counts_by_its_own_mean(most, tiny_path):
    """Plain descent at rate 1 moves by minus the gradient of mean(left) + mean(right), however the step is cut."""
    two = TwoTasks(tiny_path)
    names, parameters = zip(*two.learner.trained().items(), strict=True)
    left, right = two.mean_loss(two.left), two.mean_loss(two.right)
    wanted = torch.autograd.grad(left + right, parameters)
    alone = dict(zip(names, torch.autograd.grad(two.mean_loss(two.left), parameters, allow_unused=True), strict=True))
    assert alone["heads.right.weight"] is None and alone["heads.left.weight"] is not None
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD([{"params": list(parameters), "peak": 1.0}], lr=1.0)
    tune = tune_of(method="head", micro_batch_tokens=most, clip_norm=0.0)
    done = one_step(two.learner, HeadMethod(), two.examples, optimizer, 1.0, tune, 0)
    assert done.loss == pytest.approx(float(left.detach() + right.detach()), rel=1e-5)
    assert done.trained_tokens == 8
    for name, parameter, start, gradient in zip(names, parameters, before, wanted, strict=True):
        torch.testing.assert_close(start - parameter.detach(), gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_validation_of_two_tasks_by_hand(tiny_path):
    """The loss is the sum of both means; a figure that both have is one ratio over all rows."""
    two = TwoTasks(tiny_path)
    with torch.no_grad():
        wanted = float(two.mean_loss(two.left) + two.mean_loss(two.right))
        chosen = [int(two.learner(make_batch([row])).logits_PL.argmax()) for row in two.examples]
    hits = sum(label == row.gold[0] for label, row in zip(chosen, two.examples, strict=True))
    loss, figures = evaluate(two.learner, HeadMethod(), two.examples, 70)
    assert loss == pytest.approx(wanted, rel=1e-5) and figures == {"accuracy": pytest.approx(hits / 8)}


def test_the_heads_of_two_tasks_are_saved_and_loaded(tiny_path, tmp_path):
    """In a fresh learner, and in the place of another's weights; each task is answered by its own head."""
    two = TwoTasks(tiny_path)
    with torch.no_grad():
        for parameter in two.learner.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    two.learner.save(tmp_path)
    assert load_file(tmp_path / "head.safetensors").keys() == {
        f"{task}.{part}" for task in ("left", "right") for part in ("weight", "bias")
    }
    loaded, other = load_learner(load_model(str(tiny_path)), tmp_path, "auto"), TwoTasks(tiny_path).learner
    batches = [make_batch(two.left), make_batch(two.right)]
    with torch.no_grad():
        wanted = [two.learner(batch).logits_PL for batch in batches]
        assert not torch.equal(other(batches[0]).logits_PL, wanted[0])
        other.load(tmp_path)
        for learner in (loaded, other):
            assert [head.out_features for head in learner.heads.values()] == [3, 2]
            found = [learner(batch) for batch in batches]
            assert [out.logprobs_M for out in found] == [None, None], "no target was asked for"
            for out, logits in zip(found, wanted, strict=True):
                assert torch.equal(out.logits_PL, logits)
    assert not loaded.trained() and not loaded.training


def test_a_row_may_have_targets_and_spans(tiny_path):
    """One pass gives both; each is what it is alone."""
    two = TwoTasks(tiny_path)
    (plain,) = two.left[0].sequences
    size = len(plain.tokens)
    both = replace(plain, targets=(size - 2, size - 1), weights=(1.0, 1.0))
    batches = [make_batch([replace(two.left[0], sequences=(s,))]) for s in (both, replace(both, reads=()), plain)]
    with torch.no_grad():
        found, only_targets, only_spans = (two.learner(batch) for batch in batches)
    assert only_targets.logits_PL is None and only_spans.logprobs_M is None
    torch.testing.assert_close(found.logprobs_M, only_targets.logprobs_M, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits_PL, only_spans.logits_PL, atol=1e-5, rtol=1e-5)


def test_without_heads_no_head_file_is_written(tiny_path, tmp_path):
    learner = new_learner(load_model(str(tiny_path)), Lora(rank=2), 0, "auto")
    learner.save(tmp_path)
    assert not (tmp_path / "head.safetensors").exists()
    assert not load_learner(load_model(str(tiny_path)), tmp_path, "auto").heads
