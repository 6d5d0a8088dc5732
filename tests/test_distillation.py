"""Distillation: the losses by hand and against float64, and the method on tiny models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from families import tiny_model
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.head import top_logprobs
from luthier.methods.base import Candidates, Example, make_batch
from luthier.methods.distillation import Distillation, coarse_kl, distillation_loss
from luthier.models import load_model
from luthier.recipe import Lora
from luthier.records import (
    Sequence,
)
from luthier.stages.teacher import (
    local_teacher,
)
from luthier.training.learner import new_learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from teachers import plain_logits, settings_of, some_examples, taught, wide_folder
from test_training import tune_of
from tiny import tiny_tokenizer

LN2, LN3 = math.log(2), math.log(3)


def log(*shares: float) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.float64).log()


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


# --- the losses ---------------------------------------------------------------------------------------------------


def test_divergences_by_hand():
    """Teacher (1/2, 1/4, 1/8, 1/8), student (1/8, 1/8, 1/4, 1/2); the first two tokens are kept.

    forward   1/2 ln 4 + 1/4 ln 2 + 1/4 ln(1/4 / 3/4)   = 5/4 ln 2 - 1/4 ln 3
    reverse   1/8 ln(1/4) + 1/8 ln(1/2) + 3/4 ln(3)     = -3/8 ln 2 + 3/4 ln 3
    A second position, where both agree, has 0.
    """
    teacher_M, student_M = log(1 / 2, 1 / 4, 0.3), log(1 / 8, 1 / 8, 0.3)
    position_M = torch.tensor([0, 0, 1])
    forward_Q = coarse_kl(teacher_M, student_M, position_M, 2)
    reverse_Q = coarse_kl(student_M, teacher_M, position_M, 2)
    assert forward_Q.tolist() == pytest.approx([5 / 4 * LN2 - LN3 / 4, 0.0], abs=1e-12)
    assert reverse_Q.tolist() == pytest.approx([-3 / 8 * LN2 + 3 / 4 * LN3, 0.0], abs=1e-12)


@pytest.mark.parametrize("count", [1, 5, 11])
def test_divergence_of_the_kept_tokens_against_torch(count):
    """Probabilities of the kept tokens and of one bucket, through torch's own kl_div; all 11 tokens: the whole one."""
    student_QV, teacher_QV = log_softmax(drawn(7, 11, seed=1), 1), log_softmax(drawn(7, 11, seed=2), 1)
    kept_QK = teacher_QV.topk(count).indices

    def coarsened(logprobs_QV: torch.Tensor) -> torch.Tensor:
        kept = logprobs_QV.gather(1, kept_QK).exp()
        return torch.cat([kept, (1 - kept.sum(1, keepdim=True)).clamp_min(1e-6)], 1).log()

    position_M = torch.arange(7).repeat_interleave(count)
    flat = [values.gather(1, kept_QK).reshape(-1) for values in (teacher_QV, student_QV)]
    for first, second, one, other in ((*flat, teacher_QV, student_QV), (*flat[::-1], student_QV, teacher_QV)):
        found_Q = coarse_kl(first, second, position_M, 7)
        wanted_Q = kl_div(coarsened(other), coarsened(one), reduction="none", log_target=True).sum(1)
        whole_Q = kl_div(other, one, reduction="none", log_target=True).sum(1)
        torch.testing.assert_close(found_Q, wanted_Q, rtol=1e-10, atol=1e-12)
        assert (found_Q <= whole_Q + 1e-9).all(), "coarsening never adds"
        if count == 11:
            torch.testing.assert_close(found_Q, whole_Q, rtol=1e-9, atol=1e-9)


def kl_of_logits(student_V: torch.Tensor, teacher_V: torch.Tensor, count: int, reverse: bool = False) -> torch.Tensor:
    """The KL of one position from logits, `count` tokens kept."""
    kept = teacher_V.topk(count).indices
    pair = (log_softmax(teacher_V, 0)[kept], log_softmax(student_V, 0)[kept])
    return coarse_kl(*(pair[::-1] if reverse else pair), torch.zeros(count, dtype=torch.long), 1).sum()


