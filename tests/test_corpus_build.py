"""A corpus from inputs to shards: the ledger adds up, cuts and kills change nothing, wrong rows are told apart."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from luthier.corpus.build import prepare_corpus
from luthier.corpus.build import units as cut
from luthier.corpus.build.run import Shard
from luthier.errors import DataError, RecipeError, RunError
from luthier.recipe import corpus_of
from luthier.report.data_page import render_data_page

SUBJECTS = ("The harbour", "A school", "Our bakery", "The river", "Their choir", "One clinic", "The museum", "A farm")
VERBS = ("opened", "repaired", "measured", "painted", "counted", "moved", "bought", "described")
THINGS = ("seven bridges", "the old roof", "its winter stock", "a row of lamps", "two long tables", "every window")
PLACES = ("near the market", "behind the station", "on the north shore", "in the upper town", "along the canal")


def sentence(number: int) -> str:
    """One of many sentences, no two alike, few of them near."""
    words = (SUBJECTS[number % 8], VERBS[number // 8 % 8], THINGS[number // 64 % 6], PLACES[number // 384 % 5])
    return (
        f"{' '.join(words)} in week {number} while {SUBJECTS[(number * 5 + 3) % 8].lower()} {VERBS[number * 3 % 8]} it."
    )


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(count: int, start: int = 0) -> list[dict]:
    return [{"text": sentence(i), "label": "ab"[i % 2]} for i in range(start, start + count)]


def prepared(out: Path, files: list[str], *overrides: str, **options) -> dict:
    ledger = prepare_corpus(corpus_of(files, overrides), out, workers=1, **options)
    adds_up(ledger, out)
    return ledger


def adds_up(ledger: dict, out: Path) -> None:
    """Rows in are rows kept and rows dropped; what is written is what is counted."""
    lost = sum(entry["count"] for entry in ledger["dropped"])
    assert ledger["rows_in"] == ledger["rows_kept"] + lost
    assert ledger["rows_kept"] == sum(ledger["parts"].values())
    assert sum(source["rows_in"] for source in ledger["inputs"]) == ledger["rows_in"]
    assert len((out / "dropped.jsonl").read_text().splitlines()) == lost
    assert json.loads((out / "ledger.json").read_text())["rows_in"] == ledger["rows_in"]


def written(out: Path, part: str = "train") -> list[dict]:
    return [
        json.loads(line)
        for path in sorted((out / "records").glob(f"{part}-*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def reasons(ledger: dict) -> dict[str, int]:
    return {entry["reason"]: entry["count"] for entry in ledger["dropped"]}


CLOCKS = ("seconds", "peak_bytes", "index_bytes_per_row")


def files_of(out: Path) -> dict[str, bytes]:
    """All that a preparation delivers, but for its clock."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in (out / "records").iterdir()}
    found["dropped.jsonl"] = (out / "dropped.jsonl").read_bytes()
    ledger = json.loads((out / "ledger.json").read_text())
    return found | {"ledger.json": json.dumps({k: v for k, v in ledger.items() if k not in CLOCKS})}


# --- what comes out ------------------------------------------------------------------------------------


def test_copies_and_near_copies_go_and_are_told(tmp_path):
    rows = labelled(60)
    near = rows[7]["text"].replace(" it.", " it today.")
    rows += [{"text": rows[3]["text"].upper(), "label": "b"}, {"text": near, "label": "b"}]
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)])
    assert reasons(ledger) == {"duplicate": 1, "near_duplicate": 1}
    assert ledger["rows_kept"] == 60
    details = {entry["reason"]: entry["examples"][0] for entry in ledger["dropped"]}
    assert details["duplicate"]["detail"] == "the same text as rows.jsonl line 4."
    assert details["duplicate"]["source"] == "rows.jsonl line 61"
    assert details["near_duplicate"]["detail"].startswith("nearly the same text as rows.jsonl line 8 (Jaccard 0.")
    (cluster,) = ledger["clusters"]
    assert cluster["kept"]["text"] == rows[7]["text"] and cluster["members"][0]["text"] == near
    assert "rows.jsonl line 8" in render_data_page(ledger)


