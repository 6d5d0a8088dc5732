"""One adapter after another: what is exactly one again, what is refused before anything is trained, what merges."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.adapters import WEIGHTS, add_adapter, folded, joined, load_adapter
from luthier.errors import ModelError, RecipeError, RunError
from luthier.models import load_model
from luthier.progress import Silent
from luthier.recipe.adapters import Full, Ia3, Lora
from luthier.recipe.stages import dump_stages, load_stages, parse_stages

WORDS = ("goal", "team", "won", "vote", "law", "senate", "painter", "museum", "song")


def stage(name: str, start: str = "stack", adapter=None, method="sft", **more) -> dict:
    tune = {"epochs": 1.0, "batch_size": 4, "learning_rate": 5e-3, "memory": {"predict": False}}
    values = {"name": name, "method": method, "start": start, "data": {"train": "rows.jsonl"}, "tune": tune, **more}
    return values if adapter is None else {**values, "tune": {**tune, "adapter": adapter}}


def problem(*stages: dict) -> str:
    with pytest.raises(RecipeError) as refused:
        parse_stages({"stages": list(stages)})
    assert len(refused.value.problems) == 1
    return refused.value.problems[0]


REFUSED = {
    "lora over dora": (
        stage("a", adapter={"dora": True}), stage("b"),
        "stages.1.start: LoRA rank 16 over LoRA rank 16, DoRA is not exactly one adapter, which stack has to save. Set "
        "start: merge, or start: continue to train the same adapter on."),
    "dora over lora": (
        stage("a"), stage("b", adapter={"dora": True}),
        "stages.1.start: LoRA rank 16, DoRA over LoRA rank 16 is not exactly one adapter, which stack has to save. Set "
        "start: merge, or start: continue to train the same adapter on."),
    "lora over weights": (
        stage("a", adapter="full"), stage("b"),
        "stages.1.start: LoRA rank 16 over the model's own weights is not exactly one adapter, which stack has to save. "
        "Set start: merge, or start: continue to train the same adapter on."),
    "over learned rows": (
        stage("a", adapter="prefix"), stage("b"),
        "stages.1.start: LoRA rank 16 over prefix of 16 learned rows is not exactly one adapter, which stack has to "
        "save. Set start: continue, with the same adapter."),
    "learned rows into the weights": (
        stage("a", adapter="prompt"), stage("b", "merge"),
        "stages.1.start: prompt of 16 learned rows cannot be written into the weights, as merge has to. Set start: "
        "continue, with the same adapter."),
    "another kind continued": (
        stage("a", adapter="ia3"), stage("b", "continue", "lora"),
        "stages.1.tune.adapter: start: continue trains the earlier stage's adapter on (ia3), and this is LoRA rank 16. "
        "Leave the section out, or set start: merge."),
    "another rank continued": (
        stage("a", adapter={"rank": 4}), stage("b", "continue", {"rank": 8}),
        "stages.1.tune.adapter.rank: 8 cannot be read, start: continue trains the earlier stage's adapter on (4). Leave "
        "the section out."),
    "a reference over fresh rows": (
        stage("a"), stage("b", "merge", "prompt", "dpo"),
        "stages.1.tune.adapter.kind: prompt changes the answers before the first step, so the reference of dpo would "
        "not be the model that the stage starts from. Use lora, or train the adapter by another method first and set "
        "start: continue."),
    "a penalty on factors": (
        stage("a", adapter="ia3", keep={"penalty": "l2"}), stage("b", "continue"),
        "stages.0.keep.penalty: l2 holds the change of the weights, which ia3 does not spell out. Use lora or full, or "
        "leave it out."),
    "one rank too many": (
        stage("a", adapter={"init": "orthogonal", "rank": 3}), stage("b", "merge"),
        "stages.0.tune.adapter.init: orthogonal needs an even rank (it is 3)."),
    "no expression": (
        stage("a", adapter={"kind": "full", "pattern": "("}), stage("b", "merge"),
        "stages.0.tune.adapter.pattern: '(' is no regular expression (missing ), unterminated subpattern at position "
        "0)."),
    "half of the factors": (
        stage("a", adapter={"kind": "ia3", "targets": ["v_proj"]}), stage("b", "merge"),
        "stages.0.tune.adapter: give both targets and feedforward, or neither; which is which is not guessed."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_follow_is_refused_before_anything_is_trained(case):
    first, second, told = case
    assert problem(first, second) == told


def test_a_continued_stage_has_the_adapter_and_the_rate_of_its_kind():
    bare = {"name": "a", "method": "sft", "data": {"train": "rows.jsonl"}}
    wide = {**bare, "tune": {"adapter": {"kind": "full", "last": 2}}}
    recipe = parse_stages({"stages": [wide, {**bare, "name": "b", "start": "continue"}]})
    assert [one.tune.adapter for one in recipe.stages] == [Full(last=2)] * 2
    assert [one.tune.learning_rate for one in recipe.stages] == [3e-5] * 2, "a tenth of what sft takes with lora"
    again = parse_stages(recipe.model_dump())
    assert again == recipe and "learning_rate: 3.0e-05" in dump_stages(again)
    ratio = {"rank": 4, "lora_plus": 16}
    second = {**bare, "name": "b", "start": "continue", "tune": {"adapter": ratio}}
    parse_stages({"stages": [{**bare, "tune": {"adapter": {"rank": 4}}}, second]})


@pytest.mark.parametrize("settings", [Full(pattern="mlp"), Ia3()], ids=["full", "ia3"])
def test_two_of_a_kind_are_exactly_one(settings, tiny_path, tmp_path):
    """The second is trained over the first one folded; their sum alone does the same on the model below both."""
    model = load_model(str(tiny_path)).model
    for number, name in enumerate(("lower", "upper")):
        wrapper = add_adapter(model, settings, 0, tiny_path)
        with torch.no_grad():
            for parameter in wrapper.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        (tmp_path / name).mkdir()
        wrapper.adapter_kind.save(wrapper, tmp_path / name)
        wrapper.adapter_kind.remove(wrapper)
        folded(model, tmp_path / name)
    (tmp_path / "both").mkdir()
    if isinstance(settings, Full):
        # the upper one holds its own layers only; those that the lower one alone changed must stay changed
        upper = load_file(tmp_path / "upper" / WEIGHTS)
        assert len(upper) == 6
    joined(tmp_path / "lower", tmp_path / "upper", tmp_path / "both")
    fresh = load_model(str(tiny_path)).model
    folded(fresh, tmp_path / "both")
    for (name, found), wanted in zip(fresh.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7, msg=name)
    both = load_adapter(load_model(str(tiny_path)).model, tmp_path / "both", trainable=True)
    assert any(parameter.requires_grad for parameter in both.parameters())


def test_two_kinds_are_not_one(tiny_path, tmp_path):
    for name, settings in (("lower", Full(last=1)), ("upper", Lora(rank=2))):
        wrapper = add_adapter(load_model(str(tiny_path)).model, settings, 0, tiny_path)
        (tmp_path / name).mkdir()
        wrapper.adapter_kind.save(wrapper, tmp_path / name)
    with pytest.raises(ModelError, match=r"an adapter of type LORA over one of type LUTHIER_WEIGHTS .* is not one"):
        joined(tmp_path / "lower", tmp_path / "upper", tmp_path)


# --- through the stages, and out of them ---------------------------------------------------------------------------


class Hearing(Silent):
    def __init__(self):
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def chain(tiny_path, tmp_path_factory):
    """Three stages: some layers, the same layers again on top, then all weights of what that left."""
    folder = tmp_path_factory.mktemp("chain")
    rows = [
        {"messages": [{"role": "user", "content": f"Text {WORDS[n % 9]} number {n}"},
                      {"role": "assistant", "content": ("Sports", "Politics", "Arts")[n % 9 // 3]}]}
        for n in range(24)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stages = [stage("one", adapter={"kind": "full", "last": 1}), stage("two", adapter={"kind": "full", "pattern": "mlp"}),
              stage("three", "merge", {"kind": "lora", "rank": 2})]  # fmt: skip
    recipe = {"name": "chain", "model": str(tiny_path), "precision": "float32", "stages": stages}
    (folder / "chain.yaml").write_text(json.dumps(recipe))
    hearing = Hearing()
    luthier.train(load_stages(folder / "chain.yaml"), folder / "run", listener=hearing)
    return folder / "run", hearing.said


def logits(model, tokens=(3, 4, 5, 6)) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits


def plain(path: Path):
    return AutoModelForCausalLM.from_pretrained(path).eval()


def test_a_stage_says_what_learns(chain, tiny_path):
    whole = load_model(str(tiny_path)).num_parameters
    layer = sum(
        p.numel() for n, p in plain(tiny_path).named_parameters() if ".layers.1." in n or n == "model.norm.weight"
    )
    assert f"one: {layer:,} of {whole:,} parameters learn ({layer / whole:.2%})." in chain[1]


def test_stacked_weights_hold_both_stages(chain):
    first, second = (load_file(chain[0] / "stages" / name / "adapter" / WEIGHTS) for name in ("01-one", "02-two"))
    own = {name for name in second if "mlp" in name}
    assert second.keys() == first.keys() | own and len(own) == 6
    assert all(torch.equal(second[name], first[name]) for name in first.keys() - own)


def test_a_run_is_merged_into_a_model_folder(chain, tiny_path, tmp_path, luthier):
    """The command's model, by transformers alone, answers as base and adapter do; of an earlier stage too."""
    code, out, _ = luthier("merge", chain[0], "--out", tmp_path / "model", "--json")
    told = json.loads(out)
    assert code == 0 and told["folder"] == str(tmp_path / "model") and told["head"] is False
    below = load_model(str(chain[0] / "stages" / "03-three" / "model")).model
    wrapper = load_adapter(below, chain[0] / "stages" / "03-three" / "adapter")
    torch.testing.assert_close(
        logits(plain(tmp_path / "model")), logits(wrapper.base_model.model), atol=2e-5, rtol=1e-5
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    assert load_model(str(tmp_path / "model")).num_parameters == told["parameters"]
    code, out, _ = luthier("merge", chain[0], "--out", tmp_path / "two", "--stage", "two", "--dtype", "bfloat16")
    assert code == 0 and out.startswith(f"{tmp_path / 'two'}: {tiny_path} with ")
    model = plain(tmp_path / "two")
    assert model.dtype == torch.bfloat16
    wanted = load_file(chain[0] / "stages" / "02-two" / "adapter" / WEIGHTS)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor.to(torch.bfloat16)) for name, tensor in wanted.items())