@pytest.mark.parametrize("count", [3, 9])
def test_gradient_of_forward_kl_is_student_minus_teacher(count):
    """dKL/dz = q - p; where tokens are left out, the teacher's bucket is spread as the student spreads its own."""
    student_V, teacher_V = drawn(9, seed=3).requires_grad_(), drawn(9, seed=4)
    (gradient_V,) = torch.autograd.grad(kl_of_logits(student_V, teacher_V, count), student_V)
    q, p = student_V.detach().softmax(0), teacher_V.softmax(0)
    kept = torch.zeros(9, dtype=torch.bool).scatter(0, teacher_V.topk(count).indices, True)
    rest = q * (p[~kept].sum() / q[~kept].sum()) if count < 9 else q
    torch.testing.assert_close(gradient_V, q - torch.where(kept, p, rest), rtol=1e-6, atol=1e-9)


def test_gradient_of_reverse_kl():
    """dKL(q || p)/dz = q (log q - log p - KL)."""
    student_V, teacher_V = drawn(9, seed=5).requires_grad_(), drawn(9, seed=6)
    kl = kl_of_logits(student_V, teacher_V, 9, reverse=True)
    (gradient_V,) = torch.autograd.grad(kl, student_V)
    log_q, log_p = log_softmax(student_V.detach(), 0), log_softmax(teacher_V, 0)
    torch.testing.assert_close(gradient_V, log_q.exp() * (log_q - log_p - kl.detach()), rtol=1e-6, atol=1e-9)


def test_square_of_the_temperature_keeps_the_size_of_the_gradient():
    """At a high temperature T^2 KL has gradient (z - v) / V for logits of mean zero (Hinton et al. 2015, eq. 4)."""
    student_V, teacher_V = (values - values.mean() for values in (drawn(9, seed=7), drawn(9, seed=8)))
    student_V.requires_grad_()
    temperature = 1000.0
    kl = kl_of_logits(student_V / temperature, teacher_V / temperature, 9)
    loss = distillation_loss(kl[None], torch.ones(1), kl.new_tensor(0.0), temperature, 0.0)
    (gradient_V,) = torch.autograd.grad(loss, student_V)
    torch.testing.assert_close(gradient_V, ((student_V - teacher_V) / 9).detach(), rtol=1e-2, atol=1e-4)


