"""Memory of a training: what is saved changes no number, what is predicted is near, running out is no end."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from luthier.errors import RecipeError, TrainingError
from luthier.methods.base import MAIN, split_by_tokens
from luthier.methods.sft import LabelSft
from luthier.models import load_model
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Lora, Task, Tune, parse_recipe
from luthier.recipe.memory import Memory
from luthier.records import Labelled, Source
from luthier.runtime import container_bytes
from luthier.training.checkpoint import random_state
from luthier.training.learner import label_head, new_learner
from luthier.training.loop import train
from luthier.training.memory import FILE, Room, fitting_tokens, read_memory
from luthier.training.memory_formula import (
    Load,
    Shape,
    activation_bytes,
    head_bytes,
    kept_elements,
    layer_elements,
    shape_of,
)
from luthier.training.memory_layers import Away, away_from, checkpointed, sent_away
from luthier.training.memory_prediction import Expected, Prediction, heap_growth, line
from luthier.training.memory_trial import Trial, meter_for
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step, update

TASK = Task(labels=["SPORTS", "POLITICS"], instruction="Classify the text.")
TEXTS = ["a goal won the match", "the team won a goal", "the senate passed a law", "a vote in the senate", "a team won",
         "one vote by the senate", "the match of the new team in the museum", "a law"]  # fmt: skip
ROWS = [Labelled(text, TASK.labels["senate" in text or "law" in text], Source("rows.txt", i + 1), str(i))
        for i, text in enumerate(TEXTS)]  # fmt: skip
WAYS = ["selective", "all", 2]


def tune_of(**changes) -> Tune:
    values = {"method": "sft", "batch_size": 4, "epochs": 2.0, "learning_rate": 5e-3, "weight_decay": 0.01,
              "refit": False, "adapter": Lora(rank=2, alpha=4.0)}  # fmt: skip
    return Tune(**(values | changes))


class Setup:
    """A learner of the tiny model with rows; adapters' B is not zero, so every gradient says something."""

    def __init__(self, path: Path, tune: Tune, backend: str = "auto"):
        loaded = load_model(str(path), precision="float32")
        self.prompt = ClassifyPrompt(TASK, Layout(loaded.tokenizer))
        heads = {MAIN: label_head(loaded, self.prompt)} if tune.method == "head" else {}
        self.learner = new_learner(loaded, tune.adapter, 3, backend, heads)
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in self.learner.trained().items():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
        self.tune, self.method = tune, LabelSft()
        self.examples = self.method.view(self.prompt, ROWS)

    def train(self, folder: Path, said: list[str] | None = None, report=lambda progress: None):
        say = (lambda text: None) if said is None else said.append
        return train(self.learner, self.method, self.examples, [], self.tune, 11, folder, report, say=say)

    def loss(self) -> torch.Tensor:
        self.learner.train()
        batch = self.learner.batch(self.examples)
        return self.method.loss(self.learner(batch), batch).total

    def gradients(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        self.loss().backward()
        return {name: parameter.grad.clone() for name, parameter in self.learner.trained().items()}

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.learner.trained().items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() and wanted
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# --- activations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", ["grouped", "padded"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])  # with dropout PEFT's own layers run, without it the fused ones
def test_checkpointing_changes_no_gradient(way, backend, dropout, tiny_path):
    """Bit for bit, and dropout's random state afterwards is what it would have been."""
    setup = Setup(tiny_path, tune_of(adapter=Lora(rank=2, alpha=4.0, dropout=dropout)), backend)
    wanted = setup.gradients()
    random = random_state()["random"]
    setup.learner.zero_grad()
    with checkpointed(setup.learner.lm, way):
        assert_same(setup.gradients(), wanted)
    assert torch.equal(random_state()["random"], random)
    assert all(float(gradient.abs().max()) > 0 for gradient in wanted.values())


def test_whole_weights_have_the_same_gradient(tiny_path):
    """Norms' weights among them, whose results `selective` makes again."""
    setup = Setup(tiny_path, tune_of(adapter="full"))
    wanted = setup.gradients()
    assert any("norm" in name for name in wanted)
    for way in WAYS:
        setup.learner.zero_grad()
        with checkpointed(setup.learner.lm, way):
            assert_same(setup.gradients(), wanted)


def test_the_layers_are_as_they_were(tiny_path):
    setup = Setup(tiny_path, tune_of())

    def state() -> list:
        return [(module.__dict__.get("forward"), len(module._forward_hooks), len(module._forward_pre_hooks))
                for module in setup.learner.modules()]  # fmt: skip

    before = state()
    for way in WAYS:
        with contextlib.suppress(ZeroDivisionError), checkpointed(setup.learner.lm, way), sent_away(setup.learner.lm):
            assert state() != before
            raise ZeroDivisionError
        assert state() == before


def kept_bytes(setup: Setup, way: str | int) -> int:
    """What a forward pass leaves allocated for its backward pass, by torch's own count."""
    with checkpointed(setup.learner.lm, way), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        batch = setup.learner.batch(setup.examples)
        hidden = setup.learner(batch).logprobs_M
        assert hidden.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


def test_what_is_kept_is_what_the_formula_says(tiny_path):
    """Within a fifth: ranks of LoRA, a final norm and other small change are not in it."""
    setup = Setup(tiny_path, tune_of())
    setup.loss()
    tokens = setup.learner.batch(setup.examples).forest.num_tokens
    shape = shape_of(setup.learner)
    assert shape == Shape(2, 32, 32, 16, 48, True, setup.learner.lm.config.vocab_size, 4, False)
    assert layer_elements(shape) == 4 * 32 + 2 * (32 + 16) + 3 * 48 == 368
    found = {way: kept_bytes(setup, way) / (4 * tokens) for way in ("off", "selective", "all")}
    assert found["off"] == pytest.approx(2 * 368 + 2 * 32, rel=0.25)
    assert found["off"] - found["selective"] == pytest.approx(2 * (2 * 32 + 48), rel=0.2)
    assert found["off"] - found["all"] == pytest.approx(2 * (368 - 32), rel=0.2)


def test_activations_sent_away_come_back(tiny_path, monkeypatch):
    """On a CPU the other memory is the same one: the way there and back is real, the saving is not."""
    monkeypatch.setattr("luthier.training.memory_layers.AWAY_BYTES", 64)
    setup = Setup(tiny_path, tune_of())
    wanted = setup.gradients()
    for way in ("off", "all"):
        setup.learner.zero_grad()
        with checkpointed(setup.learner.lm, way), sent_away(setup.learner.lm) as away:
            assert_same(setup.gradients(), wanted)
        assert away.sent_bytes > 1000
    weights = sum(parameter.nbytes for parameter in setup.learner.parameters())
    assert away.sent_bytes < weights
    parameter = next(setup.learner.lm.parameters())
    assert away_from(setup.learner.lm).pack(parameter) is parameter  # a weight stays
    assert isinstance(Away(frozenset()).pack(parameter), tuple)


# --- updates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "muon"])
def test_updates_in_the_backward_pass_are_the_same_updates(optimizer, tiny_path, tmp_path):
    """Four steps through the loop, bit for bit; the norm is that of all gradients."""
    found = {}
    for early in (False, True):
        memory = Memory(optimizer_in_backward=early)
        tune = tune_of(clip_norm=0.0, memory=memory, optimizer={"kind": optimizer}, schedule={"kind": "linear"})
        setup = Setup(tiny_path, tune)
        history = setup.train(tmp_path / f"{early}")
        norms = [step["gradient_norm"] for step in history.train]
        found[early] = [step["loss"] for step in history.train], setup.weights(), norms
        assert not early or all(parameter.grad is None for parameter in setup.learner.trained().values())
    assert len(found[True][0]) == 4 and found[True][0] == found[False][0]
    assert_same(found[True][1], found[False][1])
    assert found[True][2] == pytest.approx(found[False][2], rel=1e-5)


def test_updates_in_the_backward_pass_need_one_pass(tiny_path, tmp_path):
    tune = tune_of(clip_norm=0.0, micro_batch_tokens=40, memory=Memory(optimizer_in_backward=True, predict=False))
    with pytest.raises(TrainingError, match=r"step 1 is cut into [234] micro-batches of at most 40 tokens .* Raise "):
        Setup(tiny_path, tune).train(tmp_path)


def test_no_early_update_with_a_penalty_or_a_bad_number(tiny_path):
    tune = tune_of(clip_norm=0.0, memory=Memory(optimizer_in_backward=True))
    setup = Setup(tiny_path, tune)
    optimizer = make_optimizer(setup.learner, tune)
    rest = (optimizer, 1.0, tune, 0)
    with pytest.raises(TrainingError, match=r"the penalty on the weights \(keep.penalty\) has a gradient of its own"):
        one_step(setup.learner, setup.method, setup.examples, *rest, lambda: torch.zeros(()))
    wanted = setup.weights()
    with torch.no_grad():
        setup.learner.lm.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: loss nan, gradient norm 0; the update was not made"):
        one_step(setup.learner, setup.method, setup.examples, *rest)
    assert_same(setup.weights(), wanted)


def test_an_update_with_its_state_brought_is_the_same(tiny_path):
    found = {}
    for offload in (False, True):
        tune = tune_of(memory=Memory(offload_optimizer=offload))
        setup = Setup(tiny_path, tune)
        optimizer = make_optimizer(setup.learner, tune)
        for _ in range(3):
            setup.learner.zero_grad()
            setup.gradients()
            update(optimizer, list(setup.learner.trained().values()), tune)
        found[offload] = setup.weights()
    assert_same(found[True], found[False])


# --- the prediction ------------------------------------------------------------------------------------------------

SHAPE = Shape(layers=3, hidden=10, attention=10, keys=5, mlp=20, gated=True, vocabulary=100, item_bytes=4,
              trains_head=False)  # fmt: skip


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("off", 3 * 130),
        ("selective", 3 * (130 - 40)),
        ("all", 3 * 10 + 130),
        (2, 2 * 10 + 130 + 130),
        (1, 3 * 10 + 130),
    ],
)
def test_kept_by_hand(way, wanted):
    """A layer: 4 x 10 + 2 x (10 + 5) + 3 x 20 = 130 numbers a token; norms and gate: 2 x 10 + 20 of them."""
    assert kept_elements(SHAPE, Memory(checkpointing=way)) == wanted


