"""The data page and the data sheet: complete, escaped, self-contained, and drawn where the numbers say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from luthier.report.data_page import (
    data_sheet,
    largest_reason,
    marked_pair,
    quantile,
    render_data_page,
    write_data_page,
)
from luthier.report.histogram import Histogram, histogram_plot

EVIL = '<script>alert("x")</script> & {{ 7*7 }} <img src=x onerror=y>'
VOID = {"meta", "br", "rect", "line", "circle", "polyline"}


def make_ledger(**changes: Any) -> dict[str, Any]:
    """1,200 rows in, 1,000 kept."""
    ledger = {
        "name": "Support mails",
        "rows_in": 1200,
        "rows_kept": 1000,
        "parts": {"train": 850, "validation": 50, "test": 100},
        "pieces": {"train": 2300},
        "inputs": [
            {"path": "mails.jsonl", "format": "chat", "licence": "cc-by-4.0", "rows_in": 1100, "rows_kept": 960, "unreadable": 3},
            {"path": "old|pages.csv", "format": "columns", "licence": None, "rows_in": 100, "rows_kept": 80, "unreadable": 0},
        ],
        "dropped": [
            {"reason": "broken_json", "step": "read", "count": 3, "examples": [{"source": "mails.jsonl line 7", "detail": "line 1 column 4", "text": EVIL}]},
            {"reason": "near_duplicate", "step": "merge", "count": 157, "examples": [{"source": "mails.jsonl line 9", "detail": "nearly the same text", "text": "Dear all"}]},
            {"reason": "gopher_words", "step": "quality", "count": 40, "examples": []},
        ],
        "findings": {"repair": {"mojibake": 12, "space": 400}, "licences": {"licence:cc-by-4.0": 960}},
        "languages": {"en": 900, "fr": 80, "short": 20},
        "personal": {"email": {"count": 31, "rows": 22}, "iban": {"count": 2, "rows": 2}},
        "lengths": {"unit": "tokens", "edges": [0, 100, 200, 400], "parts": {"train": [400, 400, 50], "test": [90, 10, 0]}},
        "clusters": [
            {
                "kept": {"source": "mails.jsonl line 1", "text": "The train to Bonn leaves at nine today."},
                "members": [{"source": "mails.jsonl line 8", "text": "The train to Köln leaves at ten today.", "similarity": 0.83}],
                "size": 6,
            }
        ],
        "num_clusters": 44,
        "leaks": [
            {"train_source": "mails.jsonl line 3", "test_source": "mails.jsonl line 90", "how": "same text", "span": "please reset it", "test_span": "Please reset it"},
            {"train_source": "mails.jsonl line 4", "test_source": "gsm8k row 17", "how": "shared run", "span": EVIL},
        ],
        "num_leaks": 2,
        "licences": {"cc-by-4.0": 920, "unknown": 80},
        "synthetic": {"smollm2": 30},
        "peak_bytes": 812_000_000,
        "seconds": 6.0,
        "index_bytes_per_row": 512.4,
        "settings": {"seed": 0, "inputs": [{"path": "mails.jsonl"}]},
    }  # fmt: skip
    return ledger | changes


class Reader(HTMLParser):
    """Collects tags, checks that they nest, and keeps the visible text."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


def text_of(html: str) -> str:
    return " ".join(" ".join(Reader(html).text).split())


def test_the_page_says_what_became_of_every_row():
    text = text_of(render_data_page(make_ledger()))
    assert "1,000 of 1,200 rows were kept (83.3%). Most often the reason was: near duplicate." in text
    assert "near duplicate merge −157 13.1% gopher words quality −40 3.3% broken json read −3 0.2%" in text
    assert "Dropped in all 200 16.7% Kept 1,000 83.3%" in text
    assert "Rows in train 850 cut to 2,300 pieces" in text
    assert "Rows in test 100 10.0%" in text
    assert "Time 6 s 200 rows a second" in text
    assert "Peak memory 812.0 MB index of copies: 512 bytes a row" in text
    assert "old|pages.csv columns not stated 100 80 0" in text
    assert "email 31 22" in text
    assert "repair space 400 repair mojibake 12" in text
    assert "1 of 44 clusters." in text
    assert "Dropped: mails.jsonl line 8, similarity 83%" in text
    assert "and 4 more." in text
    assert "cc-by-4.0 920 unknown 80" in text
    assert "smollm2 30" in text
    assert "inputs: - path: mails.jsonl" in text
    assert "train 850 106 230 test 100 56 150" in text


