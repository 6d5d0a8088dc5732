"""What a transformers model is made of: its layers, its embeddings, its norms, its linear layers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.forest.forward import backbone


def layer_names(model: nn.Module) -> list[str]:
    """The names of a model's layers, lowest first.

    Raises:
        ModelError: a family whose layers do not stand in one list.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    unread = unread_parts(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and not is_inside(name, unread):
            return [f"{name}.{i}" for i in range(count)]
    raise ModelError(
        f'tune.adapter.last: the layers of the family "{config.model_type}" do not stand in one list. Leave it out.'
    )


def last_layers(model: nn.Module, count: int) -> list[str]:
    """The names of the last `count` layers, lowest first. ModelError where there are fewer."""
    names = layer_names(model)
    if count > len(names):
        raise ModelError(f"tune.adapter.last: {count} layers are asked for, and the model has {len(names)}.")
    return names[len(names) - count :]


def is_inside(name: str, modules: list[str]) -> bool:
    """Whether a name is that of one of the modules or of something in them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def unread_parts(model: nn.Module) -> list[str]:
    """What stands beside the text's part in a model that takes pictures or sound too, by name: no text reaches it."""
    lm: Any = model
    if lm.config.get_text_config() is lm.config or not hasattr(lm, "get_decoder"):
        return []
    body, text = backbone(model), lm.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    beside = [child for child in body.children() if all(module is not text for module in child.modules())]
    return [names[id(child)] for child in beside] if any(module is text for module in body.modules()) else []


def embedding_names(model: nn.Module) -> list[str]:
    """Modules that turn tokens and places into vectors, and the output head."""
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or any(module is end for end in ends)
    ]


def norm_names(model: nn.Module) -> list[str]:
    """Modules that normalise."""
    return [name for name, module in model.named_modules() if "Norm" in type(module).__name__]


def linear_names(model: nn.Module) -> list[str]:
    """Linear layers but the output head: what PEFT calls all-linear."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
