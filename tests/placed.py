"""For the tests of adapters that stand at places of a model: tiny models of all families, and adapters put on by hooks.

The hooks know the families by a table of their own, and know nothing of how luthier finds or replaces modules.
"""

from collections.abc import Callable

import torch
from torch import nn

from encoders import CONFIGS as ENCODERS
from encoders import tiny_encoder
from families import CONFIGS as DECODERS
from families import tiny_model

FAMILIES = [*sorted(DECODERS), *sorted(ENCODERS)]
LLAMA_LIKE = ("self_attn.o_proj", "mlp.down_proj", "mlp")
BERT_LIKE = ("attention.output.dense", "output.dense", "")
# in each layer: the last linear layer of the attention, that of the MLP, and the MLP where it is one module
PARTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"), LLAMA_LIKE),
    "smollm3": LLAMA_LIKE,
    "gpt2": ("attn.c_proj", "mlp.c_proj", "mlp"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", "mlp"),
    **dict.fromkeys(("bert", "camembert", "deberta", "deberta-v2", "electra", "roberta", "xlm-roberta"), BERT_LIKE),
    "distilbert": ("attention.out_lin", "ffn.lin2", "ffn"),
    "modernbert": ("attn.Wo", "mlp.Wo", "mlp"),
    "xlnet": ("", "ff.layer_2", ""),
}


def tiny(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny random model of a family, in evaluation mode and frozen."""
    model = tiny_model(family, dtype) if family in DECODERS else tiny_encoder(family, dtype)
    return model.requires_grad_(False)


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers with their names."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    name, found = lists[0]
    return [(f"{name}.{i}", layer) for i, layer in enumerate(found)]


def answers(model: nn.Module, length: int = 9) -> torch.Tensor:
    """Logits of two made-up rows."""
    size = model.config.vocab_size
    rows = torch.stack([torch.arange(length) * 7 + 3, torch.arange(length) * 5 + 4]) % (size - 5) + 5
    extra = {"use_cache": False} if model.config.model_type in DECODERS else {}
    return model(input_ids=rows, **extra).logits


def add_after(model: nn.Module, part: int, function: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """What part 0 or 1 of PARTS gives becomes function(place, what it gives), by hooks."""
    path = PARTS[model.config.model_type][part]
    for name, layer in layers_of(model):
        place = f"{name}.{path}"
        layer.get_submodule(path).register_forward_hook(lambda _m, _i, out, place=place: function(place, out))


def add_beside(model: nn.Module, function: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """function(place, what the MLP reads) is added to what its last linear layer gives, by hooks."""
    _, last, whole = PARTS[model.config.model_type]
    for name, layer in layers_of(model):
        read: list[torch.Tensor] = []
        first = layer.get_submodule(whole or "intermediate")
        place = f"{name}.{whole or 'output'}"
        first.register_forward_pre_hook(lambda _m, inputs, read=read: read.append(inputs[0]))
        layer.get_submodule(last).register_forward_hook(
            lambda _m, _i, out, read=read, place=place: out + function(place, read.pop())
        )


def shake(wrapper: nn.Module, size: float = 0.2) -> dict[str, torch.Tensor]:
    """Give an adapter random parameters; returns copies of them by the names under which they are saved."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in wrapper.state().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return {name: parameter.detach().clone() for name, parameter in wrapper.state().items()}


def pulled_gradients(logits: torch.Tensor, parameters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of a made-up function of the logits."""
    loss = (logits.double() * torch.arange(logits.numel()).view_as(logits).cos()).sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], share: float) -> None:
    """Equal up to `share` of the largest."""
    assert found.keys() == wanted.keys()
    scale = max(float(tensor.detach().abs().max()) for tensor in wanted.values())
    assert scale > 0
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).detach().abs().max()) <= share * scale, name
