"""Optimizers by formula, schedules by hand, and both through the loop: one trajectory, resumed bit for bit."""

import math

import pytest
import torch

from luthier.errors import RecipeError, TrainingError
from luthier.recipe import Lora, Tune, parse_recipe
from luthier.recipe.optimizers import Adafactor, Adam, Adam8bit, AdamW, GaLore, Lion, Muon, RmsProp, Sgd
from luthier.recipe.schedules import (
    Constant,
    Cosine,
    InverseSqrt,
    Linear,
    Plateau,
    Restarts,
    Wsd,
)
from luthier.training.optimizers import FOR_MATRICES, MAKERS, Place, make_optimizer, peak_of
from luthier.training.schedules import SHAPES, Schedule, schedule_of
from test_training import Training, assert_equal_tensors, losses, what_happened
from test_training import tune_of as plain_tune

RATE, DECAY = 0.05, 0.1


def tune_of(**changes):
    return plain_tune(**{"memory": {"predict": False}, **changes})


# --- each optimizer by its formula -----------------------------------------------------------------------------


def stepped(settings, gradients, start):
    """The parameter after some steps of the real optimizer, in float64."""
    parameter = torch.nn.Parameter(start.clone())
    make = {**MAKERS, **FOR_MATRICES}[type(settings)]
    optimizer = make(settings, [{"params": [parameter], "lr": RATE, "weight_decay": DECAY}])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def by_adamw(theta, gradients, s):
    m = v = torch.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        theta = theta * (1 - RATE * DECAY)
        m, v = s.beta1 * m + (1 - s.beta1) * g, s.beta2 * v + (1 - s.beta2) * g * g
        theta = theta - RATE * (m / (1 - s.beta1**t)) / ((v / (1 - s.beta2**t)).sqrt() + s.eps)
    return theta


def by_adam(theta, gradients, s):
    m = v = torch.zeros_like(theta)
    for t, g in enumerate(gradients, 1):
        g = g + DECAY * theta
        m, v = s.beta1 * m + (1 - s.beta1) * g, s.beta2 * v + (1 - s.beta2) * g * g
        theta = theta - RATE * (m / (1 - s.beta1**t)) / ((v / (1 - s.beta2**t)).sqrt() + s.eps)
    return theta


def by_sgd(theta, gradients, s):
    b = None
    for g in gradients:
        g = g + DECAY * theta
        b = g if b is None else s.momentum * b + g
        theta = theta - RATE * (g + s.momentum * b if s.nesterov else b)
    return theta


def by_rmsprop(theta, gradients, s):
    v = b = torch.zeros_like(theta)
    for g in gradients:
        g = g + DECAY * theta
        v = s.alpha * v + (1 - s.alpha) * g * g
        b = s.momentum * b + g / (v.sqrt() + s.eps)
        theta = theta - RATE * b
    return theta


def by_lion(theta, gradients, s):
    m = torch.zeros_like(theta)
    for g in gradients:
        theta = theta - RATE * ((s.beta1 * m + (1 - s.beta1) * g).sign() + DECAY * theta)
        m = s.beta2 * m + (1 - s.beta2) * g
    return theta


def by_adafactor(theta, gradients, s):
    row, column = 0.0, 0.0
    for t, g in enumerate(gradients, 1):
        scale = max(s.smallest_scale, float(theta.square().mean().sqrt()))
        theta = theta * (1 - RATE * DECAY)
        new = t**s.beta2_decay
        row = (1 - new) * row + new * g.square().mean(1, keepdim=True)
        column = (1 - new) * column + new * g.square().mean(0, keepdim=True)
        update = g / (row @ column / row.mean()).sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()) / s.clip)
        theta = theta - min(RATE, 1 / math.sqrt(t)) * scale * update
    return theta


def by_galore(theta, gradients, s):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        theta = theta * (1 - RATE * DECAY)
        if (t - 1) % s.refresh_every == 0:
            basis = torch.linalg.eigh(g.T @ g).eigenvectors[:, -s.rank :]  # right singular vectors, in another way
        # Adam's step depends on the signs and the order of the basis only through R, and they cancel in the way back
        r = g @ basis
        m, v = s.beta1 * m + (1 - s.beta1) * r, s.beta2 * v + (1 - s.beta2) * r * r
        n = (m / (1 - s.beta1**t)) / ((v / (1 - s.beta2**t)).sqrt() + s.eps)
        theta = theta - RATE * s.scale * (n @ basis.T)
    return theta


