"""Wrong input through the real entry point: one message that says what to do, no traceback, an exit code."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from luthier import __version__, signals
from luthier.cli import screen
from luthier.cli.screen import Pace, Plain
from luthier.cli.sweep import print_sweep
from luthier.recipe import dump_recipe, load_recipe, parse_recipe
from luthier.run_folder import RunFolder

ROWS = "".join(f"{word} {i}|{label}\n" for i in range(12) for word, label in (("goal", "SPORTS"), ("vote", "POLITICS")))


@pytest.fixture
def recipe(tmp_path):
    """A recipe file whose model would be found, were it asked for."""
    (tmp_path / "rows.txt").write_text(ROWS)
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\ntask:\n  labels: [SPORTS, POLITICS]\ndata:\n  train: rows.txt\narms: [majority]\n")
    return path


# --- recipes -------------------------------------------------------------------------------------------


def test_missing_recipe(luthier):
    code, out, err = luthier("run", "nowhere.yaml")
    assert (code, out) == (1, "")
    assert err == "Error: nowhere.yaml: 1 problem\n  - no such file. Give the path of a recipe (YAML).\n"


def test_recipe_that_is_a_folder(luthier, tmp_path):
    code, out, err = luthier("run", tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {tmp_path}: 1 problem\n  - cannot be read: ")


def test_unknown_key_and_all_other_problems_at_once(luthier, recipe):
    recipe.write_text(recipe.read_text() + "tune:\n  epoch: 3\n  batch_size: 0\n")
    code, out, err = luthier("run", recipe)
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: {recipe}: 2 problems\n")
    assert '  - tune.epoch: unknown key. Did you mean "epochs"?\n' in err
    assert "  - tune.batch_size: input should be greater than or equal to 1 (got 0).\n" in err


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("tune.epochs", '--set "tune.epochs" is not of the form path.to.key=value.'),
        ("=3", '--set "=3" is not of the form path.to.key=value.'),
        ("name.first=x", '--set name.first: "name" is not a section.'),
        ("tune.metod=sft", 'tune.metod: unknown key. Did you mean "method"?'),
        ("tune.method=stf", "tune.method: 'stf' is not allowed; use 'head', 'candidates' or 'sft'."),
        ("tune.epochs=many", "tune.epochs: input should be a valid number, unable to parse string as a"),
        ("data.train=null", "data: give either train (a file of rows) or corpus (inputs to prepare)."),
    ],
)  # fmt: skip
def test_bad_override(luthier, recipe, override, problem):
    code, out, err = luthier("run", recipe, "--set", override, "--dry-run")
    assert (code, out) == (1, "")
    assert f": 1 problem\n  - {problem}" in err


KINDS = {
    "stages": "stages:\n  - method: sft\n    data: {train: rows.txt}\n",
    "run": "task: {labels: [A, B]}\ndata: {train: rows.txt}\n",
    "prepare": "data: {corpus: {inputs: [{path: rows.txt}]}}\n",
    "synthesize": "data: {synthetic: {inputs: [{path: rows.txt}]}}\n",
}


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (["run"], "stages", "this is a recipe of stages; run it with `luthier train`."),
        (["run"], "prepare", "this is a recipe that prepares rows; run it with `luthier data prepare`."),
        (["train"], "run", "this is a recipe with a task; run it with `luthier run`."),
        (["train"], "synthesize", "this is a recipe that writes rows; run it with `luthier data synthesize`."),
        (["sweep"], "prepare", "this is a recipe that prepares rows; run it with `luthier data prepare`."),
        (["lr-find"], "prepare", "this is a recipe that prepares rows; run it with `luthier data prepare`."),
        (["data", "prepare", "--out", "x"], "stages", "this is a recipe of stages; run it with `luthier train`."),
        (["data", "prepare", "--out", "x"], "run", "this is a recipe with a task; run it with `luthier run`."),
        (["data", "synthesize", "--out", "x"], "run", "this is a recipe with a task; run it with `luthier run`."),
    ],
)
def test_a_recipe_of_another_kind(luthier, tmp_path, words, kind, told):
    """The command that reads it, and no other problem: `tune` stands at the top of none but a run's."""
    path = tmp_path / "recipe.yaml"
    path.write_text(KINDS[kind] + "tuna: {epochs: 1}\n")
    code, out, err = luthier(*words, path)
    assert (code, out, err) == (1, "", f"Error: {path}: 1 problem\n  - {told}\n")