def test_the_formula_by_hand():
    """5 tokens, 2 rows: kept 5 x (390 + 20), flowing 5 x (20 + 60); head 6 x 2 x 10 numbers and twice 200 logits."""
    load = Load(tokens=5, head_rows=2)
    assert head_bytes(SHAPE, load) == 4 * 120 + 8 * 200 == 2080
    assert activation_bytes(SHAPE, load, Memory()) == 4 * 5 * 410 + 2080  # the head's is more than the 1,600 that flow
    assert activation_bytes(SHAPE, Load(5, 0), Memory()) == 4 * 5 * 410 + 1600


def test_the_line_through_two_measurements():
    assert line([100, 200], [130, 230], False) == (1.0, 30.0)
    assert line([100, 200], [130, 230], True) == (230 / 200, 0.0)  # only the second is to be trusted
    assert line([100, 110], [130, 230], False) == (230 / 110, 0.0)  # too near each other
    assert line([100, 200], [300, 230], False) == (230 / 200, 0.0)  # falling: noise


@pytest.mark.parametrize("changes", [{}, {"memory": {"optimizer_in_backward": True}, "clip_norm": 0.0}])
def test_trial_steps_leave_no_trace(changes, tiny_path, tmp_path):
    """With dropout and AdamW, a training with a prediction is bit for bit one without."""
    found = {}
    for predict in (False, True):
        memory = Memory(**changes.get("memory", {}), predict=predict)
        adapter = Lora(rank=2, alpha=4.0, dropout=0.3)
        setup = Setup(tiny_path, tune_of(**{**changes, "memory": memory, "adapter": adapter}))
        said: list[str] = []
        history = setup.train(tmp_path / f"{predict}", said)
        assert any(text.startswith("memory: about ") for text in said) is predict
        found[predict] = [step["loss"] for step in history.train], setup.weights()
    assert found[True][0] == found[False][0]
    assert_same(found[True][1], found[False][1])
    noted = read_memory(tmp_path / "True")
    assert noted["predicted_peak_bytes"] == sum(noted["predicted"].values())
    assert noted["peak_bytes"] == pytest.approx(noted["predicted_peak_bytes"], rel=0.15)
    assert "predicted_peak_bytes" not in read_memory(tmp_path / "False")