def test_near_copies_are_shown_from_where_they_differ(tmp_path):
    """A word in the middle of a long text, behind more than a page can show; an address right before it is masked."""
    words = [f"word{n}" for n in range(600)]
    other = [*words[:350], "anna@example.com", "changed", *words[351:]]
    rows = [{"text": " ".join([*words[:350], "anna@example.com", *words[350:]])}, {"text": " ".join(other)}]
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)])
    (member,) = ledger["clusters"][0]["members"]
    assert member["kept_text"].startswith("[...] word343 ") and " <EMAIL> word350 word351" in member["kept_text"]
    assert " <EMAIL> changed word351 " in member["text"]
    page = render_data_page(ledger)
    assert "<mark>word350</mark>" in page and "<mark>changed</mark>" in page and page.count("<mark>") == 3


def test_excerpts_hold_no_personal_data_where_it_is_only_counted(tmp_path):
    """The default: records are left as they are; page, ledger and the list of dropped rows hold no address."""
    rows = [{"text": f"Text number {n} of some length, write to anna.bauer{n}@example.com about it."} for n in range(4)]
    rows += [rows[0], {"text": rows[1]["text"].replace("about", "today about")}, {"text": ""}]
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "r.jsonl", rows)], "duplicates.near=0.6")
    assert ledger["personal"]["email"]["count"] == 6 and set(reasons(ledger)) >= {"duplicate", "near_duplicate"}
    assert "anna.bauer1@" in (tmp_path / "out" / "records" / "train-00000.jsonl").read_text()
    for text in (
        render_data_page(ledger),
        *((tmp_path / "out" / f).read_text() for f in ("ledger.json", "dropped.jsonl")),
    ):
        assert "anna.bauer" not in text and "EMAIL" in text


def test_the_split_is_stratified_and_the_same_again(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", labelled(200))
    settings = ("split.test_share=0.2", "split.validation_share=0.1")
    ledger = prepared(tmp_path / "out", [rows], *settings)
    assert ledger["parts"] == {"train": 140, "validation": 20, "test": 40}
    assert [row["label"] for row in written(tmp_path / "out", "test")].count("a") == 20
    prepared(tmp_path / "again", [rows], *settings)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "again")


def test_frozen_test_rows_stay_when_rows_are_added(tmp_path):
    frozen = f"split.frozen={tmp_path / 'frozen.txt'}"
    first = write_rows(tmp_path / "rows.jsonl", labelled(100))
    prepared(tmp_path / "out", [first], "split.test_share=0.2", frozen)
    before = {row["text"] for row in written(tmp_path / "out", "test")}
    more = write_rows(tmp_path / "more.jsonl", labelled(100, 100))
    ledger = prepared(tmp_path / "more", [more, first], "split.test_share=0.5", frozen)
    assert {row["text"] for row in written(tmp_path / "more", "test")} == before
    assert ledger["parts"] == {"train": 180, "test": 20}


def test_training_rows_that_stand_in_another_file_are_shown_or_dropped(tmp_path):
    rows = labelled(40)
    held = write_rows(tmp_path / "held.jsonl", [{"text": rows[5]["text"], "label": "a"}])
    files = [write_rows(tmp_path / "rows.jsonl", rows)]
    against = f"contamination.against=['{held}']"
    ledger = prepared(tmp_path / "shown", files, against)
    assert (ledger["rows_kept"], ledger["num_leaks"]) == (40, 1)
    assert ledger["leaks"][0]["train_source"] == "rows.jsonl line 6"
    assert ledger["leaks"][0]["test_source"] == "held.jsonl line 1"
    ledger = prepared(tmp_path / "dropped", files, against, "contamination.action=drop")
    assert reasons(ledger) == {"contaminated": 1}


def test_personal_data_is_masked_also_in_what_is_shown_of_dropped_rows(tmp_path):
    rows = [{"text": f"{sentence(i)} Write to anna.keller{i}@mail.example.net soon."} for i in range(20)]
    rows.append(rows[0])
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "r.jsonl", rows)], "steps.personal.action=mask")
    assert ledger["personal"]["email"] == {"count": 21, "rows": 21}
    delivered = "".join(path.read_text() for path in (tmp_path / "out" / "records").glob("*.jsonl"))
    assert "<EMAIL>" in delivered
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or b"anna.keller" not in file.read_bytes(), file


