"""Masked and permutation language modelling: what is chosen, what is learnt, and what is refused."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers.normalizers import BertNormalizer

from encoders import SIZE, SPECIALS, tiny_encoder_folder, tiny_encoder_tokenizer
from luthier.corpus.lines import Problem
from luthier.errors import ModelError, RecipeError
from luthier.methods.base import Outputs, make_batch
from luthier.methods.masked import MaskedLm, chosen_tokens
from luthier.methods.permuted import PermutedLm, predicted_tokens
from luthier.methods.stage import Passing
from luthier.methods.windows import SPECIAL, cuts, vocabulary_of, windows
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora, Training
from luthier.recipe.methods import Mlm, Plm
from luthier.records import Conversation, Document, Labelled, Ledger, Message, Source
from luthier.stages import load_head
from luthier.stages.beside import account_unread
from luthier.stages.run import train
from luthier.training.learner import new_learner
from luthier.training.loop import train as train_loop
from luthier.training.step import one_step

SOURCE = Source("corpus.jsonl", 1)
TOKENIZER = tiny_encoder_tokenizer()
PROMPT = Dialogue(Layout(TOKENIZER), "plain")
CYCLE = ("the", "old", "lute", "hangs", "on", "new", "wall", "table", "made", "of", "gut", "maple")


def document(length: int, start: int = 0, group: str | None = None) -> Document:
    """Words that follow each other in a circle: each is known from its neighbours, and none from nothing."""
    words = [CYCLE[(start + i) % len(CYCLE)] for i in range(length)]
    return Document(" ".join(words), Source("corpus.jsonl", start + 1, group=group))


# --- windows ------------------------------------------------------------------------------------------------------


def test_vocabulary_is_read_off_the_tokenizer():
    """[CLS] text [SEP] in BERT, text [SEP] [CLS] in XLNet; special tokens are no words."""
    found = vocabulary_of(TOKENIZER)
    assert (found.before, found.after, found.mask) == ((1,), (2,), 3)
    assert found.ordinary == tuple(range(len(SPECIALS), SIZE))
    assert vocabulary_of(tiny_encoder_tokenizer("xlnet")).after == (2, 1)


@pytest.mark.parametrize("method", [MaskedLm(), PermutedLm()], ids=["mlm", "plm"])
def test_a_document_without_a_token_is_in_the_ledger(method):
    """Also where it is of a group that has windows. BERT's normaliser leaves out what cannot be seen."""
    tokenizer = tiny_encoder_tokenizer()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()
    rows = [document(5, group="g"), Document("\u200b\u200d", Source("corpus.jsonl", 9, group="g"))]
    ledger = Ledger(rows_in={"train": 2}, kept={"train": 2})
    account_unread(ledger, "train", rows, method.view(Dialogue(Layout(tokenizer), "plain"), rows), method.passed)
    ledger.check()
    assert ledger.kept == {"train": 1} and [row.reason for row in ledger.dropped] == ["nothing_to_predict"]
    assert isinstance(method, Passing), "so a stage asks it"


def test_cuts_by_hand():
    """Words of 1, 2, 3, 1 tokens in spans of 4: the third word does not fit behind the second. A long one is cut."""
    assert list(cuts([0, 1, 1, 2, 2, 2, 3], 4)) == [(0, 3), (3, 7)]
    assert list(cuts([0, 0, 0, 0, 0], 2)) == [(0, 2), (2, 4), (4, 5)]
    assert list(cuts([], 4)) == []


def test_every_token_stands_in_one_window():
    rows = [document(40), document(7, 3, group="g"), Document("tuneing [SEP] playing [MASK] lute", SOURCE)]
    found = windows(TOKENIZER, rows, 16)
    assert all(w.original[0] == 1 and w.original[-1] == 2 and len(w.original) <= 16 for w in found)
    assert [len(w.original) - 2 for w in found[:3]] == [14, 14, 12]
    again = [token for w in found[:3] for token in w.original[1:-1]]
    assert again == TOKENIZER(rows[0].text, add_special_tokens=False)["input_ids"]
    assert len({w.key for w in found[:3]}) == 1 and found[3].group == "g"
    assert not {1, 2, 3} & set(found[4].original[1:-1]), "what is spelled like a special token is text"
    assert found[4].words[:3] == (SPECIAL, 0, 0) and found[4].words[-1] == SPECIAL


# --- what is guessed ----------------------------------------------------------------------------------------------


