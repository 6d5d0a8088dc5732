"""Prompt and prefix tuning in PEFT's format: learned rows before every text, as embeddings or as keys and values.

PEFT's own wrapper puts them into the padded batch of a whole model; here the model carries them (`forest.virtual`), so
that the forest, scoring and decoding have them too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, DynamicCache

from luthier.adapters.base import CONFIG, WEIGHTS, Plain, Single, require_adapter
from luthier.errors import ModelError
from luthier.forest.encoders import is_encoder
from luthier.forest.virtual import States, Virtual
from luthier.recipe.adapters import Prefix, Prompt, VirtualTokens

KEY = "prompt_embeddings"  # PEFT's name of the tensor


class Rows(Plain):
    """A model with learned rows [V, ...] before every text; `folder` is where the model came from."""

    def __init__(self, model: nn.Module, rows: Tensor, folder: str):
        super().__init__(model)
        self.prompt_embeddings = nn.Parameter(rows.detach().clone().contiguous())
        self.folder = folder


class VirtualKind(Single):
    """What the two kinds share; see AdapterKind."""

    peft_type: ClassVar[str]

    def wear(self, wrapper: Rows) -> Rows:
        """Let the model carry the wrapper's rows."""
        raise NotImplementedError

    def config(self, wrapper: Rows) -> PromptTuningConfig | PrefixTuningConfig:
        """PEFT's configuration of it."""
        raise NotImplementedError

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> Rows:
        """A saved one. ModelError where it is of another form, or of another width."""
        require_adapter(folder)
        state = load_file(str(folder / WEIGHTS))
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if list(state) != [KEY] or config.get("prefix_projection"):
            raise ModelError(
                f"{folder}: holds {', '.join(state)}; luthier reads learned rows as they stand ({KEY}), without a "
                "network that makes them."
            )
        wrapper = Rows(model, state[KEY], str(config.get("base_model_name_or_path") or ""))
        wrapper.prompt_embeddings.requires_grad_(trainable)
        wanted = width_of(model, self.peft_type)
        if state[KEY].shape[1] != wanted:
            raise ModelError(
                f"{folder / WEIGHTS}: its rows have {state[KEY].shape[1]} numbers, and those of this model {wanted}. "
                "Give the model that they were trained on."
            )
        return self.wear(wrapper)

    def save(self, wrapper: Any, folder: Path) -> None:
        """In PEFT's format."""
        save_file({KEY: wrapper.prompt_embeddings.detach().cpu()}, str(folder / WEIGHTS), {"format": "pt"})
        self.config(wrapper).save_pretrained(str(folder))

    def restore(self, wrapper: Any, folder: Path) -> None:
        """The saved rows, copied back."""
        with torch.no_grad():
            wrapper.prompt_embeddings.copy_(load_file(str(folder / WEIGHTS))[KEY])

    def fold(self, model: nn.Module, folder: Path) -> None:
        """Refused: they stand before the text, not in the weights."""
        raise ModelError(
            f"{folder}: learned rows before a text cannot be written into the weights. Use the adapter as it is."
        )

    def remove(self, wrapper: Any) -> None:
        """The model alone."""
        del wrapper.base_model.model.virtual_tokens


class PromptKind(VirtualKind):
    """Prompt tuning (Lester et al. 2021): rows [V, D] in the place of embeddings."""

    peft_type: ClassVar[str] = "PROMPT_TUNING"

    def add(self, model: nn.Module, settings: Prompt, seed: int, base_folder: Path) -> Rows:
        """Rows that begin as the embeddings of tokens."""
        tokens_V = first_tokens(model, settings, seed, base_folder)
        with torch.no_grad():
            rows_VD = model.get_input_embeddings()(tokens_V)  # type: ignore[operator]
        return self.wear(Rows(model, rows_VD, str(base_folder)))

    def wear(self, wrapper: Rows) -> Rows:
        """As embeddings."""
        rows = wrapper.prompt_embeddings
        wrapper.base_model.model.virtual_tokens = Virtual(len(rows), embeddings=lambda: rows)  # type: ignore[union-attr]
        return wrapper

    def config(self, wrapper: Rows) -> PromptTuningConfig:
        """PEFT's configuration."""
        model: Any = wrapper.base_model.model
        size, width = wrapper.prompt_embeddings.shape
        _, heads, _ = state_shape(model)
        return PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=size, token_dim=width, num_transformer_submodules=1,
            num_attention_heads=heads, num_layers=model.config.num_hidden_layers,
            base_model_name_or_path=wrapper.folder, inference_mode=True,
        )  # fmt: skip


