"""Stages end to end on a tiny model: rows in, one method after the other, adapters and figures out, stop and resume."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from sklearn.metrics import precision_recall_fscore_support
from transformers import AutoModelForCausalLM

from luthier.corpus.wire import to_json
from luthier.errors import DataError, RecipeError, RunError
from luthier.methods.base import make_batch
from luthier.methods.conversations import ConversationSft
from luthier.methods.documents import DocumentClm
from luthier.methods.heads.tag import TagHead
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.progress import Silent
from luthier.prompts import Dialogue, Layout, PromptError
from luthier.recipe.methods import Classify, Clm, MultiLabel, Ordinal
from luthier.recipe.stages import Rows, load_stages, parse_stages
from luthier.records import Completion, Conversation, Document, Dropped, Labelled, Ledger, Message, Source
from luthier.stages import train
from luthier.stages.chain import Left, start_stage
from luthier.stages.labels import label_counts, label_rows, missing_notes, strata, untested
from luthier.stages.peeking import peek_stages
from luthier.stages.rows import gather, lost_share, refuse_losses, viewed_rows
from luthier.stopped import Stopped
from luthier.training.learner import load_learner
from tiny import tiny_tokenizer

WORDS = ("goal", "team", "won", "vote", "law", "senate", "painter", "museum", "song")
SFT, CLM = ConversationSft(), DocumentClm()


def write_lines(path: Path, values: list) -> str:
    path.write_text("".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values))
    return str(path)


def talk_row(number: int, answer: str = "") -> dict:
    """A row with a prompt of its own."""
    turns = [f"Text {WORDS[number % 9]} number {number}", answer or ("Sports", "Politics", "Arts")[number % 9 // 3]]
    return {"messages": [{"role": role, "content": t} for role, t in zip(("user", "assistant"), turns, strict=True)]}


def document_row(number: int) -> dict:
    return {"text": " ".join(WORDS[(number * (k + 2) + k) % 9] for k in range(20 + number)) + f" {number}."}


# --- rows ----------------------------------------------------------------------------------------------


def rows(**values) -> Rows:
    return Rows.model_validate(values)


def sums(ledger: Ledger) -> None:
    ledger.check()
    assert set(ledger.rows_in) == {"train", "validation", "test"}


def test_rows_are_split_by_shares_and_all_accounted_for(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [talk_row(n) for n in range(40)])
    found = gather(rows(train=path, validation_share=0.25, test_share=0.25), SFT, 0)
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 10, 10)
    contents = [row.messages[0].content for part in (found.train, found.validation, found.test) for row in part]
    assert len(set(contents)) == 40 and found.ledger.dropped == []
    sums(found.ledger)
    assert gather(rows(train=path, validation_share=0.25, test_share=0.25), SFT, 1).key != found.key


def test_the_order_of_files_and_rows_decides_nothing(tmp_path):
    many = [talk_row(n) for n in range(30)]
    halves = [write_lines(tmp_path / "a.jsonl", many[:15]), write_lines(tmp_path / "b.jsonl", many[15:])]
    turned = [write_lines(tmp_path / "c.jsonl", many[:14:-1]), write_lines(tmp_path / "d.jsonl", many[14::-1])]
    keys = {gather(rows(train=paths), SFT, 3).key for paths in (halves, halves[::-1], turned)}
    assert len(keys) == 1


def test_one_prompt_stays_on_one_side(tmp_path):
    """Four answers to each of 20 prompts."""
    path = write_lines(tmp_path / "a.jsonl", [talk_row(n, f"answer {k}") for n in range(20) for k in range(4)])
    found = gather(rows(train=path, test_share=0.3), SFT, 0)
    sides = [{row.messages[0].content for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(len(side) for side in sides) == 20 and all(sides)


def grouped(number: int, group: str) -> dict:
    return to_json(Document(f"{WORDS[number % 9]} text of its own {number}", Source("book.txt", number, group=group)))


def test_one_group_stays_on_one_side(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [grouped(n, f"book {n % 10}") for n in range(60)])
    found = gather(rows(train=path, test_share=0.3), CLM, 0)
    sides = [{row.source.group for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(len(side) for side in sides) == 10 and all(sides)


def test_what_is_dropped_and_why(tmp_path):
    """A copy, a row that stands in the test set by its prompt, one whose only weighted turn
    opens it, a broken one, a
    pair of two prompts, and a kind that sft cannot use: each has a line of the ledger.
    """
    silent = {"messages": [talk_row(50)["messages"][1], *talk_row(51)["messages"]]}
    silent["messages"][2]["weight"] = 0
    good = [talk_row(n) for n in range(20)]
    train_path = write_lines(
        tmp_path / "a.jsonl", [*good, talk_row(3), talk_row(30, "other"), silent, '{"messages": [']
    )
    torn = {"prompt": [{"role": "user", "content": "another"}], "chosen": talk_row(1)["messages"],
            "rejected": talk_row(1, "x")["messages"]}  # fmt: skip
    whole = {"chosen": talk_row(60)["messages"], "rejected": talk_row(60, "x")["messages"]}
    pairs = write_lines(tmp_path / "pairs.jsonl", [whole, torn])
    texts = write_lines(tmp_path / "texts.jsonl", [document_row(1)])
    test_path = write_lines(tmp_path / "t.jsonl", [talk_row(n) for n in range(30, 34)])
    found = gather(rows(train=[train_path, pairs, texts], test=test_path), SFT, 0)
    reasons = found.ledger.reasons("train")
    broken = (reasons.keys() - {"duplicate", "in_test", "nothing_to_learn", "prompt_differs", "wrong_kind"}).pop()
    assert reasons == {
        "duplicate": 1,
        "in_test": 1,
        "nothing_to_learn": 1,
        "prompt_differs": 1,
        "wrong_kind": 1,
        broken: 1,
    }
    sums(found.ledger)
    assert len(found.train) + len(found.validation) == 21 and len(found.test) == 4
    told = {row.reason: (row.source.file, row.source.line, row.detail) for row in found.ledger.dropped}
    assert told["duplicate"] == ("a.jsonl", 21, "the same row as a.jsonl line 4.")
    assert told["in_test"] == ("a.jsonl", 22, "its prompt or text is in the test rows.")
    assert told["prompt_differs"][:2] == ("pairs.jsonl", 2)


def test_a_group_of_the_test_rows_is_not_trained_on(tmp_path):
    train_path = write_lines(tmp_path / "a.jsonl", [grouped(n, f"book {n % 20}") for n in range(80)])
    test_path = write_lines(tmp_path / "t.jsonl", [grouped(100, "book 2")])
    found = gather(rows(train=train_path, test=test_path), CLM, 0)
    assert found.ledger.reasons("train") == {"in_test": 4}
    assert "book 2" not in {row.source.group for row in (*found.train, *found.validation)}


def test_a_number_of_rows_is_taken_by_seed_and_said(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [talk_row(n) for n in range(60)])
    few = {"max_rows": 5, "max_test_rows": 3, "test_share": 0.25}
    found, other = (gather(rows(train=path, **few), SFT, seed) for seed in (0, 1))
    assert (len(found.train), len(found.test)) == (5, 3)
    assert found.ledger.notes == [
        "train: 5 of 39 rows taken, by seed.",
        "validation: 1 of 6 rows taken, by seed.",
        "test: 3 of 15 rows taken, by seed.",
    ]
    assert found.ledger.rows_in == {"train": 39, "validation": 6, "test": 15}, "all that were read"
    assert found.ledger.reasons("train") == {"not_taken": 34} and found.ledger.dropped == []
    assert set(found.train) != set(other.train)
    sums(found.ledger)


def test_what_is_dropped_is_set_against_all_rows_read_not_those_taken(tmp_path):
    """Ten copies among 110 rows are no reason to refuse the 20 that are taken of them."""
    path = write_lines(tmp_path / "a.jsonl", [talk_row(n) for n in [*range(100), *range(10)]])
    found = gather(rows(train=path, max_rows=12, max_test_rows=6, max_dropped_share=0.1), SFT, 0)
    assert sum(found.ledger.rows_in.values()) == 110 and len(found.ledger.dropped) == 10
    sums(found.ledger)


def test_rows_lost_when_they_are_viewed_count_among_those_taken():
    """10 of 102 rows lost when read, 22 of the 92 good ones taken, 12 of those lost: 1 - 92/102 * 10/22."""
    line = Dropped("train", Source("a", 1), "too_long", "it has over 9 tokens.", "")
    ledger = Ledger(
        rows_in={"train": 100, "validation": 1, "test": 1},
        kept={"train": 8, "validation": 1, "test": 1},
        dropped=[line] * 22,
        not_taken={"train": 70},
        taken={"train": 20, "validation": 1, "test": 1},
    )
    ledger.check()
    assert lost_share(ledger) == pytest.approx(1 - (92 / 102) * (10 / 22))
    with pytest.raises(DataError, match="10 of 102 rows and 12 of the 22 taken were dropped, more than"):
        refuse_losses(ledger, rows(train="a.jsonl"))


def labelled_rows(folder: Path, counts: dict[str, int]) -> str:
    rows = [
        {"text": f"{label} {WORDS[n % 9]} {n}", "label": label} for label, size in counts.items() for n in range(size)
    ]
    return write_lines(folder / "labels.jsonl", rows)


@pytest.mark.parametrize("name", ["classify", "ordinal", "multilabel"])
def test_each_label_has_its_share_in_every_part(tmp_path, name):
    """A rare label as well, with every seed, and where only some of the rows are taken."""
    settings = {"classify": Classify(), "ordinal": Ordinal(labels=["fine", "fraud"]), "multilabel": MultiLabel()}
    method = make_stage_method(settings[name])
    path = labelled_rows(tmp_path, {"fine": 190, "fraud": 10})
    for seed in range(6):
        found = gather(rows(train=path, test_share=0.2, validation_share=0.1), method, seed)
        parts = {"train": found.train, "validation": found.validation, "test": found.test}
        assert label_counts(method, parts)["fraud"] == {"train": 7, "validation": 1, "test": 2}
        few = gather(rows(train=path, test_share=0.2, max_rows=70, max_test_rows=20), method, seed)
        counts = label_counts(method, {"train": few.train, "test": few.test})
        assert counts["fraud"] == {"train": pytest.approx(3.5, abs=1), "test": 1}


def test_the_rarest_of_several_labels_decides_where_a_row_counts():
    method = make_stage_method(MultiLabel())
    texts = ["a", "a,b", "a,c", "b", "none"]
    assert strata(method, [Labelled("x", label, Source("a", 1), "") for label in texts]) == ["a", "b", "c", "b", ""]


def test_groups_stay_whole_where_labels_have_their_share(tmp_path):
    many = [
        {"text": f"{WORDS[n % 9]} {n}", "label": "fraud" if n % 30 < 3 else "fine", "group": f"g{n // 3}"}
        for n in range(300)
    ]
    source = {"path": write_lines(tmp_path / "a.jsonl", many), "label": "label", "group": "group"}
    found = gather(rows(train=[source], test_share=0.2), make_stage_method(Classify()), 0)
    sides = [{row.source.group for row in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, sides)) == 100
    assert sum(row.label == "fraud" for row in found.test) == 6


@pytest.mark.parametrize("kind", ["classify", "tag", "regress"])
def test_a_look_at_the_rows_of_a_head_shows_what_it_should_answer(kind, tiny_path, tmp_path, luthier):
    texts = [f"{WORDS[n % 9]} {WORDS[n % 7]} {n}" for n in range(20)]
    many = {
        "classify": [{"text": text, "label": "rare" if n < 4 else "usual"} for n, text in enumerate(texts)],
        "regress": [{"text": text, "label": n} for n, text in enumerate(texts)],
        "tag": [{"words": text.split(), "tags": ["B-X", "I-X", "O"]} for text in texts],
    }[kind]
    data = {"train": write_lines(tmp_path / "rows.jsonl", many), "test_share": 0.25, "validation_share": 0.25}
    recipe = {"model": str(tiny_path), "stages": [{"method": kind, "data": data}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, _ = luthier("data", "peek", str(tmp_path / "recipe.yaml"), "--rows", "1")
    assert code == 0 and "; read by a head" in " ".join(out.split()) and "trained in an epoch" not in out
    told = {
        "classify": "usual      8           4     4",
        "regress": "train: numbers from ",
        "tag": "B-X       10           5     5",
    }
    assert told[kind] in out
    answer = {"classify": r"rows.jsonl line \d+: (rare|usual)\n", "regress": r"rows.jsonl line \d+: \d+\n",
              "tag": r"rows.jsonl line \d+: \w+/B-X \w+/I-X \d+\n"}  # fmt: skip
    assert re.search(answer[kind], out), out


def test_labels_without_a_held_out_row_are_said():
    counts = {"fine": {"train": 9, "validation": 2, "test": 3}, "fraud": {"train": 4, "validation": 0, "test": 0}}
    assert missing_notes(counts, ("train", "validation", "test")) == [
        'validation: no row has the label "fraud": the best step is chosen without it. Give more rows of it, or a '
        "larger share.",
        'test: no row has the label "fraud": the figures say nothing of it. Give more rows of it, or a larger share.',
    ]
    assert missing_notes(counts, ("train",)) == []
    assert untested(counts) == ' No test row has the label "fraud".'


def test_label_by_label_figures_equal_scikit_learn():
    gold, given = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 1])
    there, wanted = given[:, None] == np.arange(4), gold[:, None] == np.arange(4)
    method = make_stage_method(Classify()).fitted([Labelled("x", label, Source("a", 1), "") for label in "abcd"])
    counts = {label: {"train": 5, "test": int((gold == i).sum())} for i, label in enumerate("abcd")}
    found = label_rows(counts, (2.0 * (there & wanted), there.astype(float) + wanted), method)
    scores = precision_recall_fscore_support(gold, given)
    for row, precision, recall, f1 in zip(found[:3], *scores[:3], strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
    assert found[3] == {"label": "d", "rows": {"train": 5, "test": 0}, "precision": None, "recall": None, "f1": None}


def test_no_rows_left_says_why(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [document_row(n) for n in range(4)])
    with pytest.raises(DataError) as refused:
        gather(rows(train=path), SFT, 0)
    assert str(refused.value) == (
        "data.train: no row is left for train. Dropped: 4 wrong_kind (first: a.jsonl line 1: a document has no answer "
        "to learn. sft takes conversations, instructions and completions.). Give more rows, or other shares."
    )


def test_test_rows_that_are_all_dropped_are_not_replaced_in_silence(tmp_path):
    train_path = write_lines(tmp_path / "a.jsonl", [talk_row(n) for n in range(20)])
    test_path = write_lines(tmp_path / "t.jsonl", [document_row(1)])
    with pytest.raises(DataError, match=r"^data\.test: no row is left for test\. Dropped: 1 wrong_kind"):
        gather(rows(train=train_path, test=test_path), SFT, 0)


def test_too_many_dropped_rows_are_refused(tmp_path):
    silent = [talk_row(n) for n in range(100, 130)]
    for row in silent:
        row["messages"][1]["weight"] = 0
    path = write_lines(tmp_path / "a.jsonl", [talk_row(n) for n in range(20)] + silent)
    with pytest.raises(DataError) as refused:
        gather(rows(train=path), SFT, 0)
    assert str(refused.value).startswith(
        "data: 30 of 50 rows were dropped, more than max_dropped_share (0.5). Dropped: 30 nothing_trained (first: "
        "a.jsonl line 21: "
    )
    assert str(refused.value).endswith("Mend the rows, or raise data.max_dropped_share.")
    gather(rows(train=path, max_dropped_share=0.6), SFT, 0)


def test_rows_that_make_no_prompt_go_to_the_ledger():
    """The tokenizer makes one token of a space and the word behind it, so such a prompt cannot be asked alone."""
    prompt = Dialogue(Layout(tiny_tokenizer()), "plain")
    source = Source("a.jsonl", 7)
    good, torn = Completion("Text:", " goal", source), Completion("Text: ", "goal", source)
    ledger = Ledger(rows_in={"train": 2}, kept={"train": 2})
    assert viewed_rows(SFT, prompt, [torn, good], "train", ledger) == SFT.view(prompt, [good])
    ledger.check()
    (line,) = ledger.dropped
    assert (line.reason, line.source) == ("no_prompt", source) and "make one token together" in line.detail
    with pytest.raises(PromptError, match="make one token together"):
        viewed_rows(SFT, prompt, [torn], "test", Ledger(kept={"test": 1}))


def test_an_empty_file_says_so(tmp_path):
    for content in ("", "\n \n"):
        (tmp_path / "a.jsonl").write_text(content)
        with pytest.raises(DataError, match=r"a\.jsonl: the file is empty\. Write one row a line\.$"):
            gather(rows(train=str(tmp_path / "a.jsonl")), SFT, 0)
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"a\.csv: has no rows \(CSV: below the header\)\.$"):
        gather(rows(train=str(tmp_path / "a.csv")), SFT, 0)


def test_iob1_rows_are_counted_in_a_note(tmp_path):
    lines = [
        {"words": ["the", WORDS[n % 9], f"w{n}"], "tags": ["O", "I-S" if n % 2 else "B-S", "O"]} for n in range(20)
    ]
    found = gather(rows(train=write_lines(tmp_path / "a.jsonl", lines)), TagHead(), 0)
    assert found.ledger.dropped == [] and found.ledger.notes == [
        "train: 10 rows have entities that begin with I, as IOB1 has; they are read as BIO, beginning with B."
    ]
    assert {tag for row in found.train for tag in row.tags} == {"O", "B-S"}


# --- a run ---------------------------------------------------------------------------------------------


class Told(Silent):
    """Remembers which stages were computed, and may stop the run at a step of one."""

    def __init__(self, stop_at: tuple[str, int] | None = None):
        self.stop_at, self.stage = stop_at, ""
        self.cached: dict[str, bool] = {}

    def begin(self, stage: str) -> None:
        self.stage = stage

    def update(self, done: int, total: int, note: str = "") -> None:
        if (self.stage, done) == self.stop_at and note.startswith("loss"):
            signal.raise_signal(signal.SIGTERM)

    def end(self, stage: str, cached: bool, note: str = "") -> None:
        self.cached[stage] = cached


@pytest.fixture(scope="module")
def recipe_path(tiny_path, tmp_path_factory) -> Path:
    """clm -> sft. The windows are longer than data.max_tokens, which is for rows."""
    folder = tmp_path_factory.mktemp("recipes")
    write_lines(folder / "docs.jsonl", [document_row(n) for n in range(24)])
    write_lines(folder / "talks.jsonl", [talk_row(n) for n in range(40)])
    tune = {"batch_size": 8, "epochs": 1, "adapter": {"rank": 2, "alpha": 4}}
    recipe = {
        "name": "small", "model": str(tiny_path), "precision": "float32", "judge": {"resamples": 200},
        "stages": [
            {"method": {"kind": "clm", "window_tokens": 32}, "data": {"train": "docs.jsonl", "max_tokens": 16},
             "tune": tune},
            {"method": "sft", "data": {"train": "talks.jsonl"}, "tune": tune},
        ],
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(json.dumps(recipe))  # which is YAML too
    return path


@pytest.fixture(scope="module")
def done(recipe_path) -> Path:
    """The run folder of the recipe, finished."""
    out = recipe_path.parent / "run"
    train(recipe_path, out)
    return out


def test_what_a_result_holds(done):
    result = json.loads((done / "result.json").read_text())
    clm, sft = result["stages"]
    assert (result["name"], clm["name"], sft["method"], sft["start"]) == ("small", "clm", "sft", "stack")
    assert clm["rows"]["train"] + clm["rows"]["validation"] + clm["rows"]["test"] == 24
    assert clm["examples"]["train"] > clm["rows"]["train"], "documents are cut into windows, none is dropped"
    assert clm["ledger"]["reasons"] == {"train": {}, "validation": {}, "test": {}} and clm["ledger"]["notes"] == []
    for stage in (clm, sft):
        found = stage["figures"]["bits_per_byte"]
        assert found["n"] == stage["rows"]["test"], "windows of one document count as one"
        assert found["change"]["value"] == pytest.approx(found["after"]["value"] - found["before"]["value"])
        assert found["change"]["high"] < 0 and found["before"]["low"] <= found["before"]["value"]
        assert stage["training"]["steps"] == len(stage["training"]["curve"]["train"])
        assert (done / "stages").is_dir() and Path(stage["adapter"]).is_dir()
    assert result["adapter"] == sft["adapter"] and result["verdict"] == sft["verdict"]
    value = sft["figures"]["bits_per_byte"]
    assert sft["verdict"].startswith(
        f"too few rows: bits per byte {value['before']['value']:.4g} -> {value['after']['value']:.4g} ("
    )
    assert json.loads((Path(sft["adapter"]) / "dialogue.json").read_text()) == {
        "template": "", "template_arguments": {}, "layout": "chat", "system": "",
    }  # fmt: skip
    assert parse_stages(yaml.safe_load(result["recipe"])).stages[1].method.kind == "sft"
    assert result["adapter_format"] == "peft"
    assert result["asked"][0]["command"] == 'luthier answer RUN_FOLDER --text "a question"'


def test_each_training_is_priced_and_another_price_computes_nothing(done, recipe_path):
    told = Told()
    result = train(load_stages(recipe_path, ["cost.machine_per_hour=7", "cost.currency=EUR"]), done, listener=told)
    assert told.cached["clm"] and told.cached["sft"]
    for stage in result["stages"]:
        made = stage["training"]
        assert made["total_seconds"] == made["seconds"] + made["validation_seconds"] > 0
        assert made["cost"] == pytest.approx(made["total_seconds"] * 7 / 3600)
    paid = sum(stage["training"]["cost"] for stage in result["stages"])
    assert f"EUR {paid:.4f}" in (done / "report.html").read_text()


def test_a_gain_worth_having_is_for_runs_of_arms(recipe_path):
    with pytest.raises(
        RecipeError, match=r"judge\.minimum_gain: unknown key\. Known keys of judge: confidence, resamples"
    ):
        load_stages(recipe_path, ["judge.minimum_gain=0.5"])


def test_a_second_call_computes_nothing_and_a_change_only_what_follows(done, recipe_path):
    told = Told()
    again = train(recipe_path, done, listener=told)
    assert told.cached["clm"] and told.cached["sft"]
    before = (done / "stages" / "01-clm" / "adapter" / "adapter_model.safetensors").read_bytes()
    out = done.parent / "changed"
    train(recipe_path, out)
    told = Told()
    changed = train(load_stages(recipe_path, ["stages.1.tune.learning_rate=0.001"]), out, listener=told)
    assert told.cached["clm"] and not told.cached["sft"]
    assert changed["stages"][0]["figures"] == again["stages"][0]["figures"]
    assert (out / "stages" / "01-clm" / "adapter" / "adapter_model.safetensors").read_bytes() == before
    told = Told()
    train(load_stages(recipe_path, ["stages.0.tune.learning_rate=0.001"]), out, listener=told)
    assert not told.cached["clm"] and not told.cached["sft"], "the second stage stands on the first"


def test_rows_can_be_looked_at_before_anything_is_trained(done, recipe_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = json.loads((done / "result.json").read_text())["stages"]
    found = peek_stages(load_stages(recipe_path), 2, Silent())
    assert [one["stage"] for one in found] == [stage["name"] for stage in stages]
    for looked, stage in zip(found, stages, strict=True):
        assert looked["rows"] == stage["shown"] and looked["ledger"]["kept"] == stage["ledger"]["kept"]
        assert looked["examples"] == stage["examples"] and looked["trained_tokens"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_damaged_adapter_is_made_anew(done, recipe_path, harm):
    file = done / "stages" / "01-clm" / "adapter" / "adapter_model.safetensors"
    before = file.read_bytes()
    file.unlink() if harm == "gone" else file.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
    with pytest.raises(RunError, match="adapter_model.safetensors missing, or not as written"):
        load_learner(load_model(load_stages(recipe_path).model), file.parent, "auto")
    train(load_stages(recipe_path), done)
    assert file.read_bytes() == before


@pytest.mark.parametrize("stop_at", [("clm", 2), ("sft", 3)])
def test_stopped_and_resumed_is_the_same_run(done, recipe_path, tmp_path, stop_at):
    with pytest.raises(Stopped, match=r"training is saved after step \d of \d\. Run the same command again"):
        train(recipe_path, tmp_path / "run", listener=Told(stop_at))
    assert not (tmp_path / "run" / "result.json").exists()
    train(recipe_path, tmp_path / "run")
    for stage in ("01-clm", "02-sft"):
        file = Path("stages") / stage / "adapter" / "adapter_model.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (done / file).read_bytes()
    found, wanted = (json.loads((out / "result.json").read_text()) for out in (tmp_path / "run", done))
    assert [stage["figures"] for stage in found["stages"]] == [stage["figures"] for stage in wanted["stages"]]


def run_with_long_rows(tiny_path, folder: Path, num_long: int, **data) -> dict:
    """40 conversations of which some are too long, and 10 test rows, through one epoch of sft."""
    long = [talk_row(n, "Sports " * 99) if n < num_long else talk_row(n) for n in range(40)]
    files = {"train": write_lines(folder / "train.jsonl", long),
             "test": write_lines(folder / "test.jsonl", [talk_row(n) for n in range(100, 110)])}  # fmt: skip
    stage = {"method": "sft", "data": {**files, "max_tokens": 60, "validation_share": 0, **data},
             "tune": {"epochs": 1, "adapter": {"rank": 2}}}  # fmt: skip
    recipe = {"name": "x", "model": str(tiny_path), "stages": [stage], "judge": {"resamples": 200}}
    return train(parse_stages(recipe), folder / "run")


def test_rows_that_turn_out_too_long_count_as_dropped(tiny_path, tmp_path):
    with pytest.raises(DataError) as refused:
        run_with_long_rows(tiny_path, tmp_path, 30)
    said = (
        "data: 30 of 50 rows were dropped, more than max_dropped_share (0.5). Dropped: 30 too_long (first: train.jsonl"
    )
    assert str(refused.value).startswith(said)
    (stage,) = run_with_long_rows(tiny_path, tmp_path, 30, max_dropped_share=0.6)["stages"]
    assert stage["rows"] == stage["examples"] == {"train": 10, "validation": 0, "test": 10}
    assert stage["ledger"]["reasons"]["train"] == {"too_long": 30}


def test_rows_of_one_kind_say_what_became_of_the_others(tiny_path, tmp_path):
    thumbs = [{"prompt": f"q {n}", "answer": "a", "thumb": "up" if n % 2 else "well"} for n in range(12)]
    recipe = tmp_path / "kto.yaml"
    data = {"train": write_lines(tmp_path / "thumbs.jsonl", thumbs), "max_dropped_share": 0.9}
    recipe.write_text(json.dumps({"model": str(tiny_path), "stages": [{"method": "kto", "data": data}]}))
    said = r"training rows are rated good; none is rated bad.*Dropped beside them: 6 bad_verdict \(first: .*\"well\""
    with pytest.raises(DataError, match=said):
        peek_stages(load_stages(recipe), 1, Silent())


def test_windows_longer_than_the_model_reads_are_refused(recipe_path, tmp_path):
    recipe = load_stages(recipe_path, ["stages.0.method.window_tokens=1024"])
    with pytest.raises(DataError) as refused:
        train(recipe, tmp_path / "run")
    assert str(refused.value) == (
        "clm: method.window_tokens is 1024, but the model reads 512 tokens at most. Lower it to 512."
    )


# --- from one stage to the next ------------------------------------------------------------------------


def targets_of(tokenizer) -> list:
    prompt = Dialogue(Layout(tokenizer))
    turns = (Message("user", "Text a new match"), Message("assistant", "Sports goal"))
    return ConversationSft().view(prompt, [Conversation(turns, Source("x", 1))])


def plain_logprobs(model, examples) -> torch.Tensor:
    """log p of each target by transformers' own forward pass."""
    (sequence,) = examples[0].sequences
    with torch.no_grad():
        logits = model.eval()(torch.tensor([sequence.tokens])).logits[0].log_softmax(-1)
    return torch.stack([logits[i - 1, sequence.tokens[i]] for i in sequence.targets])


