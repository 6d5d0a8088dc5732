"""Heads: their losses by hand, against torch and scikit-learn, by their gradients; what they read, take and answer."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss, mse_loss

from luthier.corpus.lines import Problem
from luthier.corpus.shapes.plain import Columns
from luthier.errors import DataError, RecipeError, TrainingError
from luthier.methods.base import Batch, Example, Outputs, make_batch, mean_ratio
from luthier.methods.heads import ClassifyHead, MultiLabelHead, OrdinalHead, RegressHead, TagHead, losses
from luthier.methods.heads.ordinal import Thresholds
from luthier.methods.heads.texts import text_sequences, word_sequences
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora
from luthier.recipe.methods import Classify, MultiLabel, Ordinal, Regress, Tag
from luthier.recipe.stages import parse_stages
from luthier.recipe.training import Training
from luthier.records import Document, Labelled, Sequence, Source, Tagged
from luthier.stopped import Stopped
from luthier.training.learner import new_learner, read_heads
from luthier.training.loop import train
from luthier.training.optimizers import make_optimizer
from luthier.training.step import divisors, evaluate, one_step

LOG2 = math.log(2)
SOURCE = Source("rows.jsonl", 1)
TEXTS = [
    "a goal won the match",
    "the team won",
    "the senate passed a law",
    "a vote",
    "a new museum",
    "a song by the painter",
]


def float64(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(text: str, label: object) -> Labelled:
    return Labelled(text, str(label), SOURCE, f"{text} {label}")


def tagged(words: str, tags: str) -> Tagged:
    return Tagged(tuple(words.split()), tuple(tags.split()), SOURCE)


def batch_of(gold: list[tuple[float, ...]], spans: list[int] | None = None) -> Batch:
    """One example for each gold, one token each, read as often as it has spans."""
    sizes = spans or [1] * len(gold)
    return make_batch([Example((Sequence((0,), reads=((0, 1),) * n),), g) for g, n in zip(gold, sizes, strict=True)])


def figures(method, logits: torch.Tensor, batch: Batch) -> dict[str, float]:
    """Each figure: the sum of what its rows have over the sum of what they count, or the mean over labels of that."""
    found = method.scores(Outputs(logits_PL=logits), batch)
    assert all(above.shape == below.shape and len(above) == batch.num_rows for above, below in found.values())
    return {name: mean_ratio(above.sum(0).numpy(), below.sum(0).numpy()) for name, (above, below) in found.items()}


# --- losses by hand ---------------------------------------------------------------------------------------------


def test_weighted_cross_entropy_by_hand():
    """p = (3/4, 1/4), gold 1, weights (1, 2): 2 log 4. With e = 1/2: 1/2 * 2 log 4 + 1/4 (log 4/3 + 2 log 4)."""
    logprobs, gold, weights = float64([0.75, 0.25]).log()[None, 0], torch.tensor([1]), float64(1, 2)
    assert float(losses.weighted_cross_entropy(logprobs, gold, weights, 0.0)) == pytest.approx(
        2 * math.log(4), abs=1e-15
    )
    smoothed = math.log(4) + 0.25 * (math.log(4 / 3) + 2 * math.log(4))
    assert float(losses.weighted_cross_entropy(logprobs, gold, weights, 0.5)) == pytest.approx(smoothed, abs=1e-15)


def test_focal_by_hand():
    """p = 3/4, g = 2, weight 1: (1/4)^2 log 4/3; p = 1/4, weight 3: 3 (3/4)^2 log 4."""
    logprobs = float64([0.75, 0.25], [0.75, 0.25]).log()
    found = losses.focal(logprobs, torch.tensor([0, 1]), float64(1, 3), 2.0)
    assert float(found) == pytest.approx(math.log(4 / 3) / 16 + 27 / 16 * math.log(4), abs=1e-15)


def test_binary_focal_by_hand():
    """z = (log 3, log 3): s = 3/4 each. Gold (1, 0), weights (2, 5), g = 1: (2 * 1/4 log 4/3 + 3/4 log 4) / 2."""
    logits, gold = float64([math.log(3), math.log(3)]), float64([1, 0])
    found = losses.binary_focal(logits, gold, float64(2, 5), 1.0)
    assert float(found) == pytest.approx((0.5 * math.log(4 / 3) + 0.75 * math.log(4)) / 2, abs=1e-15)


def test_cumulative_by_hand():
    """Three labels, z = (log 3, -log 3): P(y > 0) = 3/4, P(y > 1) = 1/4. Gold 1: 2 log 4/3; gold 2: log 4/3 + log 4."""
    logits = float64([math.log(3), -math.log(3)])
    assert float(losses.cumulative(logits, torch.tensor([1]))) == pytest.approx(2 * math.log(4 / 3), abs=1e-15)
    assert float(losses.cumulative(logits, torch.tensor([2]))) == pytest.approx(math.log(16 / 3), abs=1e-15)
    assert losses.grade_shares(logits)[0].tolist() == pytest.approx([0.25, 0.5, 0.25], abs=1e-15)


def test_squared_and_huber_by_hand():
    """Errors 1/2 and 3: 1/4 + 9; Huber with delta 1: 1/8 + (3 - 1/2)."""
    values, gold = float64(0.5, 5.0), float64(0.0, 2.0)
    assert float(losses.squared_or_huber(values, gold, None)) == 9.25
    assert float(losses.squared_or_huber(values, gold, 1.0)) == 2.625


# --- against torch and scikit-learn -----------------------------------------------------------------------------

GOLD = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_equals_torch(smoothing):
    """With weights and smoothing; torch divides by the gold labels' weights, as the loop does."""
    logits, weights = draw(6, 4) * 3, float64(0.5, 2.0, 1.0, 3.0)
    wanted = cross_entropy(logits, GOLD, weights, label_smoothing=smoothing)
    method = ClassifyHead(
        settings=Classify(label_smoothing=smoothing), labels=("a", "b", "c", "d"), label_weights=tuple(weights.tolist())
    )
    out = method.loss(Outputs(logits_PL=logits), batch_of([(g,) for g in GOLD.tolist()]))
    assert abs(float(out.total) / out.weight - float(wanted)) < 1e-12


