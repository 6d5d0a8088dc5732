"""Answers to many texts on the command line: rows without an answer, what is printed, the file of answers."""

import csv
import json

import numpy as np
import pytest

import luthier
from luthier.cli.answers import Told, reply_lines, safe_cell
from luthier.cli.texts import Asked
from luthier.errors import RunError
from luthier.recipe.stages import parse_stages
from luthier.stages import load_head, train

SPORTS = ["the goal of the team", "a team won", "the goal", "a match of the team", "the team lost", "a goal today"]
LAWS = ["the law of the vote", "a vote passed", "the law", "a vote on the law", "the vote failed", "a law today"]
LONG = "goal " * 600


@pytest.fixture(scope="module")
def run(tiny_path, tmp_path_factory):
    """A finished stage with a head of two labels."""
    folder = tmp_path_factory.mktemp("head")
    for name, end in (("train", ""), ("test", " now")):
        rows = [{"text": t + end, "label": "s"} for t in SPORTS] + [{"text": t + end, "label": "l"} for t in LAWS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "method": "classify",
        "data": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl"), "validation_share": 0.0},
        "tune": {"epochs": 1, "batch_size": 6, "adapter": {"rank": 2}},
    }
    train(parse_stages({"model": str(tiny_path), "precision": "float32", "stages": [stage]}), folder / "run")
    return folder / "run"


@pytest.fixture
def table(tmp_path):
    """Five rows: two to label, one too long, one blank, one that a spreadsheet would run."""
    file = tmp_path / "rows.csv"
    with file.open("w", newline="") as written:
        rows = [
            ["id", "text", "label"],
            [1, "the goal\tof\nthe team", "x"],
            [2, LONG, "y"],
            [3, "", "z"],
            [4, "=1+2", "@a"],
        ]
        csv.writer(written).writerows(rows)
    return file


def test_bad_rows_are_named_by_their_place_in_the_file(luthier, run, table):
    code, out, err = luthier("predict", run, "--file", table)
    assert (code, out) == (1, "")
    told = "tokens; the model reads 512. Give it in parts. To leave such rows out, give --skip-bad.\n"
    assert err.startswith(f"Error: {table} line 4: it has ") and err.endswith(told), "line 4: a text has two"
    code, _, err = luthier("predict", run, "--text", "a goal", "--text", LONG, "--text", LONG)
    assert code == 1 and "2 of 3 rows cannot be used. To leave such rows out, give --skip-bad." in err
    assert "  - --text, number 2: it has " in err and "  - --text, number 3: it has " in err


def test_a_run_of_stages_is_loaded_by_what_its_last_stage_left(run, tmp_path):
    with pytest.raises(
        RunError, match=r"run: is a run of `luthier train`, of stages. Load it with luthier.stages.load_head\(run\)."
    ):
        luthier.load(run)
    (tmp_path / "recipe.yaml").write_text("stages: []\n")
    with pytest.raises(RunError, match="a run that was stopped goes on with `luthier train` and the same --out"):
        luthier.load(tmp_path)


def test_a_line_a_row_with_label_probability_and_text(luthier, run, table):
    code, out, err = luthier("predict", run, "--file", table, "--skip-bad")
    assert code == 3
    (answer,) = load_head(run).predict(["the goal\tof\nthe team"])
    label, probability = answer["label"], answer["probabilities"][answer["label"]]
    first, second, third, fourth = out.splitlines()
    assert first == f"{label}\t{probability:.3f}\tthe goal of the team"
    assert second.startswith("–\t\t(it has ") and third == "–\t\t(the text is blank.)" and fourth.endswith("\t=1+2")
    assert f"note: 1 of 4 texts blank, no answer; first: {table} line 5." in err
    assert f"note: 1 of 4 rows left out:\n  - {table} line 4: it has " in err


def test_json_can_be_joined_with_the_file(luthier, run, table):
    code, out, _ = luthier("predict", run, "--file", table, "--skip-bad", "--json", "--text", "a law")
    assert code == 3
    given, first, long, blank, last = json.loads(out)
    assert (given["file"], given["line"], given["columns"]) == (None, 1, {})
    assert (first["file"], first["line"], first["columns"]) == (str(table), 2, {"id": "1", "label": "x"})
    assert first["probability"] == first["probabilities"][first["label"]] and first["reason"] is None
    assert long["label"] is None and "the model reads 512" in long["reason"] and long["columns"]["id"] == "2"
    assert blank["reason"] == "the text is blank." and last["columns"] == {"id": "4", "label": "@a"}


def test_a_file_of_answers_beside_their_columns(luthier, run, table, tmp_path):
    out = tmp_path / "new" / "answers.csv"
    code, told, _ = luthier("predict", run, "--file", table, "--skip-bad", "--out", out)
    assert (code, told) == (3, f"{out}: 4 rows, 2 of them answered.\n")
    with out.open(newline="") as read:
        head, *rows = csv.reader(read)
    assert head == ["id", "text", "label", "predicted_label", "probability", "reason"], "no column is lost"
    assert [row[0] for row in rows] == ["1", "2", "3", "4"] and rows[0][1] == "the goal\tof\nthe team"
    assert rows[3][1:3] == ["'=1+2", "'@a"], "cells that a spreadsheet would run are texts"
    assert rows[1][3:5] == ["", ""] and "the model reads" in rows[1][5] and rows[2][5] == "the text is blank."
    assert not [path for path in out.parent.iterdir() if path != out]
    lines = tmp_path / "answers.jsonl"
    luthier("predict", run, "--file", table, "--skip-bad", "--out", lines)
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert found[3]["text"] == "=1+2" and found[3]["predicted_label"] == rows[3][3] and found[1]["probability"] is None
    assert np.isclose(sum(found[0]["probabilities"].values()), 1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.xlsx", "name a file that ends in .csv, .tsv, .jsonl"),
        ("rows.csv", "is the file that is read"),
        (".", "name a"),
    ],
)
def test_files_that_answers_do_not_go_to(luthier, table, name, told):
    """Said before a model is loaded: there is no run."""
    code, out, err = luthier("predict", "nowhere", "--file", table, "--out", table.parent / name)
    assert (code, out) == (1, "") and told in err


@pytest.mark.parametrize(
    ("value", "written"),
    [("=A1", "'=A1"), ("-x", "'-x"), ("@x", "'@x"), ("\tx", "'\tx"), ("-3.5", "-3.5"), ("+1e-3", "+1e-3"), ("a=b", "a=b"),
     (-2.5, -2.5), (None, ""), (True, "true"), (["a", "b"], '["a", "b"]')],
)  # fmt: skip
def test_cells(value, written):
    assert safe_cell(value) == written


def test_replies_stand_apart():
    """One as it is; several below what they answer."""
    one = Told(Asked("what\nis it", "a.txt", 1), {"answer": "line 1\nline 2", "finished": True})
    two = Told(Asked("and", "a.txt", 2), {"answer": "x", "finished": False})
    none = Told(Asked("", "a.txt", 3, problem="the text is blank.", blank=True), None)
    assert reply_lines([one]) == ["line 1", "line 2"]
    assert reply_lines([one, two, none]) == [
        "> what is it", "line 1", "line 2", "", "> and", "x [...]", "", "> ", "(the text is blank.)",
    ]  # fmt: skip
