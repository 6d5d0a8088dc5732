"""Continued pre-training on documents: every token but the first is predicted once, and bits are counted on bytes."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from luthier.corpus.lines import Problem
from luthier.errors import DataError, ModelError, RecipeError
from luthier.methods.base import Outputs, make_batch
from luthier.methods.documents import DocumentClm, end_of_text
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora
from luthier.recipe.methods import Clm
from luthier.recipe.stages import parse_stages
from luthier.records import Conversation, Document, Labelled, Ledger, Message, Source
from luthier.stages import train
from luthier.stages.beside import account_unread
from luthier.stages.figures import group_of
from luthier.training.learner import new_learner
from tiny import tiny_tokenizer

SOURCE = Source("x.txt", 1)
PROMPT = Dialogue(Layout(tiny_tokenizer()))
TEXT = "Text the goal é team won a vote in the senate. 日本 Sports and museum"


def method(window_tokens: int = 16, end_documents: bool = True) -> DocumentClm:
    return DocumentClm(settings=Clm(window_tokens=window_tokens, end_documents=end_documents))


def view(*texts: str, group: str | None = None, **settings):
    source = Source("x.txt", 1, group=group)
    return method(**settings).view(PROMPT, [Document(text, source) for text in texts])


def plain_tokens(text: str) -> list[int]:
    return PROMPT.tokenizer(text, add_special_tokens=False)["input_ids"]


@given(st.text(st.sampled_from("aé日𝄞 \n.t"), min_size=2, max_size=120), st.booleans())
def test_every_token_but_the_first_is_predicted_once(text, end):
    """Windows put end to end are the document; the bytes of their targets are the document's but its first token's."""
    examples = view(text, end_documents=end)
    tokens = [*plain_tokens(text), *([0] if end else [])]
    windows = [example.sequences[0] for example in examples]
    assert all(len(window.tokens) <= 16 and window.targets == tuple(range(1, len(window.tokens))) for window in windows)
    assert all(window.weights == (1.0,) * len(window.targets) for window in windows)
    assert all(a.tokens[-1] == b.tokens[0] for a, b in itertools.pairwise(windows))
    predicted = [token for window in windows for token in window.tokens[1:]]
    assert predicted == tokens[1:] and (not windows or windows[0].tokens[0] == tokens[0])
    if windows:
        first = len(text[: PROMPT.tokenizer(text, return_offsets_mapping=True)["offset_mapping"][0][1]].encode())
        assert sum(example.num_bytes for example in examples) == len(text.encode()) - first


def test_windows_by_hand():
    """40 single-byte tokens and the end: 41 tokens in windows of 16 at 0, 15 and 30, with 15, 15 and 10 targets."""
    text = "xyz" * 13 + "x"
    examples = view(text)
    assert [len(example.sequences[0].tokens) for example in examples] == [16, 16, 11]
    assert [example.num_bytes for example in examples] == [15, 15, 9], "the end of the text spells nothing"
    assert examples[-1].sequences[0].tokens[-1] == 0
    assert [method().weight(example) for example in examples] == [15.0, 15.0, 10.0]
    assert len({example.key for example in examples}) == 1


def test_documents_are_never_in_one_window_and_groups_are_drawn_together():
    apart, together = view("Text goal", "Text team"), view("Text goal", "Text team", group="book 1")
    assert [PROMPT.tokenizer.decode(e.sequences[0].tokens) for e in apart] == [
        "Text goal<|endoftext|>",
        "Text team<|endoftext|>",
    ]
    for examples, drawn in ((apart, 2), (together, 1)):
        assert len({example.key for example in examples}) == 2 and len({group_of(e) for e in examples}) == drawn


def test_a_document_of_one_token_has_nothing_to_predict_but_its_end():
    assert view("Text", end_documents=False) == []
    (example,) = view("Text")
    assert example.num_bytes == 0 and example.sequences[0].tokens[1:] == (0,)


@pytest.mark.parametrize("group", [None, "book 1"])
def test_a_document_with_nothing_to_predict_is_in_the_ledger(group):
    """Also where others of its group have windows."""
    source = Source("x.txt", 1, group=group)
    rows = [Document(text, source) for text in ("Text", "Text goal", "xyz" * 20)]
    clm = method(end_documents=False)
    ledger = Ledger(rows_in={"train": 3}, kept={"train": 3})
    account_unread(ledger, "train", rows, clm.view(PROMPT, rows), clm.passed)
    ledger.check()
    assert ledger.kept == {"train": 2} and [(row.reason, row.text) for row in ledger.dropped] == [
        ("nothing_to_predict", "Text")
    ]
    assert ledger.dropped[0].detail == (
        "it has one token, and nothing stands before it. Leave the row out, or set method.end_documents: true."
    )


def test_a_stage_says_which_documents_had_nothing_to_predict(tiny_path, tmp_path):
    rows = [{"text": text} for text in ("Sports", *(f"the goal of team {i} won a match" for i in range(20)))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "one.jsonl").write_text('{"text": "Politics"}')
    stage = {
        "method": {"kind": "clm", "window_tokens": 32, "end_documents": False},
        "data": {"train": [str(tmp_path / "rows.jsonl")], "test": [str(tmp_path / "rows2.jsonl")],
                 "validation_share": 0.0},
        "tune": {"epochs": 1, "adapter": {"rank": 2}},
    }  # fmt: skip
    (tmp_path / "rows2.jsonl").write_text(json.dumps({"text": "a vote in the senate"}))
    values = {"model": str(tiny_path), "precision": "float32", "stages": [stage], "judge": {"resamples": 500}}
    (found,) = train(parse_stages(values), tmp_path / "run")["stages"]
    assert found["ledger"]["reasons"]["train"] == {"nothing_to_predict": 1} and found["ledger"]["kept"]["train"] == 20
    assert found["examples"]["train"] == 20
    stage["data"]["test"] = [str(tmp_path / "one.jsonl")]
    with pytest.raises(DataError, match=r"^clm: no test row gives an example \(such as one.jsonl line 1: it has one t"):
        train(parse_stages(values), tmp_path / "other")


def test_text_that_looks_like_a_special_token_is_text():
    (example,) = view("a<|im_end|>b", window_tokens=64)
    assert 2 not in example.sequences[0].tokens and example.num_bytes == 11


def test_tokenizers_that_open_texts_open_every_document():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer._tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 1)])
    rows = [Document("xyz" * 6, SOURCE)]
    first, second = method().view(Dialogue(Layout(tokenizer)), rows)
    assert first.sequences[0].tokens[0] == 1 and 1 not in second.sequences[0].tokens
    assert first.num_bytes + second.num_bytes == 18, "with it the first token is predicted too"


def test_the_end_of_a_text_is_not_the_end_of_a_turn():
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token == "<|im_end|>" and end_of_text(tokenizer) == 0  # noqa: S105
    unnamed = type("T", (), {"added_tokens_decoder": {}, "eos_token_id": 7})
    assert end_of_text(unnamed) == 7


def test_a_tokenizer_without_an_end_of_text_is_refused():
    bare = type("T", (), {"added_tokens_decoder": {}, "eos_token_id": None})
    with pytest.raises(ModelError) as refused:
        end_of_text(bare)
    assert str(refused.value) == (
        "the tokenizer has no end-of-text token, so the end of a document cannot be learnt. "
        "Set method.end_documents: false, or give the tokenizer an eos_token."
    )


def test_which_records_are_documents():
    clm = make_stage_method(Clm())
    assert isinstance(clm, DocumentClm)
    assert clm.accept(Document("x", SOURCE, "title")) == [Document("x", SOURCE, "title")]
    assert clm.accept(Labelled("x", "SPORTS", SOURCE, "k")) == [Document("x", SOURCE)]
    refused = clm.accept(Conversation((Message("user", "a"), Message("assistant", "b")), SOURCE))
    detail = "a conversation is no plain text. clm takes documents; for turns and answers use sft."
    assert refused == Problem("wrong_kind", detail)


def test_settings_are_checked():
    stage = {"method": {"kind": "clm", "window_tokens": 8, "windows": 3}, "data": {"train": "x.txt"}}
    with pytest.raises(RecipeError) as refused:
        parse_stages({"stages": [stage]})
    told = str(refused.value)
    assert "window_tokens" in told and "16" in told and "windows" in told


# --- the loss ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner(tiny_path):
    return new_learner(load_model(str(tiny_path)), Lora(rank=2), 0, "auto").eval()


def test_the_loss_by_hand_and_its_gradient():
    """Targets of probability 1/2, 1/4, 1/8: 1 + 2 + 3 bits on "xy" and the end; the gradient in each is -1."""
    batch = make_batch(view("xyz"))
    logprobs_M = torch.tensor([0.5, 0.25, 0.125]).log().requires_grad_()
    out = method().loss(Outputs(logprobs_M), batch)
    assert out.weight == 3 and float(out.total.detach()) == pytest.approx(6 * math.log(2))
    out.total.backward()
    assert logprobs_M.grad.tolist() == [-1.0, -1.0, -1.0]
    bits_B, bytes_B = method().scores(Outputs(logprobs_M.detach()), batch)["bits_per_byte"]
    assert float(bits_B) == pytest.approx(6, rel=1e-6) and bytes_B.tolist() == [2.0]


def test_bits_per_byte_equal_transformers_own_loss(learner, tiny_path):
    """One window: transformers' mean loss times its tokens; several: the same sum over the windows, in float64."""
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64).eval()
    for size in (64, 16):
        examples = view(TEXT, window_tokens=size)
        nats = 0.0
        with torch.no_grad():
            for example in examples:
                ids = torch.tensor([example.sequences[0].tokens])
                nats += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            batch = make_batch(examples)
            outputs = learner(batch)
        out = method().loss(outputs, batch)
        assert float(out.total) == pytest.approx(nats, rel=1e-5)
        bits_B, bytes_B = method().scores(outputs, batch)["bits_per_byte"]
        assert len(bits_B) == len(examples) and float(bytes_B.sum()) == len(TEXT.encode()) - 4
        wanted = nats / math.log(2) / (len(TEXT.encode()) - 4)
        assert float(bits_B.sum() / bytes_B.sum()) == pytest.approx(wanted, rel=1e-5)


def test_a_document_does_not_see_the_others_of_its_batch(learner):
    """Whatever stands beside it, even one that begins alike: its log-probabilities and gradient are its own."""
    texts = ("Text the goal is new", "Text the goal won a vote", "museum of Arts")
    alone = [make_batch(view(text, window_tokens=32)) for text in texts]
    together = make_batch(view(*texts, window_tokens=32))
    with torch.no_grad():
        found_M, apart = learner(together).logprobs_M, [learner(batch).logprobs_M for batch in alone]
    torch.testing.assert_close(found_M, torch.cat(apart), atol=1e-5, rtol=1e-5)
    assert together.forest.num_tokens < sum(batch.forest.num_tokens for batch in alone), "beginnings are shared"
    names, parameters = zip(*learner.trained().items(), strict=True)
    outs = [method().loss(learner(batch), batch) for batch in (together, *alone)]
    gradients = [torch.autograd.grad(out.total, parameters) for out in outs]
    assert outs[0].weight == sum(out.weight for out in outs[1:])
    for name, whole, *parts in zip(names, *gradients, strict=True):
        torch.testing.assert_close(whole, sum(parts), atol=1e-4, rtol=1e-4, msg=name)
