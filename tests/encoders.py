"""Tiny random encoders of each proven family, their tokenizer, and a plain reference that knows nothing of ours."""

from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

ROLES = ("pad_token", "cls_token", "sep_token", "mask_token", "unk_token")
SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]")
SENTENCES = (
    "the old lute hangs on the wall", "the new lute lies on the table", "the maker glues the neck to the body",
    "the player tunes the strings of the lute", "the strings of the old lute are made of gut",
    "the body of the new lute is made of maple",
)  # fmt: skip
PIECES = ("##s", "##r", "##ing", "tune", "play", "glue", "wood", "string", "##works")
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
VOCABULARY = (*SPECIALS, *PIECES, *(word for word in WORDS if word not in PIECES))
SIZE = len(VOCABULARY)

SMALL = {"vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2}  # fmt: skip
DEBERTA = {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
XLNET = {"vocab_size": SIZE, "d_model": 32, "d_inner": 48, "n_layer": 2, "n_head": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

CONFIGS = {
    "bert": lambda: hf.BertConfig(**SMALL),
    "camembert": lambda: hf.CamembertConfig(**{**SMALL, "pad_token_id": 4}),
    "deberta": lambda: hf.DebertaConfig(**DEBERTA, position_biased_input=False),
    "deberta-v2": lambda: hf.DebertaV2Config(
        **DEBERTA, position_biased_input=False, share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
    ),
    "distilbert": lambda: hf.DistilBertConfig(
        vocab_size=SIZE, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64, pad_token_id=0
    ),
    "electra": lambda: hf.ElectraConfig(**SMALL, embedding_size=16),
    "modernbert": lambda: hf.ModernBertConfig(
        **SMALL, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=6, decoder_bias=True
    ),
    "roberta": lambda: hf.RobertaConfig(**SMALL),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**SMALL),
    "xlnet": lambda: hf.XLNetConfig(**XLNET),
}  # fmt: skip
LEGACY_FREE = "deberta-v2 of version 3"  # the same family with the head that its later checkpoints have
MASKED = [*(family for family in sorted(CONFIGS) if family != "xlnet"), LEGACY_FREE]


def tiny_encoder(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with weights large enough that attention is far from uniform; its configuration asks for dropout."""
    config = CONFIGS["deberta-v2" if family == LEGACY_FREE else family]()
    if family == LEGACY_FREE:
        config.legacy = False
    kind = hf.AutoModelForCausalLM if family == "xlnet" else hf.AutoModelForMaskedLM
    torch.manual_seed(7)
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.to(dtype).eval()


def tiny_encoder_tokenizer(family: str = "bert") -> hf.PreTrainedTokenizerFast:
    """WordPiece over VOCABULARY; XLNet's puts its special tokens behind the text."""
    core = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(VOCABULARY)}, **{ROLES[-1]: SPECIALS[-1]}))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "$A [SEP] [CLS]" if family == "xlnet" else "[CLS] $A [SEP]"
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(ROLES, SPECIALS, strict=True)))


def tiny_encoder_folder(path: Path, family: str = "bert", model: nn.Module | None = None) -> Path:
    """A model folder as a hub would give it."""
    (model or tiny_encoder(family)).save_pretrained(path)
    tiny_encoder_tokenizer(family).save_pretrained(path)
    return path


def plain_logprobs(model: nn.Module, sequences) -> torch.Tensor:
    """log p of every target from its own place, one sequence at a time through transformers' whole model."""
    values = []
    for sequence in sequences:
        scores = torch.log_softmax(model(input_ids=torch.tensor([sequence.tokens])).logits[0], dim=-1)
        asked = sequence.wanted or [sequence.tokens[target] for target in sequence.targets]
        values += [scores[target, token] for target, token in zip(sequence.targets, asked, strict=True)]
    return torch.stack(values)