def test_dry_run_prints_a_recipe_that_means_the_same(luthier, recipe, tmp_path):
    code, out, err = luthier("run", recipe, "--set", "tune.epochs=2", "--dry-run")
    assert (code, err) == (0, "")
    again = parse_recipe(yaml.safe_load(out))
    assert again == load_recipe(recipe, ["tune.epochs=2"]) and again.tune.epochs == 2
    assert again.data.train == str(tmp_path / "rows.txt")
    assert dump_recipe(again) == out
    code, out, err = luthier("run", recipe, "--set", "tune.epochs=2", "--dry-run", "--json")
    assert (code, err) == (0, "")
    assert parse_recipe(json.loads(out)) == again


def test_override_paths_start_here_and_recipe_paths_at_the_recipe(luthier, recipe, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    _, out, _ = luthier("run", recipe, "--set", "data.test=other.txt", "--dry-run")
    data = yaml.safe_load(out)["data"]
    assert (data["train"], data["test"]) == (str(tmp_path / "rows.txt"), str(here / "other.txt"))


def test_dry_run_prints_json_that_others_read(luthier, recipe):
    code, out, err = luthier("run", recipe, "--set", "tune.epochs=.inf", "--dry-run", "--json")
    assert (code, out) == (1, "")
    assert err.endswith("  - tune.epochs: input should be a finite number (got inf).\n")


def test_names_that_no_file_system_takes(luthier, recipe):
    long = "x" * 300
    for words in (
        ("run", recipe, "--out", long),
        ("run", recipe, "--set", f"name={long}"),
        ("predict", long, "--text", "a"),
    ):
        code, out, err = luthier(*words)
        assert (code, out) == (1, "")
        assert err.startswith("Error: ") and long in err
        assert err.endswith(": a name in this path is too long for the file system. Give a shorter one.\n")


def test_what_this_account_may_not_read_is_named(luthier, recipe, monkeypatch):
    monkeypatch.setattr("luthier.predictor.load", lambda run: open_nothing(run))
    code, out, err = luthier("predict", "runs/theirs", "--text", "a")
    assert (code, out) == (1, "")
    assert err == "Error: runs/theirs: this account may not open it. Give another path, or change who may read it.\n"


def open_nothing(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


# --- run folders ---------------------------------------------------------------------------------------


def test_run_folder_that_is_a_file(luthier, recipe, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, out, err = luthier("run", recipe, "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err == f"Error: {tmp_path / 'out'}: is a file. Give another folder with --out.\n"
    assert (tmp_path / "out").read_text() == "mine"


def test_run_folder_with_foreign_files(luthier, recipe, tmp_path):
    thesis = tmp_path / "out" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    code, out, err = luthier("run", recipe, "--out", thesis.parent)
    assert (code, out) == (1, "")
    told = "holds other files and is not a run folder. Give another folder with --out."
    assert err == f"Error: {thesis.parent}: {told}\n"
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]


def test_run_folder_under_a_file(luthier, recipe):
    """Stands for every folder that cannot be made; root may write into read-only ones."""
    out_folder = recipe / "run"
    code, out, err = luthier("run", recipe, "--out", out_folder)
    assert (code, out) == (1, "")
    told = "a part of the path is a file. Give another folder with --out."
    assert err == f"Error: {out_folder}: {told}\n"


def test_read_only_run_folder(luthier, recipe, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    try:
        (folder / "probe").touch()
    except PermissionError:
        code, out, err = luthier("run", recipe, "--out", folder / "run")
        assert (code, out) == (1, "")
        assert err.endswith("no permission to write there. Give another folder with --out.\n")
    else:
        pytest.skip("this user may write into read-only folders")


# --- predict -------------------------------------------------------------------------------------------


def test_predict_without_texts(luthier, tmp_path):
    code, out, err = luthier("predict", tmp_path)
    assert (code, out) == (1, "")
    assert err == "Error: nothing to label: give --text, or --file with one text a line.\n"


def test_predict_from_a_missing_file(luthier, tmp_path):
    missing = tmp_path / "texts.txt"
    code, out, err = luthier("predict", tmp_path, "--file", missing)
    assert (code, out) == (1, "")
    assert err == f"Error: {missing}: no such file. Give a text file with one text a line, or use --text.\n"


@pytest.mark.parametrize("content", [b"caf\xe9", b"\n \n"])
def test_predict_from_a_file_without_usable_text(luthier, tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content)
    code, out, err = luthier("predict", tmp_path, "--file", file)
    assert (code, out) == (1, "")
    wanted = "is not UTF-8 text" if content.strip() else "nothing to label"
    assert wanted in err


def test_predict_on_a_folder_without_adapter(luthier, tmp_path):
    code, out, err = luthier("predict", tmp_path, "--text", "goal")
    assert (code, out) == (1, "")
    assert err == (
        f"Error: {tmp_path}: no finished adapter here (no prompt.json). Give the folder of a run with a "
        "tuned arm; a run that was stopped goes on with `luthier run` and the same --out.\n"
    )


# --- models --------------------------------------------------------------------------------------------


def test_unknown_model(luthier, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path))
    code, out, err = luthier("models", "show", "smollm2-135m-instrct")
    assert (code, out) == (1, "")
    assert err == (
        'Error: model "smollm2-135m-instrct" is neither a starter (smollm2-135m-instruct), nor a hub id '
        "(owner/name), nor a folder or GGUF file that exists here. "
        'Did you mean "smollm2-135m-instruct"?\n'
    )


def test_unknown_model_in_a_recipe(luthier, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    code, out, err = luthier("data", "peek", recipe, "--set", "model=smolm2-135m-instruct")
    assert (code, out) == (1, "")
    assert err.endswith('Did you mean "smollm2-135m-instruct"?\n')


def test_model_that_is_not_cached_offline(luthier, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = luthier("models", "pull", "somebody/model")
    assert (code, out) == (1, "")
    assert err.startswith(
        'Error: model "somebody/model" is not in the cache and could not be fetched from the hub: '
        "HF_HUB_OFFLINE is set. Check the id and the network, or give a local folder or GGUF file"
    )


def test_models_list_as_json(luthier, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path))
    code, out, err = luthier("models", "list", "--json")
    assert (code, err) == (0, "")
    (row,) = json.loads(out)
    assert row["name"] == "smollm2-135m-instruct" and row["folder"] is None
    other = tmp_path / "models" / "mine-0123"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    assert json.loads(luthier("models", "list", "--json")[1])[1]["folder"] == str(other)
    _, out, _ = luthier("models", "list")
    assert "not fetched: luthier models pull smollm2-135m-instruct" in out


# --- usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "recipe.yaml", "--fast"), "No such option: --fast"),
        (("run",), "Missing argument 'RECIPE'"),
        (("serve",), "No such command 'serve'"),
        (("data", "peek", "recipe.yaml", "--rows", "-1"), "greater than or equal to 0"),
    ],
)
def test_usage_error(luthier, words, told):
    code, out, err = luthier(*words)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stop_on_request(luthier, tmp_path, monkeypatch, sent):
    """While a command waits for its input: 130 or 143, and a word on how to go on."""

    class Waiting:
        @property
        def buffer(self) -> "Waiting":
            return self

        def read(self) -> str:
            signal.raise_signal(sent)
            return "never"

    monkeypatch.setattr("sys.stdin", Waiting())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    try:
        code, out, err = luthier("predict", tmp_path, "--file", "-")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out) == (128 + sent, "")
    assert err == "stopped: finished stages are kept. Run the same command again to go on.\n"


def test_a_stop_that_python_drops_is_heeded_all_the_same(tmp_path, monkeypatch):
    """What a handler raises within `__del__` goes nowhere; the next stage that begins is not computed."""
    monkeypatch.setattr(signals, "ASKED", [])
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signals.interrupt)
    try:
        thing: Dying | None = Dying()
        thing = None
        assert thing is None, "and on it goes"
        with signals.Stop() as stop:
            assert (stop.wanted, stop.exit_code) == (True, 143)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(tmp_path).stage("next", 1, lambda: pytest.fail("it was computed"))
    finally:
        signal.signal(signal.SIGTERM, before)