def test_focal_is_cross_entropy_at_zero_and_the_formula_elsewhere():
    logits, weights = draw(6, 4) * 3, float64(0.5, 2.0, 1.0, 3.0)
    logprobs = torch.log_softmax(logits, 1)
    plain = losses.weighted_cross_entropy(logprobs, GOLD, weights, 0.0)
    assert abs(float(losses.focal(logprobs, GOLD, weights, 0.0) - plain)) < 1e-12
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    p, w = shares[np.arange(6), GOLD.numpy()], weights.numpy()[GOLD.numpy()]
    for gamma in (0.5, 2.0, 5.0):
        found = float(losses.focal(logprobs, GOLD, weights, gamma))
        assert abs(found - float((-w * (1 - p) ** gamma * np.log(p)).sum())) < 1e-12


def test_binary_losses_equal_torch_and_the_formula():
    logits, gold, weights = draw(5, 3) * 2, (draw(5, 3, seed=1) > 0).double(), float64(0.5, 2.0, 4.0)
    wanted = binary_cross_entropy_with_logits(logits, gold, pos_weight=weights) * 5
    assert abs(float(losses.binary_focal(logits, gold, weights, 0.0) - wanted)) < 1e-12
    s = 1 / (1 + np.exp(-logits.numpy()))
    q = np.where(gold.numpy() > 0, s, 1 - s)
    terms = -np.where(gold.numpy() > 0, weights.numpy(), 1.0) * (1 - q) ** 2 * np.log(q)
    assert abs(float(losses.binary_focal(logits, gold, weights, 2.0)) - terms.mean(1).sum()) < 1e-12


def test_cumulative_equals_the_sum_of_binary_losses_and_the_shares_its_differences():
    """Against torch's binary loss threshold by threshold, and the likelihood of two labels."""
    logits = draw(7, 3).sort(1, descending=True).values
    gold = torch.tensor([0, 1, 2, 3, 3, 0, 1])
    wanted = sum(binary_cross_entropy_with_logits(logits[:, k], (gold > k).double(), reduction="sum") for k in range(3))
    assert abs(float(losses.cumulative(logits, gold) - wanted)) < 1e-12
    shares = losses.grade_shares(logits)
    for k in range(3):
        torch.testing.assert_close(shares[:, k + 1 :].sum(1), torch.sigmoid(logits[:, k]), atol=1e-12, rtol=0)
    two = losses.grade_shares(logits[:, :1])
    assert (
        abs(
            float(losses.cumulative(logits[:, :1], gold.clamp_max(1)))
            + float(two.gather(1, gold.clamp_max(1)[:, None]).log().sum())
        )
        < 1e-12
    )


def test_regression_losses_equal_torch():
    values, gold = draw(9) * 3, draw(9, seed=1)
    assert float(losses.squared_or_huber(values, gold, None)) == pytest.approx(
        float(mse_loss(values, gold, reduction="sum")), abs=1e-12
    )
    assert float(losses.squared_or_huber(values, gold, 0.7)) == pytest.approx(
        float(huber_loss(values, gold, reduction="sum", delta=0.7)), abs=1e-12
    )


def test_balanced_weights_equal_scikit_learn():
    labels = ["a"] * 7 + ["b"] * 2 + ["c"]
    method = ClassifyHead(settings=Classify(class_weights="balanced")).fitted(
        [labelled("x", label) for label in labels]
    )
    wanted = compute_class_weight("balanced", classes=np.array(method.labels), y=np.array(labels))
    assert method.label_weights == pytest.approx(wanted.tolist(), abs=1e-15)
    assert sum(method.label_weights[method.labels.index(label)] for label in labels) == pytest.approx(10), (
        "of all rows: their number"
    )
    fixed = Classify(class_weights="balanced", labels=["c", "b", "a", "never"])
    assert ClassifyHead(settings=fixed).fitted([labelled("x", label) for label in labels]).label_weights == (
        pytest.approx([10 / 3, 10 / 6, 10 / 21, 0.0])
    )  # fmt: skip


# --- gradients ---------------------------------------------------------------------------------------------------