FORMULAS = [
    (AdamW(beta1=0.8, beta2=0.95, eps=1e-3), by_adamw),
    (Adam(beta1=0.8, beta2=0.95, eps=1e-3), by_adam),
    (Sgd(momentum=0.7), by_sgd),
    (Sgd(momentum=0.7, nesterov=True), by_sgd),
    (Sgd(momentum=0.0), by_sgd),
    (RmsProp(alpha=0.9, momentum=0.5, eps=1e-3), by_rmsprop),
    (Lion(beta1=0.8, beta2=0.95), by_lion),
    (Adafactor(smallest_scale=0.001), by_adafactor),
    (Adafactor(smallest_scale=1.0, clip=1.5, beta2_decay=-0.5), by_adafactor),
    (GaLore(rank=2, refresh_every=10, beta1=0.8, beta2=0.95, eps=1e-3), by_galore),
]


@pytest.mark.parametrize(("settings", "formula"), FORMULAS, ids=lambda value: getattr(value, "kind", ""))
def test_an_optimizer_is_its_formula(settings, formula):
    draw = torch.Generator().manual_seed(7)
    start, *gradients = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(6))
    torch.testing.assert_close(
        stepped(settings, gradients, start), formula(start, gradients, settings), rtol=1e-9, atol=1e-9
    )


def test_galore_keeps_small_moments_and_refreshes_its_basis():
    """A wide matrix [4, 9] of rank 2: basis [4, 2] and moments [2, 9], a new basis at steps 1 and 4."""
    draw = torch.Generator().manual_seed(7)
    parameter = torch.nn.Parameter(torch.randn(4, 9, generator=draw))
    optimizer = FOR_MATRICES[GaLore](GaLore(rank=2, refresh_every=3), [{"params": [parameter], "lr": 0.1}])
    bases = []
    for _ in range(5):
        parameter.grad = torch.randn(4, 9, generator=draw)
        optimizer.step()
        bases.append(optimizer.state[parameter]["basis"].clone())
    assert optimizer.state[parameter]["exp_avg"].shape == (2, 9) and bases[0].shape == (4, 2)
    assert torch.equal(bases[0], bases[2]) and not torch.equal(bases[2], bases[3]) and torch.equal(bases[3], bases[4])


def test_muon_moves_along_the_orthogonal_part():
    """Singular values of the first update: near 0.2 sqrt(max(A, B)) times the rate each, whatever the gradient's."""
    start = torch.zeros(8, 5)
    gradient = torch.randn(8, 5, generator=torch.Generator().manual_seed(7)) @ torch.diag(
        torch.tensor([9.0, 3, 1, 0.5, 0.3])
    )
    moved = stepped(Muon(momentum=0.9), [gradient], start)
    values = torch.linalg.svdvals(moved) / (RATE * 0.2 * math.sqrt(8))
    assert values.min() > 0.6 and values.max() < 1.3, values
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(-moved.flatten(), (left @ right).flatten(), 0) > 0.97


def test_eight_bits_are_near_adamw_with_a_quarter_of_the_memory():
    pytest.importorskip("bitsandbytes")
    draw = torch.Generator().manual_seed(7)
    start, *gradients = (torch.randn(64, 128, generator=draw) for _ in range(6))
    found, wanted = (stepped(kind(), gradients, start) for kind in (Adam8bit, AdamW))
    assert float((found - wanted).norm() / (wanted - start).norm()) < 0.05
    parameter = torch.nn.Parameter(start)
    optimizer = MAKERS[Adam8bit](Adam8bit(), [{"params": [parameter], "lr": RATE, "weight_decay": 0.0}])
    parameter.grad = gradients[0]
    optimizer.step()
    state = optimizer.state[parameter]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}


# --- groups ----------------------------------------------------------------------------------------------------