def started(words: list[str], **settings) -> tuple[int, str]:
    """A process of its own: (exit code, what it says on stderr)."""
    done = subprocess.run([sys.executable, "-m", "luthier", *words], stderr=subprocess.PIPE, text=True, **settings)
    return done.returncode, done.stderr


def test_an_output_that_cannot_be_written_is_an_error_that_says_so(recipe):
    with Path("/dev/full").open("w") as full:
        code, err = started(["run", str(recipe), "--dry-run"], stdout=full)
    assert code == 1
    assert err == "Error: standard output: the disk is full. Free some space and run the same command again.\n"


def test_a_terminal_of_another_alphabet_gets_what_it_can_show(recipe):
    recipe.write_text(recipe.read_text().replace("POLITICS]", "POLITICS, 猫]"))
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "run", str(recipe), "--dry-run"], env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout


def test_a_folder_where_none_can_be_made_is_named(luthier, recipe):
    code, _, err = luthier("run", recipe, "--out", "/proc/x")
    assert code == 1
    assert err.startswith("Error: /proc/x")


def test_the_version(luthier):
    assert luthier("--version") == (0, f"luthier {__version__}\n", "")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_the_commands(luthier, word):
    code, out, err = luthier(word)
    assert (code, err) == (0, "") and "prove on held-out rows" in out and "--install-completion" in out
    assert "--column" in luthier("predict", word)[1] and "--shard" in luthier("data", "prepare", word)[1]
    assert all(word in out for word in ("run", "predict", "models", "data"))