def test_documents_are_cut_to_pieces_that_stay_together(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(6):
        text = "\n\n".join(" ".join(sentence(100 * number + i + j) for j in range(4)) for i in range(0, 40, 4))
        (folder / f"{number}.md").write_text(f"# Part {number}\n\n{text}\n")

    def words(texts):
        return [len(text.split()) for text in texts]

    overrides = ("steps.chunking.max_tokens=120", "split.test_share=0.34", "duplicates.near=0")
    ledger = prepared(tmp_path / "out", [str(folder)], *overrides, count_tokens=words)
    assert ledger["parts"] == {"train": 4, "test": 2} and ledger["pieces"]["train"] > 8
    assert ledger["lengths"]["unit"] == "tokens"
    sides = {part: {row["source"]["file"] for row in written(tmp_path / "out", part)} for part in ("train", "test")}
    assert not sides["train"] & sides["test"]
    assert all(len(row["text"].split()) <= 120 for row in written(tmp_path / "out"))


def test_common_lines_and_repeated_passages_are_cut(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    passage = " ".join(sentence(i) for i in (700, 701))
    for number in range(8):
        body = f"{sentence(10 * number)} {sentence(10 * number + 5)}"
        extra = passage if number in (2, 6) else ""
        (folder / f"{number}.txt").write_text(f"Back to the overview\n{body}\n{extra}\n")
    (folder / "9.txt").write_text("Back to the overview\n")
    overrides = (
        "duplicates.lines=true",
        "duplicates.lines_every=3",
        "duplicates.substring_words=20",
        "duplicates.near=0",
    )
    ledger = prepared(tmp_path / "out", [str(folder)], *overrides)
    texts = {row["source"]["file"]: row["text"] for row in written(tmp_path / "out")}
    assert [("Back to" in texts[f"{n}.txt"]) for n in range(8)] == [True, True] + [False] * 6
    assert passage in texts["2.txt"] and passage not in texts["6.txt"] and sentence(60) in texts["6.txt"]
    assert reasons(ledger) == {"only_repeats": 1}
    assert (
        ledger["cut_characters"]["lines"] == 7 * len("Back to the overview") + 6
        and ledger["cut_characters"]["passages"] > 100
    )


def test_chunking_without_a_tokenizer_is_refused(tmp_path):
    files = [write_rows(tmp_path / "rows.jsonl", labelled(5))]
    with pytest.raises(RecipeError, match=r"steps\.chunking[\s\S]*needs a tokenizer"):
        prepare_corpus(corpus_of(files, ["steps.chunking.max_tokens=100"]), tmp_path / "out", workers=1)


def test_a_mixture_with_replay(tmp_path):
    general = write_rows(tmp_path / "general.jsonl", labelled(200, 1000))
    files = [write_rows(tmp_path / "rows.jsonl", labelled(90))]
    mixing = ("mixing.enabled=true", f"mixing.replay={general}", "mixing.replay_share=0.1", "duplicates.near=0")
    ledger = prepared(tmp_path / "out", files, *mixing)
    order = [row["source"]["file"] for row in written(tmp_path / "out")]
    assert order.count("rows.jsonl") == 90 and order.count("general.jsonl") == 10
    assert abs(order[:50].count("general.jsonl") - 5) <= 1
    assert ledger["rows_kept"] == 290 and ledger["written"] == {"train": 100}


@pytest.mark.parametrize("output", ["jsonl", "parquet"])
def test_another_shape_goes_out_and_comes_in_again(tmp_path, output):
    rows = [{"instruction": f"Say {i}.", "input": "", "output": sentence(i)} for i in range(30)]
    files = [write_rows(tmp_path / "alpaca.jsonl", rows)]
    prepared(tmp_path / "out", files, "write=chat", f"output={output}", "shard_rows=12")
    shards = sorted((tmp_path / "out" / "records").glob("train-*"))
    assert [path.name for path in shards] == [f"train-0000{i}.{output}" for i in range(3)]
    ledger = prepared(tmp_path / "back", [str(path) for path in shards], "write=alpaca")
    assert ledger["inputs"][0]["format"] == "chat"
    assert sorted(row["output"] for row in written(tmp_path / "back")) == sorted(row["output"] for row in rows)


def test_labels_get_one_spelling_and_no_others(tmp_path):
    rows = [*labelled(20), {"text": sentence(50), "label": "A "}, {"text": sentence(51), "label": "c"}]
    labels = ("steps.labels.allow=[a, b]", "steps.labels.aliases={bee: b}")
    rows.append({"text": sentence(52), "label": "Bee"})
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)], *labels)
    assert reasons(ledger) == {"unknown_label": 1}
    assert 'label "c" is not in steps.labels.allow.' in ledger["dropped"][0]["examples"][0]["detail"]
    assert {row["label"] for row in written(tmp_path / "out")} == {"a", "b"}
    assert ledger["findings"]["labels"] == {"respelled": 2}


