"""The page and the sheet of prepared data: what came in, what became of every row, and what to look at.

Both are made from the plain values of `ledger.json`. Of its fields only `rows_in` and `rows_kept` are needed; what is
absent has no section. Texts are shown as the ledger holds them; personal data is shown by type and count alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup, escape

from luthier.report import charts
from luthier.report.histogram import Histogram, histogram_plot
from luthier.report.numbers import count, duration, percent, size, words
from luthier.report.rendering import NARROW, WIDE, rendered, save_page

Values = dict[str, Any]

FIELDS = (
    "name", "parts", "pieces", "inputs", "dropped", "findings", "lengths", "languages", "clusters", "num_clusters",
    "personal", "leaks", "num_leaks", "licences", "synthetic", "peak_bytes", "seconds", "index_bytes_per_row",
    "settings",
)  # fmt: skip
INPUT_FIELDS = ("path", "format", "licence", "rows_in", "rows_kept", "unreadable")
MOST_BARS = 15
MOST_CLUSTERS, MOST_MEMBERS, MOST_LEAKS, MOST_EXAMPLES = 30, 4, 100, 5
MOST_CHARS = 1200
MOST_PAIR_CHARS = 400  # of each side of a pair of near copies
CUT = " [...]"
BECAME = {
    "report": "the records themselves still hold it",
    "mask": "in the records too",
    "pseudonym": "the records hold invented values in its place",
    "drop": "the records that held it were dropped",
}
WORD = re.compile(r"\S+\s*|\s+")


def write_data_page(path: str | Path, ledger: Values) -> None:
    """Write the page of `ledger`. What UTF-8 cannot hold (half of a surrogate pair in a text) becomes `?`."""
    save_page(Path(path), render_data_page(ledger))


def render_data_page(ledger: Values) -> str:
    """The HTML text of a ledger: one file that loads nothing."""
    return rendered("data_page.html", data_view(ledger))


# What the page shows


def data_view(ledger: Values) -> Values:
    """Everything the template prints."""
    data = {**dict.fromkeys(FIELDS), **ledger}
    data["dropped"] = sorted(data["dropped"] or [], key=lambda entry: -entry["count"])
    view = {
        "data": data,
        "title": data["name"] or "Prepared data",
        "lost": data["rows_in"] - data["rows_kept"],
        "sentence": sentence(data),
        "figures": data_figures(data),
        "inputs": [{**dict.fromkeys(INPUT_FIELDS), **row} for row in data["inputs"] or []],
        "dropped_chart": bars_of({words(entry["reason"]): entry["count"] for entry in data["dropped"]}, "Dropped rows"),
        "examples": [(entry, shown_examples(entry)) for entry in data["dropped"] if entry.get("examples")],
        "lengths": lengths_view(data["lengths"]),
        "languages": bars_of(data["languages"], "Records by language"),
        "findings": finding_rows(data["findings"]),
        "clusters": [cluster_view(cluster) for cluster in (data["clusters"] or [])[:MOST_CLUSTERS]],
        "num_clusters": data["num_clusters"] or len(data["clusters"] or []),
        "leaks": [leak_view(leak) for leak in (data["leaks"] or [])[:MOST_LEAKS]],
        "num_leaks": data["num_leaks"] or len(data["leaks"] or []),
        "licences": ranked(data["licences"]),
        "synthetic": ranked(data["synthetic"]),
        "personal": sorted((data["personal"] or {}).items(), key=lambda item: (-item[1]["count"], item[0])),
        "looked": action_of(data["settings"]) != "off",
        "became": BECAME.get(action_of(data["settings"]), BECAME["report"]),
        "settings": settings_text(data["settings"]),
    }
    view["sections"] = sections(view)
    return view


def action_of(settings: Any) -> str:
    """What became of personal data; `report` where the settings do not say."""
    found = settings if isinstance(settings, Mapping) else {}
    for name in ("steps", "personal", "action"):
        found = found.get(name, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, str) else "report"


def sections(view: Values) -> dict[str, str]:
    """Anchor and title of the sections there are, in order."""
    data = view["data"]
    entries = (
        ("account", "What became of every row", True),
        ("examples", "Examples of dropped rows", view["examples"]),
        ("inputs", "Inputs", view["inputs"]),
        ("lengths", "Lengths", view["lengths"]),
        ("languages", "Languages", view["languages"]),
        ("repairs", "What was found and mended", view["findings"]),
        ("clusters", "Near copies, side by side", view["clusters"]),
        ("personal", "Personal data and secrets", data["personal"] is not None),
        ("leaks", "Training rows that stand in the test rows", data["leaks"] is not None),
        ("licences", "Licences", view["licences"]),
        ("synthetic", "Synthetic rows", view["synthetic"]),
        ("settings", "Settings", view["settings"]),
    )
    return {anchor: title for anchor, title, present in entries if present}


def sentence(data: Values) -> str:
    """The outcome in words."""
    kept, total = data["rows_kept"], data["rows_in"]
    if not total:
        return "No rows came in."
    if kept == total:
        return f"All {count(total)} rows were kept."
    return f"{count(kept)} of {count(total)} rows were kept ({percent(kept / total)}).{largest_reason(data['dropped'])}"


def largest_reason(dropped: Sequence[Values]) -> str:
    """A sentence on the reason of most rows, where one has more than every other. `dropped`: most first."""
    if not dropped or (len(dropped) > 1 and dropped[0]["count"] == dropped[1]["count"]):
        return ""
    often = "The reason was" if len(dropped) == 1 else "Most often the reason was"
    return f" {often}: {words(dropped[0]['reason'])}."


def data_figures(data: Values) -> list[tuple[str, str, str]]:
    """Label, value and small print of the strip under the sentence."""
    lost = data["rows_in"] - data["rows_kept"]
    share = percent(lost / data["rows_in"]) if data["rows_in"] else "nothing came in"
    figures = [("Rows in", count(data["rows_in"]), plural(len(data["inputs"] or []), "input"))]
    figures.append(("Rows dropped", count(lost), f"{share}, {plural(len(data['dropped']), 'reason')}"))
    for part, rows in (data["parts"] or {}).items():
        pieces = (data["pieces"] or {}).get(part)
        detail = f"cut to {count(pieces)} pieces" if pieces else percent(rows / (data["rows_kept"] or 1))
        figures.append((f"Rows in {words(part)}", count(rows), detail))
    if data["seconds"]:
        figures.append(("Time", duration(data["seconds"]), f"{count(data['rows_in'] / data['seconds'])} rows a second"))
    if data["peak_bytes"]:
        index = data["index_bytes_per_row"]
        detail = f"index of copies: {count(index)} bytes a row" if index else "of the main process"
        figures.append(("Peak memory", size(data["peak_bytes"]), detail))
    return figures


def plural(number: int, noun: str) -> str:
    """`1 input`, `3 inputs`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def ranked(counts: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """Names by count, most first."""
    return sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))


