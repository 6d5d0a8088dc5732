"""A tiny model folder, written from nothing: what a hub would give, small enough for a test.

The tokenizer is byte-level (any text can be said) and knows WORDS as single tokens, so ids can be worked out by
hand: the special tokens are 0, 1, 2; the words follow in their order; the 256 bytes come last.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)
WORDS = (
    "user", "assistant", "Classify", " the", " text", " into", " one", " of", " categories", ".", "Text", ":",
    "Category", " is", ",", "Sports", "Politics", " Sports", " Politics", " Arts", "Arts", " And", " Culture",
    " goal", " team", " won", " vote", " law", " senate", " painter", " museum", " a", " match", " passed", " new",
    " in", " by", " song", "\n", "\n\n",
)  # fmt: skip
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level tokens with whole words; `\\n`, spaces and everything else survive a round trip."""
    byte_characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(word)[0][0] for word in WORDS]
    pieces = [*SPECIALS, *words, *(character for character in byte_characters if character not in words)]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END if template else END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIALS),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_folder(path: Path, template: bool | str = True, layers: int = 2) -> Path:
    """Write a llama of two layers with its tokenizer; `template` is CHATML, none, or a template's source."""
    tokenizer = tiny_tokenizer(CHATML if template is True else template or None)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=draw) * 0.15
            parameter.copy_(noise + 1 if "norm" in name else noise)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
