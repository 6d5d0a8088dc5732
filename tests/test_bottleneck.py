"""Bottleneck adapters: the published formula at the right places, in every family that is loaded."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional

from families import plain_logprobs
from luthier.adapters import CONFIG, WEIGHTS, add_adapter, folded, kind_of, load_adapter
from luthier.errors import ModelError
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.models import load_model
from luthier.recipe.adapter_rules import Worn, chain_problems
from luthier.recipe.adapters import Bottleneck, Lora
from luthier.stopped import Stopped
from luthier.training.learner import load_learner
from placed import FAMILIES, PARTS, add_after, answers, assert_close, pulled_gradients, shake, tiny
from test_parity import shared_rows
from test_recipe import problems, with_
from test_training import ROWS, Training, assert_equal_tensors, losses, tune_of, what_happened

HERE = Path("tiny")


def adapted(family: str, dtype=torch.float64, **settings):
    model = tiny(family, dtype)
    if family == "xlnet":
        settings["style"] = "pfeiffer"
    return add_adapter(model, Bottleneck(**{"size": 5, **settings}), 3, HERE), model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_adapter_changes_nothing_and_a_removed_one_is_gone(family):
    """Bit for bit; and it is drawn from its seed alone."""
    names = [name for name, _ in tiny(family).named_parameters()]
    with torch.no_grad():
        wanted = answers(tiny(family))
        wrapper, model = adapted(family)
        torch.manual_seed(99)
        again, _ = adapted(family)
        assert torch.equal(answers(model), wanted)
        assert_equal_tensors(dict(again.named_parameters()), dict(wrapper.named_parameters()))
        trained = {name for name, p in wrapper.named_parameters() if p.requires_grad}
        assert trained and all(".adapter." in name for name in trained)
        assert all(".adapter." in name for name, p in wrapper.named_parameters() if p.requires_grad)
        shake(wrapper)
        assert not torch.allclose(answers(model), wanted)
        kind_of(wrapper).remove(wrapper)
        assert torch.equal(answers(model), wanted)
        assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_published_formula_behind_the_published_parts(family, style):
    """h + s (gelu(h D^T + d) U^T + u) behind each part's last linear layer, put on by hooks: logits and gradients."""
    if family == "xlnet" and style == "houlsby":
        pytest.skip("refused; see below")
    wrapper, model = adapted(family, style=style, scale=0.7)
    values = {name: tensor.requires_grad_() for name, tensor in shake(wrapper).items()}
    plain = tiny(family)

    def formula(place, hidden):
        inner = functional.gelu(hidden @ values[f"{place}.down.weight"].T + values[f"{place}.down.bias"])
        return hidden + 0.7 * (inner @ values[f"{place}.up.weight"].T + values[f"{place}.up.bias"])

    for part in (0, 1) if style == "houlsby" else (1,):
        add_after(plain, part, formula)
    found, wanted = answers(model), answers(plain)
    assert_close({"logits": found}, {"logits": wanted}, 1e-12)
    assert_close(pulled_gradients(found, wrapper.state()), pulled_gradients(wanted, values), 1e-9)
    assert len(values) == 4 * 2 * (2 if style == "houlsby" else 1)