def bars_of(counts: Mapping[str, int] | None, title: str) -> Values | None:
    """Bars of the most frequent names; the rest in one bar."""
    rows = ranked(counts)
    if not rows:
        return None
    shown = rows if len(rows) <= MOST_BARS else rows[: MOST_BARS - 1]
    rest = sum(number for _, number in rows[len(shown) :])
    if rest:
        shown = [*shown, (f"{len(rows) - len(shown)} others", rest)]
    bars = [charts.Bar(name, number, count(number), marked=True) for name, number in shown]
    alt = f"{title}. " + " ".join(f"{bar.name}: {bar.text}." for bar in bars)
    return {"wide": charts.bar_chart(bars, WIDE, alt), "narrow": charts.bar_chart(bars, NARROW, alt)}


def lengths_view(lengths: Values | None) -> Values | None:
    """Histograms of all parts on one axis, and their numbers."""
    if not lengths or not any(sum(counts) for counts in lengths["parts"].values()):
        return None
    edges, unit = lengths["edges"], lengths["unit"]
    rows = [
        {
            "part": part,
            "rows": sum(counts),
            **{f"p{share:g}": quantile(counts, edges, share / 100) for share in (50, 95)},
        }
        for part, counts in lengths["parts"].items()
    ]
    parts = [Histogram(words(row["part"]), tuple(lengths["parts"][row["part"]]), length_summary(row)) for row in rows]
    alt = f"Lengths in {unit}. " + " ".join(f"{part.name}: {part.summary}." for part in parts)
    return {
        "unit": unit,
        "rows": rows,
        "chart": {
            "wide": histogram_plot(parts, edges, unit, WIDE, alt),
            "narrow": histogram_plot(parts, edges, unit, NARROW, alt),
        },
    }


