"""The page of a run of stages: self-contained, escaped, complete, whatever figures a method has."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from luthier.recipe.run import Cost
from luthier.report.stages_page import render_stages_page, write_stages_page
from luthier.stages.asking import ways_to_ask
from test_report import EVIL, Reader


def triple(value: float | None, half: float = 0.05) -> dict[str, Any]:
    """A figure with an interval of that half width."""
    return {
        "value": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
    }


def pair(before: float, after: float, p: float = 0.004, n: int = 40) -> dict[str, Any]:
    return {"before": triple(before), "after": triple(after), "change": triple(after - before, 0.02), "p": p, "n": n}


def make_training(**changes: Any) -> dict[str, Any]:
    train = [{"step": step, "loss": 2.0 / step, "learning_rate": 1e-4, "gradient_norm": 1.0} for step in range(1, 9)]
    validation = [{"step": 4, "loss": 1.25, "bits_per_byte": 1.613}, {"step": 8, "loss": 1.125, "bits_per_byte": 1.507}]
    values = {
        "seconds": 83.4, "validation_seconds": 4.0, "steps": 8, "best_step": 8, "trained_tokens": 3107,
        "computed_tokens": 5120, "sequence_tokens": 9000, "padded_tokens": 15360, "peak_rss_bytes": 2_400_000_000,
        "trainable_parameters": 4884480, "curve": {"train": train, "validation": validation}, **changes,
    }  # fmt: skip
    return Cost(machine_per_hour=3.6).priced(values)


def make_stage(name: str, method: str, figures: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "method": method, "start": "stack", "primary_metric": next(iter(figures)),
        "higher_is_better": False,
        "verdict": "better: bits per byte 1.9 -> 1.5 (-21.1%) on 40 held-out rows, change -0.4 [-0.42, -0.38].",
        "figures": figures, "rows": {"train": 200, "validation": 22, "test": 40},
        "examples": {"train": 211, "validation": 23, "test": 40},
        "ledger": {
            "rows_in": {"train": 207, "validation": 22, "test": 41}, "kept": {"train": 200, "validation": 22, "test": 40},
            "reasons": {"train": {"duplicate": 7}, "validation": {}, "test": {"wrong_kind": 1}},
            "notes": ["train: 200 of 311 rows taken, by seed."],
            "examples": [{"split": "train", "source": "chats.jsonl line 9", "reason": "duplicate",
                          "detail": "the same row as chats.jsonl line 2.", "text": "Is there rye?"}],
        },
        "training": make_training(), "adapter": f"runs/x/stages/{name}/adapter",
        "shown": [{"reads": False, "sequences": [[{"text": "\n  <|im_start|>user\nRye?", "trained": False},
                                                  {"text": "Two loaves.", "trained": True}]]}],
        **changes,
    }  # fmt: skip


def make_stages_result() -> dict[str, Any]:
    """Two stages: sft, then a tagging head with two rivals and three figures."""
    beside = {"rivals": {"most frequent tag": triple(0.31), "lexicon": triple(0.42)}, "rival": triple(0.42),
              "gain": triple(0.29, 0.06), "gain_p": 0.0004}  # fmt: skip
    figures = {
        "entity_f1": pair(0.0125, 0.71) | beside,
        "word_accuracy": pair(0.2, 0.9) | beside,
        "mean_absolute_error": pair(12345.6, 3210.4, p=1.0),
    }
    tag = make_stage(
        "entities", "tag", figures, higher_is_better=True, start="continue",
        verdict="better: entity f1 0.71 beside 0.42 of lexicon on 40 held-out rows, difference +0.29 [+0.23, +0.35].",
        labels=[{"label": "B-BREAD", "rows": {"train": 61, "validation": 5, "test": 17}, "precision": 0.875,
                 "recall": 0.8125, "f1": None}],
        numbers={},
        rivals=[{"name": "most frequent tag", "about": "each word's commonest tag"},
                {"name": "lexicon", "about": "the longest match of training entities"}],
    )  # fmt: skip
    sft = make_stage("chats", "sft", {"bits_per_byte": pair(1.9, 1.5)})
    matrix = {
        "columns": [{"stage": "chats", "figure": "bits_per_byte"}, {"stage": "entities", "figure": "entity_f1"}],
        "rows": [{"stage": "chats", "scores": [triple(1.5), None]},
                 {"stage": "entities", "scores": [triple(1.625), triple(0.71)]}],
        "notes": ["chats: bits per byte went from 1.5 to 1.625: forgotten."],
    }  # fmt: skip
    return {
        "name": "bakery", "seed": 3, "created": "2026-03-14T10:32:07+00:00", "verdict": tag["verdict"],
        "model": {"name": "smollm2-135m-instruct", "family": "llama", "sha256": "5af571cb", "parameters": 134515008},
        "primary_metric": "entity_f1", "adapter": tag["adapter"], "stages": [sft, tag], "confidence": 0.95,
        "adapter_format": "peft", "asked": ways_to_ask([sft, tag]), "currency": "EUR", "machine_per_hour": 3.6,
        "matrix": matrix, "recipe": "name: bakery\nstages:\n- method: {kind: sft}\n",
        "environment": {"torch": "2.8.0+cpu", "precision": "float32"},
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    return make_stages_result()


@pytest.fixture(scope="module")
def text() -> str:
    return Reader(render_stages_page(make_stages_result())).text


@pytest.mark.parametrize(
    "expected",
    [
        # title, verdict without its word, key figures
        "bakery", "14 March 2026, 10:32 UTC", "2 stages", "seed 3", "▲ Better",
        "Entity f1 0.71 beside 0.42 of lexicon on 40 held-out rows",
        "Entity f1, lexicon 0.42", "After minus lexicon +0.29 +0.23 to +0.35", "2 min 55 s", "16 steps, EUR 0.17", "2.4 GB", "10,240", "3.0 times fewer than padded",
        # the stages, their methods, starts and figures
        "Every stage at a glance", "chats: supervised fine-tuning", "entities: tagging head",
        "a fresh adapter over the model", "the last stage's adapter, trained on",
        "Bits per byte 1.9 → 1.5 (−21.1%)", "change −0.4 (−0.42 to −0.38)", "1.9 1.85 to 1.95", "1.5 1.45 to 1.55", "−0.4 −0.42 to −0.38", "0.004",
        "0.0125", "12,346", "3210", "−9135", "1.000",
        # rivals: value, difference, p
        "0.42 0.37 to 0.47", "+0.29 +0.23 to +0.35", "< 0.001", "the longest match of training entities",
        # training
        "3,107", "4,884,480", "211", "87.4 s, of which validation 4 s", "Cost EUR 0.087", "best: step 8", "1.507", "5,120", "15,360",
        # rows
        "−7", "wrong kind", "chats.jsonl line 9", "train: 200 of 311 rows taken, by seed.",
        "Label by label", "B-BREAD 61 5 17 0.875 0.8125 –",
        # matrix, recipe, environment, use
        "1.625 1.575 to 1.675", "forgotten", "- method: {kind: sft}", "134,515,008", "2.8.0+cpu",
        "runs/x/stages/entities/adapter", ", in PEFT's format", 'luthier predict RUN_FOLDER --text "a text"',
        'luthier answer RUN_FOLDER --stage chats --text "a question"',
    ],
)  # fmt: skip
def test_every_number_is_on_the_page(expected: str, text: str) -> None:
    assert expected in text


def test_rows_that_are_not_taken_are_not_called_dropped(result: dict[str, Any]) -> None:
    ledger = result["stages"][0]["ledger"]
    ledger["rows_in"]["train"], ledger["reasons"]["train"]["not_taken"] = 407, 200
    assert "Dropped in all 7 0 1 Not taken 200 0 0 Kept 200" in Reader(render_stages_page(result)).text


def test_many_labels_and_numbers_of_rows(result: dict[str, Any]) -> None:
    """A long list of labels is folded; of numbers the page says where they lie; each task has its own."""
    rows = [{"label": f"L{n}", "rows": {"train": n, "test": 1}} for n in range(30)]
    numbers = {"train": {"mean": 2.5, "lowest": 1.0, "median": 2.25, "highest": 4.75}}
    result["stages"][1]["tasks"] = {
        "kind": {"labels": rows, "numbers": {}},
        "score": {"labels": [], "numbers": numbers},
    }
    reader = Reader(render_stages_page(result))
    assert "Label by label: kind All 30 labels" in reader.text and "L29 29 1" in reader.text
    assert "Numbers of the rows: score" in reader.text and "train 2.5 1 2.25 4.75" in reader.text


def test_each_stage_has_its_own_verdict_in_its_section_and_in_the_table(result: dict[str, Any]) -> None:
    result["stages"][0]["verdict"] = "worse: bits per byte 1.5 -> 1.9."
    text = Reader(render_stages_page(result)).text
    _, contents, first = text.split("chats: supervised fine-tuning")
    glance = contents.split("Every stage at a glance")[-1]
    first, second = first.split("entities: tagging head")
    assert "▼ Worse Bits per byte 1.5 → 1.9." in first and "▲ Better" not in first
    assert "▲ Better Entity f1 0.71" in second
    assert "chats ▼ Worse bits per byte 1.9 before 1.5 −0.4 −0.42 to −0.38 0.004 40 87.4 s" in glance
    assert "entities ▲ Better entity f1 0.42 lexicon 0.71 +0.29 +0.23 to +0.35 < 0.001 40" in glance
    assert "The last stage, entities: ▲ Better" in text


def test_a_figure_whose_rival_could_not_be_measured_stands_beside_the_one_before(result: dict[str, Any]) -> None:
    result["stages"][1]["figures"]["word_accuracy"]["rival"] = {"value": None, "low": None, "high": None}
    text = Reader(render_stages_page(result)).text
    assert "word accuracy beside before 0.2 0.15 to 0.25 0.9 0.85 to 0.95 +0.7 +0.68 to +0.72 0.004" in text


def test_the_confidence_keeps_its_digits(result: dict[str, Any]) -> None:
    assert "with 99.9% intervals" in render_stages_page(result | {"confidence": 0.999})


@pytest.mark.parametrize(
    ("read_by", "told"),
    [
        ("peft", "in PEFT's format"),
        ("luthier", "which PEFT does not read"),
        ("head", "as a head alone"),
    ],
)
def test_the_page_says_who_reads_the_adapter(read_by: str, told: str, result: dict[str, Any]) -> None:
    text = Reader(render_stages_page(result | {"adapter_format": read_by})).text
    assert told in text and (read_by == "peft") == ("in PEFT's format" in text)


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": "Is there rye?"}], "reference": "Two loaves.", "task": None,
        "before": {"text": "", "finished": True}, "after": {"text": "Two", "finished": False}, **changes,
    }  # fmt: skip


def test_what_the_model_says_stands_side_by_side(result: dict[str, Any]) -> None:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"{'x' * 700}?"}]
    long = sample(prompt=turns, reference=None, task="chat", before={"text": EVIL, "finished": True})
    result["stages"][0]["samples"] = [sample(), long]
    reader = Reader(html := render_stages_page(result))
    assert "Prompt Before After Answer of the row Is there rye? (no text) Two [...] Two loaves." in reader.text
    assert f"[...] {'x' * 599}? chat" in reader.text and "<script" not in html
    assert html.count("What the model says") == 1, "the other stage learnt nothing to say"


def test_each_method_is_asked_by_the_command_that_can() -> None:
    tasks = {"tone": {"method": "classify"}, "reply": {"method": "sft"}}
    stages = [{"name": "read", "method": "mlm"}, {"name": "judge", "method": "reward"}, {"name": "both", "method": "-",
               "tasks": tasks}]  # fmt: skip
    assert [way["command"] for way in ways_to_ask(stages)] == [
        'luthier predict RUN_FOLDER --task tone --text "a text"',
        'luthier answer RUN_FOLDER --task reply --text "a question"',
        "luthier score RUN_FOLDER answers.jsonl --stage judge",
    ]


def test_the_page_loads_nothing_and_its_links_lead_inside(result: dict[str, Any]) -> None:
    html = render_stages_page(result)
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"url\(|@import|https?://", html)
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) == 7
    assert {str(attrs["href"]) for tag, attrs in reader.tags if tag == "a"} == {f"#{one}" for one in ids}
    assert all(attrs.get("aria-label") for tag, attrs in reader.tags if tag == "svg")


def test_texts_are_escaped_and_never_evaluated(result: dict[str, Any]) -> None:
    result["name"] = result["verdict"] = EVIL
    stage = result["stages"][1]
    stage["name"] = stage["verdict"] = EVIL
    stage["figures"] = {EVIL: stage["figures"]["entity_f1"]}
    stage["primary_metric"] = EVIL
    stage["rivals"][0]["name"] = EVIL
    stage["ledger"]["notes"] = [EVIL]
    stage["shown"][0]["sequences"][0][0]["text"] = EVIL
    reader = Reader(html := render_stages_page(result))
    assert "<script" not in html and "after 49 calls" not in html
    assert all("onclick" not in attrs for _, attrs in reader.tags)
    assert EVIL in " ".join(reader.pieces)


def test_trained_rows_stand_character_for_character(result: dict[str, Any]) -> None:
    html = render_stages_page(result)
    assert "<span>\n  &lt;|im_start|&gt;user\nRye?</span><mark>Two loaves.</mark></pre>" in html
    assert "a head reads the model" not in html
    result["stages"][0]["shown"][0]["reads"] = True
    assert "a head reads the model at the marked words" in render_stages_page(result)


def test_intervals_are_drawn_where_the_numbers_say(result: dict[str, Any]) -> None:
    """Before 1.9, after 1.5, intervals of 0.1: in pixels the gap of the dots is four times an interval's length."""
    html = render_stages_page(result)
    section = html[html.index('id="stage-1"') : html.index('id="stage-2"')]
    first = section[section.index("<svg") : section.index("</svg>")]
    dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', first)]
    bars = [
        (float(a), float(b))
        for a, b in re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="interval', first)
    ]
    assert len(dots) == len(bars) == 2
    assert dots[0] - dots[1] == pytest.approx(4 * (bars[0][1] - bars[0][0]), abs=0.1)
    assert [sum(bar) / 2 for bar in bars] == pytest.approx(dots, abs=0.05)


