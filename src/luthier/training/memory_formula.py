"""What a training step takes, on paper: a formula of the model's sizes and of one pass's tokens.

Per token and layer autograd keeps (floats; D hidden, A all query heads, K all key heads, M the MLP's width):

    two norms       4 D      input and result of each
    attention       2 A + 2 K    query, key, value, and what the heads say; no matrix of weights is ever kept
    MLP             3 M      gate, up and their product (2 M where there is no gate)

Checkpointing keeps the input of a layer, D, and once the rest of the one layer that is being worked out again. To that
come the gradients that flow through one layer, a chunk of the output head's logits, gradients of what is trained, and
the optimizer's state. Two measured steps (memory_trial.py) say by what factor a machine, an adapter and an attention
backend differ from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.errors import TrainingError
from luthier.forest.head import CHUNK_ELEMENTS
from luthier.recipe.memory import Memory
from luthier.training.learner import Learner

ROWS_OF_HEAD = 6  # hidden rows, their slopes, and each target's product, forward and backward


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `attention`, `keys`: query and key heads times their width. `item_bytes`: of one number.

    `trains_head`: whether the output head (or the embeddings that it is tied to) learns.
    """

    layers: int
    hidden: int
    attention: int
    keys: int
    mlp: int
    gated: bool
    vocabulary: int
    item_bytes: int
    trains_head: bool


@dataclass(frozen=True)
class Load:
    """One pass: tokens through the layers, rows through the output head."""

    tokens: int
    head_rows: int


def shape_of(learner: Learner) -> Shape:
    """The sizes of a learner's model, from its configuration; families name them differently.

    Raises:
        TrainingError: a configuration that does not tell them.
    """
    whole: Any = learner.lm.config
    config = whole.get_text_config()
    hidden = size_of(config, "hidden_size")
    heads = size_of(config, "num_attention_heads") or 1
    width = size_of(config, "head_dim") or hidden // heads
    key_heads = size_of(config, "num_key_value_heads") or heads
    mlp = size_of(config, "intermediate_size") or size_of(config, "n_inner") or 4 * hidden
    gated = any(name.endswith("up_proj") for name, _ in learner.lm.named_modules())
    vocabulary = size_of(config, "vocab_size")
    item_bytes = next(learner.lm.parameters()).element_size()
    layers = size_of(config, "num_hidden_layers")
    if not (hidden and layers):
        raise TrainingError(f"the configuration of a {whole.model_type} does not tell its width or number of layers")
    top: Any = getattr(learner.lm, "get_output_embeddings", lambda: None)()
    trains_head = top is not None and any(parameter.requires_grad for parameter in top.parameters())
    return Shape(layers, hidden, heads * width, key_heads * width, mlp, gated, vocabulary, item_bytes, trains_head)


def size_of(config: Any, name: str) -> int:
    """A size in a configuration, 0 where it has none; that of the first layer where layers differ."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers' configurations whose layers differ (Gemma 4) do not guess which is meant
        value = getattr(config.per_layer_config[0], name, None)
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value if isinstance(value, int) else 0


def layer_elements(shape: Shape) -> int:
    """What one layer keeps of a token."""
    return 4 * shape.hidden + 2 * (shape.attention + shape.keys) + (3 if shape.gated else 2) * shape.mlp


def kept_elements(shape: Shape, memory: Memory) -> int:
    """What all layers keep of a token between the forward and the backward pass."""
    whole, way = layer_elements(shape), memory.checkpointing
    if memory.offload_activations:
        return whole  # one layer is on its way at a time
    if way == "off":
        return shape.layers * whole
    if way == "selective":
        return shape.layers * (whole - 2 * shape.hidden - shape.mlp)
    every = 1 if isinstance(way, str) else way
    recomputed = -(-shape.layers // every)
    return recomputed * shape.hidden + (shape.layers - recomputed) * whole + whole


def flowing_elements(shape: Shape) -> int:
    """Gradients of a token that are there at once while they flow back through a layer."""
    in_mlp = (3 if shape.gated else 2) * shape.mlp
    in_attention = 3 * (shape.attention + shape.keys)
    return 2 * shape.hidden + max(in_mlp, in_attention)


def head_bytes(shape: Shape, load: Load) -> int:
    """What the output head takes: the rows that are read, a chunk of their logits twice, a trained one's gradient."""
    if not load.head_rows:
        return 0
    chunk = min(load.head_rows * shape.vocabulary, max(CHUNK_ELEMENTS, shape.vocabulary))
    elements = ROWS_OF_HEAD * load.head_rows * shape.hidden + shape.trains_head * shape.vocabulary * shape.hidden
    return shape.item_bytes * elements + 2 * 4 * chunk


def activation_bytes(shape: Shape, load: Load, memory: Memory) -> int:
    """What a pass takes above weights, gradients and the optimizer's state."""
    embedded = 2 * shape.hidden
    kept = load.tokens * (kept_elements(shape, memory) + embedded) * shape.item_bytes
    flowing = load.tokens * flowing_elements(shape) * shape.item_bytes
    return kept + max(flowing, head_bytes(shape, load))
