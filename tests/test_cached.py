"""States of frozen layers, computed once: the same training, the lower layers run once, and a store that heals."""

import pytest
import torch
from safetensors.torch import load_file

from encoders import CONFIGS as ENCODERS
from encoders import tiny_encoder
from families import CONFIGS as DECODERS
from families import tiny_model
from luthier.adapters import Plain
from luthier.errors import RecipeError, TrainingError
from luthier.methods.base import Example, make_batch
from luthier.methods.conversations import ConversationSft
from luthier.methods.heads import ClassifyHead
from luthier.methods.masked import MaskedLm
from luthier.methods.several import Part, Several
from luthier.models.encoders import without_dropout
from luthier.recipe import Lora, parse_recipe
from luthier.recipe.adapters import Full
from luthier.recipe.memory import Memory
from luthier.records import Sequence
from luthier.stages import train as train_stages
from luthier.training import kept as kept_rows
from luthier.training.cached import CachedLearner, refuse_varying
from luthier.training.kept import RowStore, key_of
from luthier.training.learner import Learner
from luthier.training.memory_layers import layers_of
from test_training import Training, losses, tune_of
from tiny import tiny_folder

ADAPTERS = {"lora": Lora(rank=2, alpha=4.0, last=2), "full": Full(last=1)}


@pytest.fixture(scope="module")
def deep_path(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "deep", layers=4)


def training_of(path, adapter="lora", backend="auto", **changes) -> Training:
    values = {"method": "head", "adapter": ADAPTERS[adapter], "memory": Memory(predict=False)}
    return Training(path, tune_of(**values | changes), backend)


def cache(training: Training, folder, gigabytes: float = 1.0) -> CachedLearner:
    training.learner = CachedLearner(training.learner, folder, gigabytes, "float32")
    return training.learner


def passes(learner: Learner) -> list[int]:
    """How often each layer worked, from here on: where its attention is called."""
    counts = [0] * len(learner.lm.model.layers)

    def count(number: int):
        def called(*_: object) -> None:
            counts[number] += 1

        return called

    for number, layer in enumerate(learner.lm.model.layers):
        layer.self_attn.register_forward_hook(count(number))
    return counts


# --- the same training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "method", "backend"),
    [
        ("lora", "head", "grouped"),
        ("lora", "sft", "padded"),
        ("full", "candidates", "grouped"),
        ("full", "sft", "dense"),
    ],
)
def test_the_trajectory_is_that_of_a_training_without_it(adapter, method, backend, deep_path, tmp_path):
    """Losses and weights to 1e-5 after ten steps in float32; the lower layers work for the first pass over a row only."""
    plain = training_of(deep_path, adapter, backend, method=method)
    wanted = losses(plain.run(tmp_path / "plain"))
    training = training_of(deep_path, adapter, backend, method=method)
    learner = cache(training, tmp_path / "states")
    counts = passes(learner)
    learner.prepare([*training.examples, *training.validation], 4096)
    frozen = len(learner.cut.lower)
    assert counts == [1] * frozen + [0] * (4 - frozen)
    assert losses(training.run(tmp_path / "cached")) == pytest.approx(wanted, rel=1e-5)
    assert counts[:frozen] == [1] * frozen and counts[-1] >= 14, "ten steps and four validations"
    for name, weight in plain.weights().items():
        assert torch.allclose(training.weights()[name], weight, atol=1e-5), name
    assert (
        load_file(tmp_path / "cached/best/adapter_model.safetensors").keys()
        == load_file(tmp_path / "plain/best/adapter_model.safetensors").keys()
    )


def test_rows_that_were_not_prepared_are_computed_as_they_come(deep_path, tmp_path):
    training = training_of(deep_path)
    batch = training.learner.batch(training.examples)
    with torch.no_grad():
        wanted = training.learner(batch).logits_PL
        learner = cache(training, tmp_path)
        assert torch.allclose(learner(batch).logits_PL, wanted, atol=1e-6)
        learner.prepare(training.examples[:3], 40)
        assert torch.allclose(learner(batch).logits_PL, wanted, atol=1e-6)
        learner.prepare(training.examples, 40)
        counts = passes(learner)
        assert torch.allclose(learner(batch).logits_PL, wanted, atol=1e-6)
    assert counts == [0, 0, 1, 1]


SEQUENCES = [
    Sequence((5, 9, 9, 4, 7, 8, 3), (5, 6), (1.0, 1.0)),
    Sequence((5, 9, 9, 4, 6, 8), (4, 5), (1.0, 0.5)),
    Sequence((5, 9, 9, 4, 7, 6, 2, 8), (5, 7), (1.0, 1.0)),
    Sequence((6, 6), (1,), (2.0,)),
]


