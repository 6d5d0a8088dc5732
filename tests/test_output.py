"""Families that are not proven: their head's quirks, and the trial that refuses what is not known."""

import json
import re
import shutil

import pytest
import torch
import transformers as hf

from families import SMALL, plain_logprobs
from luthier.adapters import add_adapter, folded
from luthier.adapters.registry import kind_of
from luthier.errors import ModelError
from luthier.forest.forward import choose_backend, hidden_states, logprobs, set_backend
from luthier.forest.output import output_head
from luthier.forest.tree import build_forest
from luthier.models import load_model
from luthier.models.trial import refuse_other_head
from luthier.recipe.adapters import Lora
from luthier.records import Sequence
from tiny import tiny_tokenizer

NO_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA4 = {**SMALL, "head_dim": 8, "sliding_window": 5, "vocab_size_per_layer_input": 97,
          "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"],
          "final_logit_softcapping": 3.0}  # fmt: skip
MAMBA_OF_H1 = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
QUIRKS = {
    "hyperclovax": lambda: hf.HyperCLOVAXConfig(**SMALL, logits_scaling=0.25),
    "granite": lambda: hf.GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere": lambda: hf.CohereConfig(**SMALL, logit_scale=0.25),
    "falcon_h1": lambda: hf.FalconH1Config(**SMALL, **MAMBA_OF_H1, lm_head_multiplier=0.3),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(**{**SMALL, "num_key_value_heads": 1}, lru_width=32,
                                                       attention_window_size=16, logits_soft_cap=3.0),
    "gemma4": lambda: hf.Gemma4Config(text_config=GEMMA4, vision_config=NO_VISION, audio_config=None),
    "modernbert-decoder": lambda: hf.ModernBertDecoderConfig(**SMALL, cls_token_id=1, sep_token_id=2),
    "bert": lambda: hf.BertConfig(**SMALL, is_decoder=True),
    "roberta": lambda: hf.RobertaConfig(**SMALL, is_decoder=True),
    "mpt": lambda: hf.MptConfig(vocab_size=97, d_model=32, n_heads=4, n_layers=2, logit_scale="inv_sqrt_d_model"),
    "llama4_text": lambda: hf.Llama4TextConfig(**SMALL, head_dim=8, num_local_experts=2),
}  # fmt: skip
SEQUENCES = [
    Sequence((5, 9, 30, 44, 12, 7), (2, 3, 4, 5), (1.0,) * 4),
    Sequence((5, 9, 30, 31, 8, 77, 13, 4, 15), (3, 4, 7, 8), (1.0,) * 4),
]


def random_model(config):
    torch.manual_seed(3)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


@pytest.mark.parametrize("family", QUIRKS)
@torch.no_grad()
def test_the_heads_quirks_of_families_that_run_padded(family):
    model = random_model(QUIRKS[family]())
    wanted = plain_logprobs(model, SEQUENCES)
    backend, _ = choose_backend(model)
    set_backend(model, backend)
    forest = build_forest(SEQUENCES)
    assert backend == "padded"
    torch.testing.assert_close(logprobs(model, forest, hidden_states(model, forest, backend)), wanted)


def test_a_head_that_is_not_known_is_refused_when_the_model_is_loaded(tmp_path):
    tokenizer = tiny_tokenizer()
    model = random_model(hf.GraniteConfig(**{**SMALL, "vocab_size": len(tokenizer)}, logits_scaling=4.0))
    refuse_other_head("m", model, tokenizer)
    model.config.logit_scale = 2.0  # what granite's own code does not read stands for what ours does not
    with pytest.raises(
        ModelError, match=r'model m: the family "granite" computes .* up to \d.*these are proven: gemma2'
    ):
        refuse_other_head("m", model, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="way that is not known here"):
        load_model(str(tmp_path))


def test_a_decoder_that_sees_both_sides_is_refused():
    tokenizer = tiny_tokenizer()
    config = hf.BertGenerationConfig(**{**SMALL, "vocab_size": len(tokenizer)})
    with pytest.raises(ModelError, match="bert-generation"):
        refuse_other_head("m", random_model(config), tokenizer)
    config.is_decoder = True
    refuse_other_head("m", random_model(config), tokenizer)