def test_copies_that_disagree_on_the_label_all_go(tmp_path):
    rows = [*labelled(10), {"text": sentence(3).upper(), "label": "a"}]
    ledger = prepared(tmp_path / "out", [write_rows(tmp_path / "rows.jsonl", rows)])
    assert reasons(ledger) == {"conflicting_labels": 2} and ledger["rows_kept"] == 9
    assert ledger["dropped"][0]["examples"][0]["detail"] == (
        'the same text has the labels "b" (rows.jsonl line 4) and "a" (rows.jsonl line 11). Keep the right one.'
    )


def test_a_template_makes_training_texts(tmp_path):
    rows = [{"instruction": f"Say {i}.", "input": "", "output": sentence(i)} for i in range(4)]
    files = [write_rows(tmp_path / "alpaca.jsonl", rows)]
    prepared(tmp_path / "hash", files, "template.layout=hash", "write=prompt_completion")
    first = next(row for row in written(tmp_path / "hash") if "Say 0." in row["prompt"])
    assert first == {"prompt": "### Instruction:\nSay 0.\n\n### Response:\n", "completion": sentence(0)}
    own = ("template.layout=own", "template.prompt='{{ instruction | upper }} ->'", "write=prompt_completion")
    prepared(tmp_path / "own", files, *own)
    assert {row["prompt"] for row in written(tmp_path / "own")} == {f"SAY {i}. ->" for i in range(4)}
    evil = ("template.layout=own", "template.prompt={{ instruction.__class__.__mro__ }}", "max_dropped_share=1.0")
    ledger = prepared(tmp_path / "evil", files, *evil)
    assert reasons(ledger) == {"template_failed": 4} and ledger["rows_kept"] == 0


# --- wrong rows ----------------------------------------------------------------------------------------


def test_each_wrong_row_has_its_reason_and_place(tmp_path):
    path = tmp_path / "chat.jsonl"

    def turns(*roles):
        return json.dumps({"messages": [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(roles)]})

    good = [turns("user", "assistant").replace("says 0", f"asks number {i}") for i in range(8)]
    bad = [
        '{"messages": [',
        turns("user", "narrator"),
        turns("user", "assistant", "assistant"),
        turns("assistant"),
        json.dumps({"messages": [{"role": "user", "content": 7}]}),
        json.dumps({"wrong": "columns"}),
    ]
    path.write_bytes("\n".join([*good, *bad]).encode() + b'\n{"messages": "\xff\xfe\x81"}\n' + b"x" * 5000 + b"\n")
    ledger = prepared(tmp_path / "out", [str(path)], "max_line_bytes=2048", "duplicates.near=0")
    assert ledger["rows_kept"] == 8 and ledger["rows_in"] == 16
    places = {example["source"]: entry["reason"] for entry in ledger["dropped"] for example in entry["examples"]}
    assert places["chat.jsonl line 9"] == "broken_json"
    assert places["chat.jsonl line 15"] == "encoding"
    assert places["chat.jsonl line 16"] == "line_too_long"
    assert len(places) == 8 and len(set(places.values())) >= 6