def outputs_and_gradient(learner: Learner, examples: list[Example], causal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    learner.eval()
    learner.zero_grad(set_to_none=True)
    found = learner(make_batch(examples, causal=causal)).logprobs_M
    found.square().sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in learner.trained().values() if p.grad is not None])


@pytest.mark.parametrize(
    ("family", "backend"),
    [*((family, backend) for family in DECODERS for backend in ("grouped", "padded")),
     *((family, "padded") for family in ENCODERS if family != "xlnet")],
)  # fmt: skip
def test_every_family_can_be_cut(family, backend, tmp_path):
    """Outputs and gradients from kept states are those of the whole model, in each family's own layers."""
    causal = family in DECODERS
    model = tiny_model(family) if causal else without_dropout(tiny_encoder(family, torch.float64))
    model.requires_grad_(False)
    learner = Learner(Plain(model), {}, backend)
    layers_of(model)[-1].requires_grad_(True)
    examples = [Example((sequence,)) for sequence in SEQUENCES]
    wanted = outputs_and_gradient(learner, examples, causal)
    cut = CachedLearner(learner, tmp_path, 1.0, "float32")
    assert len(cut.cut.lower) == 1
    cut.prepare(examples[:2], 8)
    cut.prepare(examples, 8)
    assert cut.states(make_batch(examples, causal=causal).forest) is not None
    for found, want in zip(outputs_and_gradient(cut, examples, causal), wanted, strict=True):
        assert torch.allclose(found, want, rtol=1e-9, atol=1e-9)


# --- the store --------------------------------------------------------------------------------------------------


def filled(folder, learner_path, **changes):
    training = training_of(learner_path, **changes)
    learner = cache(training, folder)
    learner.prepare(training.examples, 64)
    return learner, training


def shards(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_a_second_training_finds_the_states_and_others_do_not(deep_path, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "SHARD_BYTES", 1)
    filled(tmp_path, deep_path)
    first = shards(tmp_path)
    assert len(first) > 1
    again = training_of(deep_path)
    learner = cache(again, tmp_path)
    counts = passes(learner)
    learner.prepare(again.examples, 64)
    assert counts == [0] * 4 and shards(tmp_path) == first
    cache(training_of(deep_path, "full"), tmp_path)
    assert not shards(tmp_path), "states of another cut are of no use any more"


def test_what_was_damaged_is_computed_again(deep_path, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_rows, "SHARD_BYTES", 1)
    learner, training = filled(tmp_path, deep_path)
    whole = shards(tmp_path)
    wanted = learner(learner.batch(training.examples)).logits_PL
    flipped, cut = whole[0], whole[1]
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-40])
    again = training_of(deep_path)
    other = cache(again, tmp_path)
    assert shards(tmp_path) == whole[2:]
    counts = passes(other)
    other.prepare(again.examples, 64)
    assert counts[0] == 2 and counts[3] == 0
    assert torch.equal(other(other.batch(again.examples)).logits_PL, wanted)