@pytest.mark.parametrize("start", ["stack", "continue", "merge"])
def test_a_stage_starts_from_the_model_the_last_one_left_and_leaves_its_own(
    start, done, recipe_path, tiny_path, tmp_path
):
    """At step 0 the learner is stage 1's model; trained, its saved adapter in plain PEFT gives its log-probabilities."""
    adapter = done / "stages" / "01-clm" / "adapter"
    examples = targets_of(load_model(str(tiny_path)).tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tiny_path)
    bare = plain_logprobs(base, examples)
    wanted = plain_logprobs(PeftModel.from_pretrained(base, adapter), examples)
    assert not torch.allclose(bare, wanted, atol=1e-3), "stage 1 has learnt something"
    stage = load_stages(recipe_path, [f"stages.1.start={start}"]).stages[1]
    begun = start_stage(stage, Left(str(tiny_path), adapter), tmp_path, {}, (0, "auto", "float32"))
    learner = begun.learner.eval()
    with torch.no_grad():
        torch.testing.assert_close(learner(make_batch(examples)).logprobs_M, wanted, atol=1e-5, rtol=1e-5)
        torch.manual_seed(1)
        for parameter in learner.trained().values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        trained = learner(make_batch(examples)).logprobs_M
    assert not torch.allclose(trained, wanted, atol=1e-3)
    (tmp_path / "trained").mkdir()
    learner.save(tmp_path / "trained")
    begun.save(tmp_path / "trained", tmp_path / "adapter")
    below = tmp_path / "model" if start == "merge" else tiny_path
    left = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(below), tmp_path / "adapter")
    torch.testing.assert_close(plain_logprobs(left, examples), trained, atol=1e-5, rtol=1e-5)
    again = start_stage(stage, Left(str(below), tmp_path / "adapter"), tmp_path / "next", {}, (0, "auto", "float32"))
    with torch.no_grad():
        torch.testing.assert_close(again.learner.eval()(make_batch(examples)).logprobs_M, trained, atol=1e-5, rtol=1e-5)


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_tells_each_stage(luthier, done, recipe_path):
    code, out, _ = luthier("train", recipe_path, "--out", done)
    assert code == 0
    result = json.loads((done / "result.json").read_text())
    lines = [line.split() for line in out.splitlines()]
    assert [words[0] for words in lines if words[1:4] == ["bits", "per", "byte"] and words[-1].isdigit()] == [
        "clm",
        "sft",
    ]
    flat = re.sub(r"\s+", " ", out)
    assert re.sub(r"\s+", " ", result["verdict"]) in flat and f"Adapter: {result['adapter']}" in flat


