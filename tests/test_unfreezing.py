"""Gradual unfreezing: what is held does not move and costs no backward pass, and what thaws begins afresh."""

import json
import os
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from encoders import CONFIGS as ENCODERS
from encoders import tiny_encoder
from families import CONFIGS as DECODERS
from families import tiny_model
from luthier.adapters import Plain
from luthier.errors import RecipeError, TrainingError
from luthier.methods.base import Example
from luthier.methods.conversations import ConversationSft
from luthier.recipe import Lora, parse_recipe
from luthier.recipe.adapters import Full
from luthier.recipe.memory import Memory
from luthier.recipe.stages import parse_stages
from luthier.recipe.unfreezing import NoThaw, ThawByEpochs, ThawByPlateau, ThawByShare
from luthier.records import Sequence
from luthier.stages import train
from luthier.stopped import Stopped
from luthier.training.height import depths, rungs
from luthier.training.learner import Learner
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step
from luthier.training.unfreezing import NUM_THAWS, Moment, make_ladder
from test_training import ROWS, Training, assert_equal_tensors, losses, tune_of, what_happened
from tiny import tiny_folder

LAYERS = 4
ADAPTERS = {"lora": Lora(rank=2, alpha=4.0), "full": Full()}


@pytest.fixture(scope="module")
def deep_path(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "deep", layers=LAYERS)


def gradual(unfreeze=None, adapter="lora", **changes):
    """10 rows in batches of 4: 2.5 steps an epoch, 10 steps in all."""
    unfreeze = unfreeze or ThawByShare(until=0.8)
    values = {"method": "head", "adapter": ADAPTERS[adapter], "unfreeze": unfreeze, "memory": Memory(predict=False)}
    return tune_of(**values | changes)


def layer_of(name: str) -> str:
    """layers.N, embeddings, or what stands above."""
    if "layers." in name:
        return "layers." + name.split("layers.")[1].split(".")[0]
    return "embeddings" if "embed" in name else "above"


# --- when what thaws --------------------------------------------------------------------------------------------


def test_a_ladder_goes_from_the_head_downwards():
    names = {"head": 0, "norm": 0, "three": 1, "two": 2, "one": 3, "zero": 4, "words": 5}
    ladder = make_ladder(ThawByShare(), names)
    assert ladder.thaws == ({"head", "norm"}, {"three"}, {"two"}, {"one"}, {"zero"}, {"words"})
    assert make_ladder(ThawByShare(layers=2, at_start=1), names).thaws == (
        {"head", "norm", "three"}, {"two", "one"}, {"zero", "words"},
    )  # fmt: skip
    headless = {name: rung for name, rung in names.items() if rung}
    assert make_ladder(ThawByShare(layers=4), headless).thaws == ({"three"}, {"two", "one", "zero", "words"})
    with pytest.raises(TrainingError, match="there is nothing to thaw: 1 layers are trained, and 1 of them learn"):
        make_ladder(ThawByShare(), {"three": 1})
    with pytest.raises(TrainingError, match="5 layers are trained, and 5 of them"):
        make_ladder(ThawByShare(at_start=5), names)


def thaws(settings, num_steps=10, epoch_steps=2.5, values=(), num_thaws=4):
    count = NUM_THAWS[type(settings)]
    return [count(settings, Moment(step, num_steps, epoch_steps, values), num_thaws) for step in range(num_steps)]