def test_a_trial_step_is_a_real_one(tiny_path):
    """Its update is made (the optimizer has its state) and undone."""
    setup = Setup(tiny_path, tune_of())
    wanted = setup.weights()
    trial = Trial(setup.learner, setup.method, setup.tune, meter_for(torch.device("cpu")))
    changed: list[bool] = []

    def look(*_: object) -> None:
        changed.append(not torch.equal(trial.parameters[0], next(iter(wanted.values()))))

    trial.optimizer.register_step_post_hook(look)
    measured = trial.step(setup.examples)
    assert changed == [True]
    assert_same(setup.weights(), wanted)
    numbers = sum(parameter.numel() for parameter in trial.parameters)
    assert measured.state == 4 * (2 * numbers + len(trial.parameters))  # two moments, and a count of steps each


def prediction_of(setup: Setup, tune: Tune) -> Prediction:
    """1,000 bytes held, 100 of gradients, 200 of the optimizer, and the bare formula."""
    return Prediction(SHAPE, tune, held=1000, gradients=100, optimizer=200, update=50, scale=1.0, offset=0.0)


def test_auto_fits_into_the_limit(tiny_path):
    """The tokens found are within the limit, and a twentieth more would not be."""
    tune = tune_of(micro_batch_tokens="auto")
    setup = Setup(tiny_path, tune)
    prediction = prediction_of(setup, tune)
    steps = [setup.examples]

    def needs(tokens: int) -> int:
        cut = tune.model_copy(update={"micro_batch_tokens": tokens})
        loads = [setup.learner.batch(rows).forest for rows in split_by_tokens(setup.examples, cut.pass_tokens)]
        found = [Load(forest.num_tokens, len(set(forest.row_M.tolist()))) for forest in loads]
        return max(prediction.expected(load).total for load in found)

    whole = sum(example.num_tokens for example in setup.examples)
    limit = (needs(whole) + needs(16)) // 2
    tokens = fitting_tokens(setup.learner, prediction, tune, steps, whole, limit)
    assert needs(tokens) <= limit < needs(whole) and 16 < tokens < whole
    assert fitting_tokens(setup.learner, prediction, tune, steps, whole, needs(whole)) == whole
    with pytest.raises(
        TrainingError, match=r"the longest row alone \(\d+ tokens\) takes about .* are allowed. Set tune"
    ):
        fitting_tokens(setup.learner, prediction, tune, steps, whole, 1400)


