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
from luthier.kernels import narrow, round_products
from luthier.models import load_model
from luthier.models.trial import refuse_other_head
from luthier.recipe.adapters import Full, Lora
from luthier.records import Sequence
from luthier.training.learner import new_learner
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


def saved_model(config, folder, kind=hf.AutoModelForCausalLM):
    config.vocab_size = config.get_text_config().vocab_size = len(tiny_tokenizer())
    kind.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


ELSEWHERE = {
    "bart": (hf.AutoModelForSeq2SeqLM, lambda: hf.BartConfig(d_model=16, encoder_layers=1, decoder_layers=1,
             encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8),
             '"bart" is an encoder-decoder, which luthier does not support: it adapts decoders'),
    "t5": (hf.AutoModelForSeq2SeqLM, lambda: hf.T5Config(d_model=16, d_ff=8, num_layers=1, num_heads=2, d_kv=8),
           '"t5" is an encoder-decoder'),
    "vit": (hf.AutoModel, lambda: hf.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8), 'no causal language model of the family "vit". Give a model that is one'),
}  # fmt: skip


@pytest.mark.parametrize("family", ELSEWHERE)
@pytest.mark.parametrize("encoders", [True, False])
def test_models_of_another_kind_are_refused_by_their_kind(tmp_path, family, encoders):
    kind, config, wanted = ELSEWHERE[family]
    folder = saved_model(config(), tmp_path / family, kind)
    with pytest.raises(ModelError, match=wanted):
        load_model(folder, encoders=encoders)


def test_an_adapters_folder_is_no_model(tiny_path, tmp_path):
    wrapper = add_adapter(load_model(str(tiny_path)).model, Lora(rank=2), 1, tiny_path)
    kind_of(wrapper).save(wrapper, tmp_path)
    wanted = rf'the folder holds an adapter over the model "{tiny_path}", and no model. Give that model; or write'
    with pytest.raises(ModelError, match=wanted):
        load_model(str(tmp_path))


MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2, "use_mambapy": False}  # fmt: skip


@pytest.mark.parametrize("last", [0, 1])
def test_layers_that_take_no_adapter_are_left_out_and_said(tmp_path, last):
    model = load_model(saved_model(hf.MambaConfig(**MAMBA), tmp_path / "mamba"))
    learner = new_learner(model, Lora(rank=2, last=last), 1, "auto")
    assert learner.told().endswith("). No adapter on dt_proj, out_proj (this family's code goes past one).")
    learnt = learner.trained()
    assert {name.split(".")[-4] for name in learnt} == {"in_proj", "x_proj"}
    with torch.no_grad():
        for name, parameter in learnt.items():
            parameter.add_(0.1 * ("lora_B" in name))
    logprobs(learner.lm, forest := build_forest(SEQUENCES), learner.hidden(forest)).sum().backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in learnt.values())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_parts_that_no_text_reaches_get_no_adapter(tmp_path, targets):
    text = {**SMALL, "head_dim": 8, "sliding_window": 5}
    vision = {**NO_VISION, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    learner = new_learner(
        load_model(saved_model(config, tmp_path / "gemma3")), Lora(rank=2, targets=targets), 1, "auto"
    )
    parts = {name.split("base_model.model.")[1].split(".")[1] for name in learner.trained()}
    assert parts == ({"language_model"} if targets == "all-linear" else {"language_model", "lora_A", "lora_B"})
    assert " No adapter on model.vision_tower, model.multi_modal_projector (no text reaches it)." in learner.told()
    whole = new_learner(load_model(str(tmp_path / "gemma3")), Full(last=2), 1, "auto")
    assert not [name for name in whole.trained() if "vision" in name or "projector" in name]


def test_weights_that_the_code_around_a_layer_reads_stay_wide(tmp_path):
    """Mamba multiplies its steps by the weight itself, which a layer kept in bfloat16 would make fail."""
    model = load_model(saved_model(hf.MambaConfig(**MAMBA), tmp_path / "mamba"))
    round_products(model.model)
    narrow(model.model)
    mixer = model.model.backbone.layers[0].mixer
    assert mixer.in_proj.weight.dtype == torch.bfloat16 and mixer.dt_proj.weight.dtype == torch.float32
    hidden_states(model.model, build_forest(SEQUENCES), "padded")


def test_the_output_head_has_no_transform_in_most_families(tiny_path):
    head = output_head(load_model(str(tiny_path)).model)
    assert head.transform is None and head.scale == 1.0 and head.softcap is None
