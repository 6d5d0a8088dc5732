"""The losses: worked by hand, against torch's own, by their gradients, and through the forest."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from families import tiny_model
from luthier.forest.forward import hidden_states, logprobs, readout, set_backend
from luthier.forest.tree import build_forest
from luthier.methods import Candidates, HeadMethod, LabelSft, make_method
from luthier.methods.base import (
    MAIN,
    Batch,
    Example,
    LossOut,
    Objective,
    Outputs,
    candidate_scores,
    make_batch,
    sequence_logprobs,
    smoothed_cross_entropy,
    split_by_tokens,
    target_counts,
    weights_of,
)
from luthier.models import load_model
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Task, Tune
from luthier.records import Labelled, Sequence, Source
from luthier.training.learner import label_head, new_learner

LOG2 = math.log(2)
TASK = Task(labels=["SPORTS", "POLITICS", "ARTS_AND_CULTURE"], instruction="Classify the text.")
ROWS = [
    Labelled(text, label, Source("rows.txt", i + 1), str(i))
    for i, (text, label) in enumerate(
        [("a goal", "SPORTS"), ("the senate passed a law", "POLITICS"), ("a museum", "ARTS_AND_CULTURE")]
    )
]
METHODS = get_args(Tune.model_fields["method"].annotation)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(weights: list[list[list[float]]], gold: list[int], num_bytes: list[int] | None = None) -> Batch:
    """weights[row][role] = the weights of that sequence's targets, which are all its tokens but the first."""
    examples = [
        Example(
            tuple(Sequence(tuple(range(len(w) + 1)), tuple(range(1, len(w) + 1)), tuple(w)) for w in row),
            (label,),
            num_bytes=size,
        )
        for row, label, size in zip(weights, gold, num_bytes or [0] * len(gold), strict=True)
    ]
    return make_batch(examples)


def figures_of(method: Objective, outputs: Outputs, batch: Batch) -> dict[str, tuple[list[float], list[float]]]:
    """The numerator and the denominator of each figure, by row."""
    return {name: (above.tolist(), below.tolist()) for name, (above, below) in method.scores(outputs, batch).items()}


# --- by hand ---------------------------------------------------------------------------------------------------


def test_sft_by_hand():
    """p = 1/2, 1/4, 1/8 with weights 1, 2, 1/2: 1 * log 2 + 2 * 2 log 2 + 1/2 * 3 log 2 = 6.5 log 2, over 3.5."""
    batch = batch_of([[[1.0, 2.0]], [[0.5]]], [0, 0])
    out = LabelSft().loss(Outputs(logprobs_M=-LOG2 * float64(1, 2, 3)), batch)
    assert float(out.total) == pytest.approx(6.5 * LOG2, abs=1e-15)
    assert out.weight == 3.5


def test_candidate_scores_by_hand():
    """Row 0: label 0 has tokens -1, -2, label 1 has -4; row 1: label 0 has -3 at weight 1/2, label 1 has -1, -1."""
    batch = batch_of([[[1, 1], [1]], [[0.5], [1, 1]]], [0, 1])
    scores = candidate_scores(float64(-1, -2, -4, -3, -1, -1), batch, 2)
    assert scores.tolist() == [[-3.0, -4.0], [-1.5, -2.0]]


def test_candidates_by_hand():
    """Scores (log 3, 0): p = (3/4, 1/4), gold 0, loss log 4/3. Scores (0, 0): gold 1, loss log 2. One of two is hit.

    A tie goes to the first label, so row 1 (gold 1) is a miss. The scores are sums of two tokens each.
    """
    batch = batch_of([[[1, 1], [1, 1]], [[1, 1], [1, 1]]], [0, 1])
    third = math.log(3)
    outputs = Outputs(logprobs_M=float64(third - 5, 5, -1, 1, -1, 1, -7, 7))
    out = Candidates(2).loss(outputs, batch)
    assert float(out.total) == pytest.approx(math.log(4 / 3) + LOG2, abs=1e-15)
    assert out.weight == 2.0
    assert figures_of(Candidates(2), outputs, batch) == {"accuracy": ([1.0, 0.0], [1.0, 1.0])}


def test_candidates_smoothed_by_hand():
    """p = (3/4, 1/4), gold 0, e = 0.2: 0.8 * log 4/3 + 0.2 * (log 4/3 + log 4) / 2."""
    batch = batch_of([[[1], [1]]], [0])
    out = Candidates(2, 0.2).loss(Outputs(logprobs_M=float64(math.log(3), 0)), batch)
    assert float(out.total) == pytest.approx(0.8 * math.log(4 / 3) + 0.1 * math.log(16 / 3), abs=1e-15)


