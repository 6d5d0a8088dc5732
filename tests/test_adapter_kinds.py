"""Kinds of adapters beside PEFT itself and beside plain transformers: what is saved is theirs, and so are gradients."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from families import plain_logprobs, tiny_model
from luthier.adapters import add_adapter, load_adapter
from luthier.adapters.full import chosen_names
from luthier.errors import ModelError
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.generation.engine import generate
from luthier.generation.sampling import Draw, Sampling
from luthier.kernels import quicken
from luthier.models import load_model
from luthier.recipe.adapters import Full, Ia3, Lora, Prefix, Prompt
from luthier.recipe.run import Tune
from luthier.records import Sequence
from luthier.training.learner import Learner, new_learner
from luthier.training.optimizers import make_optimizer

SEQUENCES = [
    Sequence((3, 4, 5, 6, token, 9), (4, 5), (1.0, 0.5)) for token in (8, 10, 11)
] + [Sequence((12, 13, 14), (1, 2), (1.0, 2.0))]  # fmt: skip
FAMILIES = ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi3", "olmo2", "smollm3"]
VIRTUAL = [Prompt(tokens=3), Prefix(tokens=3)]


def small(family: str, folder: Path) -> nn.Module:
    """A tiny model in float32 that believes it came from a folder, as PEFT wants it."""
    model = tiny_model(family, torch.float32)
    model.name_or_path = str(folder)
    return model


def moved(model: nn.Module, by: float = 0.05) -> None:
    """Trained numbers somewhere else than where they began."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * by)


def in_forest(model: nn.Module, backend: str, sequences=SEQUENCES) -> torch.Tensor:
    set_backend(model, backend)
    forest = build_forest(sequences)
    return logprobs(model, forest, hidden_states(model, forest, backend))


def total(values: torch.Tensor, sequences=SEQUENCES) -> torch.Tensor:
    return (values * torch.tensor([w for s in sequences for w in s.weights], dtype=values.dtype)).sum()


def by_peft(wrapper: PeftModel) -> torch.Tensor:
    """log p of every target by PEFT's own forward, one sequence at a time."""
    values = []
    for sequence in SEQUENCES:
        tokens = torch.tensor([sequence.tokens])
        logits = wrapper(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(sequence.tokens) :]
        scores = torch.log_softmax(logits, dim=-1)
        values += [scores[target - 1, sequence.tokens[target]] for target in sequence.targets]
    return torch.stack(values)


# --- learned rows before every text ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VIRTUAL, ids=["prompt", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_learned_rows_are_those_of_peft(family, settings, tmp_path):
    """Saved by luthier, loaded by PEFT: the same log-probabilities and the same gradient, on every backend."""
    model = small(family, tmp_path).requires_grad_(False)
    wrapper = add_adapter(model, settings, 3, tmp_path)
    moved(wrapper)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    theirs = PeftModel.from_pretrained(small(family, tmp_path), tmp_path)
    theirs.base_model.set_attn_implementation("eager")
    (rows,) = theirs.prompt_encoder.parameters()
    rows.requires_grad_(True)
    wanted = by_peft(theirs)
    total(wanted).backward()
    gradient = rows.grad
    for backend in ("grouped", "dense", "padded"):
        wrapper.zero_grad()
        found = in_forest(model, backend)
        total(found).backward()
        torch.testing.assert_close(found, wanted, atol=5e-5, rtol=1e-5)
        own = wrapper.prompt_embeddings.grad
        assert float((own - gradient).abs().max()) < 1e-4 * float(gradient.abs().max()), backend