def test_gradcheck():
    gold, weights = torch.tensor([0, 2, -1, 1]), float64(0.5, 2.0, 1.0)
    logits, yes = draw(4, 3).requires_grad_(), (draw(4, 3, seed=3) > 0).double()
    check = torch.autograd.gradcheck
    for smoothing in (0.0, 0.3):
        assert check(
            lambda z, e=smoothing: losses.weighted_cross_entropy(z.log_softmax(1), gold, weights, e), (logits,)
        )
    for gamma in (0.0, 0.5, 2.0):
        assert check(lambda z, g=gamma: losses.focal(z.log_softmax(1), gold, weights, g), (logits,))
        assert check(lambda z, g=gamma: losses.binary_focal(z, yes, weights, g), (logits,))
    assert check(lambda z: losses.cumulative(z, gold), (logits,))
    assert check(lambda z: losses.squared_or_huber(z, yes[0], None), (draw(3).requires_grad_(),))
    assert check(lambda z: losses.squared_or_huber(z, yes[0], 0.5), (draw(3).requires_grad_(),))


def test_gradients_by_hand():
    """Softmax minus one-hot, times the weight; s - y for a threshold; twice the error."""
    z = float64([math.log(3), 0.0]).requires_grad_()
    (found,) = torch.autograd.grad(
        losses.weighted_cross_entropy(z.log_softmax(1), torch.tensor([0]), float64(2, 1), 0.0), z
    )
    assert found[0].tolist() == pytest.approx([-0.5, 0.5], abs=1e-15)
    (found,) = torch.autograd.grad(losses.cumulative(z, torch.tensor([1])), z)
    assert found[0].tolist() == pytest.approx([-0.25, 0.5], abs=1e-15)
    value = float64(3.0).requires_grad_()
    assert torch.autograd.grad(losses.squared_or_huber(value, float64(1.0), None), value)[0].tolist() == [4.0]
    assert torch.autograd.grad(losses.squared_or_huber(value, float64(1.0), 0.5), value)[0].tolist() == [0.5]


@pytest.mark.parametrize("kind", ["plain", "smoothed", "focal", "cumulative"])
def test_labels_that_no_training_row_has_count_exactly_nothing(kind):
    """Neither in the loss nor in any gradient, also where the logits are not finite elsewhere."""
    z, gold = draw(3, 4).requires_grad_(), torch.tensor([2, -1, 0])
    ones = torch.ones(4, dtype=torch.float64)
    loss = {
        "plain": lambda z, y: losses.weighted_cross_entropy(z.log_softmax(1), y, ones, 0.0),
        "smoothed": lambda z, y: losses.weighted_cross_entropy(z.log_softmax(1), y, ones, 0.2),
        "focal": lambda z, y: losses.focal(z.log_softmax(1), y, ones, 2.0),
        "cumulative": losses.cumulative,
    }[kind]
    (gradient,) = torch.autograd.grad(loss(z, gold), z)
    assert (gradient[1] == 0).all() and (gradient[[0, 2]] != 0).all()
    z = z.detach()
    assert float(loss(z, gold)) == pytest.approx(float(loss(z[[0, 2]], gold[[0, 2]])), abs=1e-14)


def test_a_label_of_weight_zero_gives_exactly_no_gradient():
    z = draw(2, 3).requires_grad_()
    total = losses.weighted_cross_entropy(z.log_softmax(1), torch.tensor([0, 1]), float64(0, 1, 1), 0.0)
    (gradient,) = torch.autograd.grad(total, z)
    assert (gradient[0] == 0).all() and (gradient[1] != 0).all()


# --- thresholds --------------------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    """w h = 2, bias (1, log(e - 1), log(e^2 - 1)): gaps 1 and 2, so z = 3, 2, 0."""
    head = Thresholds(float64([1.0, 0.0]), float64(1.0, math.log(math.e - 1), math.log(math.e**2 - 1)))
    assert head(float64([2.0, 9.0])).tolist() == [pytest.approx([3.0, 2.0, 0.0], abs=1e-12)]


def test_a_text_as_likely_above_a_threshold_as_below_stays_below():
    method = OrdinalHead(settings=Ordinal(labels=list("abc")))
    assert method.given(torch.tensor([[0.0, -1.0], [1e-9, 0.0], [2.0, 1e-9]])).tolist() == [0, 1, 2]


def test_a_fresh_ordinal_head_has_its_thresholds_one_apart_around_zero():
    head = OrdinalHead(settings=Ordinal(labels=list("abcde"))).heads(8)["main"]
    assert head(torch.zeros(1, 8)).tolist() == [pytest.approx([1.5, 0.5, -0.5, -1.5], abs=1e-6)]


@given(bias=st.lists(st.floats(-30, 30), min_size=1, max_size=5), score=st.floats(-30, 30))
def test_no_bias_makes_a_probability_negative(bias, score):
    logits = Thresholds(float64([1.0]), float64(*bias))(float64([score])).detach()
    shares = losses.grade_shares(logits)[0]
    assert (shares >= 0).all() and float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (logits.diff() <= 0).all()


# --- figures -----------------------------------------------------------------------------------------------------


def test_classify_figures():
    method = ClassifyHead(labels=("a", "b"), label_weights=(1.0, 1.0))
    found = figures(method, float64([2, 1], [2, 1], [0, 1]), batch_of([(0,), (1,), (-1,)]))
    assert found == {"accuracy": pytest.approx(1 / 3), "macro_f1": pytest.approx(2 / 9)}, "what is not known is wrong"


