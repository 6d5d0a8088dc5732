"""Is luthier's distillation TRL's? The divergences and their gradients, from the same logits and end to end.

TRL's generalised Jensen-Shannon divergence (GKD trainer, Agarwal et al. 2024) is the forward KL at beta 0 and the
reverse KL at beta 1, over the whole vocabulary and without the factor T^2. luthier keeps every token here (top_k is
the vocabulary), and its factor is divided out. Needs TRL; runs on two tiny random models in seconds.

    trl-env/bin/python benchmarks/parity_trl_distillation.py

Exit status 1 where a loss differs by more than 1e-5 or a gradient by more than 1e-4 of its size, 2 without TRL.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.forest.forward import set_backend
from luthier.methods.base import Example
from luthier.methods.distillation import Distillation, coarse_kl, distillation_loss
from luthier.models import LoadedModel
from luthier.recipe import Lora
from luthier.recipe.methods import Distil
from luthier.records import Sequence
from luthier.stages.teacher import LocalTeacher
from luthier.training.learner import Learner, new_learner

VOCABULARY = 96
LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4
IGNORED = -100
CASES = [(what, temperature) for what in ("forward_kl", "reverse_kl") for temperature in (1.0, 2.0)]


def divergence_of_trl(student: Tensor, teacher: Tensor, labels: Tensor, what: str, temperature: float) -> Tensor:
    """TRL's own, the mean over positions that have a label."""
    from trl.experimental.gkd import GKDTrainer

    beta = 0 if what == "forward_kl" else 1
    found: Tensor = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    return found


def from_the_same_logits(what: str, temperature: float) -> tuple[float, float]:
    """(difference of the losses, of the gradients relative to their size) on random logits, in float64."""
    draw = torch.Generator().manual_seed(0)
    student_BTV, teacher_BTV = (
        torch.randn(3, 7, VOCABULARY, generator=draw, dtype=torch.float64) * 3 for _ in range(2)
    )
    labels_BT = torch.where(torch.rand(3, 7, generator=draw) < 0.3, IGNORED, 1)
    student_BTV.requires_grad_()
    theirs = divergence_of_trl(student_BTV, teacher_BTV, labels_BT, what, temperature)
    (their_gradient,) = torch.autograd.grad(theirs, student_BTV)
    trained = labels_BT != IGNORED
    count = int(trained.sum())
    student_M, teacher_M = (
        log_softmax(logits[trained] / temperature, -1).reshape(-1) for logits in (student_BTV, teacher_BTV)
    )
    position_M = torch.arange(count).repeat_interleave(VOCABULARY)
    pair = (teacher_M, student_M) if what == "forward_kl" else (student_M, teacher_M)
    kl_Q = coarse_kl(*pair, position_M, count)
    total = distillation_loss(kl_Q, torch.ones(count), kl_Q.new_tensor(0.0), temperature, 0.0)
    ours = total / temperature**2 / count
    (our_gradient,) = torch.autograd.grad(ours, student_BTV)
    return differences(ours, theirs, [our_gradient], [their_gradient])


def end_to_end(what: str, temperature: float) -> tuple[float, float]:
    """The same for a student of width 32 with an adapter and a teacher of width 48, in float32."""
    student, teacher = tiny_model(32, seed=1), tiny_model(48, seed=2)
    learner = new_learner(student, Lora(rank=4), 0, "auto")
    warmed(learner)
    examples = some_examples()
    settings = Distil(teacher="tiny", what=what, temperature=temperature, top_k=VOCABULARY)  # type: ignore[arg-type]
    set_backend(teacher.model, "grouped")
    asked = LocalTeacher(teacher, settings, VOCABULARY, "grouped", 4096).candidates(examples)
    batch = learner.batch([replace(example, teacher=each) for example, each in zip(examples, asked, strict=True)])
    out = Distillation(settings).loss(learner(batch), batch)
    ours = out.total / temperature**2 / out.weight
    parameters = list(learner.trained().values())
    our_gradients = torch.autograd.grad(ours, parameters)
    set_backend(learner.lm, "padded")
    set_backend(teacher.model, "padded")
    tokens_BT, mask_BT, labels_BT = padded(examples)
    theirs = divergence_of_trl(
        logits_of(learner.lm, tokens_BT, mask_BT),
        logits_of(teacher.model, tokens_BT, mask_BT).detach(),
        labels_BT,
        what,
        temperature,
    )
    return differences(ours, theirs, our_gradients, torch.autograd.grad(theirs, parameters))


def tiny_model(width: int, seed: int) -> LoadedModel:
    """A random llama without a tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.requires_grad_(False)
    model.name_or_path = "tiny"  # PEFT insists that it agrees with the folder
    return LoadedModel("tiny", Path("tiny"), model.eval(), None, "", model.num_parameters())


def warmed(learner: Learner) -> None:
    """A fresh adapter changes nothing, and half of its gradient is zero; this one has been trained a little."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)


def some_examples() -> list[Example]:
    """Rows of several lengths; the first three tokens are the prompt."""
    draw = np.random.default_rng(5)
    rows = [tuple(int(token) for token in (1, 2, 3 + i % 2, *draw.integers(0, VOCABULARY, 5 + i))) for i in range(6)]
    return [Example((Sequence(row, tuple(range(3, len(row))), (1.0,) * (len(row) - 3)),)) for row in rows]


def padded(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask and labels [B, T] as TRL shifts them: the label at t belongs to the logits at t."""
    longest = max(len(example.sequences[0].tokens) for example in examples)
    tokens_BT = torch.zeros(len(examples), longest, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(tokens_BT), torch.full_like(tokens_BT, IGNORED)
    for b, example in enumerate(examples):
        (sequence,) = example.sequences
        tokens_BT[b, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
        mask_BT[b, : len(sequence.tokens)] = 1
        for target in sequence.targets:
            labels_BT[b, target - 1] = sequence.tokens[target]
    return tokens_BT, mask_BT, labels_BT


def logits_of(model: nn.Module, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Through transformers, padded."""
    out: Any = model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)
    logits: Tensor = out.logits
    return logits


def differences(ours: Tensor, theirs: Tensor, our_gradients: Any, their_gradients: Any) -> tuple[float, float]:
    """Of the losses, and the largest of any gradient relative to that gradient's largest entry."""
    gradients = [
        float((one - other).abs().max() / other.abs().max())
        for one, other in zip(our_gradients, their_gradients, strict=True)
    ]
    return float((ours - theirs).detach().abs()), max(gradients)


def main() -> int:
    """A line for each case."""
    try:
        import trl  # noqa: F401
    except ImportError:
        print("TRL is missing; see benchmarks/README.md for its environment.", file=sys.stderr)
        return 2
    worst = [0.0, 0.0]
    for compare in (from_the_same_logits, end_to_end):
        for what, temperature in CASES:
            loss, gradient = compare(what, temperature)
            worst = [max(worst[0], loss), max(worst[1], gradient)]
            print(f"{compare.__name__:22} {what:11} T={temperature:g}  loss {loss:.1e}  gradient {gradient:.1e}")
    return int(worst[0] > LOSS_LIMIT or worst[1] > GRADIENT_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