def test_schedules_by_hand():
    assert thaws(ThawByShare(until=0.8)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]  # every 8 / 4 steps
    assert thaws(ThawByShare(until=0.3), num_thaws=3)[:4] == [0, 1, 2, 3]  # 0.3 * 10 / 3, however floats round
    assert thaws(ThawByEpochs(every=1.0)) == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]  # at 2.5, 5, 7.5 steps
    assert thaws(ThawByEpochs(every=0.4)) == list(range(10))
    plateau = ThawByPlateau(patience=1)
    heights = [thaws(plateau, 1, values=values)[0] for values in ([], [3, 2, 1], [3, 4, 2], [3, 4, 3, 4, 5])]
    assert heights == [0, 0, 0, 2]  # two that are no better, twice
    assert thaws(ThawByPlateau(patience=0, min_change=0.5), 1, values=[3.0, 2.6, 2.4])[0] == 1


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_moves_before_it_thaws(adapter, deep_path, tmp_path):
    """Thaws at steps 0 (head, for full the last norm too), 2, 4, 6, 8: layers 3, 2, 1, 0; full ends with the words."""
    until = {"lora": 0.8, "full": 1.0}[adapter]
    training = Training(deep_path, gradual(ThawByShare(until=until), adapter))
    seen = [training.weights()]
    training.run(tmp_path, lambda _: seen.append(training.weights()))
    moved: dict[str, set[int]] = {}
    for step, (before, after) in enumerate(pairwise(seen)):
        for name in before:
            if not torch.equal(before[name], after[name]):
                moved.setdefault(layer_of(name), set()).add(step)
    wanted = {"above": 0, "layers.3": 2, "layers.2": 4, "layers.1": 6, "layers.0": 8}
    assert moved == {place: set(range(start, 10)) for place, start in wanted.items()}
    assert not training.learner.held and training.learner.trained().keys() == seen[0].keys()
    assert all(p.requires_grad for p in training.learner.trained().values())


def test_without_a_head_the_top_layer_is_open_from_the_start(deep_path, tmp_path):
    training = Training(deep_path, gradual(ThawByEpochs(every=2.0), method="sft"))
    before = training.weights()
    training.run(tmp_path)
    moved = {layer_of(name) for name, tensor in training.weights().items() if not torch.equal(tensor, before[name])}
    assert moved == {"layers.3", "layers.2"}, "best/ is that of an early step, or of the end"


# --- what a thaw costs, and carries over ------------------------------------------------------------------------


def step_with_layers(path, adapter: str, num_open: int) -> tuple[list[bool], int, float]:
    """Whether each layer's output wants a gradient, bytes that autograd keeps, and the loss, with some layers open."""
    training = Training(path, gradual(NoThaw(), adapter))
    learner = training.learner
    names = rungs(learner)
    learner.hold([name for name, rung in names.items() if rung > num_open])
    wanting: list[bool] = []
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    for layer in learner.lm.model.layers:
        layer.register_forward_hook(lambda _, __, out: wanting.append(out.requires_grad))

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = learner.batch(training.examples)
    learner.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = training.method.loss(learner(batch), batch).total
    loss.backward()
    graded = {layer_of(name) for name, p in learner.trained().items() if p.grad is not None}
    assert {layer_of(name) for name, rung in names.items() if rung <= num_open} >= graded
    return wanting, sum(kept.values()), float(loss.detach())


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_frozen_layers_are_neither_computed_backward_nor_kept(adapter, deep_path):
    found = [step_with_layers(deep_path, adapter, count) for count in range(LAYERS + 1)]
    for count, (wanting, _, loss) in enumerate(found):
        assert wanting == [False] * (LAYERS - count) + [True] * count
        assert loss == found[0][2]
    kept = [size for _, size, _ in found]
    per_layer = kept[2] - kept[1]
    assert per_layer > 0
    for before, after in pairwise(kept[1:]):
        assert after - before == pytest.approx(per_layer, rel=0.05), (
            "each open layer keeps the same, a frozen one nothing"
        )


def test_what_thaws_begins_with_fresh_moments_and_the_rest_keeps_its_own(deep_path, tmp_path):
    """Each layer counts its own steps; at the first of them AdamW's mean gradient is a tenth of the gradient."""
    Training(deep_path, gradual(evaluate_every=100, checkpoints={"every": 1, "keep": 100})).run(tmp_path)
    counts: dict[str, set[float]] = {}
    last = load_file(tmp_path / "checkpoints" / "step-000010" / "state.safetensors")
    for name, tensor in last.items():
        if name.startswith("optimizer.step."):
            counts.setdefault(layer_of(name), set()).add(float(tensor))
    assert counts == {"above": {10}, "layers.3": {8}, "layers.2": {6}, "layers.1": {4}, "layers.0": {2}}
    fifth = load_file(tmp_path / "checkpoints" / "step-000005" / "state.safetensors")  # layer 2 thawed at step 4
    slots = {name.split(".")[1] for name in fifth if ".layers.2." in name and name.startswith("optimizer.")}
    assert slots == {"step", "exp_avg", "exp_avg_sq"}
    for name, mean in fifth.items():
        if name.startswith("optimizer.exp_avg.") and ".layers.2." in name:
            square = fifth[name.replace("exp_avg.", "exp_avg_sq.")]
            assert torch.allclose((mean / 0.1) ** 2, square / 0.001, rtol=1e-4)
    assert not any(".layers.1." in name for name in fifth if name.startswith("optimizer."))