def test_masks_are_counted():
    """15 % of the ordinary tokens exactly; of those 80 % masked, 10 % random, 10 % kept, within 4 deviations."""
    method = MaskedLm(settings=Mlm(window_tokens=64))
    (example,) = method.view(PROMPT, [document(60)])
    fates: Counter[str] = Counter()
    for step in range(400):
        (varied,) = method.varied([example], 5, step)
        (sequence,) = varied.sequences
        assert len(sequence.targets) == 9 and set(sequence.targets) <= set(range(1, 61))
        assert sequence.wanted == tuple(example.original[t] for t in sequence.targets)
        assert all(sequence.tokens[i] == example.original[i] for i in range(62) if i not in sequence.targets)
        for target, wanted in zip(sequence.targets, sequence.wanted, strict=True):
            token = sequence.tokens[target]
            fates["masked" if token == 3 else "kept" if token == wanted else "random"] += 1
    total = sum(fates.values())
    words = SIZE - len(SPECIALS)
    for name, share in {"masked": 0.8, "kept": 0.1 + 0.1 / words, "random": 0.1 - 0.1 / words}.items():
        assert abs(fates[name] / total - share) < 4 * math.sqrt(share * (1 - share) / total), name


def test_every_place_is_as_likely_to_be_guessed():
    draw = np.random.default_rng(0)
    words = np.array([SPECIAL, *range(20), SPECIAL])
    counts = np.bincount(np.concatenate([chosen_tokens(words, 0.15, False, draw) for _ in range(2000)]), minlength=22)
    assert counts[0] == counts[-1] == 0 and counts.sum() == 6000
    assert np.all(np.abs(counts[1:-1] - 300) < 4 * math.sqrt(300 * 0.85))


def test_whole_words_are_guessed_whole():
    """Words of 1, 2, 3 tokens in turn, 12 tokens in all, a quarter of them: 3 tokens in whole words."""
    words = np.array([SPECIAL, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, SPECIAL])
    for seed in range(50):
        chosen = chosen_tokens(words, 0.25, True, np.random.default_rng(seed)).tolist()
        marks = words[chosen]
        assert len(chosen) <= 3 and all((words == mark).sum() == (marks == mark).sum() for mark in marks)
    lone = chosen_tokens(np.array([SPECIAL, 0, 0, 0, 1, 1, SPECIAL]), 0.15, True, np.random.default_rng(0))
    assert lone.tolist() == [4, 5], "none fits: the shortest"


def test_predicted_spans():
    """About a sixth of the tokens, none special; a short text has one, and none is predicted from nothing."""
    words = np.array([SPECIAL, *range(600), SPECIAL])
    shares = [len(predicted_tokens(words, 1 / 6, 5, np.random.default_rng(seed))) / 600 for seed in range(100)]
    assert abs(np.mean(shares) - 1 / 6) < 0.005
    places = predicted_tokens(words, 1 / 6, 1, np.random.default_rng(0))
    assert (np.diff(places) > 0).all() and places.min() >= 1 and places.max() <= 600
    assert [p // 6 for p in places - 1] == list(range(100)), "spans of 1 in stretches of 6: one in each"
    runs = np.split(places := predicted_tokens(words, 1 / 6, 5, np.random.default_rng(1)),
                    np.nonzero(np.diff(places) > 1)[0] + 1)  # fmt: skip
    assert {len(run) for run in runs} >= {1, 2, 3, 4, 5}
    for seed in range(20):
        short = predicted_tokens(np.array([0, 1, SPECIAL]), 0.9, 5, np.random.default_rng(seed))
        assert len(short) == 1 and short[0] < 2


@pytest.mark.parametrize(
    "method", [MaskedLm(settings=Mlm(window_tokens=16)), PermutedLm(settings=Plm(window_tokens=16))]
)
def test_what_is_guessed_is_a_pure_function(method):
    """Of seed, step and text: a scored row never changes, a trained one has another form at each step."""
    rows = [document(40), document(30, 5)]
    examples = method.view(PROMPT, rows)
    assert method.view(PROMPT, rows) == examples and method.view(PROMPT, rows[1:]) == examples[3:]
    first, again, later = (method.varied(examples, 3, step) for step in (0, 0, 1))
    assert first == again
    assert method.varied(examples[1:], 3, 0) == first[1:], "whatever the others are"
    assert first != method.varied(examples, 4, 0)
    assert sum(x.sequences != y.sequences for x, y in zip(first, later, strict=True)) > len(examples) / 2
    assert [x.original for x in first] == [x.original for x in examples]


def test_the_loop_asks_for_another_form_at_each_step(tmp_path):
    """With a rate of nothing, the loss of step n is that of the rows as they are varied for n."""
    method = MaskedLm(settings=Mlm(window_tokens=32))
    learner = new_learner(load_model(str(tiny_encoder_folder(tmp_path / "m")), encoders=True), Lora(rank=1), 0, "auto")
    examples = method.view(PROMPT, [document(30), document(25, 4)])
    settings = Training(epochs=4.0, batch_size=2, learning_rate=1e-12, weight_decay=0.0)
    history = train_loop(learner, method, examples, [], settings, 9, tmp_path / "run", lambda progress: None)
    wanted = []
    for step in range(4):
        batch = learner.batch(method.varied(examples, 9, step))
        with torch.no_grad():
            wanted.append(float(-learner(batch).logprobs_M.mean()))
    assert [entry["loss"] for entry in history.train] == pytest.approx(wanted, abs=1e-5)
    assert len({round(loss, 4) for loss in wanted}) == 4


def test_resuming_is_exact(tmp_path):
    """Four steps, and two steps with two more from the checkpoint: the same masks, the same weights bit for bit."""
    method = MaskedLm(settings=Mlm(window_tokens=16))
    path = tiny_encoder_folder(tmp_path / "m")
    examples = method.view(PROMPT, [document(14, i) for i in range(6)])
    settings = Training(epochs=2.0, batch_size=3, learning_rate=1e-2, checkpoints={"every": 2})

    def trained() -> list[torch.Tensor]:
        learner = new_learner(load_model(str(path), encoders=True), Lora(rank=1), 0, "auto")
        train_loop(learner, method, examples, [], settings, 1, tmp_path / "run", lambda progress: None)
        return [parameter.detach().clone() for parameter in learner.trained().values()]

    whole = trained()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "run" / "best")
    resumed = trained()
    assert all(torch.equal(first, second) for first, second in zip(whole, resumed, strict=True))