def test_too_many_losses_are_an_error_with_the_reasons_and_the_ledger_stands(tmp_path):
    rows = [{"prompt": f"p {i}", "chosen": "same", "rejected": "same"} for i in range(9)]
    rows.append({"prompt": "p", "chosen": "good", "rejected": "bad"})
    files = [write_rows(tmp_path / "pairs.jsonl", rows)]
    with pytest.raises(DataError) as caught:
        prepare_corpus(corpus_of(files, ["max_dropped_share=0.5"]), tmp_path / "out", workers=1)
    said = str(caught.value)
    assert said.startswith("90% of 10 rows were dropped; max_dropped_share allows 50%. Reasons: ")
    assert "pairs.jsonl line 1" in said and "dropped.jsonl" in said
    adds_up(json.loads((tmp_path / "out" / "ledger.json").read_text()), tmp_path / "out")


def test_a_zip_bomb_is_one_row_of_the_ledger(tmp_path):
    good = write_rows(tmp_path / "rows.jsonl", labelled(30))
    bomb = tmp_path / "bomb.txt.gz"
    bomb.write_bytes(gzip.compress(b"boom " * 2_000_000))
    ledger = prepared(tmp_path / "out", [good, str(bomb)], "max_file_bytes=100000")
    assert ledger["rows_kept"] == 30
    (entry,) = ledger["dropped"]
    assert entry["reason"] == "too_large" and entry["examples"][0]["source"] == "bomb.txt.gz line 1"


def test_pseudonyms_without_a_key_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("LUTHIER_PSEUDONYM_KEY", raising=False)
    files = [write_rows(tmp_path / "rows.jsonl", labelled(5))]
    with pytest.raises(RecipeError, match="set the environment variable LUTHIER_PSEUDONYM_KEY"):
        prepare_corpus(corpus_of(files, ["steps.personal.action=pseudonym"]), tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("template.prompt=x", "template.prompt: has no effect unless template.layout is own."),
        ("template.layout=own", "template.prompt: layout own needs a template."),
        ("steps.labels.aliases={x: y}", "steps.labels.aliases: name the labels themselves in steps.labels.allow."),
        ("split={test_share: 0.6, validation_share: 0.5}", "split: validation_share and test_share leave nothing"),
        ("steps.language={enabled: false, keep: [en]}", "steps.language.keep: has no effect while"),
        ("mixing.temperature=2", "mixing: set enabled: true, or its other keys do nothing."),
        ("steps.chunking={max_tokens: 9, overlap_tokens: 9}", "overlap_tokens must be smaller than max_tokens."),
    ],
)
def test_settings_that_contradict_each_other(setting, problem):
    with pytest.raises(RecipeError) as caught:
        corpus_of(["rows.jsonl"], [setting])
    assert problem in str(caught.value)


def test_a_hub_data_set_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r'"hub:nobody": write hub:OWNER/NAME'):
        prepare_corpus(corpus_of(["hub:nobody"]), tmp_path / "out", workers=1)
    with pytest.raises(DataError, match=r"hub:some/rows: could not be fetched from the hub \(.+\)\. Check the name"):
        prepare_corpus(corpus_of(["hub:some/rows"]), tmp_path / "out", workers=1)
    cached = tmp_path / "home" / "datasets" / "some--rows" / "data"
    cached.mkdir(parents=True)
    write_rows(cached / "train-1.jsonl", labelled(6))
    ledger = prepared(tmp_path / "out", ["hub:some/rows"])
    assert ledger["rows_kept"] == 6
    assert prepared(tmp_path / "out2", ["hub:some/rows/data/train-*.jsonl"])["rows_kept"] == 6


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.docx").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files \(thesis.docx\)"):
        prepare_corpus(corpus_of([write_rows(tmp_path / "r.jsonl", labelled(3))]), tmp_path / "out", workers=1)