def test_the_time_left_is_by_the_pace_of_the_work_at_hand():
    """Ten rows are scored in 5 s; then a training of 100 steps that was stopped after step 60 makes one each 2 s."""
    pace = Pace(0.0)
    assert pace.left(2.0, 4, 10) == pytest.approx(3.0), "half a second a row"
    assert pace.left(5.0, 10, 10) == 0.0
    assert pace.left(8.0, 61, 100) == pytest.approx(3 / 61 * 39), "the first that is heard of: nothing better is known"
    assert pace.left(10.0, 62, 100) == pytest.approx(76.0), "2 s a step since"
    assert pace.left(11.0, 62, 100) == pytest.approx(114.0), "a validation takes time too"
    assert pace.left(12.0, 63, 100) == pytest.approx(74.0)
    assert Pace(0.0).left(1.0, 0, 10) == 0.0


# --- texts of users on the screen ------------------------------------------------------------------------

ODD = ("[/SP]", "[bug]", ":car:", "[link=x]y[/]")  # markup and an emoji code, to rich


def test_peek_shows_labels_as_they_are(capsys):
    ledger = {
        "rows_in": {"train": 9}, "kept": {"train": 8}, "reasons": {"train": {"[/SP]": 1}}, "notes": ["[bug]"],
        "examples": [{"source": "[/a].txt", "reason": "[bug]", "detail": ":car:"}],
    }  # fmt: skip
    rows = [{"source": "a.txt", "label": "[bug]", "parts": [{"text": "[/SP]", "trained": True}]}]
    found = {
        "ledger": ledger, "labels": {"train": dict.fromkeys(ODD, 2)}, "rows": rows, "method": "head",
        "prompt_tokens": {"p0": 1, "p50": 2, "p95": 3, "p100": 4},
    }  # fmt: skip
    screen.print_peek(found)
    out = capsys.readouterr().out
    assert all(any(line.startswith(label) for line in out.splitlines()) for label in ODD)
    assert "dropped: [/SP] 1" in out and "a.txt ([bug])" in out


