"""A tiny teacher for tests/tiny.py's student, rows for both, and the teacher's logits by transformers alone."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.methods.base import Example
from luthier.recipe.methods import Distil
from luthier.records import Sequence
from luthier.stages.teacher import local_teacher
from tiny import tiny_tokenizer


def wide_folder(path: Path, vocabulary: int) -> Path:
    """A teacher of another width and depth than tests/tiny.py's student, sure of what it says."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw) * (0.4 if "lm_head" in name else 0.2)
            parameter.copy_(noise + 1 if "norm" in name else noise)
        head = model.lm_head.weight
        head[tokenizer.eos_token_id] = head[3:7].sum(0)  # it often ends its turn
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def settings_of(teacher: Path, **changes) -> Distil:
    return Distil(teacher=str(teacher), **{"top_k": 4, **changes})


def some_examples(count: int = 8) -> list[Example]:
    """Rows of different lengths, weights and targets, some sharing their beginning."""
    draw = np.random.default_rng(3)
    examples = []
    for row in range(count):
        tokens = (1, 3, 7 + row % 2, *draw.integers(3, 40, 4 + row % 3).tolist())
        targets = tuple(range(3, len(tokens)))
        weights = tuple(1.0 if index % 3 else 0.5 for index in targets)
        examples.append(Example((Sequence(tokens, targets, weights),), num_bytes=10 + row, key=str(row)))
    return examples


def taught(settings: Distil, student, examples: list[Example]) -> list[Example]:
    teacher = local_teacher(settings, student, "auto", 40)
    found = teacher.candidates(examples)
    return [replace(example, teacher=each) for example, each in zip(examples, found, strict=True)]


@cache
def plain_model(path: Path) -> LlamaForCausalLM:
    """In float64, transformers alone."""
    return LlamaForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")


@torch.no_grad()
def plain_logits(path: Path, tokens: tuple[int, ...]) -> torch.Tensor:
    """Logits [T, V] of one sequence."""
    return plain_model(path)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