@pytest.mark.parametrize("settings", VIRTUAL, ids=["prompt", "prefix"])
def test_texts_are_written_behind_learned_rows(settings, tiny_path, tmp_path):
    """PEFT's generate, the forest's and the padded one write the same; drawn at temperature 0 too."""
    model = load_model(str(tiny_path)).model
    wrapper = add_adapter(model, settings, 3, tiny_path)
    moved(wrapper, 0.5)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    prompts = [(3, 4, 5), (3, 4, 9, 10), (20,)]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_path), tmp_path).eval()
    wanted = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        with warnings.catch_warnings():  # of position ids that transformers hands on
            warnings.simplefilter("ignore", UserWarning)
            out = theirs.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6,
                                  do_sample=False, eos_token_id=-1)  # fmt: skip
        wanted.append(out[0, -6:].tolist())
    for backend in ("grouped", "padded"):
        set_backend(model, backend)
        assert generate(model, prompts, 6, (), backend) == wanted
        draws = [Draw(Sampling(temperature=0.0), i) for i in range(3)]
        assert generate(model, prompts, 6, (), backend, draws) == wanted
    wrapper.adapter_kind.remove(wrapper)
    set_backend(model, "grouped")
    assert generate(model, prompts, 6, (), "grouped") != wanted


def test_learned_rows_begin_as_a_text(tiny_path):
    loaded = load_model(str(tiny_path))
    tokens = loaded.tokenizer(" the goal")["input_ids"]
    assert len(tokens) == 2
    rows = add_adapter(loaded.model, Prompt(tokens=3, text=" the goal"), 0, tiny_path).prompt_embeddings
    embedding = loaded.model.get_input_embeddings().weight
    assert torch.equal(rows, embedding[[*tokens, tokens[0]]])
    loaded = load_model(str(tiny_path))
    wrapper = add_adapter(loaded.model, Prefix(tokens=2, text=" the goal"), 0, tiny_path)
    behind = [Sequence((3, 4, 5), (1, 2), (1.0, 1.0))]
    found = in_forest(wrapper.base_model.model, "grouped", behind)
    whole = [Sequence((*tokens, 3, 4, 5), (3, 4), (1.0, 1.0))]
    torch.testing.assert_close(
        found, in_forest(load_model(str(tiny_path)).model, "padded", whole), atol=2e-5, rtol=1e-5
    )


def test_learned_rows_of_another_width_are_refused(tiny_path, tmp_path):
    model = small("gpt2", tmp_path)
    wrapper = add_adapter(model, Prefix(tokens=2), 0, tmp_path)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    with pytest.raises(
        ModelError, match=r"its rows have 128 numbers, and those of this model 64\. Give the model that"
    ):
        load_adapter(load_model(str(tiny_path)).model, tmp_path)


# --- PEFT's own kinds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        Lora(rank=2, scaling="rslora", init="pissa"),
        Lora(rank=2, dora=True, init="pissa"),
        Lora(rank=2, init="olora"),
        Lora(rank=2, init="orthogonal", last=1),
        Ia3(),
    ],
    ids=["pissa rslora", "pissa dora", "olora", "orthogonal last", "ia3"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "smollm3"])
def test_what_is_saved_loads_in_peft_on_the_model_as_it_was(family, settings, tmp_path):
    if family == "gpt2" and getattr(settings, "init", "") == "olora":
        with pytest.raises(ModelError, match="olora does not know transposed weights"):
            add_adapter(small(family, tmp_path), settings, 3, tmp_path)
        return
    model = small(family, tmp_path)
    wrapper = add_adapter(model, settings, 3, tmp_path)
    moved(wrapper)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    theirs = PeftModel.from_pretrained(small(family, tmp_path), tmp_path).base_model.model
    with torch.no_grad():
        torch.testing.assert_close(
            in_forest(wrapper.base_model.model, "grouped"), plain_logprobs(theirs, SEQUENCES), atol=5e-5, rtol=1e-4
        )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    if isinstance(settings, Lora):
        assert config["init_lora_weights"] is True
        assert config["r"] == (4 if settings.changes_base else 2)