def test_what_is_told():
    told = Expected(1_100_000_000, 20_000_000, 40_000_000, 900_000_000, 1234).told()
    assert told == (
        "memory: about 2.1 GB at the peak: 1.1 GB program and model, 20.0 MB gradients, 40.0 MB optimizer, "
        "900.0 MB activations of 1,234 tokens."
    )
    grown = Expected(1_100_000_000, 20_000_000, 40_000_000, 900_000_000, 1234, heap=300_000_000)
    assert grown.total == 2_360_000_000
    assert grown.told().endswith("900.0 MB activations of 1,234 tokens, 300.0 MB holes in the heap.")


def test_the_heap_of_a_long_training_is_expected_to_grow(tiny_path):
    setup = Setup(tiny_path, tune_of())
    prediction = prediction_of(setup, tune_of())
    load = Load(tokens=500, head_rows=20)
    short, long = (replace(prediction, growth=heap_growth(steps)).expected(load) for steps in (2, 200))
    assert prediction.expected(load).heap == 0 and short.activations == long.activations
    assert 0 < short.heap < 0.06 * short.activations
    assert long.heap == pytest.approx(0.35 * long.activations, rel=1e-6), "measured on four recipes: docs/memory.md"
    assert long.total == prediction.expected(load).total + long.heap


def test_memory_is_given_back_once_the_process_outgrows_what_is_in_use(tiny_path, tmp_path, monkeypatch):
    """What the heap may grow by is no reason to wait: only what is in use counts."""
    setup = Setup(tiny_path, tune_of())
    room = Room(setup.learner, LabelSft(), tune_of(), tmp_path, print)
    given: list[int] = []
    monkeypatch.setattr(room, "give_back", lambda: given.append(room.steps_since))
    room.values = {"predicted_peak_bytes": 130, "predicted": {"held": 60, "activations": 40, "heap": 30}}
    for resident, wanted in ((99, 0), (101, 1)):
        monkeypatch.setattr("luthier.training.memory.resident_bytes", lambda resident=resident: resident)
        room.steps_since = 100
        room.stay_small()
        assert len(given) == wanted