def test_head_by_hand():
    """z = (0, 0): log 2 whatever the gold; z = (log 7, 0): p = (7/8, 1/8), gold 0, log 8/7."""
    batch = batch_of([[[]], [[]]], [1, 0])
    outputs = Outputs(logits_PL=torch.stack([float64(0, 0), float64(math.log(7), 0)]))
    out = HeadMethod().loss(outputs, batch)
    assert float(out.total) == pytest.approx(LOG2 + math.log(8 / 7), abs=1e-15)
    assert out.weight == 2.0
    assert figures_of(HeadMethod(), outputs, batch) == {"accuracy": ([0.0, 1.0], [1.0, 1.0])}


def test_bits_per_byte_by_hand():
    """Bits of row 0: 1 + 2 = 3 over 4 bytes; of row 1: 3 over 2 bytes, whatever weight above 0 its target has."""
    batch = batch_of([[[1.0, 2.0, 0.0]], [[0.5]]], [0, 0], num_bytes=[4, 2])
    found = figures_of(LabelSft(), Outputs(logprobs_M=-LOG2 * float64(1, 2, 7, 3)), batch)
    assert found == {"bits_per_byte": (pytest.approx([3.0, 3.0], abs=1e-15), [4.0, 2.0])}


def test_sequence_sums_by_hand():
    """Of each sequence: the weighted log-probability of its targets, and the sum of their weights."""
    batch = batch_of([[[1, 1], []], [[0.5, 2]]], [0, 1])
    outputs = Outputs(logprobs_M=float64(-1, -2, -4, -3))
    assert sequence_logprobs(outputs, batch).tolist() == [-3.0, 0.0, -8.0]
    assert target_counts(batch).tolist() == [2.0, 0.0, 2.5]
    assert batch.row_S.tolist() == [0, 0, 1] and batch.role_S.tolist() == [0, 1, 0]


# --- against torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_losses_equal_torch_cross_entropy(smoothing):
    logits, gold = draw(6, 4) * 3, torch.tensor([0, 3, 1, 1, 2, 0])
    wanted = cross_entropy(logits, gold, label_smoothing=smoothing, reduction="sum")
    batch = batch_of([[[1.0]] * 4] * 6, gold.tolist())
    found = [
        smoothed_cross_entropy(torch.log_softmax(logits, 1), gold, smoothing),
        HeadMethod(smoothing).loss(Outputs(logits_PL=logits), batch).total,
        Candidates(4, smoothing).loss(Outputs(logprobs_M=logits.reshape(-1)), batch).total,
    ]
    for value in found:
        assert abs(float(value - wanted)) < 1e-12


def test_sft_equals_torch_cross_entropy():
    logits, token = draw(7, 11), torch.tensor([0, 3, 10, 1, 2, 0, 5])
    out = LabelSft().loss(
        Outputs(logprobs_M=torch.log_softmax(logits, 1)[torch.arange(7), token]), batch_of([[[1.0] * 7]], [0])
    )
    assert abs(float(out.total - cross_entropy(logits, token, reduction="sum"))) < 1e-12
    assert abs(float(out.total) / out.weight - float(cross_entropy(logits, token))) < 1e-12


# --- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradcheck(smoothing):
    batch = batch_of([[[1.0, 0.5], [2.0]], [[1.0], [1.0, 0.25]]], [0, 1])
    values = draw(len(batch.row_M)).requires_grad_()
    logits = draw(2, 2).requires_grad_()
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(lambda v: LabelSft().loss(Outputs(logprobs_M=v), batch).total, (values,))
    assert gradcheck(lambda v: Candidates(2, smoothing).loss(Outputs(logprobs_M=v), batch).total, (values,))
    assert gradcheck(lambda v: HeadMethod(smoothing).loss(Outputs(logits_PL=v), batch).total, (logits,))


def test_gradients_by_hand():
    """SFT: minus the weight of each target. Labels: softmax minus one-hot, spread over a label's tokens."""
    batch = batch_of([[[1.0, 0.5], [2.0]]], [0])
    values = float64(0.0, 0.0, 0.0).requires_grad_()
    (gradient,) = torch.autograd.grad(LabelSft().loss(Outputs(logprobs_M=values), batch).total, values)
    assert gradient.tolist() == [-1.0, -0.5, -2.0]
    (gradient,) = torch.autograd.grad(Candidates(2).loss(Outputs(logprobs_M=values), batch).total, values)
    assert gradient.tolist() == pytest.approx([-0.5, -0.25, 1.0], abs=1e-15)  # p = (1/2, 1/2), times the weights
    logits = float64(math.log(3), 0.0)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(HeadMethod().loss(Outputs(logits_PL=logits), batch).total, logits)
    assert gradient[0].tolist() == pytest.approx([-0.25, 0.25], abs=1e-15)