def test_macro_f1_of_a_classifier_equals_scikit_learn():
    """Rows of a label that is not known count as one label more."""
    method = ClassifyHead(labels=("a", "b", "c", "d"), label_weights=(1.0,) * 4)
    gold, logits = [0, 1, 1, 2, 0, -1, 2, 2, 1, -1], draw(10, 4)
    logits[:, 3] = -9.0  # d is never given and never gold: it has no part in the mean
    found = figures(method, logits, batch_of([(g,) for g in gold]))
    assert found["macro_f1"] == pytest.approx(f1_score(gold, logits.argmax(1), average="macro", zero_division=0))


def test_a_label_is_given_from_its_threshold_on():
    method = MultiLabelHead(settings=MultiLabel(threshold=0.5), labels=("a", "b"), label_weights=(1.0,) * 2)
    assert method.answer(float64([0.0, -1e-9])) == {
        "labels": ["a"],
        "probabilities": {"a": 0.5, "b": pytest.approx(0.5)},
    }


def test_multilabel_figures_equal_scikit_learn():
    """Micro-F1 and subset accuracy; labels that are not known are missed ones."""
    method = MultiLabelHead(settings=MultiLabel(threshold=0.6), labels=("a", "b", "c"), label_weights=(1.0,) * 3)
    logits, gold = draw(8, 3) * 2, (draw(8, 3, seed=1) > 0).double()
    given = (torch.sigmoid(logits) >= 0.6).int()
    found = figures(method, logits, batch_of([(*row, 0.0) for row in gold.tolist()]))
    assert found["micro_f1"] == pytest.approx(f1_score(gold.int(), given, average="micro"))
    assert found["exact_match"] == pytest.approx(accuracy_score(gold.int(), given))
    assert found["macro_f1"] == pytest.approx(f1_score(gold.int(), given, average="macro"))
    tp, positives = float((given * gold).sum()), float(given.sum() + gold.sum())
    more = figures(method, logits, batch_of([(*row, 1.0) for row in gold.tolist()]))
    assert more["macro_f1"] == pytest.approx(found["macro_f1"] * 3 / 4), "one label more, which is never given"
    assert (more["micro_f1"], more["exact_match"]) == (pytest.approx(2 * tp / (positives + 8)), 0.0)


def test_ordinal_figures_by_hand():
    """Answers 0, 2, 1 for gold 0, 0, 2: distances 0, 2, 1."""
    method = OrdinalHead(settings=Ordinal(labels=["low", "mid", "high"]))
    found = figures(method, float64([-1, -2], [2, 1], [1, -1]), batch_of([(0,), (0,), (2,)]))
    assert found == {"distance": pytest.approx(1.0), "accuracy": pytest.approx(1 / 3)}


def test_regression_figures_are_in_the_rows_own_unit():
    """Against scikit-learn, on numbers far from zero; unexplained is 1 for the training mean whatever the rows."""
    numbers = np.array([1000.0, 1010.0, 1030.0, 990.0])
    method = RegressHead().fitted([labelled("x", number) for number in numbers])
    assert method.mean == 1007.5 and method.deviation == pytest.approx(numbers.std())
    guess = np.array([1003.0, 1009.0, 1020.0, 1001.0])
    standard = torch.from_numpy((guess - method.mean) / method.deviation)[:, None]
    batch = batch_of([((number - method.mean) / method.deviation,) for number in numbers])
    found = figures(method, standard, batch)
    assert found["absolute_error"] == pytest.approx(mean_absolute_error(numbers, guess))
    assert found["squared_error"] == pytest.approx(mean_squared_error(numbers, guess))
    assert found["unexplained"] == pytest.approx(((guess - numbers) ** 2).sum() / ((numbers - 1007.5) ** 2).sum())
    assert figures(method, torch.zeros(4, 1), batch)["unexplained"] == pytest.approx(1.0)
    assert method.answer(standard[:1])["number"] == pytest.approx(1003.0)


def test_tag_figures_by_hand():
    """Row 0: gold B-a I-a O, given B-a O O: entity wrong, 2 of 3 words. Row 1: gold O B-a, given O B-a: both right.

    Entities: 1 right of 2 gold and 2 given: F1 1/2. A gold tag that is not known is an entity that is missed.
    """
    method = TagHead(tags=("O", "B-a", "I-a"), tag_weights=(1.0,) * 3)
    given = torch.eye(3, dtype=torch.float64)[[1, 0, 0, 0, 1]]
    found = figures(method, given, batch_of([(1, 2, 0), (0, 1)], [3, 2]))
    halves = dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), 0.5)
    assert found == {"word_accuracy": pytest.approx(0.8), **halves}
    unknown = figures(method, given, batch_of([(1, 2, -1), (0, 1)], [3, 2]))
    assert unknown == {
        "word_accuracy": pytest.approx(0.6), "entity_f1": pytest.approx(2 / 5), "entity_precision": 0.5,
        "entity_recall": pytest.approx(1 / 3),
    }  # fmt: skip


def test_a_tagger_says_well_formed_entities_where_its_rows_have_such():
    """Given O (0.5), B-a (0.4); I-a (0.5), O (0.3): free it says O I-a, mended B-a I-a."""
    rows = [tagged("a b c", "B-a I-a O")]
    assert TagHead().fitted(rows).mends and TagHead().fitted(rows).described()["mends"] is True
    assert not TagHead().fitted([*rows, tagged("a b", "O I-a")]).mends
    assert not TagHead(settings=Tag(scheme="plain")).fitted([tagged("a b", "O B-a")]).mends
    logits = float64([0.5, 0.4, 0.1], [0.3, 0.2, 0.5], [0.9, 0.05, 0.05]).log()
    batch = batch_of([(1, 2), (0,)], [2, 1])
    for mends, said, f1 in ((False, ["O", "I-a"], 0.0), (True, ["B-a", "I-a"], 1.0)):
        method = TagHead(tags=("O", "B-a", "I-a"), tag_weights=(1.0,) * 3, mends=mends)
        assert method.answer(logits[:2])["tags"] == said
        assert figures(method, logits, batch)["entity_f1"] == f1