def test_trained_tokens_are_told_apart_without_colours_too(capsys, monkeypatch):
    """Brackets in a pipe, and on a terminal that is asked for no colours; on any other, colours alone."""
    parts = [{"text": "goal by ", "trained": False}, {"text": "SPORTS\n", "trained": True}]
    for settings, around in (
        ({}, ("⟦", "⟧")),
        ({"force_terminal": True, "color_system": "standard", "no_color": True}, ("⟦", "⟧")),
        ({"force_terminal": True, "color_system": "standard", "no_color": False}, ("", "")),
    ):
        console = screen.plain_console(file=io.StringIO(), **settings)
        assert screen.brackets(console) == around
        assert screen.marked_text(parts, around).plain == f"goal by {around[0]}SPORTS\n{around[1]}"
    stage = {
        "stage": "sft", "method": "sft", "ledger": {"rows_in": {}, "reasons": {}, "kept": {}, "examples": [], "notes": []},
        "tokens": {"p0": 1, "p50": 2, "p95": 3, "p100": 4}, "examples": {"train": 1}, "trained_tokens": 1,
        "rows": [{"sequences": [parts]}], "labels": {}, "numbers": {}, "read_by_head": False,
    }  # fmt: skip
    screen.print_peek_stages([stage])
    out = capsys.readouterr().out
    assert "goal by ⟦SPORTS" in out and out.endswith(
        "⟦ ⟧ = trained tokens, or what a head reads; the rest is read only\n"
    )


def test_records_and_ledgers_are_shown_as_they_are(capsys, tmp_path):
    screen.print_records([{"kind": "labelled", "source": {"file": "[/a].txt", "line": 1}, "text": "[bug] :car:"}])
    entry = {"reason": "[/SP]", "count": 1, "step": "labels", "examples": [{"source": "[bug]", "detail": ":car:"}]}
    ledger = {
        "parts": {"train": 1}, "rows_in": 2, "rows_kept": 1, "dropped": [entry], "personal": {}, "num_leaks": 1,
    }  # fmt: skip
    screen.print_ledger(ledger, tmp_path / "[bug]")
    out = capsys.readouterr().out
    assert "[/a].txt line 1" in out and "text: [bug] :car:" in out
    assert "[/SP]" in out and "[bug]: :car:" in out and f"records: {tmp_path / '[bug]' / 'records'}" in out
    assert "1 training rows stand in test rows" in out


def arm(accuracy: float) -> dict:
    return {"accuracy": accuracy, "low": 0.1, "high": 0.9, "macro_f1": 0.5, "seconds_per_row": 0.1,
            "cost_per_1000": 0.1, "n": 9, "as_scored": None}  # fmt: skip


def test_a_result_is_shown_as_it_is_with_a_command_that_can_be_pasted(capsys):
    result = {"name": "mine", "confidence": 0.999, "currency": "[/EUR]", "arms": {"tuned": arm(0.5), "few_shot": arm(0.4)},
              "verdict": "[bug] is gone: tuned beats few_shot", "training": {}}  # fmt: skip
    screen.print_result(result, Path("dé ir/out ß"))
    out = capsys.readouterr().out
    assert "[/EUR] / 1,000" in out and "[bug] is gone: the fine-tuned model beats few-shot" in out
    assert "99.9% interval" in out and "Few-shot" in out and "few_shot" not in out
    assert "Use it:  luthier predict 'dé ir/out ß' --text \"...\"\n" in out