def sft_total(model, sequences: list[Sequence], backend: str) -> LossOut:
    batch = make_batch([Example((sequence,)) for sequence in sequences])
    hidden_ND = hidden_states(model, batch.forest, backend)
    return LabelSft().loss(Outputs(logprobs_M=logprobs(model, batch.forest, hidden_ND)), batch)


@pytest.mark.parametrize("backend", ["grouped", "dense", "padded"])
def test_what_is_not_trained_gets_exactly_no_gradient(backend):
    """Tokens 20 to 23 come after the last target of their sequence, 30 to 33 have weight 0: nothing reaches them."""
    model = tiny_model("llama", torch.float32)
    set_backend(model, backend)
    sequences = [
        Sequence((3, 4, 5, 6, 20, 21), (2, 3), (1.0, 1.0)),
        Sequence((3, 4, 7, 22, 23), (2,), (1.0,)),
        Sequence((30, 31, 32, 33), (1, 2, 3), (0.0, 0.0, 0.0)),
    ]
    sft_total(model, sequences, backend).total.backward()
    gradient = model.get_input_embeddings().weight.grad
    fed = {3, 4, 5}  # read by a target: 5 is predicted from 3 4, 6 from 3 4 5, 7 from 3 4
    for token in range(97):
        assert bool(gradient[token].any()) == (token in fed), token


