"""A model cut in two between its layers: what the lower part says of a forest, and the rest worked out from that.

It works on the layers' forwards from outside, for one pass at a time, so model code, the forest's attention and the
adapters above know nothing of it: in a pass over the lower part the layers above hand on what they get, in a pass over
the upper part those below do, and the last of them hands on the given states instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luthier.errors import TrainingError
from luthier.forest.encoders import PERMUTED
from luthier.forest.even import even_length, even_size
from luthier.forest.forward import backbone, hidden_states
from luthier.forest.tree import Forest, build_forest
from luthier.records import Sequence
from luthier.training.height import rungs
from luthier.training.kept import named_weights
from luthier.training.learner import Learner
from luthier.training.memory_layers import layers_of, replace_forward

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """`lower` and `upper` layers of a model. `form` is the length of the tuple that a layer returns, 0 for a tensor."""

    lm: nn.Module
    backend: str
    lower: list[nn.Module]
    upper: list[nn.Module]
    form: int

    @torch.no_grad()
    def below(self, forest: Forest) -> Tensor:
        """What comes out of the lower layers, [N, D]."""
        found: list[Tensor] = []
        places = iter(layouts(self.lm, forest, self.backend))
        inner = self.lower[-1].forward

        def record(*args: Any, **kwargs: Any) -> Any:
            out = inner(*args, **kwargs)
            hidden_BTD = out[0] if self.form else out
            rows_BT = torch.from_numpy(next(places)).to(hidden_BTD.device)
            if not found:
                found.append(hidden_BTD.new_empty(forest.num_tokens, hidden_BTD.shape[-1]))
            found[0][rows_BT[rows_BT >= 0]] = hidden_BTD[rows_BT >= 0]
            return out

        with forwards([(self.lower[-1], record), *((layer, self.hand_on) for layer in self.upper)]):
            hidden_states(self.lm, forest, self.backend)
        return found[0]

    def above(self, forest: Forest, states_ND: Tensor) -> Tensor:
        """The last hidden states [N, D], from what came out of the lower layers."""
        places = iter(layouts(self.lm, forest, self.backend))

        def replay(*_: Any, **__: Any) -> Any:
            rows_BT = torch.from_numpy(next(places)).to(states_ND.device)
            return self.formed(states_ND[rows_BT.clamp(min=0)])  # padding may hold anything: nobody looks at it

        with forwards([*((layer, self.hand_on) for layer in self.lower[:-1]), (self.lower[-1], replay)]):
            return hidden_states(self.lm, forest, self.backend)

    def hand_on(self, hidden_BTD: Tensor, *_: Any, **__: Any) -> Any:
        """The forward of a layer that does nothing."""
        return self.formed(hidden_BTD)

    def formed(self, hidden_BTD: Tensor) -> Any:
        """Hidden states as a layer of this model returns them."""
        return (hidden_BTD, *[None] * (self.form - 1)) if self.form else hidden_BTD

    def frozen_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights that `below` depends on, by name (and a few that it does not)."""
        above = {id(p) for layer in self.upper for _, p in named_weights(layer)}
        return ((name, p) for name, p in named_weights(backbone(self.lm)) if id(p) not in above)


def cut_below(learner: Learner) -> Cut:
    """The cut right below the lowest layer in which something is trained.

    Raises:
        TrainingError: there is nothing below, or it would not say the same of a row at each step.
    """
    lm: Any = learner.lm
    layers = layers_of(lm)
    size = len(layers) - max(rungs(learner).values(), default=0)
    if lm.config.model_type == PERMUTED:
        raise TrainingError(
            f"tune.cache_below: {PERMUTED} has two streams of states, which are not kept. Leave it out."
        )
    if size < 1:
        raise TrainingError(
            "tune.cache_below: what is trained reaches down to the lowest layer, so there is nothing below it to "
            "compute once. Train the last layers only (tune.adapter.last), or leave it out."
        )
    refuse_dropout(backbone(lm), layers[size:])
    return Cut(lm, learner.backend, layers[:size], layers[size:], form_of(learner, layers[0]))


def refuse_dropout(body: nn.Module, upper: list[nn.Module]) -> None:
    """TrainingError where something random lies below the cut."""
    free = {id(module) for layer in upper for module in layer.modules()}
    for name, module in body.named_modules():
        share = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
        if id(module) not in free and isinstance(share, float) and share > 0:
            raise TrainingError(
                f"tune.cache_below: {name} drops {share:g} of what it gets, others at each step, so what the frozen "
                "layers say of a row is never the same. Set that to 0 in the model's config.json, or leave this out."
            )


@torch.no_grad()
def form_of(learner: Learner, layer: nn.Module) -> int:
    """The length of the tuple that a layer returns, 0 where it returns a tensor; one pass over one token shows it."""
    seen: list[int] = []
    watched = layer.register_forward_hook(lambda _, __, out: seen.append(0 if isinstance(out, Tensor) else len(out)))
    try:
        hidden_states(learner.lm, build_forest([Sequence((0,))], causal=learner.causal), learner.backend)
    finally:
        watched.remove()
    return seen[0]


@contextmanager
def forwards(chosen: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within it these modules have other forwards."""
    with ExitStack() as undo:
        for module, forward in chosen:
            undo.callback(replace_forward(module, forward))
        yield


def layouts(lm: nn.Module, forest: Forest, backend: str) -> list[Ints]:
    """For each pass that the model's body makes over a forest: the forest row of each place [B, T], -1 for padding."""
    if backend != "padded":
        idle = even_size(lm, forest.num_tokens) - forest.num_tokens
        return [np.concatenate([np.arange(forest.num_tokens), np.full(idle, -1)])[None]]
    groups = [list(range(len(forest.sequences)))] if forest.causal else forest.length_groups()
    return [padded_rows(lm, forest, group) for group in groups]


def padded_rows(lm: nn.Module, forest: Forest, group: list[int]) -> Ints:
    """The same for the padded batch of some sequences. Tokens that are never read have no row."""
    length = even_length(lm, max(len(forest.sequences[s].tokens) for s in group))
    rows_BT = np.full((len(group), length), -1, np.int64)
    for place, s in enumerate(group):
        path = forest.rows_of(s)
        rows_BT[place, : len(path)] = path
    return rows_BT