def length_summary(row: Values) -> str:
    """What is printed beside a histogram's name."""
    return f"{count(row['rows'])} rows, half under {count(row['p50'])}"


def quantile(counts: Sequence[int], edges: Sequence[float], share: float) -> float:
    """The length under which `share` of the rows are, read from a histogram (straight within a bin)."""
    wanted = share * sum(counts)
    for number, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        if number and wanted <= number:
            return low + (high - low) * wanted / number
        wanted -= number
    return edges[-1]


def finding_rows(findings: Mapping[str, Mapping[str, int]] | None) -> list[tuple[str, str, int]]:
    """(step, kind, count), step by step."""
    return [(step, kind, number) for step, kinds in (findings or {}).items() for kind, number in ranked(kinds)]


def shown_examples(entry: Values) -> list[Values]:
    """Some dropped rows of one reason, long texts cut."""
    rows = [{"source": "", "detail": "", "text": "", **row} for row in entry["examples"][:MOST_EXAMPLES]]
    return [{**row, "text": clipped(row["text"])} for row in rows]


def clipped(text: str) -> str:
    """A text that does not fill the page."""
    return text if len(text) <= MOST_CHARS else text[:MOST_CHARS].rstrip() + CUT


def cluster_view(cluster: Values) -> Values:
    """The kept text beside each of its copies, with the words that differ marked."""
    kept, members = cluster["kept"], cluster["members"]
    pairs = []
    for member in members[:MOST_MEMBERS]:
        left, right = marked_pair(member.get("kept_text") or kept["text"], member["text"], MOST_PAIR_CHARS)
        pairs.append({"kept": left, "text": right, "source": member["source"], "similarity": member.get("similarity")})
    return {"source": kept["source"], "pairs": pairs, "more": cluster.get("size", len(members) + 1) - 1 - len(pairs)}


def marked_pair(left: str, right: str, most: int = MOST_CHARS) -> tuple[Markup, Markup]:
    """Both texts as HTML, with the words marked that the other has not; of each the first `most` characters.

    What stands behind is compared as well, so that a text is not marked because the other was cut before it. Where one
    goes on behind what is known of it (it ends in [...]), a difference at the end may be no more than that: it is not
    marked, unless it is the first.
    """
    goes_on = (left.endswith(CUT), right.endswith(CUT))
    left, right = left.removesuffix(CUT), right.removesuffix(CUT)
    words_left, words_right = WORD.findall(left), WORD.findall(right)
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in words_left], [word.strip() for word in words_right], autojunk=False
    )
    runs: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    codes = matcher.get_opcodes()
    first = next((code for code in codes if code[0] != "equal"), None)
    for code in codes:
        kind, start, stop, other_start, other_stop = code
        marks = kind != "equal" and not (any(goes_on) and code is codes[-1] and code is not first)
        runs[0].append(("".join(words_left[start:stop]), marks))
        runs[1].append(("".join(words_right[other_start:other_stop]), marks))
    return shown_runs(runs[0], most, goes_on[0]), shown_runs(runs[1], most, goes_on[1])


def shown_runs(runs: Iterable[tuple[str, bool]], most: int, cut: bool) -> Markup:
    """The first `most` characters of some runs of text, marked ones marked; the end says whether more is there."""
    parts, left = [], most
    for text, marks in runs:
        shown = text if len(text) <= left else text[:left].rpartition(" ")[0]
        if shown:
            parts.append(marking(shown) if marks else escape(shown))
        if shown != text:
            cut = True
            break
        left -= len(text)
    return Markup("").join(parts) + (CUT if cut else "")


