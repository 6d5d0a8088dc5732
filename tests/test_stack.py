"""Adapters over adapters: the saved sum is exact, loads in plain PEFT, and refuses what would not add up."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.adapters import folded, load_adapter
from luthier.adapters.stack import joined_lora
from luthier.errors import ModelError

TOKENS = torch.tensor([[5, 6, 7, 40, 12, 30, 8]])
ATTENTION = ["q_proj", "v_proj"]
WIDE = ["q_proj", "down_proj", "gate_proj"]


def saved_adapter(model_path: Path, folder: Path, seed: int, targets: list[str], **settings) -> Path:
    """An adapter with random factors, saved by PEFT alone."""
    torch.manual_seed(seed)
    config = LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings)
    wrapper = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    wrapper.save_pretrained(folder)
    return folder


def updates(folder: Path) -> dict[str, torch.Tensor]:
    """What a saved adapter adds to each weight, s B A in float64, without the code under test."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    state = {name: tensor.double() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    layers = {name.split(".lora_")[0] for name in state}
    return {
        layer.removeprefix("base_model.model."): scale
        * state[f"{layer}.lora_B.weight"]
        @ state[f"{layer}.lora_A.weight"]
        for layer in layers
    }


def logits_with(model_path: Path, *added: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits in float64 of the model with some updates added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float64).eval()
    with torch.no_grad():
        for update in added:
            for layer, delta in update.items():
                model.get_submodule(layer).weight.add_(delta)
        return model(TOKENS).logits


CASES = {
    "one target set": ({"r": 2, "lora_alpha": 8}, ATTENTION, {"r": 2, "lora_alpha": 4}, ATTENTION),
    "other targets and ranks": ({"r": 2, "lora_alpha": 8}, ATTENTION, {"r": 4, "lora_alpha": 4}, WIDE),
    "rslora above": ({"r": 2, "lora_alpha": 8}, ATTENTION, {"r": 4, "lora_alpha": 4, "use_rslora": True}, WIDE),
    "rslora below": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, WIDE, {"r": 1, "lora_alpha": 2}, ATTENTION),
}


@pytest.mark.parametrize("case", CASES)
def test_the_joint_adapter_is_the_sum_of_both(case, tiny_path, tmp_path):
    low, low_targets, high, high_targets = CASES[case]
    lower = saved_adapter(tiny_path, tmp_path / "lower", 1, low_targets, **low)
    upper = saved_adapter(tiny_path, tmp_path / "upper", 2, high_targets, **high)
    target = tmp_path / "joint"
    target.mkdir()
    joined_lora(lower, upper, target)
    wanted = logits_with(tiny_path, updates(lower), updates(upper))
    assert not torch.allclose(wanted, logits_with(tiny_path, updates(upper)), atol=1e-3), "both matter"
    torch.testing.assert_close(logits_with(tiny_path, updates(target)), wanted, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tiny_path)
        plain = PeftModel.from_pretrained(base, target).eval()(TOKENS).logits
    torch.testing.assert_close(plain.double(), wanted, atol=1e-5, rtol=1e-5)
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["r"] == low["r"] + high["r"]
    assert set(config["target_modules"]) == {*low_targets, *high_targets}


def test_three_adapters_add_up(tiny_path, tmp_path):
    folders = [
        saved_adapter(tiny_path, tmp_path / str(seed), seed, WIDE if seed == 2 else ATTENTION, r=seed, lora_alpha=2)
        for seed in (1, 2, 4)
    ]
    for name in ("two", "three"):
        (tmp_path / name).mkdir()
    joined_lora(*folders[:2], tmp_path / "two")
    joined_lora(tmp_path / "two", folders[2], tmp_path / "three")
    wanted = logits_with(tiny_path, *(updates(folder) for folder in folders))
    torch.testing.assert_close(logits_with(tiny_path, updates(tmp_path / "three")), wanted, atol=1e-10, rtol=1e-10)


def test_folding_adds_the_adapter_to_the_weights(tiny_path, tmp_path):
    folder = saved_adapter(tiny_path, tmp_path / "a", 1, WIDE, r=2, lora_alpha=8)
    model = AutoModelForCausalLM.from_pretrained(tiny_path).eval()
    folded(model, folder)
    assert not any("lora" in name for name, _ in model.named_modules()), "a plain model is left"
    with torch.no_grad():
        wanted = logits_with(tiny_path, updates(folder))
        torch.testing.assert_close(model(TOKENS).logits.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("use_dora", True), ("rank_pattern", {"q_proj": 4}), ("bias", "all"), ("modules_to_save", ["lm_head"]),
     ("layers_to_transform", [0])],
)  # fmt: skip
def test_adapters_that_do_not_add_are_refused(setting, value, tiny_path, tmp_path):
    folder = saved_adapter(tiny_path, tmp_path / "a", 1, ATTENTION, r=2, lora_alpha=2)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(ModelError) as refused:
        joined_lora(folder, folder, tmp_path)
    assert str(refused.value) == (
        f"{folder}: an adapter with {setting} cannot be stacked. Set start: merge for the next stage."
    )


def test_an_adapter_of_another_kind_is_refused(tiny_path, tmp_path):
    folder = saved_adapter(tiny_path, tmp_path / "a", 1, ATTENTION, r=2, lora_alpha=2)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="an adapter with IA3 cannot be stacked"):
        joined_lora(folder, folder, tmp_path)


def test_a_folder_without_adapter_is_refused(tiny_path, tmp_path):
    with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors; give the folder of a finished run"):
        load_adapter(AutoModelForCausalLM.from_pretrained(tiny_path), tmp_path)