# --- running out ---------------------------------------------------------------------------------------------------


def test_auto_goes_on_in_smaller_pieces(tiny_path, tmp_path):
    """Out of memory at the third step: the pieces are halved, the trajectory stays, the cut is remembered."""
    wanted = Setup(tiny_path, tune_of(adapter=Lora(rank=2, alpha=4.0)))
    losses = [step["loss"] for step in wanted.train(tmp_path / "whole").train]
    setup = Setup(tiny_path, tune_of(micro_batch_tokens="auto"))
    forward, said = setup.learner.forward, []
    room = {"left": 3}

    def short(batch):
        if batch.forest.num_tokens > 60:
            room["left"] -= 1
            if room["left"] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(batch)

    setup.learner.forward = short
    setup.tune = setup.tune.model_copy(update={"memory": Memory(limit_bytes=1 << 60)})
    history = setup.train(tmp_path / "short", said)
    assert [step["loss"] for step in history.train] == pytest.approx(losses, rel=1e-6)
    halved = [text for text in said if "out of memory; going on with micro-batches of" in text]
    assert halved and read_memory(tmp_path / "short")["micro_batch_tokens"] <= 120


OUT_OF_MEMORY = """
    import json, resource, sys
    from pathlib import Path
    import torch
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    from test_memory import Setup, tune_of
    from luthier.recipe.memory import Memory
    from luthier.runtime import status_bytes

    setup = Setup(Path(sys.argv[2]), tune_of(batch_size=96, epochs=1.0, micro_batch_tokens="auto"))
    long = [row.sequences[0].tokens for row in setup.examples]
    from luthier.methods.base import Example
    from luthier.records import Sequence
    words = [token for tokens in long for token in tokens]
    rows = [(3 + i % 40, 3 + i // 40, *(words * 3)[i : i + 198]) for i in range(96)]
    setup.examples = [Example((Sequence(row, tuple(range(1, 200)), (1.0,) * 199),)) for row in rows]
    said = []
    setup.tune = setup.tune.model_copy(update={"memory": Memory(limit_bytes=1 << 60)})
    start = sys.argv[4]
    if start == "short":
        setup.learner(setup.learner.batch(setup.examples[:4]))
        room = status_bytes("VmSize") + (48 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    history = setup.train(Path(sys.argv[3]), said)
    print(json.dumps({"losses": [step["loss"] for step in history.train], "said": said}))
"""


def test_a_real_lack_of_memory_is_no_end(tiny_path, tmp_path):
    """A process that may not have the memory of its largest step trains as one that may."""
    found = {}
    for start in ("free", "short"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(OUT_OF_MEMORY), str(Path(__file__).parent), str(tiny_path),
             str(tmp_path / start), start],
            capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found[start] = json.loads(done.stdout.splitlines()[-1])
    assert not any("out of memory" in text for text in found["free"]["said"])
    assert any("out of memory; going on with micro-batches of" in text for text in found["short"]["said"])
    assert found["short"]["losses"] == pytest.approx(found["free"]["losses"], rel=1e-5)


def test_a_stopped_training_is_cut_as_it_was(tiny_path, tmp_path):
    """What auto found is found once: the second process reads it, and makes the steps of an undisturbed one."""
    limit = Memory(limit_bytes=1 << 60)
    whole = Setup(tiny_path, tune_of(micro_batch_tokens="auto", memory=limit))
    whole.train(tmp_path / "whole")
    first = Setup(tiny_path, tune_of(micro_batch_tokens="auto", memory=limit))

    def fail(progress) -> None:
        if progress.step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        first.train(tmp_path / "cut", report=fail)
    noted = read_memory(tmp_path / "cut") | {"micro_batch_tokens": 77}
    (tmp_path / "cut" / FILE).write_text(json.dumps(noted))
    second, said = Setup(tiny_path, tune_of(micro_batch_tokens="auto", memory=limit)), []
    second.train(tmp_path / "cut", said)
    assert not any(text.startswith("memory:") for text in said)
    assert read_memory(tmp_path / "cut")["micro_batch_tokens"] == 77
    for name, tensor in whole.weights().items():
        torch.testing.assert_close(second.weights()[name], tensor, rtol=1e-5, atol=1e-7)


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_activations"])
def test_nothing_is_moved_from_a_cpu(key, tiny_path, tmp_path):
    setup = Setup(tiny_path, tune_of(memory=Memory(**{key: True})))
    with pytest.raises(
        TrainingError, match=rf"tune.memory.{key}: the model is on the CPU, so there is no other memory"
    ):
        setup.train(tmp_path)


