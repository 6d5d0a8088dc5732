"""`luthier data ...` through the real entry point: what it prints, what it writes, what it refuses."""

import json
from typing import get_args

import pytest

import luthier as package
from luthier.cli.options import ReadFormat, WeightType, WriteFormat
from luthier.corpus.exchange import ReadFormat as Known
from luthier.corpus.shapes.registry import SHAPES
from luthier.merging import DTYPES
from luthier.recipe import parse_recipe
from tiny import tiny_folder

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"Where is room {i}?"},
            {"role": "assistant", "content": f"On floor {i}."},
        ]
    }
    for i in range(12)
]


@pytest.fixture
def chat(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    return path


def test_prepare_writes_records_ledger_page_and_sheet(luthier, chat, tmp_path):
    out = tmp_path / "out"
    code, told, _ = luthier("data", "prepare", chat, "--out", out, "--set", "split.test_share=0.25", "--workers", 1)
    assert code == 0
    assert "12 rows in, 12 kept (9 train, 3 test)" in told
    assert {path.name for path in out.iterdir()} >= {
        "records",
        "ledger.json",
        "dropped.jsonl",
        "data.html",
        "datasheet.md",
    }
    assert (out / "data.html").read_text().startswith("<!doctype html>")
    code, told, _ = luthier("data", "prepare", chat, "--out", out, "--set", "split.test_share=0.25", "--json")
    assert code == 0 and json.loads(told)["parts"] == {"train": 9, "test": 3}


def test_prepare_of_a_recipe_and_its_problems(luthier, chat, tmp_path):
    recipe = tmp_path / "corpus.yaml"
    recipe.write_text("data:\n  corpus:\n    inputs:\n      - {path: chat.jsonl, licence: CC0-1.0}\n")
    code, told, _ = luthier("data", "prepare", recipe, "--out", tmp_path / "out", "--json")
    assert code == 0 and json.loads(told)["licences"] == {"CC0-1.0": 12}
    recipe.write_text("data:\n  corpus:\n    inputs:\n      - {path: chat.jsonl, licens: CC0}\n    dedupe: {}\n")
    code, _, err = luthier("data", "prepare", recipe, "--out", tmp_path / "out")
    assert code == 1
    assert 'data.corpus.inputs.0.licens: unknown key. Did you mean "licence"?' in err
    assert "data.corpus.dedupe: unknown key." in err


def test_shards_are_numbered_from_zero(luthier, chat, tmp_path):
    code, _, err = luthier("data", "prepare", chat, "--out", tmp_path / "out", "--shard", "2/2")
    assert (code, err) == (1, 'Error: --shard "2/2": write I/N with I from 0 to N-1, such as 0/4.\n')
    code, told, _ = luthier("data", "prepare", chat, "--out", tmp_path / "out", "--shard", "0/1", "--workers", 1)
    assert code == 0 and "1 of 1 units are done" in told and not (tmp_path / "out" / "records").exists()


def test_missing_input_names_its_neighbour(luthier, chat, tmp_path):
    code, _, err = luthier("data", "prepare", tmp_path / "chta.jsonl", "--out", tmp_path / "out")
    assert code == 1 and 'Did you mean "chat.jsonl"?' in err


def test_convert_there_and_back(luthier, chat, tmp_path):
    there, back = tmp_path / "sharegpt.jsonl", tmp_path / "back.parquet"
    code, told, _ = luthier("data", "convert", chat, there, "--to", "sharegpt")
    assert code == 0 and told == f"12 records in, 12 rows written to {there} (chat to sharegpt).\n"
    assert json.loads(there.read_text().splitlines()[0])["conversations"][0]["from"] == "human"
    assert luthier("data", "convert", there, back, "--to", "chat")[0] == 0
    again = tmp_path / "again.jsonl"
    assert luthier("data", "convert", back, again, "--to", "chat")[0] == 0
    assert [json.loads(line)["messages"] for line in again.read_text().splitlines()] == [
        row["messages"] for row in CHAT
    ]


@pytest.mark.parametrize(
    ("words", "said", "exit_code"),
    [
        (("--to", "conll"), "no record has a place in conll rows.", 1),
        (("--to", "shargpt"), "'shargpt' is not one of", 2),
        (("--to", "sharegpt", "--from", "alpacca"), "'alpacca' is not one of", 2),
        (("--to", "chat", "--pairs", "some"), "'some' is not one of 'all', 'ends'", 2),
    ],
)
def test_convert_refuses(luthier, chat, tmp_path, monkeypatch, words, said, exit_code):
    monkeypatch.setenv("COLUMNS", "400")
    target = tmp_path / "out.jsonl"
    code, _, err = luthier("data", "convert", chat, target, *words)
    assert code == exit_code and said in err and not target.exists()


def test_the_names_that_options_take_are_those_that_are_known():
    assert set(get_args(WriteFormat)) == set(SHAPES) and set(get_args(ReadFormat)) == set(get_args(Known))
    assert list(get_args(WeightType)) == list(DTYPES)


def test_convert_to_an_unknown_ending(luthier, chat, tmp_path):
    code, _, err = luthier("data", "convert", chat, tmp_path / "out.xlsx", "--to", "chat")
    assert code == 1 and 'unknown ending ".xlsx". Write .jsonl or .parquet' in err


def test_split_keeps_texts_and_groups(luthier, tmp_path):
    rows = tmp_path / "rows.csv"
    lines = [f"  a text  of author {i % 10} number {i},{'xy'[i % 2]},author{i % 10}" for i in range(80)]
    rows.write_text("text,label,author\n" + "\n".join(lines) + "\n")
    code, told, _ = luthier("data", "split", rows, "--out", tmp_path / "out", "--group", "author", "--test-share", 0.2)
    assert code == 0 and "80 kept" in told
    sides = {}
    for path in (tmp_path / "out" / "records").glob("*-0*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["text"].startswith("  a text  of")
            sides.setdefault(row["author"], set()).add(path.name[:5])
    assert len(sides) == 10 and all(len(parts) == 1 for parts in sides.values())


def rows_in(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_split_keeps_all_columns_and_each_labels_share(luthier, tmp_path):
    """Rows come out as they went in; those that the split knows nothing of are named."""
    rows = tmp_path / "bank.csv"
    lines = [f'"where is, my card {i}?",{"lost" if i % 10 == 0 else "delay"},{i},"a ""note"""' for i in range(100)]
    rows.write_text("question,category,id,note\n" + "\n".join(lines) + "\n")
    words = ("data", "split", rows, "--out", tmp_path / "out", "--text", "question", "--test-share", 0.2)
    code, _, err = luthier(*words, "--label", "category")
    assert code == 0, err
    assert (
        "note: bank.csv: the columns id, note are kept, but not read. --label COLUMN gives each label its share." in err
    )
    parts = {
        part: rows_in(tmp_path / "out" / "records" / f"{part}-00000.jsonl") for part in ("train", "validation", "test")
    }
    assert sorted(int(row["id"]) for part in parts.values() for row in part) == list(range(100))
    assert parts["train"][0].keys() == {"question", "category", "id", "note"}
    assert all(row["question"] == f"where is, my card {row['id']}?" for part in parts.values() for row in part)
    assert {part: sum(row["category"] == "lost" for row in rows) for part, rows in parts.items()} == {
        "train": 7, "validation": 1, "test": 2,
    }  # fmt: skip
    assert not (tmp_path / "out" / "work" / "as-read.jsonl").exists()


def test_split_of_pairs_keeps_what_no_record_holds(luthier, tmp_path):
    """Rows in the shape they came in; one that cannot be used stays out, and moves no other."""
    rows = [{"prompt": f"q{n}", "chosen": f"good {n}", "rejected": f"bad {n}", "by": "x"} for n in range(30)]
    rows.insert(3, {"prompt": "q", "chosen": "same", "rejected": "same"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, told, _ = luthier("data", "split", path, "--out", tmp_path / "out")
    assert code == 0 and "31 rows in, 30 kept" in told
    found = [row for part in (tmp_path / "out" / "records").glob("*.jsonl") for row in rows_in(part)]
    del rows[3]
    assert sorted(map(str, found)) == sorted(map(str, rows))


def test_peek_and_prepare_name_columns_that_nothing_reads(luthier, tmp_path):
    path = tmp_path / "bank.jsonl"
    path.write_text("".join(json.dumps({"text": f"card {n}", "category": "lost", "id": n}) + "\n" for n in range(9)))
    told = "bank.jsonl: nothing reads the columns category, id: they are in no record. To read a label, name its column"
    code, out, err = luthier("data", "peek", path, "--rows", 1)
    assert code == 0 and told in err and "category" not in out
    code, out, err = luthier("data", "peek", path, "--rows", 1, "--label", "category")
    assert code == 0 and "nothing reads the column id: it is in no record." in err and "label: lost" in out
    code, out, err = luthier("data", "prepare", path, "--out", tmp_path / "out", "--json")
    assert code == 0 and json.loads(out)["inputs"][0]["unread_columns"] == ["category", "id"]
    (tmp_path / "r.yaml").write_text("data: {}\n")
    code, _, err = luthier("data", "peek", tmp_path / "r.yaml", "--label", "x")
    assert code == 1 and "--text and --label are for files" in err


@pytest.mark.parametrize(
    "setting", ["steps.repair.enabled=true", "steps.personal.action=mask", "duplicates.lines=true"]
)
def test_rows_are_not_written_as_read_where_a_step_changes_them(luthier, chat, tmp_path, setting):
    words = ("--set", "as_read=true", "--set", "steps.repair.enabled=false", "--set", setting)
    code, _, err = luthier("data", "prepare", chat, "--out", tmp_path / "out", *words)
    assert code == 1 and f"as_read: rows are written as they were read, which {setting.partition('=')[0]} would" in err


def test_audit_shows_pairs_and_says_so_by_its_exit_code(luthier, tmp_path):
    long = "the committee agreed on tuesday to repair both bridges before the first frost of this year"
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text(f"{long}|A\nshort one here|B\nshort two here|A\n")
    test.write_text(f"News: {long}, it said|A\nnothing of the kind|B\nnothing of that kind|B\n")
    code, told, _ = luthier("data", "audit", train, test, "--no-probes")
    assert code == 3
    assert told.startswith("1 of 3 training rows share text with 1 of 3 test rows.\n")
    assert f"train: {long}" in told and "train.txt line 1 and test.txt line 1: shared run, 16 words" in told
    test.write_text("wholly other words|A\nand more of them|B\nand yet more words|B\n")
    code, told, _ = luthier("data", "audit", train, test, "--no-probes", "--json")
    assert code == 0 and json.loads(told)["hits"] == []


def test_peek_at_files(luthier, chat):
    code, told, _ = luthier("data", "peek", chat, "--rows", 2)
    assert code == 0 and told.count("conversation  chat.jsonl line") == 2 and "Where is room 1?" in told


def test_a_run_prepares_its_corpus_first(tmp_path):
    tiny_folder(tmp_path / "model")
    rows = [
        {"headline": f"a goal won the match of the team {i}" if i % 2 else f"the senate passed a law after vote {i}",
         "desk": "sports" if i % 2 else "politics", "writer": f"w{i % 9}"}
        for i in range(72)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {
        "path": str(tmp_path / "rows.jsonl"),
        "format": "columns",
        "text": "headline",
        "label": "desk",
        "group": "writer",
    }
    corpus = {"inputs": [source], "split": {"test_share": 0.3}, "duplicates": {"near": 0.0}}
    recipe = parse_recipe(
        {
            "model": str(tmp_path / "model"),
            "task": {"labels": ["SPORTS", "POLITICS"]},
            "data": {"corpus": corpus},
            "arms": ["majority", "tfidf"],
        }
    )
    result = package.run(recipe, tmp_path / "run")
    assert result["arms"]["tfidf"]["accuracy"] > 0.9
    assert 16 <= result["arms"]["tfidf"]["n"] <= 28
    assert (tmp_path / "run" / "corpus" / "data.html").is_file()


def test_train_and_corpus_exclude_each_other(luthier, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "task: {labels: [A, B]}\ndata:\n  test: t.txt\n  corpus:\n    inputs: [{path: x.jsonl}]\n    split: {validation_share: 0.1}\n"
    )
    code, _, err = luthier("run", recipe)
    assert code == 1
    assert "data.corpus.split.validation_share: a run sets data.validation_share aside; use that." in err
    assert "data.test: with data.corpus, hold rows out by data.corpus.split.test_share." in err