def test_loss_and_figure_by_hand():
    """Two rows that guess 2 and 1 tokens with p = 1/2, 1/4, 1/8: 6 bits over 3 tokens, in all log 64."""
    method = MaskedLm(settings=Mlm(window_tokens=16, mask_share=0.2))
    examples = method.view(PROMPT, [document(10), document(5, 4)])
    batch = make_batch(examples, causal=False)
    logprobs = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log()
    out = method.loss(Outputs(logprobs_M=logprobs), batch)
    assert float(out.total) == pytest.approx(math.log(64)) and out.weight == 3.0
    assert [method.weight(example) for example in examples] == [2.0, 1.0]
    bits, tokens = method.scores(Outputs(logprobs_M=logprobs), batch)["bits_per_token"]
    assert bits.tolist() == pytest.approx([3.0, 3.0]) and tokens.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_a_step_in_pieces_is_one_step(family, tmp_path):
    """However it is cut into micro-batches: same loss, same gradient norm, same weights after it."""
    loaded_path = tiny_encoder_folder(tmp_path, family)
    settings = Mlm(window_tokens=16), Plm(window_tokens=16)
    method = MaskedLm(settings=settings[0]) if family == "bert" else PermutedLm(settings=settings[1])
    prompt = Dialogue(Layout(tiny_encoder_tokenizer(family)), "plain")
    rows = method.view(prompt, [document(10 + 3 * i, i) for i in range(8)])
    found = []
    for most in (16, 64, 4096):
        learner = new_learner(load_model(str(loaded_path), encoders=True), Lora(rank=2), 0, "auto")
        trained = list(learner.trained().values())
        optimizer = torch.optim.SGD([{"params": trained, "peak": 0.1}], lr=0.1)
        tune = Training(micro_batch_tokens=most, clip_norm=0.0)
        done = [
            one_step(learner, method, method.varied(rows, 0, step), optimizer, 1.0, tune, step) for step in range(2)
        ]
        found.append(([d.loss for d in done], [d.gradient_norm for d in done],
                      torch.cat([p.detach().flatten() for p in trained])))  # fmt: skip
    for losses, norms, weights in found[:-1]:
        assert losses == pytest.approx(found[-1][0], rel=1e-5) and norms == pytest.approx(found[-1][1], rel=1e-4)
        torch.testing.assert_close(weights, found[-1][2], atol=1e-5, rtol=1e-4)


# --- end to end ---------------------------------------------------------------------------------------------------


def talk(draw: np.random.Generator) -> str:
    """16 words of one of six themes of two words each: log2 12 = 3.58 bits a word, and 1 bit for who knows the theme."""
    theme = int(draw.integers(6))
    return " ".join(CYCLE[2 * theme + int(side)] for side in draw.integers(2, size=16))