def test_what_cannot_be_merged_is_said(chain, tmp_path, luthier):
    code, _, err = luthier("merge", chain[0], "--out", chain[0])
    assert code == 1 and "is there already, and is not written over. Give a new folder as --out." in err
    code, _, err = luthier("merge", tmp_path, "--out", tmp_path / "m")
    assert code == 1 and "no finished run with an adapter here" in err
    code, _, err = luthier("merge", chain[0], "--out", tmp_path / "m", "--stage", "tow")
    assert code == 1 and 'no stage "tow"' in err
    code, _, err = luthier("merge", chain[0], "--out", tmp_path / "m", "--dtype", "int8")
    assert code == 2 and "'int8' is not one of" in err
    with pytest.raises(RunError):
        luthier_merge(tmp_path, tmp_path / "m")


def luthier_merge(run: Path, out: Path):
    return luthier.merge(run, out)


def test_what_the_model_cannot_have_is_said_before_the_first_stage(chain, tmp_path):
    values = json.loads((chain[0].parent / "chain.yaml").read_text())
    values["stages"] = [{**values["stages"][0], "tune": {"adapter": {"kind": "full", "last": 5}}}]
    (chain[0].parent / "deep.yaml").write_text(json.dumps(values))
    with pytest.raises(
        RecipeError, match=r"stages\.0\.tune\.adapter\.last: 5 layers are asked for, and the model has 2\."
    ):
        luthier.train(chain[0].parent / "deep.yaml", tmp_path / "run")


def test_fused_experts_do_not_stack_and_are_refused_before_the_first_stage_learns(tmp_path, monkeypatch):
    """PEFT alters LoRA on fused experts, which shows once it is in the model."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    rows = [{"prompt": f"Text {WORDS[n % 9]} {n}", "completion": WORDS[n % 9]} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = {"model": str(tmp_path / "moe"), "stages": [stage("a"), stage("b")], "judge": {"resamples": 200}}
    wanted = r"stage b: start: stack .* \"qwen3_moe\" model .*rank_pattern.* Set start: merge .*, or start: continue"
    with pytest.raises(ModelError, match=wanted):
        luthier.train(parse_stages(recipe), tmp_path / "run")
    assert not list((tmp_path / "run").glob("stages/*/training"))
    recipe["stages"][1]["start"] = "merge"
    result = luthier.train(parse_stages(recipe), tmp_path / "run")
    assert len(result["stages"]) == 2