def test_pissa_takes_the_largest_directions_out_of_the_weights(tiny_path, tmp_path):
    """W = W_res + s B A, with W_res's largest singular values the next ones of W."""
    before = load_model(str(tiny_path)).model.model.layers[0].mlp.up_proj.weight
    wrapper = add_adapter(load_model(str(tiny_path)).model, Lora(rank=3, alpha=6.0, init="pissa"), 0, tiny_path)
    layer = wrapper.base_model.model.model.layers[0].mlp.up_proj
    values = torch.linalg.svdvals(before)
    torch.testing.assert_close(torch.linalg.svdvals(layer.base_layer.weight)[:4], values[3:7], rtol=1e-2, atol=0)
    update = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(layer.base_layer.weight + update, before, rtol=1e-5, atol=1e-6)


def test_lora_plus_lets_b_learn_faster(tiny_path):
    learner = new_learner(load_model(str(tiny_path)), Lora(rank=2), 0, "auto")
    tune = Tune(learning_rate=1e-3, adapter=Lora(rank=2, lora_plus=16.0))
    names = {id(p): name for name, p in learner.trained().items()}
    rates = {names[id(p)]: g["peak"] for g in make_optimizer(learner, tune).param_groups for p in g["params"]}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {0.016}
    assert {rate for name, rate in rates.items() if ".lora_A." in name} == {0.001}


# --- whole weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "olmo2"])
def test_the_gradient_of_every_weight_is_transformers_own(family, tmp_path):
    """Kernels, forest and fused head on one side, the family's eager code on the other; a tied matrix learns once."""
    plain = tiny_model(family)
    plain.requires_grad_(True)
    total(plain_logprobs(plain, SEQUENCES)).backward()
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    model = tiny_model(family).requires_grad_(False)
    quicken(model)
    learner = Learner(add_adapter(model, Full(), 0, tmp_path), {}, "grouped")
    total(in_forest(learner.lm, "grouped")).backward()
    prefix = "wrapper.base_model.model."
    found = {name.removeprefix(prefix): p.grad for name, p in learner.trained().items()}
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.abs().max()) for gradient in wanted.values() if gradient is not None)
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            assert float((found[name] - gradient).abs().max()) < 2e-6 * scale, name


def names_of(settings: Full, path: Path) -> set[str]:
    return {name.removeprefix("model.") for name in chosen_names(load_model(str(path)).model, settings)}


def test_which_weights_learn(tiny_path):
    every = names_of(Full(), tiny_path)
    assert "embed_tokens.weight" in every and "norm.weight" in every and len(every) == 2 * 9 + 2
    top = names_of(Full(last=1), tiny_path)
    assert top == {name for name in every if name.startswith("layers.1.")} | {"norm.weight"}
    assert names_of(Full(last=1, embeddings=True), tiny_path) == top | {"embed_tokens.weight"}
    assert names_of(Full(last=1, norms=False), tiny_path) == {name for name in top if "norm" not in name}
    assert names_of(Full(pattern=r"layers\.0\.mlp"), tiny_path) == {
        f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
    assert names_of(Full(pattern="mlp", last=1), tiny_path) == {name for name in top if "mlp" in name}
    with pytest.raises(ModelError, match=r"'attn_' is found in no name of a parameter that learns\. The model has"):
        names_of(Full(pattern="attn_"), tiny_path)
    with pytest.raises(ModelError, match=r"tune\.adapter\.last: 3 layers are asked for, and the model has 2\."):
        names_of(Full(last=3), tiny_path)


def test_weights_of_another_model_are_refused(tiny_path, tmp_path):
    wrapper = add_adapter(small("gpt2", tmp_path), Full(last=1), 0, tmp_path)
    wrapper.adapter_kind.save(wrapper, tmp_path)
    with pytest.raises(ModelError, match=r"transformer\.h\.1\..* is not of this model \(which has none of that name\)"):
        load_adapter(load_model(str(tiny_path)).model, tmp_path)


def test_factors_for_an_unknown_family_are_asked_for(tmp_path):
    model = small("llama", tmp_path)
    model.config.model_type = "cohere"
    with pytest.raises(ModelError, match='it is not known which modules of the family "cohere" suit ia3'):
        add_adapter(model, Ia3(), 0, tmp_path)
    add_adapter(model, Ia3(targets=["v_proj", "down_proj"], feedforward=["down_proj"]), 0, tmp_path)
