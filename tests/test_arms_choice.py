"""What the arms choose, they choose on validation rows; examples are rows to learn from, and test rows are asked once."""

import numpy as np
import pytest
import torch

from luthier.adapters import Plain
from luthier.evaluation.arms import VARIANTS, Classifier, Majority, PromptArm, Rows, Tfidf, prompted
from luthier.evaluation.scoring import CONTENT_FREE, Scores, label_logprobs
from luthier.methods.base import MAIN
from luthier.models import load_model
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Ask, Task
from luthier.records import Labelled, Source
from luthier.training.learner import Learner
from tiny import tiny_tokenizer

LABELS = ["A", "B"]
RIGHT, WRONG = {"A": (-1.0, -5.0), "B": (-5.0, -1.0)}, {"A": (-5.0, -1.0), "B": (-1.0, -5.0)}
BEGINNINGS = {"train": 12, "val": 6, "test": 6}  # of the texts, and how many there are


def rows_of(texts, labels="AB") -> tuple[Labelled, ...]:
    """Rows whose labels are `labels` in turn."""
    return tuple(Labelled(text, labels[i % len(labels)], Source("r", i), text) for i, text in enumerate(texts))


ROWS = Rows(*(rows_of(f"{part} {chr(97 + i) * 3}" for i in range(num)) for part, num in BEGINNINGS.items()))
GOLD = {row.text: row.label for row in (*ROWS.train, *ROWS.validation, *ROWS.test)}


def prompt() -> ClassifyPrompt:
    return ClassifyPrompt(Task(labels=LABELS, instruction="plain", wordings=["good"]), Layout(tiny_tokenizer()))


def run(arm, rows=ROWS, **ask):
    return arm.run(rows, prompt(), Ask(**ask), 0, lambda done, total: None)


@pytest.fixture
def asked(monkeypatch):
    """`asked(say, tokens)` puts `say(prompt, text) -> sums [L]` in the place of the model.

    It gives the list that each call is then written to: texts, and the examples that each of them came with.
    """
    calls = []

    def put(say, tokens=(1, 1)):
        def score_labels(model, backend, own, texts, batch_tokens, shots=None, report=None, beginning=None):
            calls.append((list(texts), [own.shots] * len(texts) if shots is None else shots))
            return Scores(np.array([say(own, text) for text in texts]), np.array(tokens), len(texts), None)

        monkeypatch.setattr(prompted, "score_labels", score_labels)
        monkeypatch.setattr(prompted, "room_of", lambda model: 100_000)
        return calls

    return put


def ask_by(name, **ask):
    return run(PromptArm(name, None, "grouped", VARIANTS[name]), **ask)


def given(result) -> list[str | None]:
    return [prediction.label for prediction in result.predictions]


# --- which way of asking -------------------------------------------------------------------------------


def test_the_wording_that_is_best_on_validation_answers_whatever_it_does_on_test(asked):
    def say(own, text):
        good = own.instruction == "good" and own.lists_labels
        if text in CONTENT_FREE:
            return (0.0, 0.0)
        return (RIGHT if good == text.startswith("val") else WRONG)[GOLD[text]]

    calls = asked(say)
    found = ask_by("best_prompt")
    assert found.chosen.startswith('"good"; scores by sum (100.0% on 6 validation rows')
    assert given(found) == ["B", "A"] * 3  # all wrong
    in_bulk = [texts for texts, _ in calls if len(texts) > 1 and texts[0].startswith("test")]
    assert in_bulk == [[row.text for row in ROWS.test]]


def test_every_wording_is_tried_and_one_prompt_without_the_labels():
    variants = VARIANTS["best_prompt"](ROWS, prompt(), Ask(), 0)
    wordings = [variant.prompt.instruction or variant.prompt.task.instruction for variant in variants]
    assert wordings == ["plain", "good", *prompted.WORDINGS, "plain"]
    assert [variant.prompt.lists_labels for variant in variants] == [True] * 5 + [False]


def test_the_normalisation_is_chosen_on_validation(asked):
    """A is one token at -2, B four at -0.9 where it is right, else at -3: the sum always says A, the mean is right."""

    def say(own, text):
        return (0.0, 0.0) if text in CONTENT_FREE else (-2.0, -3.6 if GOLD[text] == "B" else -12.0)

    asked(say, (1, 4))
    found = ask_by("zero_shot")
    assert "scores by mean per token (100.0%" in found.chosen
    assert given(found) == ["A", "B"] * 3


def test_contextual_calibration_takes_all_content_free_texts(asked):
    """After these the model leans to A by 3, 2 and 1 nats. Something between decides; neither 1 nor 3 would."""
    bias = dict(zip(CONTENT_FREE, (3.0, 2.0, 1.0), strict=True))

    def say(own, text):
        return (bias[text] if text in bias else 2.6 if GOLD[text] == "A" else 1.4, 0.0)

    asked(say)
    found = ask_by("zero_shot")
    assert "contextual calibration (100.0%" in found.chosen
    assert given(found) == ["A", "B"] * 3