def test_the_result_as_json(luthier, done, recipe_path):
    code, out, _ = luthier("train", recipe_path, "--out", done, "--json")
    found = json.loads(out)
    assert code == 0 and [stage["name"] for stage in found["stages"]] == ["clm", "sft"]


def test_dry_run_prints_a_recipe_that_means_the_same(luthier, recipe_path, tmp_path):
    code, out, err = luthier("train", recipe_path, "--dry-run", "--out", tmp_path / "run")
    assert (code, err) == (0, "") and not (tmp_path / "run").exists()
    assert parse_stages(yaml.safe_load(out)) == load_stages(recipe_path)
    code, out, _ = luthier("train", recipe_path, "--dry-run", "--json")
    assert parse_stages(json.loads(out)) == load_stages(recipe_path)


def test_an_unknown_key_is_named_with_the_nearest(luthier, recipe_path):
    code, out, err = luthier("train", recipe_path, "--set", "stages.0.method.window_token=32")
    assert (code, out) == (1, "")
    assert "stages.0.method" in err and 'Did you mean "window_tokens"?' in err


def test_a_missing_file_is_named(luthier, recipe_path, tmp_path):
    code, _, err = luthier("train", recipe_path, "--set", "stages.0.data.train=none.jsonl", "--out", tmp_path / "run")
    assert code == 1 and "none.jsonl" in err


def test_several_windows_settings_come_from_the_recipe():
    stage = parse_stages({"stages": [{"method": "clm", "data": {"train": "x.txt"}}]}).stages[0]
    assert stage.method == Clm() and stage.tune.epochs == 1.0 and stage.tune.learning_rate == 3e-4