def names_by(optimizer, learner, key):
    names = {id(parameter): name for name, parameter in learner.trained().items()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


def test_each_parameter_has_the_peak_rate_of_its_place():
    """A head its own whatever lies above it; B sixteen times that of A; each layer further down half of it."""
    training = Tune(learning_rate=1e-3, head_learning_rate=2e-2, layer_rate_factor=0.5, adapter=Lora(lora_plus=16.0))
    peaks = [
        peak_of(Place(name, True, depth=depth), training)
        for name, depth in (
            ("heads.main.weight", 3),
            ("q_proj.lora_A.default.weight", 0),
            ("q_proj.lora_B.default.weight", 2),
        )
    ]
    assert peaks == pytest.approx([2e-2, 1e-3, 4e-3])


def test_embeddings_norms_and_vectors_have_no_decay(tiny_path):
    training = Training(tiny_path, tune_of(method="head", adapter={"kind": "full"}, weight_decay=0.1))
    decays = names_by(make_optimizer(training.learner, training.tune), training.learner, "weight_decay")
    free = {name for name, decay in decays.items() if decay == 0}
    assert set(decays.values()) == {0.0, 0.1}
    assert any("embed_tokens" in name for name in free) and any("norm" in name for name in free)
    assert "heads.main.bias" in free and "heads.main.weight" not in free
    assert not any("proj" in name for name in free)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tiny_path):
    training = Training(tiny_path, tune_of(method="head", adapter={"kind": "full"}, optimizer="muon"))
    optimizer = make_optimizer(training.learner, training.tune)
    by_muon = {name for name, turns in names_by(optimizer, training.learner, "lr").items()} - {
        name for part in optimizer.parts[1:] for name in names_by(part, training.learner, "lr")
    }
    assert by_muon and all("proj" in name for name in by_muon)
    assert len(by_muon) == 2 * 7  # of each of two layers: q, k, v, o, gate, up, down


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": "muon", "method": "head", "adapter": "layers"}, None),
        (
            {"optimizer": {"kind": "galore", "rank": 64}},
            "galore is for matrices inside the model with both sides over its rank of 64",
        ),
    ],
)
def test_an_optimizer_for_matrices_needs_some(changes, told, tiny_path):
    training = Training(tiny_path, tune_of(**(changes if told else {"optimizer": "muon", "method": "head"})))
    if told is None:
        for name, parameter in training.learner.named_parameters():
            parameter.requires_grad_(name.startswith("heads."))
        told = r"muon is for matrices inside the model, and none is trained here\. Take adamw"
    with pytest.raises(TrainingError, match=told):
        make_optimizer(training.learner, training.tune)


# --- through the loop ------------------------------------------------------------------------------------------

KINDS = {
    "adamw": {},
    "adam": {},
    "adam8bit": {},
    "sgd": {"nesterov": True},
    "rmsprop": {"momentum": 0.5},
    "adafactor": {},
    "lion": {},
    "muon": {},
    "galore": {"rank": 1, "refresh_every": 3},
}


class Interrupted(Exception):
    pass


def cut_and_whole(tiny_path, tmp_path, tune):
    """A training as a whole, and one that broke after step 5 and was taken up."""
    whole = Training(tiny_path, tune)
    wanted = whole.run(tmp_path / "whole")

    def fail(progress) -> None:
        if progress.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        Training(tiny_path, tune).run(tmp_path / "cut", fail)
    steps: list[int] = []
    resumed = Training(tiny_path, tune)
    found = resumed.run(tmp_path / "cut", lambda progress: steps.append(progress.step))
    assert steps[0] <= 6, "it was taken up, not begun anew"
    assert steps[0] > 1
    return whole, wanted, resumed, found