def test_calibration_divides_by_the_constant():
    """0.6 and 0.5 of A over 0.6, 0.2 and 0.3 of B over 0.3, scaled to sum to 1."""
    scores = Scores(np.log([[0.6, 0.2], [0.5, 0.3]]), np.array([1, 1]), 0, None)
    found = np.exp(label_logprobs(scores, "batch calibration", np.log([0.6, 0.3])))
    assert found == pytest.approx(np.array([[3 / 5, 2 / 5], [5 / 11, 6 / 11]]))


def test_the_mean_per_token_is_that_of_each_labels_own_tokens():
    """-2 over 1 token and -3 over 3 are -2 and -1."""
    found = label_logprobs(Scores(np.array([[-2.0, -3.0]]), np.array([1, 3]), 0, None), "mean per token")
    assert found[0, 1] - found[0, 0] == pytest.approx(1)


# --- examples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["few_shot", "retrieval"])
def test_examples_while_choosing_are_training_rows_and_never_test_rows(name, asked):
    calls = asked(lambda own, text: (0.0, 0.0))
    ask_by(name, shots=[4], shot_draws=3, neighbours=[4])
    choosing, answering = set(), set()
    for texts, examples in calls:
        for text, shots in zip(texts, examples, strict=True):
            (answering if text.startswith("test") else choosing).update(shot for shot, _ in shots)
    assert choosing and choosing <= {row.text for row in ROWS.train}
    assert answering and not answering & {row.text for row in ROWS.test}


def test_each_draw_of_worked_examples_has_rows_of_its_own():
    variants = VARIANTS["few_shot"](ROWS, prompt(), Ask(shots=[4], shot_draws=3), 0)
    assert len({frozenset(variant.prompt.shots) for variant in variants}) > 1
    assert all(GOLD[text] == label for variant in variants for text, label in variant.prompt.shots)


def test_the_nearest_training_row_stands_next_to_the_question():
    rows = Rows(rows_of(["goal team match", "senate law vote", "goal senate law"]), ROWS.validation, ROWS.test)
    (variant,) = VARIANTS["retrieval"](rows, prompt(), Ask(neighbours=[2]), 0)
    (shots,) = variant.shots(["senate law vote today"])
    assert shots == [("goal senate law", "A"), ("senate law vote", "B")]


# --- anchors, and the tuned arm ------------------------------------------------------------------------


class Watched(Tfidf):
    """Writes down which rows were learnt from, how strongly."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def fit(self, rows, labels, strength, unit):
        self.seen.append((rows, strength))
        return super().fit(rows, labels, strength, unit)


def test_tfidf_takes_the_strength_that_is_best_on_validation_and_learns_again_from_both():
    """Twenty rows of A, two of B, a word in common: held back much, it says A always; on test rows that were best."""
    train = rows_of(["word common here"] * 20, "A") + rows_of(["word common there"] * 2, "B")
    held = rows_of(["word common here", "word common there"] * 3)
    test = rows_of(["word common there"] * 4, "A")
    arm = Watched()
    found = run(arm, Rows(train, held, test))
    accuracies = {
        strength: np.mean(arm.fit(train, LABELS, strength, "word").predict([row.text for row in held]) == [0, 1] * 3)
        for strength in (1.0, 4.0, 16.0, 64.0)
    }
    best = min(strength for strength, accuracy in accuracies.items() if accuracy == max(accuracies.values()))
    assert accuracies[1.0] == 0.5 and max(accuracies.values()) == 1  # there is something to choose
    assert found.chosen.startswith(f"C = {best:g} (100.0% on validation)")
    assert given(found) == ["B"] * 4
    assert arm.seen[4] == (train + held, best)
    assert all(rows == train for rows, _ in arm.seen[:4])


def test_the_majority_is_that_of_the_training_rows():
    rows = Rows(rows_of("abc", "AAB"), rows_of("defg", "B"), rows_of("hij", "B"))
    found = run(Majority(), rows)
    assert (found.chosen, given(found)) == ('always "A"', ["A"] * 3)
    assert found.predictions[0].probabilities == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("with_head", [False, True], ids=["tokens", "head"])
def test_the_temperature_divides(with_head, tiny_path):
    """At 2 the square roots of the probabilities, scaled to sum to 1."""
    loaded = load_model(str(tiny_path))
    learner = Learner(Plain(loaded.model), {MAIN: torch.nn.Linear(32, 2)} if with_head else {}, "padded")
    classifier = Classifier(learner, ClassifyPrompt(prompt().task, Layout(loaded.tokenizer)))
    plain = np.exp(classifier.logprobs(["a goal", "a law"]))
    classifier.temperature = 2.0
    roots = np.sqrt(plain)
    assert np.exp(classifier.logprobs(["a goal", "a law"])) == pytest.approx(roots / roots.sum(1, keepdims=True))
    assert abs(plain - 0.5).max() > 0.01
