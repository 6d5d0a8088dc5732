"""What is disturbed in training and never in validation: noise on embeddings (NEFTune), layers left out (LayerDrop).

Both stand around the model from outside while a training runs. What is drawn depends on the seed, the step and the
place that it is drawn for, and on nothing else: a resumed training, other micro-batches, another backend draw alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luthier.forest.encoders import PERMUTED
from luthier.forest.even import filled_up
from luthier.forest.tree import Forest
from luthier.methods.base import Example
from luthier.recipe import Training
from luthier.training.learner import Learner
from luthier.training.memory_layers import layers_of, replace_forward

WORD = 1 << 64
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64 (Steele et al. 2014)
NOISE, LAYERS = 1, 2  # what a stream of random numbers is for

Keys = NDArray[np.uint64]


@dataclass
class Step:
    """What is drawn at the current step. `tokens`: of its longest sequence; `skipped`: layers by their number."""

    number: int = 0
    tokens: int = 1
    skipped: frozenset[int] = frozenset()


@dataclass
class Disturbance:
    """Noise and skipped layers of a training; `begin` draws them anew for each step."""

    training: Training
    seed: int
    layers: list[nn.Module] = field(default_factory=list)
    step: Step = field(default_factory=Step)

    def begin(self, number: int, rows: Sequence[Example]) -> None:
        """Draw for a step and its rows."""
        tokens = max((len(s.tokens) for row in rows for s in row.sequences), default=1)
        self.step = Step(number, tokens, self.drawn(number) if self.layers else frozenset())

    def drawn(self, number: int) -> frozenset[int]:
        """Layers that a step skips. One in which something is trained stays: a step has to learn something."""
        draws = np.random.default_rng([self.seed, LAYERS, number]).random(len(self.layers))
        skipped = {i for i, draw in enumerate(draws) if draw < self.training.layer_drop}
        learning = [i for i, layer in enumerate(self.layers) if any(p.requires_grad for p in layer.parameters())]
        if learning and skipped.issuperset(learning):
            skipped.remove(max(learning, key=lambda i: draws[i]))
        return frozenset(skipped)


@contextmanager
def disturbed(learner: Learner, training: Training, seed: int, examples: Sequence[Example]) -> Iterator[Disturbance]:
    """Inside it the learner is disturbed whenever it is in training mode. `examples` has one row at least."""
    found = Disturbance(training, seed)
    with ExitStack() as around:
        if training.neftune_alpha:
            around.enter_context(noisy(learner, found))
        if training.layer_drop:
            found.layers = layers_of(learner.lm)
            around.enter_context(skipping(learner, found, examples[0]))
        yield found


# --- layers that are left out ---------------------------------------------------------------------------------------


@contextmanager
def skipping(learner: Learner, found: Disturbance, example: Example) -> Iterator[None]:
    """Layers hand on what they get in the steps that skip them. One pass over `example` shows what form they return."""
    bare: list[bool] = []
    watched = found.layers[0].register_forward_hook(lambda _, __, out: bare.append(isinstance(out, Tensor)))
    was_training = learner.training
    with torch.no_grad():
        learner.eval()
        learner(learner.batch([example]))
        learner.train(was_training)
    watched.remove()
    undo = [
        replace_forward(layer, Skipped(layer, layer.forward, number, found, bare[0]))
        for number, layer in enumerate(found.layers)
    ]
    try:
        yield
    finally:
        for step in reversed(undo):
            step()


@dataclass(frozen=True)
class Skipped:
    """The forward of a layer that some steps leave out. `bare`: it returns a tensor, no tuple."""

    layer: nn.Module
    inner: Any
    number: int
    found: Disturbance
    bare: bool

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the layer is called."""
        if self.layer.training and self.number in self.found.step.skipped:
            return hidden if self.bare else (hidden,)
        return self.inner(hidden, *args, **kwargs)


# --- noise on embeddings --------------------------------------------------------------------------------------------


@contextmanager
def noisy(learner: Learner, found: Disturbance) -> Iterator[None]:
    """Embeddings get noise: uniform in +-alpha / sqrt(L D) (Jain et al. 2023), L the tokens of the step's longest
    sequence, as in a padded batch, D the width.
    """
    lm: Any = learner.lm
    forests: list[Forest] = []

    def see(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        forests[:] = [arguments[0].forest]

    def add(module: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return out
        is_flat = learner.backend != "padded"
        keys = flat_keys(filled_up(lm, forests[0])) if is_flat else keys_of(arguments[0], lm.config.model_type)
        size = found.training.neftune_alpha / math.sqrt(found.step.tokens * out.shape[-1])
        return out + size * uniform(keys, out, (found.seed, found.step.number)).to(out.dtype)

    hooks = [learner.register_forward_pre_hook(see), lm.get_input_embeddings().register_forward_hook(add)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def keys_of(tokens: Tensor, family: str) -> Keys:
    """Keys [S, T] of padded tokens [S, T]; in XLNet time comes first in both."""
    ids = tokens.detach().cpu().numpy()
    return prefix_keys(ids.T).T if family == PERMUTED else prefix_keys(ids)


def flat_keys(forest: Forest) -> Keys:
    """Keys [1, N] of a forest's tokens, the same as in its padded batch."""
    keys_ST = prefix_keys(forest.padded()[0])
    return keys_ST[forest.first_N, forest.positions_N][None]


def prefix_keys(tokens_ST: NDArray[np.int64]) -> Keys:
    """A number for each token that depends on it and on all before it in its sequence: equal beginnings, equal keys."""
    keys = np.empty(tokens_ST.shape, np.uint64)
    last = np.zeros(len(tokens_ST), np.uint64)
    for time in range(tokens_ST.shape[1]):
        last = last * np.uint64(GOLDEN) + tokens_ST[:, time].astype(np.uint64) + np.uint64(1)
        last = (last ^ (last >> np.uint64(29))) * np.uint64(FIRST)
        keys[:, time] = last
    return keys


def uniform(keys: Keys, like: Tensor, seeds: tuple[int, int]) -> Tensor:
    """Numbers in [-1, 1), one for each key and dimension: [*keys, D] of `like`'s device, float32.

    SplitMix64 of key + (d + 1) golden; products wrap, and int64 shifts are made logical by a mask.
    """
    start = (seeds[0] * SECOND + seeds[1] * FIRST + NOISE) % WORD
    base = torch.from_numpy((keys ^ np.uint64(start)).astype(np.int64)).to(like.device)
    steps = torch.arange(1, like.shape[-1] + 1, device=like.device) * signed(GOLDEN)
    mixed = base[..., None] + steps
    mixed = (mixed ^ shifted(mixed, 30)) * signed(FIRST)
    mixed = (mixed ^ shifted(mixed, 27)) * signed(SECOND)
    mixed = mixed ^ shifted(mixed, 31)
    return shifted(mixed, 40).float() * 2.0**-23 - 1.0  # 24 bits are exact in float32


def shifted(values: Tensor, places: int) -> Tensor:
    """A logical shift to the right."""
    return (values >> places) & ((1 << (64 - places)) - 1)


def signed(value: int) -> int:
    """An unsigned 64-bit number as int64 writes it."""
    return value - WORD if value >= WORD // 2 else value
