"""Tiny random models of each proven family, and a plain reference that knows nothing of forests."""

import torch
import transformers as hf
from torch import nn

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GQA = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "attn_pdrop": 0.0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**SMALL),
    "mistral": lambda: hf.MistralConfig(**SMALL, sliding_window=5),
    "qwen2": lambda: hf.Qwen2Config(**SMALL),
    "qwen3": lambda: hf.Qwen3Config(**SMALL, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**SMALL, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0,
                                      final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5,
                                               layer_types=["sliding_attention", "full_attention"],
                                               query_pre_attn_scalar=8),
    "phi3": lambda: hf.Phi3Config(**SMALL, attention_dropout=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**NO_GQA, attention_dropout=0.0, hidden_dropout=0.0, rotary_pct=0.5),
    "olmo2": lambda: hf.Olmo2Config(**SMALL),
    "smollm3": lambda: hf.SmolLM3Config(**SMALL, no_rope_layers=[1, 0]),
}  # fmt: skip


def tiny_model(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with weights large enough that attention is far from uniform."""
    torch.manual_seed(7)
    model = hf.AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.to(dtype).eval()


def plain_logprobs(model: nn.Module, sequences) -> torch.Tensor:
    """log p of every target, one sequence at a time through the family's own eager code: no padding, no sharing."""
    model.set_attn_implementation("eager")
    values = []
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([sequence.tokens]), use_cache=False).logits[0]
        scores = torch.log_softmax(logits, dim=-1)
        asked = sequence.wanted or [sequence.tokens[target] for target in sequence.targets]
        values += [scores[target - 1, token] for target, token in zip(sequence.targets, asked, strict=True)]
    return torch.stack(values)