def test_plain_tags_have_word_accuracy_alone():
    method = TagHead(settings=Tag(scheme="plain"), tags=("NOUN", "VERB"), tag_weights=(1.0, 1.0))
    found = figures(method, float64([1, 0], [1, 0]), batch_of([(0, 1)], [2]))
    assert found == {"word_accuracy": 0.5} and method.primary == "word_accuracy"
    assert TagHead().primary == "entity_f1"


# --- what is read ------------------------------------------------------------------------------------------------


def shown(tokenizer, sequence: Sequence) -> list[str]:
    """The text under each span."""
    return [tokenizer.decode(list(sequence.tokens[start:stop])) for start, stop in sequence.reads]


def test_words_are_read_where_they_stand(tiny_path):
    """Words of one token, of bytes, and of letters of several bytes; the text is joined by single spaces."""
    tokenizer = load_model(str(tiny_path)).tokenizer
    words = ("the", "goal", "naïve", ".", "(", "museum")
    for reads, wanted in (
        ("mean", ["the", " goal", " naïve", " .", " (", " museum"]),
        ("last", ["e", " goal", "e", ".", "(", " museum"]),
        ("first", ["t", " goal", "n", ".", "(", " museum"]),
    ):
        (sequence,) = word_sequences(tokenizer, [words], reads, False)
        assert [text.strip(" ") for text in shown(tokenizer, sequence)] == [text.strip(" ") for text in wanted], reads
        assert tokenizer.decode(list(sequence.tokens)) == " ".join(words)


def test_twice_reads_the_second_copy(tiny_path):
    tokenizer = load_model(str(tiny_path)).tokenizer
    (once,) = word_sequences(tokenizer, [("a", "goal")], "mean", False)
    (twice,) = word_sequences(tokenizer, [("a", "goal")], "mean", True)
    assert tokenizer.decode(list(twice.tokens)) == "a goal\na goal"
    assert twice.tokens[-len(once.tokens) :] == once.tokens
    shift = len(twice.tokens) - len(once.tokens)
    assert twice.reads == tuple((start + shift, stop + shift) for start, stop in once.reads)