def test_everything_is_escaped_and_nothing_is_loaded():
    html = render_data_page(make_ledger(name=EVIL, settings=EVIL, licences={EVIL: 3}, languages={EVIL: 1}))
    tags = Reader(html).tags
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in tags}
    assert not any(name.startswith("on") or name in ("src", "style") for _, attributes in tags for name in attributes)
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in tags)
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert html.count(str(escape(EVIL))) >= 6
    assert "49" not in text_of(html).replace("499", "")


def test_every_section_is_in_the_contents_and_can_be_jumped_to():
    html = render_data_page(make_ledger())
    anchors = [attributes["href"] for tag, attributes in Reader(html).tags if tag == "a"]
    names = [f"#{attributes['id']}" for tag, attributes in Reader(html).tags if tag == "h2" and "id" in attributes]
    assert anchors == ["#account", *names]
    assert len(names) == 12


def test_only_counts_are_needed():
    html = render_data_page({"rows_in": 5, "rows_kept": 5})
    assert [attributes["id"] for tag, attributes in Reader(html).tags if tag == "h2" and "id" in attributes] == [
        "account"
    ]
    assert "All 5 rows were kept." in text_of(html)
    assert "No rows came in." in text_of(render_data_page({"rows_in": 0, "rows_kept": 0}))


def test_sections_that_looked_and_found_nothing_say_so():
    text = text_of(render_data_page(make_ledger(personal={}, leaks=[], num_leaks=0)))
    assert "Nothing was found." in text
    assert "No training row shares text with a test row." in text


@pytest.mark.parametrize(
    ("left", "right", "marked"),
    [
        ("a b c", "a x c", ("a <mark>b</mark> c", "a <mark>x</mark> c")),
        ("a b", "a b c", ("a b", "a b <mark>c</mark>")),
        ("a  b", "a\nb", ("a  b", "a\nb")),
        ("<b> c", "d c", ("<mark>&lt;b&gt;</mark> c", "<mark>d</mark> c")),
        ("", "a", ("", "<mark>a</mark>")),
    ],
)
def test_words_that_differ_are_marked_on_both_sides(left, right, marked):
    """White space does not count as a difference."""
    assert tuple(map(str, marked_pair(left, right))) == marked


def test_what_is_cut_off_is_no_difference():
    """A word is in one text alone; of both the same number of characters is known, so their ends are not the same."""
    words = [f"w{n}" for n in range(60)]
    left = " ".join([*words[:10], "more", *words[10:40]]) + " [...]"
    right = " ".join(words[:41]) + " [...]"
    shown = tuple(map(str, marked_pair(left, right)))
    assert [text.count("<mark>") for text in shown] == [1, 0] and "<mark>more</mark>" in shown[0]
    assert shown[1].endswith("w40 [...]")
    assert tuple(map(str, marked_pair("a b [...]", "a c d [...]"))) == (
        "a <mark>b</mark> [...]",
        "a <mark>c d</mark> [...]",
    ), "the first difference is one"


def test_a_pair_is_compared_beyond_what_is_shown():
    left, right = ("x " + " ".join(f"{side}{n}" if n == 1 else f"w{n}" for n in range(300)) for side in "lr")
    shown = tuple(map(str, marked_pair(left, right, 30)))
    assert shown == (
        "x w0 <mark>l1</mark> w2 w3 w4 w5 w6 w7 w8 [...]",
        "x w0 <mark>r1</mark> w2 w3 w4 w5 w6 w7 w8 [...]",
    )


@pytest.mark.parametrize(
    ("counts", "told"),
    [((5, 3), " Most often the reason was: a."), ((5, 5), ""), ((5,), " The reason was: a."), ((), "")],
)
def test_the_most_frequent_reason_is_named_where_there_is_one(counts, told):
    assert (
        largest_reason([{"reason": name, "count": number} for name, number in zip("ab", counts, strict=False)]) == told
    )


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("off", "Nothing was looked for (steps.personal.action: off)."),
        ("report", "stands as its type alone; the records themselves still hold it."),
        ("mask", "stands as its type alone; in the records too."),
        ("drop", "stands as its type alone; the records that held it were dropped."),
    ],
)
def test_what_became_of_personal_data_is_said(action, told):
    settings = {"steps": {"personal": {"action": action}}}
    assert told in text_of(render_data_page(make_ledger(settings=settings)))


