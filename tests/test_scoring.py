"""Labels scored through the forest beside one plain forward pass for each answer."""

import numpy as np
import pytest
import torch

from luthier.errors import ModelError
from luthier.evaluation import scoring
from luthier.evaluation.scoring import score_labels
from luthier.forest.forward import set_backend
from luthier.methods.candidates import candidate_sequences
from luthier.models import load_model
from luthier.prompts import ClassifyPrompt, Layout
from luthier.recipe import Task
from tiny import CHATML, END_OF_TEXT, tiny_tokenizer

TASK = Task(labels=["SPORTS", "POLITICS", "WORLD NEWS"])
TEXTS = ["a goal in the last minute", "the senate votes", "rain", "a law on goals", "the match of the week", "songs"]
SHOTS = [[("a team won", "SPORTS"), ("a new law", "POLITICS")]] * len(TEXTS)


@pytest.fixture(scope="module")
def loaded(tiny_path):
    return load_model(str(tiny_path))


@torch.no_grad()
def one_by_one(loaded, prompt, texts, shots):
    """log p of each label's tokens, each sequence alone through the family's own attention."""
    set_backend(loaded.model, "padded")
    found = np.zeros((len(texts), len(prompt.task.labels)))
    for b, row in enumerate(candidate_sequences(prompt, texts, shots)):
        for label, sequence in enumerate(row):
            logprobs = loaded.model(torch.tensor([sequence.tokens])).logits[0].log_softmax(-1)
            found[b, label] = sum(float(logprobs[t - 1, sequence.tokens[t]]) for t in sequence.targets)
    return found


@pytest.mark.parametrize("backend", ["grouped", "padded"])
@pytest.mark.parametrize("shots", [None, SHOTS], ids=["no shots", "shots"])
@pytest.mark.parametrize("at_once", [4096, 7, 1], ids=["all rows", "two rows", "one row"])
def test_scores_are_those_of_each_answer_alone(loaded, monkeypatch, backend, shots, at_once):
    """However many rows are held at once, and whatever was remembered of the beginning."""
    prompt = ClassifyPrompt(TASK, Layout(loaded.tokenizer))
    wanted = one_by_one(loaded, prompt, TEXTS, shots)
    monkeypatch.setattr(scoring, "SEQUENCES_AT_ONCE", at_once)
    set_backend(loaded.model, backend)
    heard: list[tuple[int, int]] = []
    scores = score_labels(loaded.model, backend, prompt, TEXTS, 100, shots, lambda *told: heard.append(told))
    assert np.allclose(scores.sum_BL, wanted, atol=1e-4)
    assert heard[-1] == (len(TEXTS), len(TEXTS)) and heard == sorted(heard)
    again = score_labels(loaded.model, backend, prompt, TEXTS[::-1], 100, shots, beginning=scores.beginning)
    assert np.allclose(again.sum_BL[::-1], wanted, atol=1e-4)
    assert (scores.beginning is None) == (backend == "padded" or at_once == 1)
    assert scores.tokens_L.tolist() == [len(s.targets) for s in candidate_sequences(prompt, TEXTS[:1])[0]]


UNENDED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n### Response:\n"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
)


def scored_text(labels, template, eos=True):
    """What of each label's answer is scored."""
    tokenizer = tiny_tokenizer(template)
    if not eos:
        tokenizer.eos_token = None
    (row,) = candidate_sequences(ClassifyPrompt(Task(labels=labels), Layout(tokenizer)), ["a new match"])
    return [tokenizer.decode([sequence.tokens[t] for t in sequence.targets]) for sequence in row]


ARTS = ["Arts And Culture", "Arts And Sports"]


@pytest.mark.parametrize(("template", "eos"), [(CHATML, True), (UNENDED, True), (UNENDED, False), (None, False)])
def test_all_tokens_of_a_label_are_scored_whether_or_not_the_template_ends_the_turn(template, eos):
    """The last token is left out where it ends the turn only; else labels that share a beginning score the same."""
    assert [text.strip() for text in scored_text(ARTS, template, eos)] == ARTS


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (UNENDED, "<|im_end|>"), (None, END_OF_TEXT)])
def test_a_label_that_begins_another_is_scored_with_its_end(template, end):
    """Without it the longer one could never be likelier; a template that ends no turn borrows the end of text."""
    assert [text.strip() for text in scored_text(["Sports", "Sports law"], template)] == [
        "Sports" + end,
        "Sports law" + end,
    ]


@pytest.mark.parametrize("template", [UNENDED, None])
def test_labels_that_nothing_tells_apart_are_refused(template):
    with pytest.raises(
        ModelError, match=r"^the labels \(Sports, Sports law\) are told apart by where they end, since one"
    ):
        scored_text(["Sports", "Sports law"], template, eos=False)