def rotated(x_TND: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions (Su et al. 2021), halves turned against each other."""
    size, length = x_TND.shape[-1], len(x_TND)
    angle = torch.outer(torch.arange(length), base ** (-torch.arange(0, size, 2, dtype=torch.float32) / size))
    angle = torch.cat([angle, angle], dim=-1)[:, None].float()
    left, right = x_TND.chunk(2, dim=-1)
    return x_TND * angle.cos() + torch.cat([-right, left], dim=-1) * angle.sin()


def hand_written_llama(model, values, tokens: list[int]) -> torch.Tensor:
    """Logits of a whole llama with adapters, from its matrices: Houlsby et al. 2019, figure 2, with llama's norms."""
    state = dict(model.state_dict())
    state = {name.replace(".base.", "."): tensor for name, tensor in state.items()}
    config = model.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    length, size = len(tokens), config.hidden_size // heads

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * state[name]

    def bottleneck(h, place):
        down, up = (lambda x, n=n: x @ values[f"{place}.{n}.weight"].T + values[f"{place}.{n}.bias"] for n in DOWN_UP)
        return h + up(torch.relu(down(h)))

    x = state["model.embed_tokens.weight"][torch.tensor(tokens)]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        n = norm(x, f"{layer}.input_layernorm.weight")
        q, k, v = (
            (n @ state[f"{layer}.self_attn.{name}_proj.weight"].T).view(length, -1, size) for name in ("q", "k", "v")
        )
        base = config.rope_parameters["rope_theta"]
        q, k = rotated(q, base), rotated(k, base).repeat_interleave(heads // groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        seen = torch.ones(length, length).tril().bool()
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(heads // groups, dim=1)).reshape(length, -1)
        attended = mixed @ state[f"{layer}.self_attn.o_proj.weight"].T
        x = x + bottleneck(attended, f"{layer}.self_attn.o_proj")
        n = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate = functional.silu(n @ state[f"{layer}.mlp.gate_proj.weight"].T)
        inner = gate * (n @ state[f"{layer}.mlp.up_proj.weight"].T)
        x = x + bottleneck(inner @ state[f"{layer}.mlp.down_proj.weight"].T, f"{layer}.mlp.down_proj")
    return norm(x, "model.norm.weight") @ state["lm_head.weight"].T


DOWN_UP = ("down", "up")


def test_it_equals_a_model_written_by_hand():
    """Logits and the gradients of all adapters. transformers turns in float32, hence 1e-6."""
    wrapper, model = adapted("llama", activation="relu")
    values = {name: tensor.requires_grad_() for name, tensor in shake(wrapper).items()}
    tokens = [3, 17, 5, 88, 41, 9, 60]
    found = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    wanted = hand_written_llama(model, values, tokens)
    assert_close({"logits": found}, {"logits": wanted}, 1e-6)
    assert_close(pulled_gradients(found, wrapper.state()), pulled_gradients(wanted, values), 1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_the_forest_is_the_plain_model(family):
    """Flat tokens [1, N, D], shared ones once: log-probabilities and gradients of one row at a time."""
    wrapper, model = adapted(family)
    shake(wrapper)
    rows = shared_rows()
    wanted = plain_logprobs(model, rows)
    wanted_gradients = pulled_gradients(wanted, wrapper.state())
    forest = build_forest(rows)
    for backend in ("grouped", "dense"):
        set_backend(model, backend)
        found = logprobs(model, forest, hidden_states(model, forest, backend))
        assert float((found - wanted).detach().abs().max()) < 2e-6
        assert_close(pulled_gradients(found, wrapper.state()), wanted_gradients, 2e-6)


def test_it_is_saved_and_loaded(tmp_path):
    wrapper, model = adapted("qwen3", style="pfeiffer", scale=0.5, activation="tanh")
    wanted = shake(wrapper)
    kind_of(wrapper).save(wrapper, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config == {
        "peft_type": "LUTHIER_BOTTLENECK", "base_model_name_or_path": "tiny", "kind": "bottleneck",
        "style": "pfeiffer", "size": 5, "activation": "tanh", "scale": 0.5,
    }  # fmt: skip
    assert_equal_tensors(load_file(tmp_path / WEIGHTS), wanted)
    assert "model.layers.1.mlp.down_proj.up.weight" in wanted
    for trainable in (False, True):
        other = tiny("qwen3")
        loaded = load_adapter(other, tmp_path, trainable)
        assert torch.equal(answers(other), answers(model))
        assert {p.requires_grad for p in loaded.state().values()} == {trainable}
        assert not any(p.requires_grad for name, p in loaded.named_parameters() if ".adapter." not in name)
    shake(loaded, 3.0)
    kind_of(loaded).restore(loaded, tmp_path)
    assert_equal_tensors(loaded.state(), wanted)


def test_what_it_does_not_fit_is_refused(tmp_path):
    wrapper, _ = adapted("llama")
    kind_of(wrapper).save(wrapper, tmp_path)
    with pytest.raises(ModelError) as caught:
        load_adapter(tiny("gpt2"), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / WEIGHTS}: does not fit this gpt2 model: ")
    assert "in the file" in str(caught.value) and "on the model that it was trained on." in str(caught.value)
    with pytest.raises(ModelError, match="kind bottleneck computes with an activation of its own, so it cannot be"):
        folded(tiny("llama"), tmp_path)
    with pytest.raises((KeyError, ValueError), match="LUTHIER_BOTTLENECK"):
        PeftModel.from_pretrained(tiny("llama"), tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LUTHIER_BOTTLENECK", "size": "many"}))
    with pytest.raises(ModelError, match=r"adapter_config.json: size: .*valid integer"):
        load_adapter(tiny("llama"), tmp_path)


def test_a_model_without_known_places_is_refused():
    model = tiny("xlnet")
    with pytest.raises(ModelError, match=r"tune.adapter.style: houlsby .* xlnet model .*Set style: pfeiffer."):
        add_adapter(model, Bottleneck(), 0, HERE)
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.last = layer.mlp.__dict__["_modules"].pop("down_proj")
    with pytest.raises(ModelError, match=r"bottleneck: the MLPs of a llama model .*mlp.down_proj, .*such as lora"):
        add_adapter(model, Bottleneck(), 0, HERE)
    assert set(PARTS) == set(FAMILIES)


def test_adapters_beside_weights_of_half_the_size_are_whole():
    """bfloat16 weights: an AdamW step on bfloat16 parameters would often round to nothing."""
    wrapper, model = adapted("llama", torch.bfloat16)
    assert {p.dtype for p in wrapper.state().values()} == {torch.float32}
    shake(wrapper)
    assert answers(model).dtype == torch.bfloat16


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer"])
def test_training_resumes_bit_for_bit(style, tiny_path, tmp_path):
    """Ten steps are five, a stop and five; the saved adapter gives what was trained."""
    tune = tune_of(method="head", checkpoints={"every": 5}, adapter=Bottleneck(size=8, style=style))
    whole = Training(tiny_path, tune)
    wanted = whole.run(tmp_path / "whole")
    half = Training(tiny_path, tune)

    def stop_after_five(progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        half.run(tmp_path / "cut", stop_after_five)
    resumed = Training(tiny_path, tune)
    steps: list[int] = []
    assert what_happened(resumed.run(tmp_path / "cut", lambda p: steps.append(p.step))) == what_happened(wanted)
    assert steps == [6, 7, 8, 9, 10]
    assert_equal_tensors(resumed.weights(), whole.weights())
    loaded = load_learner(load_model(str(tiny_path)), tmp_path / "whole" / "best", "auto")
    assert_equal_tensors(loaded.wrapper.state(), whole.learner.wrapper.state())


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer"])
def test_one_batch_can_be_learnt_by_heart(style, tiny_path, tmp_path):
    tune = tune_of(
        method="head",
        adapter=Bottleneck(size=8, style=style),
        epochs=40.0,
        learning_rate=2e-2,
        evaluate_every=40,
        checkpoints={"every": 40},
    )
    history = Training(tiny_path, tune, rows=[ROWS[0], ROWS[3], ROWS[6], ROWS[7]]).run(tmp_path)
    assert losses(history)[0] > 1 and losses(history)[-1] < 0.05


def test_a_chain_that_would_have_to_merge_it_is_refused_before_training():
    first = Worn("stages.0", "stack", Bottleneck())
    for start, above in (("stack", Lora()), ("merge", Bottleneck()), ("stack", Bottleneck())):
        (told,) = chain_problems([first, Worn("stages.1", start, above)])
        assert told.startswith("stages.1.start: ") and "Set start: continue, with the same adapter" in told
    assert chain_problems([first, Worn("stages.1", "continue", Bottleneck())]) == []


def test_wrong_keys_are_told():
    found = problems(with_(tune={"adapter": {"kind": "bottleneck", "style": "pfeifer", "rank": 4}}))
    text = "\n".join(found)
    assert "style: 'pfeifer' is not allowed; use 'houlsby' or 'pfeiffer'. Did you mean \"pfeiffer\"?" in text
    assert "rank: unknown key." in text