def test_stages_end_with_a_command_that_can_be_pasted(capsys):
    stage = {"name": "sft", "method": "sft", "rivals": [{"name": "tfidf"}], "primary_metric": "loss", "figures": {"loss": {
        "before": {"value": 1.0}, "after": {"value": 0.5}, "change": {"value": -0.5, "low": -0.6, "high": -0.4}, "n": 9,
    }}}  # fmt: skip
    result = {
        "name": "mine",
        "confidence": 0.95,
        "stages": [stage],
        "verdict": "[bug] beside 0.5 of tfidf",
        "adapter": "[/a]",
        "writes": ["sft"],
    }
    screen.print_stages(result, Path("o'ut"))
    out = capsys.readouterr().out
    assert (
        "[bug] beside 0.5 of TF-IDF + logistic regression" in out
        and "Adapter: [/a]" in out
        and """luthier answer 'o'"'"'ut' --text "..."\n""" in out
    )


@pytest.mark.parametrize(
    ("stage", "commands"),
    [
        ({"method": "dpo"}, ['luthier answer out --text "..."']),
        ({"method": "ordinal"}, ['luthier predict out --text "..."']),
        ({"method": "reward"}, ["luthier score out ROWS"]),
        ({"method": "mlm"}, []),
        ({"method": "several", "tasks": {"a": {"method": "sft"}, "b": {"method": "tag"}}},
         ['luthier answer out --text "..." --task a', 'luthier predict out --text "..." --task b']),
    ],
)  # fmt: skip
def test_how_the_last_stage_is_asked_goes_by_its_methods(stage, commands):
    assert list(screen.how_to_ask(stage, Path("out"))) == commands


def test_a_sweep_shows_lists_as_they_are_and_a_command_that_can_be_pasted(capsys, monkeypatch):
    monkeypatch.setattr("luthier.report.sweep_page.verdict", lambda result: {"sentence": "[bug]"})
    path, targets = "tune.adapter.targets", "[q_proj, v_proj]"
    trial = {"number": 0, "state": "complete", "value": 0.5, "values": {path: targets}}
    result = {"name": "mine", "kind": "run", "space": {path: {}}, "metric": {"name": "loss", "higher_is_better": False},
              "trials": [trial], "counts": {"complete": 1}, "final": None,
              "best": {"number": 0, "recipe": "a b/best.yaml"}}  # fmt: skip
    print_sweep(result, Path("out"))
    out = capsys.readouterr().out
    assert targets in out and "[bug]" in out and "Run it: luthier run 'a b/best.yaml'\n" in out


def test_bars_and_notes_are_shown_as_they_are():
    """A terminal, into a text."""
    shown = io.StringIO()
    console = screen.plain_console(file=shown, force_terminal=True, color_system=None, width=200)
    with screen.progress(console) as bars:
        live = screen.Live(bars)
        live.begin("[bug]")
        live.update(1, 2, "[/SP]")
        bars.refresh()
        live.end("[bug]", False, "[/SP] :car:")
        live.say("[/a].txt [bug]")
    lines = shown.getvalue()
    assert "[bug]" in lines and "[/SP] :car:" in lines and "[/a].txt [bug]" in lines


def test_lines_of_progress_end_in_what_is_at_work(capsys, monkeypatch):
    """Counts of steps and rows; of bytes the share. What is at work stands behind the time left."""
    plain = Plain()
    plain.plan(["rows"])
    plain.begin("rows")
    monkeypatch.setattr("luthier.cli.screen.PLAIN_EVERY_SECONDS", 0.0)
    plain.update(3, 12, "loss 0.5")
    plain.update(8_000_000, 11_000_000, "8.0 of 11.0 MB, 2 of 3 units")
    plain.update(4, 12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/1] rows: 3/12, 0.0 s left, loss 0.5")
    assert lines[1].startswith("[1/1] rows: 73%, ") and lines[1].endswith(" left, 8.0 of 11.0 MB, 2 of 3 units")
    assert lines[2].endswith(" left")