@pytest.mark.parametrize(
    ("unfreeze", "adapter"),
    [
        (ThawByShare(until=1.0), "lora"),
        (ThawByEpochs(every=0.8), "full"),
        (ThawByPlateau(patience=0, min_change=0.3), "lora"),
    ],
)
def test_ten_steps_are_five_and_a_stop_and_five_across_a_thaw(unfreeze, adapter, deep_path, tmp_path):
    tune = gradual(unfreeze, adapter, checkpoints={"every": 0}, evaluate_every=1)
    whole = Training(deep_path, tune)
    held: list[int] = []
    wanted = whole.run(tmp_path / "whole", lambda _: held.append(len(whole.learner.held)))
    assert held[4] > held[-1], "something thaws after the stop"

    def stop_after_five(progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        Training(deep_path, tune).run(tmp_path / "cut", stop_after_five)
    resumed = Training(deep_path, tune)
    again: list[int] = []
    found = resumed.run(tmp_path / "cut", lambda _: again.append(len(resumed.learner.held)))
    assert again == held[5:]
    assert what_happened(found) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())


def test_micro_batches_change_nothing(deep_path, tmp_path):
    found = [
        losses(
            Training(deep_path, gradual(batch_size=8, micro_batch_tokens=most), rows=ROWS[:8]).run(tmp_path / str(most))
        )
        for most in (4096, 60, 16)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-6) and found[2] == pytest.approx(found[0], rel=1e-6)


def test_updates_in_the_backward_pass_give_the_same_weights(deep_path, tmp_path):
    early = {"memory": Memory(optimizer_in_backward=True, predict=False)}
    found = [Training(deep_path, gradual(clip_norm=0.0, **changes)) for changes in (early, {})]
    for number, training in enumerate(found):
        training.run(tmp_path / str(number))
    assert_equal_tensors(found[0].weights(), found[1].weights())


@pytest.mark.parametrize("replayed", [False, True])
def test_a_task_without_a_head_learns_from_the_first_thaw_on(replayed, deep_path, tmp_path):
    """Beside a head, or replayed: its rows are counted while the head alone is open, and have no gradient then."""
    labels, talks = tmp_path / "labels.jsonl", tmp_path / "talks.jsonl"
    texts = [f"{word} match {i}" for i, word in enumerate(["goal", "law"] * 10)]
    labels.write_text("".join(json.dumps({"text": t, "label": t[:3]}) + "\n" for t in texts))
    talks.write_text("".join(json.dumps({"prompt": t, "completion": t[:3]}) + "\n" for t in texts[::-1]))
    label, talk = ({"method": kind, "data": {"train": str(file), "test_share": 0.2, "validation_share": 0.0}}
                   for kind, file in (("classify", labels), ("sft", talks)))  # fmt: skip
    tune = {"epochs": 1, "batch_size": 4, "memory": {"predict": False}}
    thawing = {"tune": {**tune, "unfreeze": {"kind": "share", "until": 0.8}}}
    stages = [{"tasks": {"label": label, "talk": talk}, **thawing}]
    if replayed:
        stages = [{**talk, "tune": tune}, {**label, **thawing, "start": "continue", "keep": {"replay_share": 0.4}}]
    values = {"model": str(deep_path), "precision": "float32", "stages": stages, "judge": {"resamples": 200}}
    last = train(parse_stages(values), tmp_path / "run")["stages"][-1]
    assert last["training"]["steps"] == last["training"]["planned_steps"] > 4
    assert all(entry["loss"] > 0 for entry in last["training"]["curve"]["train"])


def test_rows_that_read_no_head_move_nothing_while_it_alone_is_open(deep_path):
    training = Training(deep_path, gradual())
    learner = training.learner
    learner.hold(name for name in learner.trained() if not name.startswith("heads."))
    before = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    settings = gradual(batch_size=1)
    row = Example((Sequence((5, 6, 7, 8), (2, 3), (1.0, 1.0)),))
    done = one_step(learner, ConversationSft(), [row], make_optimizer(learner, settings), 1.0, settings, 0)
    assert done.loss > 0 and done.gradient_norm == 0.0
    assert_equal_tensors(dict(learner.named_parameters()), before)