# --- units, shards, kills ------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Some hundred rows in many small blocks, and two further files."""
    monkeypatch.setattr(cut, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(cut, "READ_BYTES", 500)
    rows = labelled(300)
    rows[200] = rows[10] | {"label": "b"}
    rows[250] = {"text": rows[20]["text"].replace(" it.", " it again."), "label": "a"}
    (tmp_path / "note.md").write_text("# Note\n\nA short note on bridges and lamps.\n")
    more = write_rows(tmp_path / "more.jsonl", labelled(50, 500))
    return [write_rows(tmp_path / "rows.jsonl", rows), more, str(tmp_path / "note.md")]


SPLIT = ("split.test_share=0.1", "steps.personal.action=mask")


def test_blocks_cover_the_file_line_by_line(many):
    blocks = [block for block, _ in cut.line_blocks(Path(many[0]))]
    assert len(blocks) > 5 and blocks[0].start == 0
    content = Path(many[0]).read_bytes()
    for before, after in pairwise(blocks):
        assert before.end == after.start and content[after.start - 1 : after.start] == b"\n"
        assert after.first_line == content[: after.start].count(b"\n") + 1
    assert blocks[-1].end == len(content)


def test_four_shards_give_what_one_gives(tmp_path, many):
    prepared(tmp_path / "one", many, *SPLIT)
    for index in (2, 0, 3, 1):
        said = prepare_corpus(corpus_of(many, SPLIT), tmp_path / "four", workers=1, shard=Shard(index, 4))
    assert said["done"] == said["units"] > 8 and not (tmp_path / "four" / "records").exists()
    prepared(tmp_path / "four", many, *SPLIT)
    assert files_of(tmp_path / "four") == files_of(tmp_path / "one")


def test_cuts_do_not_change_the_records(tmp_path, many, monkeypatch):
    prepared(tmp_path / "small", many, *SPLIT)
    monkeypatch.setattr(cut, "BLOCK_BYTES", 1 << 20)
    prepared(tmp_path / "large", many, *SPLIT)
    assert files_of(tmp_path / "small") == files_of(tmp_path / "large")


def test_finished_units_are_not_done_again_and_changed_ones_are(tmp_path, many):
    prepared(tmp_path / "out", many, *SPLIT)
    units = tmp_path / "out" / "work" / "units"
    before = {path.name: path.stat().st_mtime_ns for path in units.iterdir()}
    prepared(tmp_path / "out", many, *SPLIT)
    assert {path.name: path.stat().st_mtime_ns for path in units.iterdir()} == before
    Path(many[2]).write_text("# Note\n\nAnother note altogether, on rivers and tables.\n")
    ledger = prepared(tmp_path / "out", many, *SPLIT)
    assert len(list(units.iterdir())) == len(before) + 1 and ledger["rows_in"] == 351


def test_a_damaged_unit_is_done_again(tmp_path, many):
    prepared(tmp_path / "out", many, *SPLIT)
    wanted = files_of(tmp_path / "out")
    victim = next(iter(sorted((tmp_path / "out" / "work" / "units").iterdir())))
    (victim / "rows.jsonl").write_text("rubbish")
    prepared(tmp_path / "out", many, *SPLIT)
    assert files_of(tmp_path / "out") == wanted


KILLED = """
import sys
from pathlib import Path
from luthier.corpus.build import prepare_corpus, units
from luthier.recipe import corpus_of
units.BLOCK_BYTES, units.READ_BYTES = 4000, 500
if __name__ == "__main__":
    prepare_corpus(corpus_of(sys.argv[2:5], sys.argv[5:]), Path(sys.argv[1]), workers=1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_it_goes_on_and_nothing_differs(tmp_path, many, number):
    prepared(tmp_path / "whole", many, *SPLIT)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path / "out"), *many, *SPLIT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True)
    units = tmp_path / "out" / "work" / "units"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(units.glob("[0-9a-f]*"))) < 2:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGTERM and process.returncode:
        assert "units are done and kept" in said
    prepared(tmp_path / "out", many, *SPLIT)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_worker_processes_give_the_same(tmp_path, many):
    prepared(tmp_path / "one", many, *SPLIT)
    prepare_corpus(corpus_of(many, SPLIT), tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