def test_several_processes_are_told(tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.training.memory.num_processes", lambda: 2)
    for changes, told in (
        ({"clip_norm": 0.0, "memory": Memory(optimizer_in_backward=True)}, "gradients are added up after the backward"),
        ({"micro_batch_tokens": "auto"}, "auto is found by one process for itself. With several, set a number"),
    ):
        setup = Setup(tiny_path, tune_of(**changes))
        with pytest.raises(TrainingError, match=told), Room(setup.learner, setup.method, setup.tune, tmp_path, print):
            pass


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ("memory: {checkpointing: some}", "tune.memory.checkpointing: must be off, selective, all, or n >= 1 for"),
        ("memory: {checkpointing: 0}", "tune.memory.checkpointing: must be off, selective, all, or n >= 1 for"),
        ("micro_batch_tokens: much", "tune.micro_batch_tokens: must be auto, or a whole number of at least 16 (got"),
        ("micro_batch_tokens: 8", "tune.micro_batch_tokens: must be auto, or a whole number of at least 16 (got 8)"),
        ("memory: {optimizer_in_backward: true}", "they cannot be clipped by it (clip_norm: 1). Set tune.clip_norm: 0."),
        ("memory: {limit_bytes: 5}", "tune.memory.limit_bytes: only tune.micro_batch_tokens: auto reads it."),
        ("{micro_batch_tokens: auto, memory: {predict: false}}", "auto goes by the prediction. Leave it true."),
        ("{memory: {offload_activations: true, checkpointing: selective}}", "takes them all away. Set checkpointing"),
        ("{adapter: none, memory: {checkpointing: all}}", "tune.memory.checkpointing: a linear probe"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be(tune, told):
    import yaml

    values = {"task": {"labels": ["A", "B"]}, "data": {"train": "x.jsonl"}, "tune": yaml.safe_load(tune)}
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values)
    assert told in str(caught.value)


def test_yaml_reads_off_as_false():
    recipe = parse_recipe({"task": {"labels": ["A", "B"]}, "data": {"train": "x.jsonl"},
                           "tune": {"memory": {"checkpointing": False}}})  # fmt: skip
    assert recipe.tune.memory.checkpointing == "off"


def test_what_a_container_leaves(tmp_path):
    """100 allowed, 70 used, 20 of them a cache of files that makes room: 50."""
    for name, text in (
        ("memory.max", "100\n"),
        ("memory.current", "70\n"),
        ("memory.stat", "anon 50\ninactive_file 20\n"),
    ):
        (tmp_path / name).write_text(text)
    assert container_bytes(tmp_path) == 50
    (tmp_path / "memory.max").write_text("max\n")
    assert container_bytes(tmp_path) is None and container_bytes(tmp_path / "none") is None


def test_sizes_of_layers_that_differ_are_the_first_ones(tiny_path):
    from transformers import Gemma4TextConfig

    setup = Setup(tiny_path, tune_of())
    setup.learner.lm.config = Gemma4TextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    assert shape_of(setup.learner) == Shape(2, 32, 32, 16, 48, True, 97, 4, False)


def test_a_model_that_does_not_tell_its_sizes_trains_without_a_forecast(tiny_path, tmp_path):
    setup = Setup(tiny_path, tune_of())
    setup.learner.lm.config.num_hidden_layers = 0
    said: list[str] = []
    setup.train(tmp_path, said)
    assert said[1] == (
        "The memory that this takes is not predicted: the configuration of a llama does not tell its width or number "
        "of layers."
    )