def write_recipe(folder: Path, method: dict, model: Path, rows: list[dict] | None = None, **tune) -> str:
    draw = np.random.default_rng(4)
    rows = rows or [{"text": talk(draw)} for _ in range(160)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {
        "name": "toy", "model": str(model),
        "stages": [{"method": method, "data": {"train": "corpus.jsonl", "test_share": 0.2}, "tune": tune}],
    }  # fmt: skip
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize(
    ("family", "method"), [("bert", {"kind": "mlm", "mask_share": 0.3}), ("xlnet", {"kind": "plm"})]
)
def test_a_random_encoder_learns_a_toy_language(family, method, tmp_path):
    """Held-out texts: from worse than the words' frequencies to well below what those alone can give."""
    path = write_recipe(
        tmp_path, {**method, "window_tokens": 32}, tiny_encoder_folder(tmp_path / "model", family),
        epochs=10, batch_size=16, learning_rate=1e-2, evaluate_every=100, adapter={"rank": 16, "alpha": 32},
    )  # fmt: skip
    result = train(path, tmp_path / "run")
    found = result["stages"][0]["figures"]["bits_per_token"]
    assert found["before"]["low"] > math.log2(12)
    assert found["after"]["high"] < 3.0
    assert result["verdict"].startswith("better: bits per token")


def test_a_head_reads_what_masked_words_have_taught(tmp_path):
    """mlm, then classify on top of it: the theme of a text, told by a head over the same adapted encoder."""
    draw = np.random.default_rng(5)
    rows = [
        {"text": text, "label": str(CYCLE.index(text.split()[0]) // 2)} for text in (talk(draw) for _ in range(120))
    ]
    path = write_recipe(tmp_path, {"kind": "mlm", "window_tokens": 32}, tiny_encoder_folder(tmp_path / "model"), rows)
    values = yaml.safe_load(Path(path).read_text())
    values["stages"].append({"method": "classify", "data": values["stages"][0]["data"], "tune": {"epochs": 6}})
    Path(path).write_text(yaml.safe_dump(values))
    result = train(path, tmp_path / "run")
    assert [stage["method"] for stage in result["stages"]] == ["mlm", "classify"]
    assert result["stages"][1]["figures"]["accuracy"]["after"]["value"] > 0.8
    asked = [row["text"] for row in rows[:40]]
    answers = load_head(tmp_path / "run").predict(asked)
    assert np.mean([answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=False)]) > 0.8


# --- what is refused ----------------------------------------------------------------------------------------------


def test_other_records_are_refused():
    said = Conversation((Message("user", "a"), Message("assistant", "b")), SOURCE)
    problem = MaskedLm().accept(said)
    assert problem == Problem("wrong_kind", "a conversation is no plain text. mlm takes documents.")
    assert PermutedLm().accept(said).detail.endswith("plm takes documents.")
    assert MaskedLm().accept(Labelled("a text", "x", SOURCE, "key")) == [Document("a text", SOURCE)]


@pytest.mark.parametrize(
    ("family", "kind", "problem"),
    [
        ("llama", "mlm", 'mlm needs an encoder that guesses masked tokens (bert, camembert, deberta, deberta-v2, '
         'distilbert, electra, modernbert, roberta, xlm-roberta); "PATH" is a decoder (llama). Use clm.'),
        ("llama", "plm", 'plm needs a model with two-stream attention (xlnet); "PATH" is a decoder (llama). Use clm.'),
        ("bert", "plm", 'plm needs a model with two-stream attention (xlnet); "PATH" is an encoder (bert). Use mlm.'),
        ("xlnet", "mlm", 'mlm needs an encoder that guesses masked tokens (bert, camembert, deberta, deberta-v2, '
         'distilbert, electra, modernbert, roberta, xlm-roberta); "PATH" is an encoder (xlnet). Use plm.'),
        *(("bert", kind, f'{kind} needs a decoder, which writes text from left to right; "PATH" is an encoder (bert). '
           "Use mlm or a head (classify, tag, ...), or give a decoder as model.") for kind in ("clm", "sft", "dpo")),
    ],
)  # fmt: skip
def test_a_model_of_the_wrong_kind_is_refused(family, kind, problem, tiny_path, tmp_path):
    """Before a row is read: the file of rows does not even exist."""
    model = tiny_path if family == "llama" else tiny_encoder_folder(tmp_path / "model", family)
    path = write_recipe(tmp_path, {"kind": kind}, model)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(RecipeError) as caught:
        train(path, tmp_path / "run")
    assert caught.value.problems == [f"stages.0.method: {problem.replace('PATH', str(model))}"]
    assert not list((tmp_path / "run").glob("stages/*"))


def test_a_tokenizer_without_mask_is_refused(tmp_path):
    path = tiny_encoder_folder(tmp_path / "model")
    tokenizer = tiny_encoder_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(path)
    with pytest.raises(RecipeError) as caught:
        train(write_recipe(tmp_path, {"kind": "mlm"}, path), tmp_path / "run")
    assert caught.value.problems == [
        f'stages.0.method: the tokenizer of "{path}" has no mask token, which mlm puts in the place of words. '
        "Give the folder of a model that was trained with one."
    ]
    with pytest.raises(ModelError, match="no mask token"):
        MaskedLm().view(Dialogue(Layout(tokenizer), "plain"), [document(5)])