def framed_tokenizer():
    """Words as tokens between a beginning and an end; what is not a letter vanishes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    unknown = {"unk_token": "[UNK]"}
    core = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "a": 2, "goal": 3, "[UNK]": 4}, **unknown))
    core.normalizer = normalizers.Replace("*", "")
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **unknown)


def test_special_tokens_are_there_and_not_read():
    tokenizer = framed_tokenizer()
    (sequence,) = text_sequences(tokenizer, ["a goal"])
    assert sequence.tokens == (0, 2, 3, 1) and sequence.reads == ((1, 3),)
    (sequence,) = word_sequences(tokenizer, [("a", "goal", "new")], "last", False)
    assert sequence.tokens == (0, 2, 3, 4, 1) and sequence.reads == ((1, 2), (2, 3), (3, 4))


def test_what_has_no_token_of_its_own_gives_no_example():
    tokenizer = framed_tokenizer()
    assert word_sequences(tokenizer, [("a", "*", "goal"), ("a",)], "last", False)[0] is None
    assert text_sequences(tokenizer, ["**"]) == [None]
    prompt = Dialogue(Layout(tokenizer))
    method = TagHead(tags=("O", "B-a"), tag_weights=(1.0, 1.0))
    assert [e.gold for e in method.view(prompt, [tagged("a *", "O O"), tagged("a goal", "O B-a")])] == [(0.0, 1.0)]


# --- rows --------------------------------------------------------------------------------------------------------

EACH = {
    "classify": (Classify(), [labelled(t, i % 3) for i, t in enumerate(TEXTS)]),
    "multilabel": (MultiLabel(), [labelled(t, label) for t, label in zip(TEXTS, ["a,b", "a", "b, c", "none", "c", "a"], strict=True)]),
    "ordinal": (Ordinal(labels=["0", "1", "2"]), [labelled(t, i % 3) for i, t in enumerate(TEXTS)]),
    "regress": (Regress(), [labelled(t, i * 2.5) for i, t in enumerate(TEXTS)]),
    "tag": (Tag(), [tagged(t, " ".join(["B-a", "I-a", "O", "O", "B-b"][: len(t.split())])) for t in TEXTS]),
}  # fmt: skip


def problem_of(method, record) -> Problem:
    found = method.accept(record)
    assert isinstance(found, Problem)
    return found


@pytest.mark.parametrize("name", [name for name in EACH if name != "tag"])
def test_a_row_without_a_label_is_refused(name):
    problem = problem_of(make_stage_method(EACH[name][0]), Document("a text", SOURCE))
    assert problem.reason == "wrong_kind"
    assert problem.detail == (
        f"a document has no label; {name} takes labelled texts. Name the label's column: "
        "data.train: {path: FILE, label: COLUMN}."
    )


@pytest.mark.parametrize("label", ["SPORTS", "1,50,000", "1_000", "nan", "inf", "1e999", "", "3.5 kg"])
def test_a_regression_refuses_labels(label):
    problem = problem_of(RegressHead(), labelled("a text", label))
    assert problem.reason == "not_a_number"
    assert problem.detail == (
        f'the label "{label}" is no number, which regress needs. Write it like 3.5 or -2e-3. '
        "For labels use classify; for labels in an order use ordinal."
    )


@pytest.mark.parametrize("label", ["3", "-2.5", "+1e-3", ".5", "7."])
def test_a_regression_takes_numbers(label):
    row = labelled("a text", label)
    assert RegressHead().accept(row) == [row]


@pytest.mark.parametrize(
    ("label", "number"),
    [("1,500.00", "1500.00"), ("-2,500,000", "-2500000"), ("1.500,25", "1500.25"), ("3,5", "3.5"), ("0,500", "0.500")],
)
def test_a_regression_takes_commas_that_can_mean_one_thing_only(label, number):
    assert [row.label for row in RegressHead().accept(labelled("a text", label))] == [number]


def test_a_comma_that_may_mean_two_things_is_not_guessed():
    problem = problem_of(RegressHead(), labelled("a text", "1,500"))
    assert problem.reason == "not_a_number"
    assert problem.detail == 'the label "1,500" may be 1500 or 1.500. Write the one that is meant, without the comma.'


def test_an_ordinal_label_may_be_written_as_another_number():
    method = OrdinalHead(settings=Ordinal(labels=["1", "2", "3"]))
    assert [row.label for row in method.accept(labelled("a", "2.0"))] == ["2"]
    assert problem_of(method, labelled("a", "2.5")).reason == "unknown_label"


@pytest.mark.parametrize(
    ("value", "labels"),
    [(["b, c", "a", "a"], {"a", "b, c"}), ([], set()), ([2, 1], {"1", "2"}), ("['a', \"b\"]", {"a", "b"}), ("a, b", {"a", "b"})],
)  # fmt: skip
def test_several_labels_may_be_a_list(value, labels):
    (row,) = Columns(label="labels").read({"text": "a text", "labels": value}, SOURCE)
    assert MultiLabelHead().parted(row) == labels
    assert MultiLabelHead().accept(row) == [row]


def test_a_list_of_one_label_is_that_label_and_of_more_is_for_multilabel():
    rows = [Columns(label="labels").read({"text": "a", "labels": [*found]}, SOURCE) for found in ("x", "xy", "")]
    (one,), (two,), (none,) = rows
    assert [row.label for row in ClassifyHead().accept(one)] == ["x"]
    assert (
        problem_of(ClassifyHead(), two).detail
        == 'the text has 2 labels ("x", "y"); classify takes one. Use multilabel.'
    )
    assert problem_of(ClassifyHead(), none).reason == "several_labels"


def test_labels_outside_the_settings_are_refused():
    wanted = '"SPORT" is not in method.labels. Did you mean "SPORTS"? Mend the row, or add it to method.labels.'
    for method in (
        ClassifyHead(settings=Classify(labels=["SPORTS", "ARTS"])),
        OrdinalHead(settings=Ordinal(labels=["SPORTS", "ARTS"])),
        MultiLabelHead(settings=MultiLabel(labels=["SPORTS", "ARTS"])),
    ):
        assert problem_of(method, labelled("a", "SPORT")) == Problem("unknown_label", wanted)
    method = MultiLabelHead(settings=MultiLabel(labels=["SPORTS", "ARTS"], separator="|"))
    assert len(method.accept(labelled("a", "ARTS | SPORTS"))) == 1
    problem = problem_of(TagHead(settings=Tag(tags=["O", "B-x"])), tagged("a b", "O I-x"))
    assert problem.detail.startswith('"I-x" is not in method.tags.')


def test_tags_that_do_not_fit_are_refused():
    assert problem_of(TagHead(), labelled("a", "b")) == Problem(
        "wrong_kind", "a labelled has no tags; tag takes rows of words and tags, two lists of one length."
    )
    unequal = Tagged(("a", "b"), ("O",), SOURCE)
    assert problem_of(TagHead(), unequal) == Problem("unequal_lengths", "2 words, but 1 tags. Give each word one tag.")
    assert problem_of(TagHead(), tagged("a b", "O NOUN")) == Problem(
        "bad_tag",
        'word 2 ("b") has the tag "NOUN". BIO tags are O, B-TYPE and I-TYPE. Mend it, or set method.scheme to plain.',
    )
    spaced = Tagged(("a", "b c"), ("O", "O"), SOURCE)
    assert problem_of(TagHead(), spaced) == Problem(
        "white_space", 'word 2 ("b c") holds white space. Part it into words.'
    )
    assert len(TagHead(settings=Tag(scheme="plain")).accept(tagged("a b", "O NOUN"))) == 1


def test_iob1_is_read_as_bio():
    record = tagged("a b c d e", "I-x I-x B-x O I-y")
    (row,) = TagHead().accept(record)
    assert row.tags == ("B-x", "I-x", "B-x", "O", "B-y")
    assert TagHead().noted(record, row) == (
        "have entities that begin with I, as IOB1 has; they are read as BIO, beginning with B"
    )
    good = tagged("a b", "B-x I-x")
    assert TagHead().accept(good) == [good] and TagHead().noted(good, good) is None
    for settings in (Tag(scheme="plain"), Tag(tags=["O", "I-x", "B-x", "I-y"])):
        assert TagHead(settings=settings).accept(record) == [record], "tags that leave B-y out are taken at their word"


def test_nothing_to_learn_is_refused():
    with pytest.raises(
        DataError, match='^classify: the training rows have only the label "x"; there is nothing to tell apart'
    ):
        ClassifyHead().fitted([labelled("a", "x"), labelled("b", "x")])
    with pytest.raises(DataError, match='^classify: the training rows have only the label "x"'):
        ClassifyHead(settings=Classify(labels=["x", "y"])).fitted([labelled("a", "x"), labelled("b", "x")])
    with pytest.raises(DataError, match="^multilabel: the training rows have no label"):
        MultiLabelHead().fitted([labelled("a", "none")])
    with pytest.raises(DataError, match='^ordinal: all training rows have the label "lo". Give rows of others'):
        OrdinalHead(settings=Ordinal(labels=["lo", "hi"])).fitted([labelled("a", "lo")])
    with pytest.raises(DataError, match="^regress: all training rows have the number 3: nothing to learn"):
        RegressHead().fitted([labelled("a", "3"), labelled("b", "3.0")])
    with pytest.raises(DataError, match='^tag: the training rows have only the label "O"'):
        TagHead().fitted([tagged("a b", "O O")])


def test_labels_come_from_the_training_rows_and_others_are_said():
    method = ClassifyHead().fitted([labelled("a", "y"), labelled("b", "x"), labelled("c", "y")])
    assert method.labels == ("x", "y")
    assert method.remarks([labelled("d", "x")]) == []
    assert method.remarks([labelled("d", "x"), labelled("e", "z"), labelled("f", "z")]) == [
        '2 labels of 3 rows are in no training row ("z"): all wrong.'
    ]
    many = [labelled("d", f"z{i}") for i in range(7)]
    assert method.remarks(many)[0].endswith('("z0", "z1", "z2", "z3", "z4" and 2 more): all wrong.')
    tagger = TagHead().fitted([tagged("a b", "O B-x")])
    assert tagger.remarks([tagged("a b c", "O B-y I-y")]) == [
        '2 labels of 1 rows are in no training row ("B-y", "I-y"): all wrong.'
    ]
    several = MultiLabelHead().fitted([labelled("a", "x, y"), labelled("b", "none")])
    assert several.labels == ("x", "y") and several.gold(labelled("c", "y,z,w")) == (0.0, 1.0, 2.0)
    assert several.remarks([labelled("c", "y,z")]) == ['1 labels of 1 rows are in no training row ("z"): all wrong.']


def test_balanced_labels_of_a_set_weigh_as_torch_advises():
    """pos_weight = negatives / positives of each label."""
    rows = [labelled(str(i), label) for i, label in enumerate(["a", "a,b", "a", "none"])]
    assert MultiLabelHead(settings=MultiLabel(class_weights="balanced")).fitted(rows).label_weights == (1 / 3, 3.0)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ({"kind": "classify", "labels": ["a", "b", "a"]}, '"a" stands twice; name each label once'),
        ({"kind": "tag", "tags": ["O", " "]}, "a label is empty; write its name"),
        ({"kind": "classify", "focal_gamma": 2, "label_smoothing": 0.1}, "label_smoothing and focal_gamma cannot both be set"),
        ({"kind": "ordinal"}, "labels: missing"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(method, wanted):
    with pytest.raises(RecipeError, match=wanted):
        parse_stages({"stages": [{"method": method, "data": {"train": "rows.jsonl"}}]})


# --- on a model --------------------------------------------------------------------------------------------------


class OnModel:
    """A head's method, learner and examples on the tiny model."""

    def __init__(self, model_path: Path, name: str, **changes):
        settings, rows = EACH[name]
        loaded = load_model(str(model_path))
        self.method = make_stage_method(settings.model_copy(update=changes)).fitted(rows)
        self.learner = new_learner(loaded, Lora(rank=2, alpha=4.0), 3, "auto", self.method.heads(32))
        self.examples = self.method.view(Dialogue(Layout(loaded.tokenizer)), rows)
        assert all(isinstance(self.method.accept(row), list) for row in rows) and len(self.examples) == len(rows)

    def step(self, optimizer, most: int) -> float:
        tune = Training(batch_size=6, micro_batch_tokens=most, clip_norm=0.0)
        return one_step(self.learner, self.method, self.examples, optimizer, 1.0, tune, 0).loss