class PrefixKind(VirtualKind):
    """Prefix tuning (Li and Liang 2021): rows [V, layers * 2 * heads * D], a key and a value for each layer."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"

    def add(self, model: nn.Module, settings: Prefix, seed: int, base_folder: Path) -> Rows:
        """Rows that begin as the keys and values of tokens."""
        tokens_V = first_tokens(model, settings, seed, base_folder)
        return self.wear(Rows(model, flat(states_of(model, tokens_V)), str(base_folder)))

    def wear(self, wrapper: Rows) -> Rows:
        """As keys and values."""
        rows, model = wrapper.prompt_embeddings, wrapper.base_model.model
        layers, heads, width = state_shape(model)

        def states() -> States:
            """[V, layers * 2 * K * D] -> a key and a value [1, K, V, D] for each layer."""
            parts = rows.view(len(rows), layers, 2, heads, width).permute(1, 2, 3, 0, 4).unsqueeze(2)
            return [(key, value) for key, value in parts]

        model.virtual_tokens = Virtual(len(rows), states=states)  # type: ignore[union-attr]
        return wrapper

    def config(self, wrapper: Rows) -> PrefixTuningConfig:
        """PEFT's configuration."""
        layers, heads, width = state_shape(wrapper.base_model.model)
        return PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=len(wrapper.prompt_embeddings), token_dim=heads * width,
            num_transformer_submodules=1, num_attention_heads=heads, num_layers=layers,
            encoder_hidden_size=heads * width, base_model_name_or_path=wrapper.folder, inference_mode=True,
        )  # fmt: skip


def first_tokens(model: nn.Module, settings: VirtualTokens, seed: int, base_folder: Path) -> Tensor:
    """The tokens [V] that learned rows begin as: those of a text, repeated, or some of the vocabulary by chance.

    Raises:
        ModelError: the model reads both sides, or the text has no tokens.
    """
    refuse_encoder(model, settings.kind)
    config: Any = model.config
    device = next(model.parameters()).device
    if not settings.text:
        chance = torch.Generator().manual_seed(seed)
        return torch.randint(config.get_text_config().vocab_size, (settings.tokens,), generator=chance).to(device)
    tokenizer = AutoTokenizer.from_pretrained(base_folder, trust_remote_code=False)
    tokens = tokenizer(settings.text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ModelError(f"tune.adapter.text: {settings.text!r} has no tokens. Give words, or leave it out.")
    return torch.tensor((tokens * settings.tokens)[: settings.tokens], device=device)


def refuse_encoder(model: nn.Module, kind: str) -> None:
    """ModelError for a model that reads both sides: it has no keys that come before."""
    config: Any = model.config
    if is_encoder(config):
        raise ModelError(
            f'tune.adapter.kind: {kind} needs a decoder, and "{config.model_type}" is an encoder. Use lora.'
        )


@torch.no_grad()
def states_of(model: Any, tokens_V: Tensor) -> States:
    """Keys and values [1, K, V, D] that each layer makes of tokens, by the family's own attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    cache = DynamicCache()
    model(input_ids=tokens_V[None], past_key_values=cache, use_cache=True)
    model.set_attn_implementation(before)
    return [(layer.keys, layer.values) for layer in cache.layers]


def flat(states: States) -> Tensor:
    """PEFT's form of a prefix: [V, layers * 2 * K * D]."""
    parts = torch.stack([torch.stack([key[0], value[0]]) for key, value in states])  # [L, 2, K, V, D]
    return parts.permute(3, 0, 1, 2, 4).reshape(parts.shape[3], -1)


def state_shape(model: Any) -> tuple[int, int, int]:
    """Number of layers, of key heads, and width of a head."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width


def width_of(model: nn.Module, peft_type: str) -> int:
    """Numbers in a learned row."""
    if peft_type == PromptKind.peft_type:
        return int(model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    layers, heads, width = state_shape(model)
    return layers * 2 * heads * width