def test_the_mixed_loss_by_hand():
    """h = 1/4, T = 2, positions of KL 3 and 5 with weights 1 and 1/2, own nats 8: 3/4 * 4 * 5.5 + 1/4 * 8 = 18.5."""
    found = distillation_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0, 0.5]), torch.tensor(8.0), 2.0, 0.25)
    assert float(found) == pytest.approx(18.5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_targets_at_two_temperatures(family):
    """One sequence asks at 1 and at 2.5, in any order; gemma2 caps its logits before they are divided."""
    model = tiny_model(family)
    tokens = (5, 9, 30, 7, 41, 8)
    targets, wanted, temperatures = (2, 4, 4, 1), (30, 3, 50, 11), (2.5, 1.0, 2.5, 1.0)
    sequence = Sequence(tokens, targets, (1.0,) * 4, wanted=wanted, temperatures=temperatures)
    model.set_attn_implementation("eager")
    logits_TV = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    asked = zip(targets, wanted, temperatures, strict=True)
    wanted_M = torch.stack([log_softmax(logits_TV[t - 1] / heat, -1)[token] for t, token, heat in asked])
    set_backend(model, "grouped")
    forest = make_batch([Example((sequence,))]).forest
    found_M = logprobs(model, forest, hidden_states(model, forest, "grouped"))
    torch.testing.assert_close(found_M, wanted_M, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_likeliest_tokens_of_rows(softcap):
    """Against the whole log-softmax; more are asked for than there are."""
    rows_RD, weight_VD, bias_V = drawn(5, 4), drawn(7, 4, seed=1), drawn(7, seed=2)
    logits_RV = 0.5 * (rows_RD @ weight_VD.T + bias_V)
    logits_RV = logits_RV if softcap is None else softcap * torch.tanh(logits_RV / softcap)
    wanted = log_softmax(logits_RV, 1).sort(1, descending=True)
    for count, kept in ((3, 3), (99, 7)):
        tokens_RK, values_RK = top_logprobs(rows_RD, weight_VD, bias_V, count, softcap, 0.5)
        assert tokens_RK.tolist() == wanted.indices[:, :kept].tolist()
        torch.testing.assert_close(values_RK, wanted.values[:, :kept])


# --- the method on tiny models ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    """Its output has five rows more than its tokenizer has tokens, as padded embeddings have."""
    return wide_folder(tmp_path_factory.mktemp("teachers") / "wide", len(tiny_tokenizer()) + 5)


@pytest.mark.parametrize("what", ["forward_kl", "reverse_kl"])
def test_loss_and_scores_against_plain_models(what, tiny_path, teacher_path):
    """Every term again from whole logits in float64: two models through transformers, no forest, no fused head."""
    settings = settings_of(teacher_path, what=what, temperature=2.0, hard_weight=0.25)
    student = load_model(str(tiny_path))
    examples = taught(settings, student, some_examples())
    method = Distillation(settings)
    learner = new_learner(student, Lora(rank=2), 0, "auto").eval()
    batch = learner.batch(examples)
    with torch.no_grad():
        outputs = learner(batch)
        out, scores = method.loss(outputs, batch), method.scores(outputs, batch)
    size, soft_B, hard_B, plain_B, weight_B = len(tiny_tokenizer()), [], [], [], []
    for example in examples:
        (own,) = example.sequences
        places, weights = torch.tensor(own.targets) - 1, torch.tensor(own.weights, dtype=torch.float64)
        student_QV = plain_logits(tiny_path, own.tokens)[places]
        teacher_QV = plain_logits(teacher_path, own.tokens)[places][:, :size]
        q_QV, p_QV = log_softmax(student_QV / 2, 1), log_softmax(teacher_QV / 2, 1)
        kept_QK = p_QV.topk(4).indices
        assert example.teacher.tokens_QK.tolist() == kept_QK.tolist()
        p_QC, q_QC = (
            torch.cat([kept := values.gather(1, kept_QK).exp(), 1 - kept.sum(1, keepdim=True)], 1)
            for values in (p_QV, q_QV)
        )
        first, second = (p_QC, q_QC) if what == "forward_kl" else (q_QC, p_QC)
        soft_B.append(float(weights @ (first * (first / second).log()).sum(1)))
        answer = torch.tensor([own.tokens[index] for index in own.targets])
        nats_Q = -log_softmax(student_QV, 1).gather(1, answer[:, None])[:, 0]
        hard_B.append(float(weights @ nats_Q))
        plain_B.append(float(nats_Q.sum()))
        weight_B.append(float(weights.sum()))
    assert float(out.total) == pytest.approx(0.75 * 4 * sum(soft_B) + 0.25 * sum(hard_B), rel=1e-5)
    assert out.weight == pytest.approx(sum(weight_B)) == sum(method.weight(example) for example in examples)
    assert scores["kl"][0].tolist() == pytest.approx(soft_B, rel=1e-4)
    assert scores["kl"][1].tolist() == pytest.approx(weight_B)
    assert scores["bits_per_byte"][0].tolist() == pytest.approx([nats / LN2 for nats in plain_B], rel=1e-5)
    assert scores["bits_per_byte"][1].tolist() == [10.0 + row for row in range(8)]


@pytest.mark.parametrize("what", ["forward_kl", "reverse_kl"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(what, tiny_path):
    settings = settings_of(tiny_path, what=what, temperature=1.5)
    student = load_model(str(tiny_path))
    batch = make_batch(taught(settings, student, some_examples()))
    learner = new_learner(student, Lora(rank=2), 0, "auto")
    out = Distillation(settings).loss(learner(batch), batch)
    out.total.backward()
    gradients = [parameter.grad for parameter in learner.trained().values()]
    assert abs(float(out.total.detach()) / out.weight) < 1e-6
    assert max(float(gradient.abs().max()) for gradient in gradients) / out.weight < 1e-6


def test_positions_without_weight_count_exactly_nothing(tiny_path, teacher_path):
    """Whatever the teacher says there, loss, gradient and figures are the same bits."""
    settings = settings_of(teacher_path, hard_weight=0.5)
    student = load_model(str(tiny_path))
    examples = taught(settings, student, some_examples(2))
    (own,), teacher = examples[0].sequences, examples[0].teacher
    own = replace(own, weights=(0.0, *own.weights[1:]))
    values_QK, tokens_QK = teacher.logprobs_QK.copy(), teacher.tokens_QK.copy()
    values_QK[0], tokens_QK[0] = np.log([0.7, 0.1, 0.1, 0.05]), [30, 31, 32, 33]
    first = replace(examples[0], sequences=(own,))
    second = replace(first, teacher=Candidates(tokens_QK, values_QK))
    learner, found = new_learner(student, Lora(rank=2), 0, "auto"), []
    for example in (first, second):
        batch = make_batch([example, examples[1]])
        outputs = learner(batch)
        logprobs_M = outputs.logprobs_M.detach().requires_grad_()
        out = Distillation(settings).loss(replace(outputs, logprobs_M=logprobs_M), batch)
        (gradient_M,) = torch.autograd.grad(out.total, logprobs_M)
        scores = Distillation(settings).scores(outputs, batch)["kl"][0].tolist()
        found.append((float(out.total.detach()), out.weight, scores, gradient_M[batch.weight_M == 0].tolist()))
    assert found[0] == found[1]
    assert found[0][3] == [0.0] * 5, "its own token and four candidates"


@pytest.mark.parametrize("online", [False, True])
def test_micro_batches_and_backends_give_one_trajectory(online, tiny_path, teacher_path):
    """Three steps over eight rows: in one pass, in passes of two or one, padded, and with the teacher at each step."""
    settings = settings_of(teacher_path, hard_weight=0.2, temperature=2.0)
    found = []
    for most, backend in ((4096, "auto"), (24, "auto"), (16, "auto"), (24, "padded")):
        student = load_model(str(tiny_path))
        examples, method = some_examples(), Distillation(settings)
        if online:
            method = replace(method, teacher=local_teacher(settings, student, "auto", most))
        else:
            examples = taught(settings, student, examples)
        learner = new_learner(student, Lora(rank=2), 3, backend)
        tune = tune_of(micro_batch_tokens=most, learning_rate=1e-2)
        optimizer = make_optimizer(learner, tune)
        found.append([one_step(learner, method, examples, optimizer, 1.0, tune, step) for step in range(3)])
    losses = [[done.loss for done in steps] for steps in found]
    norms = [[done.gradient_norm for done in steps] for steps in found]
    assert losses[0][2] < losses[0][0]
    for one, norm in zip(losses[1:], norms[1:], strict=True):
        assert one == pytest.approx(losses[0], rel=1e-5) and norm == pytest.approx(norms[0], rel=1e-4)
    assert {done.trained_tokens for steps in found for done in steps} == {sum(e.num_trained for e in some_examples())}


def test_overfits_one_batch(tiny_path, tmp_path):
    """The teacher is the student with an adapter: what a fresh adapter can become, though drawn otherwise."""
    student = load_model(str(tiny_path))
    learner = new_learner(student, Lora(rank=4, alpha=8.0), 8, "auto")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.15)
    learner.save(tmp_path)
    settings = settings_of(tiny_path, top_k=16, adapter=str(tmp_path))
    student = load_model(str(tiny_path))
    examples = taught(settings, student, some_examples(4))
    learner = new_learner(student, Lora(rank=16, alpha=32.0), 3, "auto")
    tune = tune_of(learning_rate=1e-2)
    optimizer = make_optimizer(learner, tune)
    losses = [
        one_step(learner, Distillation(settings), examples, optimizer, 1.0, tune, step).loss for step in range(60)
    ]
    assert losses[0] > 0.1 and losses[-1] < 0.02 * losses[0]