@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_are_five_and_a_failure_and_five(kind, tiny_path, tmp_path):
    if kind == "adam8bit":
        pytest.importorskip("bitsandbytes")
    tune = tune_of(method="head", optimizer={"kind": kind, **KINDS[kind]}, checkpoints={"every": 5}, learning_rate=1e-3)
    whole, wanted, resumed, found = cut_and_whole(tiny_path, tmp_path, tune)
    assert what_happened(found) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())
    assert wanted.train[-1]["loss"] < wanted.train[0]["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing_whatever_the_optimizer(kind, tiny_path, tmp_path):
    """Muon rounds to bfloat16 and Lion to signs, so a last bit of the gradient may count there."""
    if kind == "adam8bit":
        pytest.importorskip("bitsandbytes")
    found = [
        losses(
            Training(
                tiny_path,
                tune_of(
                    method="head", optimizer={"kind": kind, **KINDS[kind]}, batch_size=8, epochs=4.0,
                    micro_batch_tokens=most, learning_rate=1e-3,
                ),
                validation=[],
            ).run(tmp_path / str(most))
        )
        for most in (4096, 60)
    ]  # fmt: skip
    near = 1e-3 if kind in ("muon", "lion", "galore", "adam8bit") else 1e-6
    assert found[1] == pytest.approx(found[0], rel=near)


# --- schedules -------------------------------------------------------------------------------------------------


def test_steps_of_warm_up_stand_in_the_place_of_their_share():
    """0: none at all; more than there are: the rate rises to the end."""
    counts = {
        steps: schedule_of(plain_tune(warmup_share=0.1, warmup_steps=steps), 20).num_warmup for steps in (None, 0, 5)
    }
    assert counts == {None: 2, 0: 0, 5: 5}
    rising = schedule_of(plain_tune(warmup_steps=9), 3)
    assert [rising.factor(step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def factors(settings, num_steps=6, num_warmup=2):
    return [Schedule(settings, num_steps, num_warmup).factor(step) for step in range(num_steps)]


def test_schedules_by_hand():
    """Two warm-up steps at 1/3 and 2/3; then the shape over 0, 1/4, 1/2, 3/4 of its steps."""
    up, half = [1 / 3, 2 / 3], math.sqrt(0.5)
    assert factors(Constant()) == pytest.approx([*up, 1, 1, 1, 1])
    assert factors(Linear()) == pytest.approx([*up, 1, 0.75, 0.5, 0.25])
    assert factors(Linear(final_share=0.2)) == pytest.approx([*up, 1, 0.8, 0.6, 0.4])
    assert factors(Cosine()) == pytest.approx([*up, 1, (1 + half) / 2, 0.5, (1 - half) / 2])
    assert factors(Cosine(final_share=0.5)) == pytest.approx([*up, 1, (3 + half) / 4, 0.75, (3 - half) / 4])
    assert factors(Restarts(cycles=2)) == pytest.approx([*up, 1, 0.5, 1, 0.5])
    assert factors(InverseSqrt()) == pytest.approx([*up, 1, math.sqrt(3 / 4), math.sqrt(3 / 5), math.sqrt(3 / 6)])
    assert factors(Wsd(decay_share=0.5, shape="linear")) == pytest.approx([*up, 1, 1, 1, 0.5])
    assert factors(Wsd(decay_share=0.5, final_share=0.1)) == pytest.approx([*up, 1, 1, 1, 1 - 0.9 * half])
    assert Schedule(Cosine(), 1, 0).factor(0) == 1.0


def test_growing_restarts_by_hand():
    """Cycles of 2 and 4 of 6 steps: the second begins at step 2 with the full rate."""
    half = math.sqrt(0.5)
    assert factors(Restarts(cycles=2, growth=2.0, final_share=0.1), 6, 0) == pytest.approx(
        [1, 0.55, 1, 0.1 + 0.9 * (1 + half) / 2, 0.55, 0.1 + 0.9 * (1 - half) / 2]
    )


@pytest.mark.parametrize("cycles", [1, 3, 7])
def test_restarts_begin_anew_where_they_should(cycles):
    found = factors(Restarts(cycles=cycles), 10 * cycles, 0)
    assert [step for step, factor in enumerate(found) if factor == pytest.approx(1)] == [10 * i for i in range(cycles)]


@pytest.mark.parametrize(("patience", "min_change"), [(0, 0.0), (1, 0.0), (2, 0.0), (1, 0.15)])
def test_plateau_is_torchs(patience, min_change):
    """The same rates as torch's scheduler on losses that fall, stall, rise and fall again."""
    seen = [1.0, 0.9, 0.95, 0.9, 0.85, 0.84, 0.84, 0.84, 0.86, 0.5, 0.5, 0.6, 0.7, 0.8]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=min_change, threshold_mode="abs", min_lr=0.05, eps=0
    )
    mine = Schedule(Plateau(patience=patience, min_change=min_change, final_share=0.05), 20, 0)
    for count, loss in enumerate(seen, 1):
        theirs.step(loss)
        validations = [{"step": i, "loss": value} for i, value in enumerate(seen[:count])]
        assert mine.factor(count, validations) == pytest.approx(optimizer.param_groups[0]["lr"]), count


def test_plateau_of_a_figure_that_should_rise():
    seen = [{"step": i, "loss": 1.0 / (i + 1), "accuracy": value} for i, value in enumerate([0.5, 0.6, 0.6, 0.6])]
    assert Schedule(Plateau(patience=1), 9, 0, "loss").factor(5, seen) == 1.0
    assert Schedule(Plateau(patience=1), 9, 0, "accuracy").factor(5, seen) == 0.5


def test_every_schedule_has_a_shape_and_a_floor():
    for kind in (*SHAPES, InverseSqrt, Plateau):
        found = factors(kind(), 40, 4)
        assert max(found) == pytest.approx(1.0) and min(found) > 0
        assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
        if "final_share" in kind.model_fields and kind is not Plateau:
            assert min(factors(kind(final_share=0.3), 40, 0)) >= 0.3 - 1e-12


@pytest.mark.parametrize(
    "schedule", ["restarts", "wsd", "inverse_sqrt", {"kind": "plateau", "patience": 0, "min_change": 9}]
)
def test_a_schedule_goes_on_where_it_was(schedule, tiny_path, tmp_path):
    tune = tune_of(method="head", schedule=schedule, evaluate_every=2, checkpoints={"every": 5})
    whole, wanted, resumed, found = cut_and_whole(tiny_path, tmp_path, tune)
    assert what_happened(found) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())
    rates = [entry["learning_rate"] for entry in wanted.train]
    if isinstance(schedule, dict):  # every validation but the first is no better by 9: at steps 4, 6, 8 the rate halves
        assert [rate / 5e-3 for rate in rates[3:]] == pytest.approx([1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])
    assert len(set(rates)) > 3


# --- what a recipe may say -------------------------------------------------------------------------------------


def recipe_with(**tune):
    return parse_recipe({"task": {"labels": ["A", "B"]}, "data": {"train": "x.txt"}, "tune": tune})


def test_kinds_by_name_or_by_keys():
    tune = recipe_with(optimizer="lion", schedule="wsd", average="swa").tune
    assert (tune.optimizer, tune.schedule.kind, tune.average.kind) == (Lion(), "wsd", "swa")
    tune = recipe_with(optimizer={"eps": 1e-6}, schedule={"final_share": 0.1}, average={"decay": 0.9}).tune
    assert (tune.optimizer, tune.schedule) == (AdamW(eps=1e-6), Cosine(final_share=0.1))
    assert (tune.average.kind, tune.average.decay) == ("ema", 0.9)
    assert recipe_with(optimizer={"kind": "adam", "eps": "1e-6"}).tune.optimizer == Adam(eps=1e-6)


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({"optimizer": "adamv"}, "tune.optimizer: there is no 'adamv'; use 'adamw', 'adam', 'adam8bit'"),
        ({"optimizer": {"kind": "lion", "eps": 1e-8}}, "tune.optimizer.eps: unknown key. Known keys of tune.optimizer: kind, beta1, beta2."),
        ({"schedule": "cosin"}, "tune.schedule: there is no 'cosin'; use 'constant', 'linear', 'cosine', 'restarts'"),
        ({"schedule": {"kind": "constant", "final_share": 0.1}}, "tune.schedule.final_share: unknown key"),
        ({"schedule": "plateau"}, "tune.refit: trains on the validation rows too, and schedule: plateau has to look at them. Set tune.refit: false, or another schedule."),
        ({"optimizer": {"kind": "sgd", "momentum": 0.0, "nesterov": True}}, "tune.optimizer.nesterov: looks ahead along the momentum, and there is none. Set momentum."),
        ({"adapter": "none", "neftune_alpha": 5}, "tune.neftune_alpha: adapter.kind: none trains a head on features that are computed once"),
        ({"average": {"kind": "swa", "decay": 0.9}}, "tune.average.decay: unknown key"),
        ({"stop": {"patience": 0}}, "tune.stop.patience: input should be greater than or equal to 1 (got 0)."),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_say(tune, told):
    with pytest.raises(RecipeError) as refused:
        recipe_with(**tune)
    assert told in str(refused.value)