def test_a_kill_loses_what_is_in_no_shard_yet(deep_path, tmp_path, monkeypatch):
    """The third micro-batch fails: the two before it are there the next time."""
    monkeypatch.setattr(kept_rows, "SHARD_BYTES", 1)
    training = training_of(deep_path)
    learner = cache(training, tmp_path)
    calls: list[int] = []

    def third(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    watched = learner.lm.model.layers[0].register_forward_hook(third)
    with pytest.raises(KeyboardInterrupt):
        learner.prepare(training.examples, 64)
    watched.remove()
    assert len(shards(tmp_path)) == 2
    fresh = training_of(deep_path)
    again = cache(fresh, tmp_path)
    counts = passes(again)
    again.prepare(fresh.examples, 64)
    total = len(shards(tmp_path))
    assert counts[0] == total - 2 > 0


def test_rows_come_back_from_disk_in_any_order(tmp_path):
    store = RowStore(tmp_path, "i" * 64, 1 << 30)
    rows = torch.arange(40.0).reshape(10, 4)
    keys = [key_of((number,)) for number in range(4)]
    store.add(rows[:6], {keys[0]: torch.tensor([0, 1, 2]).numpy(), keys[1]: torch.tensor([0, 1, 5, 4]).numpy()})
    store.add(rows[6:], {keys[2]: torch.tensor([3, 0]).numpy()})
    wanted = [(keys[2], torch.tensor([1, 0]).numpy()), (keys[1], torch.tensor([2, 0]).numpy())]
    before = store.gather(wanted)
    assert torch.equal(before, rows[[6, 9, 5, 0]])
    store.flush()
    for opened in (store, RowStore(tmp_path, "i" * 64, 1 << 30)):
        assert torch.equal(opened.gather(wanted), before)
        assert torch.equal(opened.entry(keys[1]), rows[[0, 1, 5, 4]])
        assert keys[3] not in opened and opened.num_bytes == 160


# --- wrong input ------------------------------------------------------------------------------------------------


def test_there_must_be_layers_below(deep_path, tmp_path):
    training = Training(deep_path, tune_of(method="head"))
    with pytest.raises(TrainingError, match="reaches down to the lowest layer, so there is nothing below it"):
        cache(training, tmp_path)


def test_too_much_to_keep_is_refused_before_anything_is_computed(deep_path, tmp_path):
    training = training_of(deep_path)
    learner = cache(training, tmp_path, gigabytes=1e-6)
    counts = passes(learner)
    with pytest.raises(TrainingError, match=r"tune.cache_gigabytes: .* takes 1.8e-05 GB, and 1e-06 GB are allowed"):
        learner.prepare(training.examples, 4096)
    assert counts == [0] * 4


def test_dropout_below_the_cut_is_refused(deep_path, tmp_path):
    training = training_of(deep_path, backend="padded")
    training.learner.lm.model.layers[1].self_attn.attention_dropout = 0.1
    with pytest.raises(TrainingError, match=r"layers.1.self_attn drops 0.1 of what it gets"):
        cache(training, tmp_path)
    training.learner.lm.model.layers[1].self_attn.attention_dropout = 0.0
    training.learner.lm.model.layers[3].self_attn.attention_dropout = 0.1
    cache(training, tmp_path)


def test_rows_that_vary_are_refused():
    with pytest.raises(TrainingError, match="cache_below: mlm learns from a row in another form at each step"):
        refuse_varying(tune_of(cache_below=True), MaskedLm())
    both = Several({"a": Part(ClassifyHead(), 0.5), "b": Part(MaskedLm(), 0.5)})
    with pytest.raises(TrainingError, match="cache_below: mlm learns from a row in another form at each step"):
        refuse_varying(tune_of(cache_below=True), both)


def test_several_tasks_whose_rows_stay_as_they_are_are_kept():
    refuse_varying(
        tune_of(cache_below=True), Several({"a": Part(ClassifyHead(), 0.5), "b": Part(ConversationSft(), 0.5)})
    )


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        (
            {"cache_below": True, "neftune_alpha": 5},
            "tune.cache_below: neftune_alpha changes what the frozen layers say",
        ),
        ({"cache_below": True, "layer_drop": 0.1}, "tune.cache_below: layer_drop changes"),
        ({"cache_below": True, "adapter": "none"}, "tune.cache_below: a linear probe"),
        ({"cache_gigabytes": 2}, "tune.cache_gigabytes: is read where cache_below is true, or adapter.kind is none"),
    ],
)
def test_wrong_settings_are_told(tune, told):
    with pytest.raises(RecipeError, match=told):
        parse_recipe({"task": {"labels": ["A", "B"]}, "data": {"train": "rows.jsonl"}, "tune": tune})


# --- whole runs -------------------------------------------------------------------------------------------------


def test_a_stage_is_the_same_with_and_without(deep_path, tmp_path):
    texts = [("a goal won the match", "S"), ("the team won the match", "S"), ("a new goal by the team", "S"),
             ("the match won by a team", "S"), ("the senate passed a law", "P"), ("a vote on the law", "P"),
             ("a new law passed", "P"), ("the vote in the senate", "P")]  # fmt: skip
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts))
    found = {}
    for kept in ("false", "true"):
        recipe = tmp_path / f"{kept}.yaml"
        recipe.write_text(
            f"model: {deep_path}\nprecision: float32\nstages:\n  - method: classify\n"
            f"    data: {{train: {rows}, test_share: 0.25, validation_share: 0.25}}\n"
            f"    tune: {{epochs: 6, batch_size: 4, cache_below: {kept}, memory: {{predict: false}},\n"
            "           adapter: {kind: full, last: 1}}\n"
        )
        result = train_stages(recipe, tmp_path / f"run-{kept}")
        found[kept] = result["stages"][0]
    plain, cached = found["false"], found["true"]
    assert shards(tmp_path / "run-true")
    assert [s["loss"] for s in cached["training"]["curve"]["train"]] == pytest.approx(
        [s["loss"] for s in plain["training"]["curve"]["train"]], rel=1e-6
    )
    assert cached["figures"]["accuracy"] == plain["figures"]["accuracy"]
