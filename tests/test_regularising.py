"""Averages of weights, noise, layers left out, early stopping, and what the curves say: by hand and through the loop."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import RunError, TrainingError
from luthier.forest import even
from luthier.forest.even import mark_even
from luthier.forest.tree import build_forest
from luthier.methods.head import HeadMethod
from luthier.recipe import Training as Settings
from luthier.recipe.averaging import Ema, NoAverage, Stop, Swa
from luthier.records import Sequence
from luthier.training.averaging import WeightAverage, share_of
from luthier.training.checkpoint import History, load_best
from luthier.training.curves import reading
from luthier.training.judging import badness, best_step, check_metric, has_ended, num_reductions, since_known, waits
from luthier.training.noise import disturbed, flat_keys, keys_of, prefix_keys, uniform
from luthier.training.optimizers import make_optimizer
from luthier.training.step import evaluate, one_step
from test_training import VALIDATION, Training, assert_equal_tensors, losses, what_happened
from test_training import tune_of as plain_tune


def tune_of(**changes):
    return plain_tune(**{"method": "head", "memory": {"predict": False}, **changes})


class Interrupted(Exception):
    pass


def cut_and_whole(tiny_path, tmp_path, tune, after=5, **rows):
    """A training as a whole, and one that broke `after` some steps and was taken up: the same to the last bit."""
    whole = Training(tiny_path, tune, **rows)
    wanted = whole.run(tmp_path / "whole")

    def fail(progress) -> None:
        if progress.step == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        Training(tiny_path, tune, **rows).run(tmp_path / "cut", fail)
    resumed = Training(tiny_path, tune, **rows)
    steps = []
    found = resumed.run(tmp_path / "cut", lambda progress: steps.append(progress.step))
    assert 1 < steps[0] <= after + 1, "it was taken up"
    assert what_happened(found) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())
    return whole, wanted


# --- averages --------------------------------------------------------------------------------------------------


def test_shares_by_hand():
    """Ema: 1 - min(decay, (1 + t) / (10 + t)). Swa: from step 6 of 10 on, each second one: 1, 1/2, 1/3 of the mean."""
    assert [share_of(Ema(decay=0.5), step, 99) for step in (0, 1, 7, 8, 50)] == pytest.approx(
        [0.9, 9 / 11, 9 / 17, 0.5, 0.5]
    )
    swa = Swa(begin_share=0.6, every=2)
    assert [share_of(swa, step, 11) for step in range(11)] == pytest.approx([0, 0, 0, 0, 0, 0, 1, 0, 1 / 2, 0, 1 / 3])
    assert share_of(NoAverage(), 5, 10) == 0.0


@pytest.mark.parametrize("settings", [{"kind": "ema", "decay": 0.6}, {"kind": "swa", "begin_share": 0.5}])
def test_what_is_validated_and_left_is_the_average(settings, tiny_path, tmp_path):
    """The average worked out from the weights after each step, in float64."""
    training = Training(tiny_path, tune_of(average=settings, evaluate_every=10), validation=VALIDATION)
    after = []
    history = training.run(tmp_path, lambda progress: after.append(training.weights()))
    assert len(after) == 10
    wanted = {}
    for step, weights in enumerate(after):
        share = share_of(training.tune.average, step, 10)
        for name, tensor in weights.items() if share else ():
            old = wanted.get(name, tensor.double())
            wanted[name] = old + share * (tensor.double() - old)
    for name, tensor in training.weights().items():
        torch.testing.assert_close(tensor.double(), wanted[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(tensor, after[-1][name])
    if settings["kind"] == "swa":  # the plain mean of the last five
        name = next(iter(wanted))
        torch.testing.assert_close(wanted[name], torch.stack([weights[name].double() for weights in after[5:]]).mean(0))
    loss, _ = evaluate(training.learner, training.method, training.validation, 4096)
    assert loss == pytest.approx(history.validation[-1]["loss"], rel=1e-6)


@pytest.mark.parametrize("settings", [{"kind": "ema", "decay": 0.6}, {"kind": "swa", "begin_share": 0.3, "every": 2}])
def test_an_average_goes_on_where_it_was(settings, tiny_path, tmp_path):
    tune = tune_of(average=settings, checkpoints={"every": 5})
    cut_and_whole(tiny_path, tmp_path, tune)
    found = [load_file(tmp_path / name / "checkpoints/step-000010/state.safetensors") for name in ("cut", "whole")]
    assert any(name.startswith("average.") for name in found[1])
    assert_equal_tensors(*found)


def test_an_average_does_not_touch_what_is_trained(tiny_path, tmp_path):
    """The losses of the steps are those of a training without it."""
    found = [
        losses(Training(tiny_path, tune_of(average=average, evaluate_every=2)).run(tmp_path / average))
        for average in ("none", "ema")
    ]
    assert found[0] == found[1]


def test_weights_come_back_bit_for_bit(tiny_path):
    training = Training(tiny_path, tune_of())
    average = WeightAverage(Ema(decay=0.5), 10)
    average.update(0, training.learner)
    before = training.weights()
    for parameter in training.learner.trained().values():
        parameter.data.add_(1.0)
    moved = training.weights()
    with average.in_place(training.learner):
        assert_equal_tensors(training.weights(), before)
    assert_equal_tensors(training.weights(), moved)


# --- noise -----------------------------------------------------------------------------------------------------


def test_keys_are_of_beginnings():
    tokens = np.array([[1, 2, 3, 4], [1, 2, 9, 4], [2, 1, 3, 4]])
    keys = prefix_keys(tokens)
    assert (keys[0, :2] == keys[1, :2]).all() and len(np.unique(keys)) == 10
    forest = build_forest([Sequence(tuple(row), (3,), (1.0,)) for row in tokens.tolist()])
    flat = flat_keys(forest)[0]
    for s in range(3):
        rows = forest.rows_of(s)
        assert (flat[rows] == keys[s, : len(rows)]).all()
    assert (keys_of(torch.from_numpy(tokens), "llama") == keys).all()
    assert (keys_of(torch.from_numpy(tokens.T.copy()), "xlnet") == keys.T).all()


def test_noise_is_uniform_and_of_its_seed_and_step():
    keys = prefix_keys(np.arange(4000).reshape(40, 100))
    like = torch.zeros(1, 64)
    drawn = uniform(keys, like, (3, 7))
    assert drawn.shape == (40, 100, 64) and float(drawn.min()) >= -1 and float(drawn.max()) < 1
    assert abs(float(drawn.mean())) < 0.005 and float(drawn.var()) == pytest.approx(1 / 3, rel=0.01)
    assert abs(float((drawn[..., 1:] * drawn[..., :-1]).mean())) < 0.003, "dimensions are independent"
    assert abs(float((drawn[:, 1:] * drawn[:, :-1]).mean())) < 0.003, "so are tokens"
    assert torch.equal(drawn, uniform(keys, like, (3, 7)))
    for other in ((3, 8), (4, 7)):
        assert abs(float((uniform(keys, like, other) * drawn).mean())) < 0.003


def test_neftune_by_hand(tiny_path):
    """Embeddings in training mode: each in +-alpha / sqrt(L D) of its own, that of a shared beginning the same."""
    training = Training(tiny_path, tune_of(neftune_alpha=5.0))
    learner, rows = training.learner, training.examples[:4]
    seen = []
    with disturbed(learner, training.tune, 11, rows) as found:
        found.begin(3, rows)
        embed = learner.lm.get_input_embeddings()
        hook = embed.register_forward_hook(lambda module, args, out: seen.append(out - module.weight[args[0]]))
        batch = learner.batch(rows)
        learner.train()
        learner(batch)
        with torch.no_grad():
            learner(batch)
        learner.eval()
        learner(batch)
        hook.remove()
    longest = max(len(s.tokens) for row in rows for s in row.sequences)
    size = 5.0 / math.sqrt(longest * 32)
    assert size * 0.9 < float(seen[0].detach().abs().max()) <= size * (1 + 1e-5)
    assert not seen[1].any() and not seen[2].any(), "nothing is disturbed where nothing is learnt"
    learner.train()
    plain = learner(batch).logits_PL
    with disturbed(learner, training.tune, 11, rows) as found:
        found.begin(3, rows)
        assert not torch.equal(learner(batch).logits_PL, plain)
    assert torch.equal(learner(batch).logits_PL, plain), "it leaves no trace"


@pytest.mark.parametrize("changes", [{"neftune_alpha": 10.0}, {"layer_drop": 0.5}])
def test_disturbance_is_the_same_however_a_step_is_computed(changes, tiny_path, tmp_path):
    """One micro-batch or several, forest or padded batch: one trajectory. Another seed gives another."""
    ways = {"whole": (4096, "grouped"), "cut": (60, "grouped"), "padded": (4096, "padded")}
    found = {}
    for name, (most, backend) in ways.items():
        tune = tune_of(epochs=1.6, micro_batch_tokens=most, **changes)
        found[name] = losses(Training(tiny_path, tune, backend, validation=[]).run(tmp_path / name))
    assert found["cut"] == pytest.approx(found["whole"], rel=1e-5)
    assert found["padded"] == pytest.approx(found["whole"], rel=2e-5)
    plain = losses(Training(tiny_path, tune_of(epochs=1.6), validation=[]).run(tmp_path / "plain"))
    assert found["whole"] != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("backend", ["grouped", "padded"])
def test_disturbance_is_the_same_in_passes_that_are_filled_up(backend, tiny_path, tmp_path, monkeypatch):
    monkeypatch.setattr(even, "STEPS", 2)
    tune = tune_of(epochs=1.6, neftune_alpha=10.0, layer_drop=0.3)
    wanted = losses(Training(tiny_path, tune, backend, validation=[]).run(tmp_path / "plain"))
    training = Training(tiny_path, tune, backend, validation=[])
    mark_even(training.learner.lm, 1 << 30)
    assert losses(training.run(tmp_path / "filled")) == pytest.approx(wanted, rel=1e-5)


def test_disturbance_goes_on_where_it_was(tiny_path, tmp_path):
    tune = tune_of(neftune_alpha=10.0, layer_drop=0.4, checkpoints={"every": 5})
    cut_and_whole(tiny_path, tmp_path, tune)


# --- layers left out -------------------------------------------------------------------------------------------


def test_layers_are_left_out_as_drawn(tiny_path):
    """A skipped layer hands on what it got; over many steps each is skipped as often as it should."""
    training = Training(tiny_path, tune_of(layer_drop=0.3))
    learner, rows = training.learner, training.examples[:2]
    calls = []
    with disturbed(learner, training.tune, 11, rows) as found:
        layers = found.layers
        hooks = [
            layer.self_attn.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, layer in enumerate(layers)
        ]
        skipped = []
        for step in range(200):
            found.begin(step, rows)
            skipped.append(found.step.skipped)
        found.begin(skipped.index(frozenset({1})), rows)
        learner.train()
        batch = learner.batch(rows)
        learner(batch)
        assert calls == [0]
        learner.eval()
        learner(batch)
        assert calls == [0, 0, 1], "all layers answer"
        for hook in hooks:
            hook.remove()
    assert not any("forward" in vars(layer) for layer in layers)
    assert frozenset({0, 1}) not in skipped, "something is always learnt"
    for layer in (0, 1):  # 0.3, less half of the 0.09 in which both were drawn: 0.255
        assert sum(layer in chosen for chosen in skipped) / 200 == pytest.approx(0.255, abs=0.07)


def test_a_skipped_layer_gets_no_gradient(tiny_path):
    training = Training(tiny_path, tune_of(layer_drop=0.5))
    learner, rows = training.learner, training.examples[:3]
    optimizer = make_optimizer(learner, training.tune)
    with disturbed(learner, training.tune, 11, rows) as found:
        number = next(n for n in range(50) if found.drawn(n) == frozenset({0}))
        found.begin(number, rows)
        one_step(learner, training.method, rows, optimizer, 1.0, training.tune, number)
    grads = {name: parameter.grad for name, parameter in learner.trained().items()}
    assert all(grad is None for name, grad in grads.items() if ".layers.0." in name)
    assert all(grad is not None for name, grad in grads.items() if ".layers.1." in name)


# --- judging and early stopping --------------------------------------------------------------------------------


def entries(values, name="loss"):
    return [{"step": 10 * i, "loss": 0.0, name: value} for i, value in enumerate(values, 1)]


def test_waits_by_hand():
    assert waits([3.0, 2.0, 2.5, 2.0, 1.9], 0.0) == [0, 0, 1, 2, 0]
    assert waits([3.0, 2.0, 1.95, 1.9, 1.8], 0.15) == [0, 0, 1, 2, 0]
    assert num_reductions([3.0, 2.0, 2.0, 2.0, 2.0], patience=1, min_change=0.0) == 1
    assert num_reductions([3.0, 2.0, 2.0, 2.0, 2.0], patience=0, min_change=0.0) == 3


def test_figures_know_their_direction():
    assert badness(entries([0.5, 0.7], "accuracy"), "accuracy") == [-0.5, -0.7]
    assert badness(entries([0.5, 0.7], "ner/kl"), "ner/kl") == [0.5, 0.7]
    assert best_step(entries([0.5, 0.7, 0.7], "accuracy"), "accuracy") == 20
    assert best_step(entries([0.5, 0.4, 0.6]), "loss") == 20
    assert best_step([], "accuracy") == 0


def test_a_figure_that_cannot_be_computed_is_the_worst_and_patience_begins_where_it_can():
    """A tagger that finds nothing yet has no precision: 0/0."""
    history = History(num_steps=9)
    for step, (loss, value) in enumerate([(3.0, math.nan), (2.0, math.nan), (2.5, math.nan), (4.0, 0.1)], start=1):
        history.record_validation(step, loss, {"entity_precision": value}, "entity_precision")
        assert history.best_step == [1, 2, 2, 4][step - 1], "the lowest loss, until there is a figure"
    assert history.validation[0] == {"step": 1, "loss": 3.0}
    assert badness(history.validation, "entity_precision") == [math.inf, math.inf, math.inf, -0.1]
    assert since_known(history.validation, "entity_precision") == [-0.1]
    impatient = Settings(metric="entity_precision", stop=Stop(patience=1))
    assert not has_ended(history.validation, impatient)
    history.record_validation(5, 1.0, {"entity_precision": math.nan}, "entity_precision")
    assert history.best_step == 4 and has_ended(history.validation, impatient)


class NeverFinds(HeadMethod):
    """A head whose precision can never be computed."""

    def scores(self, outputs, batch):
        zeros_B = torch.zeros(batch.num_rows)
        return {**super().scores(outputs, batch), "precision": (zeros_B, zeros_B)}


def test_a_metric_that_is_never_computed_still_leaves_the_best_weights(tiny_path, tmp_path):
    training = Training(tiny_path, tune_of(metric="precision", evaluate_every=1, epochs=2.0))
    training.method = NeverFinds()
    history = training.run(tmp_path)
    assert history.best_step == best_step(history.validation, "loss") > 0
    assert all([*entry] == ["step", "loss", "accuracy"] for entry in history.validation)


def test_weights_that_are_gone_are_told_of(tiny_path, tmp_path):
    with pytest.raises(RunError, match="best: the weights of the best step are not there: somebody removed them, or"):
        load_best(Training(tiny_path, tune_of()).learner, tmp_path)


def test_when_a_training_ends():
    settings = Settings(stop=Stop(patience=2, min_change=0.1))
    assert not has_ended(entries([1.0, 0.95]), settings)
    assert has_ended(entries([1.0, 0.95, 0.92]), settings)
    assert has_ended(entries([1.0, 0.95, 0.92, 0.1]), settings), "what has ended stays ended"
    assert not has_ended(entries([1.0] * 9), Settings())


def test_a_metric_that_is_not_validated_is_refused_before_the_first_step(tiny_path, tmp_path):
    training = Training(tiny_path, tune_of(metric="acuracy"))
    with pytest.raises(TrainingError) as refused:
        training.run(tmp_path, lambda progress: pytest.fail("a step was made"))
    assert str(refused.value).startswith(
        'tune.metric: "acuracy" is not validated here; this training has accuracy, loss. Did you mean "accuracy"?'
    )
    with pytest.raises(TrainingError, match="reward is neither better nor worse where it is higher"):
        check_metric(["reward"], "reward")


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_it_stops_early_and_resumes_to_the_same_end(metric, tiny_path, tmp_path):
    """A far too high rate: validation soon gets no better. The step after the last validation is never made."""
    tune = tune_of(
        metric=metric, stop={"patience": 3}, evaluate_every=1, learning_rate=0.3, head_learning_rate=0.3,
        clip_norm=0.0, schedule="constant", checkpoints={"every": 2}, epochs=12.0,
    )  # fmt: skip
    whole, wanted = cut_and_whole(tiny_path, tmp_path, tune, after=3)
    assert 3 < wanted.step < wanted.num_steps == 30
    assert wanted.step == wanted.validation[-1]["step"] and has_ended(wanted.validation, tune)
    assert not has_ended(wanted.validation[:-1], tune)
    assert wanted.best_step == best_step(wanted.validation, metric)
    assert wanted.length_share() == wanted.best_step / 30
    again = Training(tiny_path, tune)
    assert what_happened(again.run(tmp_path / "whole", lambda _: pytest.fail("a step was made"))) == what_happened(
        wanted
    )
    assert_equal_tensors(again.weights(), whole.weights())


# --- what the curves say ---------------------------------------------------------------------------------------


def history_of(train, validation):
    """Losses of steps 1, 2, ...; validations are spread evenly."""
    history = History(num_steps=len(train), step=len(train))
    history.train = [{"step": i, "loss": loss} for i, loss in enumerate(train, 1)]
    every = len(train) // len(validation) if validation else 0
    for i, loss in enumerate(validation, 1):
        history.record_validation(i * every, loss, {})
    return history


FALLING = [2.0 - 0.045 * i for i in range(40)]
CURVES = [
    (FALLING, [], "unknown", "Fewer than two validations: whether it over- or underfits cannot be told."),
    (FALLING, [1.8, 1.2, 1.0, 1.3], "overfits", "Overfits after step 30: validation loss rose from 1 to 1.3, while training loss went from"),
    ([1.0] * 30 + [4.0] * 10, [1.0, 0.9, 1.0, 4.0], "diverges", "Diverges after step 20: validation loss rose from 0.9 to 4, and training loss from 1 to 4."),
    ([2.0] * 40, [2.0, 2.0, 1.99, 1.99], "underfits", "Hardly learns: training loss went from 2 to 2."),
    (FALLING, [1.8, 1.4, 1.0, 0.7], "still_learning", "Was still learning at the end: validation loss fell by 30.0% over the last quarter of the steps."),
    (FALLING, [1.8, 1.4, 1.2, 1.19], "memorises", "Knows its own rows better than others: at step 40 training loss is 0.3125, validation loss 1.19."),
    ([2.0 - 0.02 * i for i in range(40)], [1.8, 1.4, 1.25, 1.24], "settled", "Settled: validation loss 1.24 at its best (step 40), 1.24 at the end."),
]  # fmt: skip


@pytest.mark.parametrize(("train", "validation", "code", "sentence"), CURVES, ids=[row[2] for row in CURVES])
def test_what_is_said_of_curves(train, validation, code, sentence):
    found = reading(history_of(train, validation))
    assert found.code == code
    assert found.sentence.startswith(sentence), found.sentence


def test_the_reading_has_its_numbers():
    found = reading(history_of(FALLING, [1.8, 1.2, 1.0, 1.3]))
    assert found.train_first == pytest.approx(2.0 - 0.045 * 1.5)
    assert found.train_last == pytest.approx(2.0 - 0.045 * 37.5)
    assert found.train_best == pytest.approx(2.0 - 0.045 * 27.5)
    assert (found.validation_best, found.validation_last, found.best_step) == (1.0, 1.3, 30)