# --- rates by layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_layer_has_its_rate(adapter, deep_path):
    """The top layer and all above it 8e-3, then a half each time; the head keeps its own."""
    training = Training(deep_path, gradual(NoThaw(), adapter, layer_rate_factor=0.5, learning_rate=8e-3))
    optimizer = make_optimizer(training.learner, training.tune)
    names = {id(p): name for name, p in training.learner.trained().items()}
    found: dict[str, set[float]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            found.setdefault("head" if name.startswith("heads.") else layer_of(name), set()).add(group["peak"])
    wanted = {"head": 1e-2, "layers.3": 8e-3, "layers.2": 4e-3, "layers.1": 2e-3, "layers.0": 1e-3}
    wanted |= {"above": 8e-3, "embeddings": 5e-4} if adapter == "full" else {}
    assert found == {place: {rate} for place, rate in wanted.items()}


def test_rates_by_layer_scale_the_first_update(deep_path, tmp_path):
    """Adam's first update is the rate, whatever the gradient (where it is not next to nothing)."""
    tune = gradual(NoThaw(), layer_rate_factor=0.5, epochs=0.4, warmup_share=0.0, schedule={"kind": "constant"},
                   weight_decay=0.0)  # fmt: skip
    training = Training(deep_path, tune)
    before = training.weights()
    training.run(tmp_path)
    for name, after in training.weights().items():
        if "lora_B" in name:
            depth = LAYERS - 1 - int(layer_of(name).removeprefix("layers."))
            largest = (after - before[name]).abs().max().item()
            assert largest == pytest.approx(5e-3 * 0.5**depth, rel=1e-3), name


ABOVE_LAYERS = {
    "llama": {"model.norm.weight"},
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    "gpt_neox": {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"},
}


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_family_has_its_heights(family):
    """Each layer has a rung of its own, the embeddings the lowest, and what the last layer does not reach none."""
    model = tiny_model(family, torch.float32) if family in DECODERS else tiny_encoder(family)
    model.requires_grad_(True)
    learner = Learner(Plain(model), {"main": torch.nn.Linear(32, 2)}, "padded")
    found = rungs(learner)
    assert set(found.values()) == {0, 1, 2, 3}
    inner = {name.removeprefix("wrapper.base_model.model."): rung for name, rung in found.items()}
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    assert all(inner[name] == 3 for name, p in model.named_parameters() if id(p) in embeddings)
    if family in ABOVE_LAYERS:
        top = {name for name, rung in inner.items() if rung == 0 and not name.startswith("heads.")}
        assert top == ABOVE_LAYERS[family] | ({"lm_head.weight"} & inner.keys())
    assert {depths(learner)[name] for name, rung in found.items() if rung == 3} == {2}


# --- wrong input ------------------------------------------------------------------------------------------------

TASK = {"labels": ["A", "B"]}


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({"unfreeze": "plateau"}, "tune.refit: trains on the validation rows too, and unfreeze: plateau has to look"),
        ({"unfreeze": "epoch"}, "tune.unfreeze: there is no 'epoch'; use 'none', 'share', 'epochs', 'plateau'"),
        ({"unfreeze": {"kind": "share", "every": 2}}, "tune.unfreeze.every: unknown key"),
        ({"layer_rate_factor": 2.6}, "layer_rate_factor: input should be less than or equal to 1"),
        ({"adapter": "none", "unfreeze": "share"}, "tune.unfreeze: a linear probe .* trains no layer. Leave it out"),
        ({"adapter": "none", "layer_rate_factor": 0.5}, "tune.layer_rate_factor: a linear probe"),
    ],
)
def test_wrong_settings_are_told(tune, told):
    with pytest.raises(RecipeError, match=told):
        parse_recipe({"task": TASK, "data": {"train": "rows.jsonl"}, "tune": tune})


def test_a_plateau_needs_validation_rows():
    stage = {"method": "sft", "data": {"train": "rows.jsonl", "validation_share": 0}, "tune": {"unfreeze": "plateau"}}
    with pytest.raises(RecipeError, match=r"tune.unfreeze: plateau looks at validation rows, and none are held out"):
        parse_stages({"stages": [stage]})