@pytest.mark.parametrize("backend", ["grouped", "padded"])
def test_sft_equals_the_padded_cross_entropy_of_other_trainers(backend, tiny_path):
    """Right-padded ids, labels -100 outside the answer, shifted logits, mean over what is left."""
    loaded = load_model(str(tiny_path))
    model = loaded.model
    examples = LabelSft().view(ClassifyPrompt(TASK, Layout(loaded.tokenizer)), ROWS)
    sequences = [example.sequences[0] for example in examples]
    longest = max(len(sequence.tokens) for sequence in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    seen, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for s, sequence in enumerate(sequences):
        ids[s, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
        seen[s, : len(sequence.tokens)] = 1
        for target in sequence.targets:
            labels[s, target] = sequence.tokens[target]
    set_backend(model, "padded")
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits
    wanted = cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)
    set_backend(model, backend)
    out = sft_total(model, sequences, backend)
    assert out.weight == float((labels != -100).sum()) == 2 + 2 + 4
    assert float(out.total) / out.weight == pytest.approx(float(wanted), rel=1e-6)


# --- views -----------------------------------------------------------------------------------------------------


def prompt_of(tiny_path) -> ClassifyPrompt:
    return ClassifyPrompt(TASK, Layout(load_model(str(tiny_path)).tokenizer))


def test_sft_trains_the_answer_and_the_end_of_its_turn(tiny_path):
    prompt = prompt_of(tiny_path)
    asked = prompt.encode([row.text for row in ROWS])
    said, sizes = [], []
    for example, tokens in zip(LabelSft().view(prompt, ROWS), asked, strict=True):
        (sequence,) = example.sequences
        assert sequence.tokens[: len(tokens)] == tokens and sequence.targets[0] == len(tokens)
        assert sequence.targets == tuple(range(len(tokens), len(sequence.tokens)))
        assert sequence.weights == (1.0,) * len(sequence.targets) and sequence.wanted is None
        said.append(prompt.layout.tokenizer.decode([sequence.tokens[t] for t in sequence.targets]))
        sizes.append((example.gold, example.num_bytes, example.num_trained, example.key))
    assert said == ["Sports<|im_end|>", "Politics<|im_end|>", "Arts And Culture<|im_end|>"]
    assert sizes == [((0,), 6, 2, "0"), ((1,), 8, 2, "1"), ((2,), 16, 4, "2")], "bytes of the words, without the end"


def test_candidates_have_a_sequence_a_label_and_head_has_the_prompt_only(tiny_path):
    prompt = prompt_of(tiny_path)
    asked = prompt.encode([row.text for row in ROWS])
    for i, example in enumerate(Candidates(3).view(prompt, ROWS)):
        assert example.gold == (i,) and len(example.sequences) == 3 and example.key == str(i)
        for label, sequence in zip(TASK.labels, example.sequences, strict=True):
            (answered,) = prompt.encode_answered([ROWS[i].text], [label])
            assert sequence.tokens == answered.tokens[:-1], "the end of the turn tells no label from another here"
            assert sequence.targets == tuple(range(len(asked[i]), len(sequence.tokens)))
    for i, example in enumerate(HeadMethod().view(prompt, ROWS)):
        (sequence,) = example.sequences
        assert example.gold == (i,) and sequence.tokens == asked[i] and sequence.targets == ()
        ((start, stop),) = sequence.reads
        assert stop == len(sequence.tokens) and example.num_trained == 1 and example.key == str(i)
        read = prompt.layout.tokenizer.decode(sequence.tokens[start:stop])
        assert read.startswith(f"Text: {ROWS[i].text}\nCategory:"), "the instruction is not read"


def test_a_head_reads_the_mean_of_each_span():
    """Hidden rows are numbered by their tokens: 1 2 (3 4) is 3.5, (1 2 3 4) is 2.5, 1 2 (5) is 5; two spans of one
    sequence come one after the other, and spans that share tokens share nothing of their means.
    """
    sequences = [
        Sequence((1, 2, 3, 4), reads=((2, 4),)), Sequence((1, 2, 3, 4), reads=((0, 4),)),
        Sequence((1, 2, 5), reads=((2, 3),)), Sequence((1, 2)), Sequence((1, 2, 3, 9, 9), reads=((1, 3), (0, 1))),
    ]  # fmt: skip
    forest = build_forest(sequences)
    assert forest.num_tokens == 5, "1 2 3 4 and 5: what stands after the last span is not computed"
    hidden_ND = torch.from_numpy(forest.tokens_N).double()[:, None] * torch.tensor([1.0, -2.0])
    wanted = [[3.5, -7.0], [2.5, -5.0], [5.0, -10.0], [2.5, -5.0], [1.0, -2.0]]
    assert readout(forest, hidden_ND).tolist() == wanted


@pytest.mark.parametrize("backend", ["grouped", "dense", "padded"])
def test_spans_read_what_the_model_alone_says(backend):
    """Against one plain pass a sequence: several spans, shared beginnings, targets beside spans."""
    model = tiny_model("llama", torch.float32)
    sequences = [
        Sequence((3, 4, 5, 6, 7, 8), reads=((1, 3), (2, 6))),
        Sequence((3, 4, 5, 9), (1, 3), (1.0, 1.0), reads=((0, 2),)),
        Sequence((3, 4, 5, 9, 10), reads=((4, 5),)),
        Sequence((11, 12, 13), reads=((0, 3),)),
    ]
    wanted = []
    with torch.no_grad():
        for sequence in sequences:
            states = model.model(input_ids=torch.tensor([sequence.tokens]), use_cache=False).last_hidden_state[0]
            wanted += [states[start:stop].mean(0) for start, stop in sequence.reads]
        set_backend(model, backend)
        forest = build_forest(sequences)
        found = readout(forest, hidden_states(model, forest, backend))
    assert forest.num_tokens == 6 + 2 + 3
    torch.testing.assert_close(found, torch.stack(wanted), atol=2e-5, rtol=1e-5)


def test_the_end_of_the_turn_is_a_target_where_one_label_begins_with_another(tiny_path):
    task = TASK.model_copy(update={"labels": ["ARTS", "ARTS_AND_CULTURE"]})
    prompt = ClassifyPrompt(task, prompt_of(tiny_path).layout)
    (example,) = Candidates(2).view(prompt, [Labelled("a museum", "ARTS", Source("rows.txt", 1), "0")])
    said = [prompt.layout.tokenizer.decode([s.tokens[t] for t in s.targets]) for s in example.sequences]
    assert said == ["Arts<|im_end|>", "Arts And Culture<|im_end|>"]


def test_a_batch_numbers_its_rows_and_roles():
    batch = make_batch(
        [
            Example((Sequence((1, 2, 3), (2,), (0.5,)), Sequence((1, 4, 5), (1, 2), (1.0, 2.0))), (1,), num_bytes=7),
            Example((Sequence((1, 2, 6), (1,), (3.0,)),), (0,)),
        ]
    )
    assert batch.gold_B.tolist() == [1, 0] and batch.num_rows == 2 and batch.task == MAIN
    assert batch.row_S.tolist() == [0, 0, 1] and batch.role_S.tolist() == [0, 1, 0]
    assert batch.bytes_B.tolist() == [7.0, 0.0] and batch.reference_S.tolist() == []
    assert batch.sequence_M.tolist() == [0, 1, 1, 2]
    assert batch.row_M.tolist() == [0, 0, 0, 1] and batch.role_M.tolist() == [0, 1, 1, 0]
    assert batch.weight_M.tolist() == [0.5, 1.0, 2.0, 3.0]


def test_a_batch_numbers_its_spans_gold_and_references():
    """Row 0 has spans in both of its sequences and three gold numbers, row 1 no span and none, row 2 one of each."""
    batch = make_batch(
        [
            Example(
                (Sequence((1, 2, 3), reads=((0, 1), (1, 3))), Sequence((1, 4), reads=((1, 2),))), (2, 0, 5), (-1, -2)
            ),
            Example((Sequence((1, 2), (1,), (1.0,)),), (), (-4.5,)),
            Example((Sequence((7, 8), reads=((0, 2),)),), (0.25,), (0.0,)),
        ]
    )
    assert batch.row_P.tolist() == [0, 0, 0, 2]
    assert batch.gold_G.tolist() == [2.0, 0.0, 5.0, 0.25] and batch.row_G.tolist() == [0, 0, 0, 2]
    assert batch.reference_S.tolist() == [-1.0, -2.0, -4.5, 0.0]
    assert batch.row_M.tolist() == [1] and batch.num_rows == 3


def test_weights_of_a_step_are_counted_by_task():
    examples = [
        Example((Sequence((1, 2, 3), (1, 2), (0.5, 1.0)),), task="left"),
        Example((Sequence((1, 2), (1,), (2.0,)), Sequence((1, 3), (1,), (0.25,))), task="right"),
        Example((Sequence((1, 4), (1,), (3.0,)),), task="left"),
    ]
    assert weights_of(LabelSft(), examples) == {"left": 4.5, "right": 2.25}
    assert weights_of(HeadMethod(), examples) == {"left": 2.0, "right": 1.0}


# --- what every method promises --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_can_count_a_step_before_its_first_forward(name, tiny_path):
    """A loss's weight is the sum of the weights of its rows, and losses of parts add up to the whole."""
    loaded = load_model(str(tiny_path))
    prompt = ClassifyPrompt(TASK, Layout(loaded.tokenizer))
    tune = Tune(method=name, label_smoothing=0.1)
    method = make_method(tune, TASK)
    heads = {MAIN: label_head(loaded, prompt)} if name == "head" else {}
    learner = new_learner(loaded, tune.adapter, 0, "auto", heads)
    assert method.name == name and [*learner.heads] == [*heads]
    examples = method.view(prompt, ROWS)

    def loss(part: list[Example]) -> LossOut:
        batch = learner.batch(part)
        return method.loss(learner(batch), batch)

    def figures(part: list[Example]) -> dict[str, tuple[list[float], list[float]]]:
        batch = learner.batch(part)
        with torch.no_grad():
            return figures_of(method, learner(batch), batch)

    whole, parts = loss(examples), [loss([example]) for example in examples]
    assert whole.weight == sum(part.weight for part in parts) == sum(method.weight(example) for example in examples)
    assert float(whole.total.detach()) == pytest.approx(sum(float(part.total.detach()) for part in parts), rel=1e-6)
    assert {example.key for example in examples} == {row.key for row in ROWS}
    together, alone = figures(examples), [figures([example]) for example in examples]
    assert together, "a method has figures"
    for key, (above, below) in together.items():
        assert len(above) == len(below) == len(ROWS)
        assert above == pytest.approx([part[key][0][0] for part in alone], rel=1e-5)
        assert below == [part[key][1][0] for part in alone]


TOKENS = st.lists(st.integers(0, 2), min_size=2, max_size=8).map(tuple)


ROWS_OF_TOKENS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=3), st.sampled_from(["left", "right"])), min_size=1, max_size=8
)


@given(rows=ROWS_OF_TOKENS, most=st.integers(1, 40))
def test_micro_batches_hold_each_row_once_stay_small_and_never_mix_tasks(rows, most):
    examples = [
        Example(tuple(Sequence(tokens, (len(tokens) - 1,), (1.0,)) for tokens in row), (i,), task=task)
        for i, (row, task) in enumerate(rows)
    ]
    groups = split_by_tokens(examples, most)
    assert sorted(example.gold[0] for group in groups for example in group) == list(range(len(rows)))
    for group in groups:
        assert len({example.task for example in group}) == 1
        forest = build_forest([sequence for example in group for sequence in example.sequences])
        assert len(group) == 1 or forest.num_tokens <= most