def test_long_texts_and_long_lists_are_cut():
    clusters = [
        {"kept": {"source": f"a line {n}", "text": "x"}, "members": [{"source": "b", "text": "y"}] * 9}
        for n in range(50)
    ]
    dropped = [
        {"reason": "r", "step": "s", "count": 9, "examples": [{"source": "s", "detail": "", "text": "z" * 5000}] * 9}
    ]
    languages = {f"l{number}": 100 - number for number in range(30)}
    html = render_data_page(make_ledger(clusters=clusters, dropped=dropped, languages=languages))
    text = text_of(html)
    assert "30 of 44 clusters." in text
    assert "and 5 more." in text
    assert text.count("z" * 1200 + " [...]") == 5
    assert "z" * 1201 not in text
    assert "16 others" in text


def test_quantiles_are_read_from_the_histogram():
    assert quantile([10, 0, 10], [0, 10, 20, 40], 0.5) == 10
    assert quantile([10, 0, 10], [0, 10, 20, 40], 0.75) == 30
    assert quantile([10, 0, 10], [0, 10, 20, 40], 1.0) == 40
    assert quantile([0, 0], [0, 1, 2], 0.5) == 2


def test_bars_of_a_histogram_stand_where_the_numbers_say():
    """Two bins of 0 to 10 and 10 to 20 on an axis from 4 to 386: 200 px wide bars would overlap, 191 - 1 do not."""
    svg = histogram_plot([Histogram("train", (3, 6), "9 rows")], [0, 10, 20], "words", 400, "alt")
    bars = [attributes for tag, attributes in Reader(svg).tags if tag == "rect"]
    assert [(bar["x"], bar["width"], bar["height"]) for bar in bars] == [("4", "190", "38"), ("195", "190", "76")]
    assert float(bars[0]["y"]) + float(bars[0]["height"]) == float(bars[1]["y"]) + float(bars[1]["height"])


def test_the_page_is_written_whatever_the_texts_hold(tmp_path: Path):
    write_data_page(tmp_path / "data.html", make_ledger(name="half \ud83d pair"))
    assert "half ? pair" in (tmp_path / "data.html").read_text(encoding="utf-8")


def test_the_sheet_lists_sources_licences_counts_removals_and_limits():
    sheet = data_sheet(make_ledger())
    assert sheet.startswith("# Data sheet: Support mails\n\n1,000 of 1,200 rows were kept (83.3%).")
    assert "| Part | Rows |\n| --- | ---: |\n| train | 850 |\n| validation | 50 |\n| test | 100 |" in sheet
    assert "| old\\|pages.csv | columns | not stated | 100 | 80 |" in sheet
    assert (
        "## Licences of the rows kept\n\n| Licence | Rows |\n| --- | ---: |\n| cc-by-4.0 | 920 |\n| unknown | 80 |"
        in sheet
    )
    assert (
        "| near\\_duplicate | merge | 157 |\n| gopher\\_words | quality | 40 |\n| broken\\_json | read | 3 |" in sheet
    )
    assert "| email | 31 | 22 |" in sheet
    assert "- 80 rows do not state a licence.\n" in sheet
    assert "- 2 pairs of training and test rows share text; rewordings are not found that way.\n" in sheet
    assert "- Synthetic rows repeat what their generator knew, and its mistakes.\n" in sheet


def test_the_sheet_of_a_bare_ledger_and_of_evil_names():
    sheet = data_sheet({"rows_in": 2, "rows_kept": 1})
    assert re.findall("^#.*", sheet, re.MULTILINE) == ["# Data sheet: prepared data", "## Known limits"]
    assert "- Personal data was not looked for.\n" in sheet
    assert "<script>" not in data_sheet(make_ledger(name=EVIL, synthetic={EVIL: 1})).replace("\\<", "")