@pytest.mark.parametrize("name", EACH)
def test_a_step_is_the_same_however_it_is_cut(name, tiny_path):
    """In one micro-batch, or one row each: loss and weights after three steps agree, and the weight of the loss is
    what the loop has counted beforehand.
    """
    results = []
    for most in (4096, 16):
        one = OnModel(
            tiny_path, name, **({"class_weights": "balanced"} if name in ("classify", "multilabel", "tag") else {})
        )
        batch = make_batch(one.examples)
        counted = sum(one.method.weight(example) for example in one.examples)
        assert one.method.loss(one.learner(batch), batch).weight == pytest.approx(counted, rel=1e-12)
        rate = [{"params": list(one.learner.trained().values()), "peak": 0.1}]
        optimizer = torch.optim.SGD(rate, lr=0.1)
        results.append(([one.step(optimizer, most) for _ in range(3)], one.learner.trained()))
    (whole, weights), (cut, others) = results
    assert whole == pytest.approx(cut, rel=2e-5) and whole[2] < whole[0]
    for key, value in weights.items():
        torch.testing.assert_close(value, others[key], rtol=1e-3, atol=2e-6, msg=key)


def test_validation_rows_of_unknown_labels_alone_are_refused(tiny_path, tmp_path):
    """Before the first step, since no step would be better than another. One row that counts is enough."""
    one = OnModel(tiny_path, "classify")
    unknown = [replace(example, gold=(-1.0,)) for example in one.examples[:2]]
    assert [one.method.weight(example) for example in unknown] == [0.0, 0.0]
    loss, found = evaluate(one.learner, one.method, [*unknown, one.examples[2]], 4096)
    assert loss > 0 and found["accuracy"] <= 1 / 3
    before = {name: p.detach().clone() for name, p in one.learner.trained().items()}
    tune = Training(batch_size=3, epochs=1.0)
    with pytest.raises(TrainingError) as refused:
        train(one.learner, one.method, one.examples, unknown, tune, 0, tmp_path, lambda progress: None)
    assert str(refused.value) == (
        "the 2 validation rows all have weight 0 (labels that no training row has, or turns of weight 0), so they "
        "cannot tell which step is best. Raise data.validation_share, mend those rows, or set data.validation_share: 0 "
        "to keep the last step."
    )
    assert all(torch.equal(p, before[name]) for name, p in one.learner.trained().items())
    with pytest.raises(TrainingError, match="^the 2 validation rows of s/tags all have weight 0"):
        divisors(one.method, [*(replace(row, task="s/tags") for row in unknown), one.examples[2]])