def marking(text: str) -> Markup:
    """A marked run of words; the white space behind it is not marked."""
    return Markup("<mark>{}</mark>{}").format(text.rstrip(), text[len(text.rstrip()) :])


def leak_view(leak: Values) -> Values:
    """A pair of rows that share text; where both sides' words are known they stand side by side."""
    span, test_span = clipped(leak.get("span") or ""), clipped(leak.get("test_span") or "")
    left, right = marked_pair(span, test_span) if test_span else (escape(span), None)
    return {**leak, "span": left, "test_span": right}


def settings_text(settings: Any) -> str:
    """Settings as YAML, or as they were written."""
    if not settings or isinstance(settings, str):
        return settings or ""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


# The data sheet


def data_sheet(ledger: Values) -> str:
    """A Markdown sheet to lie beside the data: sources, licences, counts, what was removed, what is not known."""
    data = {**dict.fromkeys(FIELDS), **ledger}
    data["dropped"] = sorted(data["dropped"] or [], key=lambda entry: -entry["count"])
    blocks = [
        f"# Data sheet: {plain(data['name'] or 'prepared data')}",
        sentence(data),
        *block("Parts", ("Part", "Rows"), (data["parts"] or {}).items()),
        *block("Sources", ("Input", "Format", "Licence", "Rows in", "Rows kept"), source_rows(data)),
        *block("Licences of the rows kept", ("Licence", "Rows"), ranked(data["licences"])),
        *block(
            "Removed", ("Reason", "Step", "Rows"), [(e["reason"], e.get("step"), e["count"]) for e in data["dropped"]]
        ),
        *block("Found and mended", ("Step", "Kind", "Times"), finding_rows(data["findings"])),
        *block("Languages", ("Language", "Records"), ranked(data["languages"])),
        *block("Personal data found", ("Type", "Times", "Records"), personal_rows(data["personal"])),
        *block("Synthetic rows", ("Generator", "Rows"), ranked(data["synthetic"])),
        "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in known_limits(data)),
    ]
    return "\n\n".join(blocks) + "\n"


def source_rows(data: Values) -> list[tuple[Any, ...]]:
    """The inputs' rows of the sheet."""
    names = ("path", "format", "licence", "rows_in", "rows_kept")
    return [tuple(row.get(name) for name in names) for row in data["inputs"] or []]


def personal_rows(personal: Mapping[str, Mapping[str, int]] | None) -> list[tuple[str, int, int]]:
    """The personal data's rows of the sheet."""
    return [(kind, found["count"], found["rows"]) for kind, found in (personal or {}).items()]


def block(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A heading with a table, or nothing where there are no rows."""
    written = [[cell(value) for value in row] for row in rows]
    if not written:
        return []
    rules = ["---:" if isinstance(value, str) and value.replace(",", "").isdigit() else "---" for value in written[0]]
    lines = [f"| {' | '.join(row)} |" for row in (head, rules, *written)]
    return [f"## {title}\n\n" + "\n".join(lines)]


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return "not stated"
    return count(value) if isinstance(value, int) else plain(str(value))


def plain(text: str) -> str:
    """Text that Markdown prints as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def known_limits(data: Values) -> list[str]:
    """What a reader of the data must not take for granted."""
    limits = ["Whether statements in the texts are true was not checked."]
    unstated = (data["licences"] or {}).get("unknown", 0)
    if unstated:
        limits.append(f"{count(unstated)} rows do not state a licence.")
    if data["languages"]:
        limits.append("Languages were found by character statistics: short and mixed texts may be named wrongly.")
    if data["personal"] is not None:
        limits.append(
            "Personal data was looked for by patterns and checksums; other personal data may stand in the texts."
        )
    else:
        limits.append("Personal data was not looked for.")
    if data["num_clusters"] is not None or data["clusters"] is not None:
        limits.append("Copies with fewer shared words than the setting's similarity are still there.")
    if data["leaks"] is not None:
        found = data["num_leaks"] or len(data["leaks"])
        limits.append(
            f"{plural(found, 'pair')} of training and test rows share text; rewordings are not found that way."
        )
    if data["synthetic"]:
        limits.append("Synthetic rows repeat what their generator knew, and its mistakes.")
    return limits
