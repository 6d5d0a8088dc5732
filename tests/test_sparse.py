"""The sparse adapter: the dense one where all neurons are used, and exactly the best K of it where they are not."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from families import plain_logprobs
from luthier.adapters import CONFIG, WEIGHTS, add_adapter, folded, kind_of, load_adapter
from luthier.adapters.placed import ACTIVATIONS
from luthier.adapters.sparse import SparseBlock
from luthier.adapters.sparse_neurons import Choice, Rows, SparseNeurons, Uses, chosen_neurons, row_products
from luthier.errors import ModelError
from luthier.forest.forward import hidden_states, logprobs, set_backend
from luthier.forest.tree import build_forest
from luthier.models import load_model
from luthier.recipe.adapters import Sparse
from luthier.stopped import Stopped
from luthier.training.learner import load_learner
from placed import FAMILIES, add_beside, answers, assert_close, pulled_gradients, shake, tiny
from test_parity import shared_rows
from test_recipe import problems, with_
from test_training import ROWS, Training, assert_equal_tensors, losses, tune_of, what_happened

HERE = Path("tiny")
SMALL = {"width": 24, "top": 3, "groups": 4, "active_groups": 2}
NAMES = ("x", "gate", "keys", "values")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(num_tokens=11, width=7, neurons=12, groups=3) -> dict[str, torch.Tensor]:
    gate = torch.softmax(numbers(num_tokens, groups, seed=2), 1) * groups
    tensors = (numbers(num_tokens, width), gate, numbers(neurons, width, seed=3), numbers(neurons, width, seed=4))
    return {name: tensor.requires_grad_() for name, tensor in zip(NAMES, tensors, strict=True)}


def dense(x, gate, keys, values, activation, used=None) -> torch.Tensor:
    """All neurons as one product, those not in `used` [N, R] taken out: act(gate (x W_A^T)) W_B."""
    weights = activation(gate.repeat_interleave(len(keys) // gate.shape[1], dim=1) * (x @ keys.T))
    return (weights if used is None else weights * used) @ values


def best(x, gate, keys, top, active) -> torch.Tensor:
    """Which neurons each token uses, [N, R], one token at a time with Python's sort."""
    size = len(keys) // gate.shape[1]
    used = torch.zeros(len(x), len(keys), dtype=x.dtype)
    for n in range(len(x)):
        groups = sorted(range(gate.shape[1]), key=lambda e: -float(gate[n, e]))[:active]
        inside = [k for e in groups for k in range(e * size, (e + 1) * size)]
        inside.sort(key=lambda k: -float(gate[n, k // size] * (x[n] @ keys[k])))
        used[n, inside[:top]] = 1
    return used


def gradients(out: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    loss = (out * torch.arange(out.numel()).view_as(out).cos()).sum()
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


# --- the function of neurons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("groups", [1, 3])
def test_with_all_neurons_it_is_the_dense_block(groups, activation, moved):
    tensors = inputs(groups=groups)
    bend = ACTIVATIONS[activation]
    found = SparseNeurons.apply(*tensors.values(), Choice(12, groups, bend, moved))
    wanted = dense(**tensors, activation=bend)
    assert float((found - wanted).detach().abs().max()) < 1e-13
    assert_close(gradients(found, tensors), gradients(wanted, tensors), 1e-13)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize(("top", "active"), [(1, 1), (2, 2), (4, 1), (5, 3), (7, 2)])
def test_the_best_neurons_contribute_and_the_others_have_no_gradient(top, active, moved):
    """Against the dense block with all other neurons multiplied by zero; unused rows are zero exactly."""
    tensors = inputs(num_tokens=4)
    bend = ACTIVATIONS["gelu"]
    found = SparseNeurons.apply(*tensors.values(), Choice(top, active, bend, moved))
    with torch.no_grad():
        used = best(tensors["x"], tensors["gate"], tensors["keys"], top, active)
    assert used.sum(1).tolist() == [top] * 4
    wanted = dense(**tensors, activation=bend, used=used)
    assert float((found - wanted).detach().abs().max()) < 1e-13
    found_gradients = gradients(found, tensors)
    assert_close(found_gradients, gradients(wanted, tensors), 1e-13)
    touched = used.any(0)
    assert top > 2 or not touched.all()
    for name in ("keys", "values"):
        assert not found_gradients[name][~touched].any() and found_gradients[name][touched].any(1).all()


def test_one_token_by_hand():
    """x = (1, 2); products 1, 2, -1, 3; gates 2 and 0.5 of two groups of two: scores 2, 4, -0.5, 1.5.

    The best two are neurons 1 and 0: y = 4 v_1 + 2 v_0. With g = (1, 1) coming back: g v_1 = 3, g v_0 = 1;
    d gate_0 = 3 * 2 + 1 * 1 = 7; dx = 2 (3 w_1 + 1 w_0); dw_1 = 2 * 3 x; dv_1 = 4 g.
    """
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    gate = torch.tensor([[2.0, 0.5]], requires_grad=True)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [1.0, 1.0]], requires_grad=True)
    values = torch.tensor([[1.0, 0.0], [1.0, 2.0], [5.0, 5.0], [7.0, 7.0]], requires_grad=True)
    y = SparseNeurons.apply(x, gate, keys, values, Choice(2, 2, torch.relu))
    assert y.tolist() == [[6.0, 8.0]]
    y.sum().backward()
    assert gate.grad.tolist() == [[7.0, 0.0]]
    assert x.grad.tolist() == [[2.0, 6.0]]
    assert keys.grad.tolist() == [[2.0, 4.0], [6.0, 12.0], [0.0, 0.0], [0.0, 0.0]]
    assert values.grad.tolist() == [[2.0, 2.0], [4.0, 4.0], [0.0, 0.0], [0.0, 0.0]]


def test_numerical_gradients():
    """Finite differences, which know no formula; the same neurons stay chosen."""
    tensors = inputs(num_tokens=3, width=4, neurons=6)
    choice = Choice(2, 2, ACTIVATIONS["silu"])
    assert torch.autograd.gradcheck(lambda *t: SparseNeurons.apply(*t, choice), tuple(tensors.values()), eps=1e-7)


def test_what_is_kept_for_backward():
    """x, the gates, and K numbers and places a token: nothing of the size of tokens times neurons."""
    num_tokens, width, neurons, top = 50, 8, 400, 3
    tensors = inputs(num_tokens, width, neurons, groups=4)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        SparseNeurons.apply(*tensors.values(), Choice(top, 2, torch.relu))
    own = [tensor for tensor in kept if all(tensor.data_ptr() != given.data_ptr() for given in tensors.values())]
    assert sorted(tuple(tensor.shape) for tensor in own) == [(num_tokens, top), (num_tokens, top)]
    assert {tensor.dtype for tensor in own} == {torch.float64, torch.int32}


def test_only_the_rows_in_use_are_moved():
    """Neurons 5, 2 and 9 of 12: three rows come, and their gradients go back to their places."""
    table = numbers(12, 4)
    rows = Rows.used(torch.tensor([[5, 2], [9, 5]], dtype=torch.int32), torch.device("cpu"), table, moved=True)
    assert rows.used_U.tolist() == [2, 5, 9] and rows.local_NK.tolist() == [[1, 0], [2, 1]]
    assert torch.equal(rows.of(table), table[[2, 5, 9]])
    spread = rows.spread(torch.ones(3, 4, dtype=torch.float64), table)
    assert spread.sum(1).tolist() == [0, 0, 4, 0, 0, 4, 0, 0, 0, 4, 0, 0]
    uses = Uses.of(rows)
    assert uses.token_P.tolist() == [0, 0, 1, 1] and uses.first_U.tolist() == [0, 1, 3]
    stay = Rows.used(torch.tensor([[5, 2]]), torch.device("cpu"), table, moved=False)
    assert stay.of(table) is table and stay.spread(table, table) is table


def test_scores_of_groups_are_those_of_all():
    """Groups chosen one by one give the products that one large matrix product gives."""
    tensors = inputs(num_tokens=40, neurons=60, groups=6)
    x, gate, keys = (tensors[name].detach() for name in ("x", "gate", "keys"))
    product, neuron = chosen_neurons(x, gate, keys, Choice(4, 2, torch.relu))
    assert torch.allclose(product, (x @ keys.T).gather(1, neuron.long()))
    assert torch.equal(torch.zeros(40, 60, dtype=x.dtype).scatter_(1, neuron.long(), 1.0), best(x, gate, keys, 4, 2))


def test_products_with_chosen_rows():
    x, rows = numbers(9, 5), numbers(6, 5, seed=1)
    chosen = torch.randint(0, 6, (9, 3), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(row_products(x, rows, chosen.int()), (x @ rows.T).gather(1, chosen))


# --- in models ---------------------------------------------------------------------------------------------------


def adapted(family: str, dtype=torch.float64, **settings):
    model = tiny(family, dtype)
    return add_adapter(model, Sparse(**{**SMALL, **settings}), 3, HERE), model


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "xlnet"])
def test_it_stands_beside_the_mlp(family):
    """Fresh: no change, bit for bit. Then, with all neurons in use, the dense block put on by hooks."""
    with torch.no_grad():
        plain_answers = answers(tiny(family))
        wrapper, model = adapted(family, top=24, active_groups=4, scale=0.5)
        assert torch.equal(answers(model), plain_answers)
    values = {name: tensor.requires_grad_() for name, tensor in shake(wrapper).items()}
    plain = tiny(family)

    def block(place, x):
        keys, router = values[f"{place}.keys"], values[f"{place}.router"]
        gate = 4 * torch.softmax(x @ router.T, -1)
        return 0.5 * torch.relu(gate.repeat_interleave(6, -1) * (x @ keys.T)) @ values[f"{place}.values"]

    add_beside(plain, block)
    found, wanted = answers(model), answers(plain)
    assert_close({"logits": found}, {"logits": wanted}, 1e-12)
    assert_close(pulled_gradients(found, wrapper.state()), pulled_gradients(wanted, values), 1e-9)
    kind_of(wrapper).remove(wrapper)
    assert torch.equal(answers(model), plain_answers)
    assert all(".adapter" not in name for name, _ in model.named_modules())


def test_a_model_without_known_places_is_refused():
    with pytest.raises(ModelError, match=r"sparse: the MLPs of a xlnet model are not at a place that luthier knows"):
        adapted("xlnet")
    with pytest.raises(
        ModelError, match=r"tune.adapter.top: 2 of the groups have 12 neurons, so a token cannot use 13"
    ):
        adapted("llama", top=13)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_forest_is_the_plain_model(family):
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


def test_one_group_has_no_router_and_gates_are_one_on_average():
    block = SparseBlock(Sparse(width=8, top=2, groups=1, active_groups=1), 5, torch.zeros(1), torch.float32)
    assert block.router is None and [name for name, _ in block.named_parameters()] == ["keys", "values"]
    assert torch.equal(block.gates(torch.ones(3, 5)), torch.ones(3, 1))
    many = SparseBlock(Sparse(width=8, top=2, groups=4, active_groups=2), 5, torch.zeros(1), torch.float32)
    many.draw(torch.Generator().manual_seed(0))
    assert torch.allclose(many.gates(torch.randn(6, 5)).mean(1), torch.ones(6))
    with torch.no_grad():
        many.router.zero_()
    assert torch.equal(many.gates(torch.ones(3, 5)), torch.ones(3, 4))


def test_it_is_held_where_it_is_said_to_be():
    """`meta` stands for another device: the tables stay on the CPU, or go there with the router."""
    for held, device in (("cpu", "cpu"), ("device", "meta")):
        block = SparseBlock(Sparse(**SMALL, held=held), 5, torch.zeros(1, device="meta"), torch.float32)
        assert {block.keys.device.type, block.values.device.type} == {device}
        assert block.router.device.type == "meta"


def test_it_is_saved_and_loaded(tmp_path):
    wrapper, model = adapted("bert")
    wanted = shake(wrapper)
    kind_of(wrapper).save(wrapper, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LUTHIER_SPARSE" and (config["width"], config["top"]) == (24, 3)
    assert_equal_tensors(load_file(tmp_path / WEIGHTS), wanted)
    other = tiny("bert")
    loaded = load_adapter(other, tmp_path)
    assert torch.equal(answers(other), answers(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(ModelError, match="kind sparse computes with an activation of its own, so it cannot be written"):
        folded(tiny("bert"), tmp_path)


def test_training_resumes_bit_for_bit(tiny_path, tmp_path):
    tune = tune_of(method="head", checkpoints={"every": 5}, adapter=Sparse(width=64, top=8, groups=8, active_groups=3))
    whole = Training(tiny_path, tune)
    wanted = whole.run(tmp_path / "whole")

    def stop_after_five(progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        Training(tiny_path, tune).run(tmp_path / "cut", stop_after_five)
    resumed = Training(tiny_path, tune)
    assert what_happened(resumed.run(tmp_path / "cut")) == what_happened(wanted)
    assert_equal_tensors(resumed.weights(), whole.weights())
    loaded = load_learner(load_model(str(tiny_path)), tmp_path / "whole" / "best", "auto")
    assert_equal_tensors(loaded.wrapper.state(), whole.learner.wrapper.state())


def test_one_batch_can_be_learnt_by_heart(tiny_path, tmp_path):
    adapter = Sparse(width=64, top=8, groups=8, active_groups=3)
    tune = tune_of(
        method="head", adapter=adapter, epochs=40.0, learning_rate=2e-2, evaluate_every=40, checkpoints={"every": 40}
    )
    history = Training(tiny_path, tune, rows=[ROWS[0], ROWS[3], ROWS[6], ROWS[7]]).run(tmp_path)
    assert losses(history)[0] > 1 and losses(history)[-1] < 0.05


def test_the_router_learns(tiny_path, tmp_path):
    """Gates multiply scores, so the loss reaches it."""
    tune = tune_of(method="head", adapter=Sparse(width=64, top=8, groups=8, active_groups=3))
    training = Training(tiny_path, tune)
    before = {name: tensor for name, tensor in training.weights().items() if name.endswith("router")}
    training.run(tmp_path)
    after = training.weights()
    assert before and all(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"width": 100}, "groups: 100 neurons do not make 64 groups of one size."),
        ({"active_groups": 65}, "active_groups: a token cannot look into 65 groups, there are 64."),
        ({"top": 600}, "top: 8 of the groups have 512 neurons, so a token cannot use 600. Lower it, or raise"),
    ],
)
def test_numbers_that_do_not_agree_are_told(keys, problem):
    found = problems(with_(tune={"adapter": {"kind": "sparse", **keys}}))
    assert len(found) == 1 and found[0].startswith(f"tune.adapter.{problem}")


def test_modules_of_the_base_are_in_evaluation_where_they_were():
    """An adapter put into a model does not switch its dropout on."""
    _, model = adapted("bert")
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