OVERFIT = {"classify": ("accuracy", 1.0), "multilabel": ("exact_match", 1.0), "ordinal": ("accuracy", 1.0),
           "regress": ("unexplained", 0.02), "tag": ("entity_f1", 1.0)}  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_one_batch_can_be_learnt_by_heart(name, tiny_path):
    one = OnModel(tiny_path, name)
    tune = Training(learning_rate=2e-2, head_learning_rate=5e-2, weight_decay=0.0)
    optimizer = make_optimizer(one.learner, tune)
    for _ in range(40):
        one.step(optimizer, 4096)
    _, found = evaluate(one.learner, one.method, one.examples, 4096)
    figure, wanted = OVERFIT[name]
    assert found[figure] <= wanted if name == "regress" else found[figure] == wanted, found


@pytest.mark.parametrize("name", EACH)
def test_a_head_is_saved_and_stopped_training_goes_on_exactly(name, tiny_path, tmp_path):
    """Four steps are two and two more; the saved head answers as the trained one."""

    def trained(folder: Path, stop_after: int) -> OnModel:
        one = OnModel(tiny_path, name)
        tune = Training(batch_size=3, epochs=2.0, schedule="constant", warmup_share=0.0)

        def report(progress) -> None:
            if progress.step == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        train(one.learner, one.method, one.examples, [], tune, 0, folder, report)
        return one

    whole = trained(tmp_path / "whole", 0)
    with pytest.raises(Stopped, match="after step 2 of 4"):
        trained(tmp_path / "parts", 2)
    second = trained(tmp_path / "parts", 0)
    for key, value in whole.learner.trained().items():
        assert torch.equal(value, second.learner.trained()[key]), key
    whole.learner.save(tmp_path / "saved")
    head = read_heads(tmp_path / "saved")["main"]
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    own = whole.learner.heads["main"]
    torch.testing.assert_close(head(hidden), own(hidden))  # products of some processors differ by where a tensor lies
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in head.state_dict().items())
    assert type(head) is type(whole.learner.heads["main"])


def test_a_fresh_head_is_the_same_whatever_was_drawn_before():
    method = ClassifyHead(labels=("a", "b"), label_weights=(1.0, 1.0))
    state = torch.get_rng_state()
    first = method.heads(16)["main"]
    assert torch.equal(torch.get_rng_state(), state), "and it draws nothing from the run's own stream"
    torch.rand(7)
    assert torch.equal(method.heads(16)["main"].weight, first.weight)
    assert (first.bias == 0).all() and 0.01 < float(first.weight.detach().std()) < 0.03


def test_answers():
    """What a trained head says of one text."""
    classify = ClassifyHead(labels=("a", "b"), label_weights=(1.0, 1.0))
    assert classify.answer(float64([0.0, math.log(3)])) == {
        "label": "b",
        "probabilities": pytest.approx({"a": 0.25, "b": 0.75}),
    }
    several = MultiLabelHead(labels=("a", "b"), label_weights=(1.0, 1.0))
    assert several.answer(float64([math.log(3), -1.0]))["labels"] == ["a"]
    ordinal = OrdinalHead(settings=Ordinal(labels=["lo", "mid", "hi"]))
    found = ordinal.answer(float64([math.log(3), -math.log(3)]))
    assert found == {"label": "mid", "probabilities": pytest.approx({"lo": 0.25, "mid": 0.5, "hi": 0.25})}
    tagger = replace(TagHead(), tags=("O", "B-a", "I-a"))
    found = tagger.answer(torch.eye(3)[[0, 1, 2]])
    assert found == {"tags": ["O", "B-a", "I-a"], "entities": [("a", 1, 3)]}