@pytest.mark.parametrize(
    ("verdict", "badge", "sentence"),
    [
        ("worse: accuracy 0.9 -> 0.7.", "▼ Worse", "Accuracy 0.9 → 0.7."),
        ("no difference shown: accuracy 0.9 -> 0.91.", "= No difference shown", "Accuracy 0.9 → 0.91."),
        ("mixed: ner: better: f1 0.1 -> 0.9. pos: worse: accuracy 0.9 -> 0.7.", "± Mixed", "Ner: better: f1 0.1 → 0.9."),
        ("accuracy could not be measured on 3 held-out rows.", "· Not measured", "Accuracy could not be measured on 3"),
    ],
)  # fmt: skip
def test_the_badge_is_the_verdicts_first_word(verdict: str, badge: str, sentence: str, result: dict[str, Any]) -> None:
    result["verdict"] = verdict
    text = Reader(render_stages_page(result)).text
    assert f"{badge} {sentence}" in text


def test_what_may_be_missing_may_be_absent_or_null(result: dict[str, Any]) -> None:
    """Also a figure that could not be measured, and a stage without validation."""
    for missing in (None, "absent"):
        bare = copy.deepcopy(result)
        holders = [(bare, ("adapter", "asked", "adapter_format", "currency", "matrix", "environment"))]
        holders += [(bare, ("recipe", "seed", "confidence"))]
        holders += [
            (stage, ("training", "ledger", "shown", "adapter", "start", "rivals", "samples"))
            for stage in bare["stages"]
        ]
        holders += [
            (f, ("rivals", "rival", "gain", "gain_p", "p")) for s in bare["stages"] for f in s["figures"].values()
        ]
        for holder, fields in holders:
            for field in fields:
                if missing is None:
                    holder[field] = None
                else:
                    holder.pop(field, None)
        bare["stages"][0]["figures"]["bits_per_byte"]["before"] = {"value": None, "low": None, "high": None}
        text = Reader(render_stages_page(bare)).text
        assert "Every stage at a glance" in text and "luthier answer" not in text and "– no interval" in text


def test_a_stage_without_validation_rows_says_so(result: dict[str, Any]) -> None:
    result["stages"] = [make_stage("sft", "sft", {"bits_per_byte": pair(1.9, 1.5)}, training=make_training())]
    result["stages"][0]["training"]["curve"]["validation"] = []
    result["matrix"] = None
    text = Reader(render_stages_page(result)).text
    assert "No rows were held out for validation: the last step was kept." in text
    assert "1 stage ·" not in text and "Every stage at a glance" not in text and "Validation at each look" not in text


def test_half_a_character_does_not_stop_the_page(result: dict[str, Any], tmp_path: Any) -> None:
    result["stages"][0]["shown"][0]["sequences"][0][0]["text"] = "cut \ud83e here"
    write_stages_page(tmp_path / "report.html", result)
    assert "cut ? here" in (tmp_path / "report.html").read_text(encoding="utf-8")