def test_a_family_with_rotations_of_half_the_width_loads(tmp_path):
    config = hf.GptOssConfig(**{**SMALL, "vocab_size": len(tiny_tokenizer())}, head_dim=8, num_local_experts=2,
                             num_experts_per_tok=1)  # fmt: skip
    random_model(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).family == "gpt_oss"


@pytest.fixture
def lacking_path(tiny_path, tmp_path):
    """A model whose tokenizer has one token more than it has embeddings."""
    folder = shutil.copytree(tiny_path, tmp_path / "lacking")
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    return folder


LACKS = r'the token "<tool>" has number 295, and the model has embeddings of 295 tokens only.*resize_token_embeddings'


def test_a_token_without_an_embedding_is_refused_in_rows(lacking_path, tmp_path, luthier):
    rows = [{"prompt": f"Sports {n}", "completion": "<tool>" if n == 7 else "Arts"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"method": "sft", "data": {"train": str(tmp_path / "rows.jsonl"), "validation_share": 0, "test_share": 0.1}}
    recipe = {"name": "x", "model": str(lacking_path), "precision": "float32", "stages": [stage]}
    (tmp_path / "x.yaml").write_text(json.dumps(recipe))
    for words in (["data", "peek"], ["train", "--out", tmp_path / "run"]):
        code, _, err = luthier(*words, tmp_path / "x.yaml")
        assert code and re.search(LACKS, " ".join(err.split()))


def test_a_token_without_an_embedding_is_refused_in_a_text(lacking_path):
    model = load_model(str(lacking_path))
    with pytest.raises(ModelError, match="a token of a text has number 295, .* of 295 tokens only"):
        hidden_states(model.model, build_forest([Sequence((1, 295))]), "padded")


@pytest.mark.parametrize("name", ["eos_token", "chat_template"])
def test_a_model_without_an_embedding_of_a_special_token_is_refused(lacking_path, name):
    tokenizer = hf.AutoTokenizer.from_pretrained(lacking_path)
    setattr(tokenizer, name, "<tool>")
    tokenizer.save_pretrained(lacking_path)
    with pytest.raises(ModelError, match=LACKS):
        load_model(str(lacking_path), encoders=True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"]])
def test_lora_on_the_output_head_is_pefts_and_folds(tmp_path, tied, targets):
    """Log-probabilities and gradients as PEFT's own forward has them; the folded model says the same and is untied."""
    config = hf.LlamaConfig(**SMALL, tie_word_embeddings=tied)
    random_model(config).save_pretrained(tmp_path / "base")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapper = add_adapter(model, Lora(rank=2, alpha=6.0, targets=targets), 1, tmp_path / "base")
    learnt = {name: parameter for name, parameter in wrapper.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in learnt.values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    wanted = plain_logprobs(model, SEQUENCES)
    gradients = torch.autograd.grad(wanted.sum(), learnt.values())
    set_backend(model, "grouped")
    forest = build_forest(SEQUENCES)
    found = logprobs(model, forest, hidden_states(model, forest, "grouped"))
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), learnt.values()), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    (tmp_path / "adapter").mkdir()
    kind_of(wrapper).save(wrapper, tmp_path / "adapter")
    plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    folded(plain, tmp_path / "adapter")
    plain.save_pretrained(tmp_path / "folded")
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "folded")
    torch.testing.assert_close(plain_logprobs(again, SEQUENCES), wanted)


@pytest.mark.parametrize("more", [{"dora": True}, {"init": "pissa"}])
def test_other_lora_on_the_output_head_is_refused(tiny_path, more):
    model = load_model(str(tiny_path)).model
    with pytest.raises(
        ModelError, match="tune.adapter.targets: the output head is among them, and it takes plain LoRA"
    ):
        add_adapter(model, Lora(targets=["q_proj", "lm_head"], **more), 1, tiny_path)


def test_the_output_head_has_no_transform_in_most_families(tiny_path):
    head = output_head(load_model(str(tiny_path)).model)
    assert head.transform is None and head.scale == 1.0 and head.softcap is None
