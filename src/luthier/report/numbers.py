"""How numbers and names are written, on the pages and on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

NOTHING = "–"
NUMBER = r"[+-]?(?:\d[\d,.]*(?:e[+-]?\d+)?|nan|inf)"  # in a sentence

ARM_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "majority": "Majority class",
        "tfidf": "TF-IDF + logistic regression",
        "zero_shot": "Zero-shot",
        "best_prompt": "Best prompt",
        "few_shot": "Few-shot",
        "retrieval": "Retrieval",
        "tuned": "Fine-tuned",
    }
)


def known(value: Any) -> bool:
    """Whether there is a number to print."""
    return value is not None and math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """0.8425 as `84.3%`."""
    return f"{value:.{digits}%}" if value is not None and known(value) else NOTHING


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign: 0.105 as `+10.5`."""
    if value is None or not known(value):
        return NOTHING
    written = f"{100 * value:+.1f}"
    return "0.0" if float(written) == 0 else written.replace("-", "−")


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with a fixed number of decimals."""
    return f"{value:.{digits}f}".replace("-", "−") if value is not None and known(value) else NOTHING


def count(value: float | None) -> str:
    """1204331 as `1,204,331`."""
    return f"{value:,.0f}" if value is not None and known(value) else NOTHING


def alike(values: Iterable[float | None]) -> Callable[[float | None], str]:
    """How to write figures of one kind: all with the same decimals, as many as tell these apart.

    Four significant digits of the largest, more where two that differ in their first five would look the same,
    fewer where all end in zeros.
    """
    there = [value for value in values if value is not None and known(value)]
    largest = max((abs(value) for value in there), default=1.0) or 1.0
    decimals = min(max(3 - math.floor(math.log10(largest)), 0), 6)
    wanted = len({f"{value:.5g}" for value in there})
    while decimals < 6 and len({f"{value:.{decimals}f}" for value in there}) < wanted:
        decimals += 1
    while decimals and all(round(value, decimals) == round(value, decimals - 1) for value in there):
        decimals -= 1
    return lambda value: f"{value:,.{decimals}f}".replace("-", "−") if value is not None and known(value) else NOTHING


def level_words(confidence: float | None) -> str:
    """0.95 as `95%`, 0.999 as `99.9%`."""
    return f"{100 * confidence:g}%" if confidence is not None and known(confidence) else NOTHING


def p_value(value: float | None) -> str:
    """Three decimals; smaller ones as a bound."""
    if value is None or not known(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds in a unit that reads well: `2 µs`, `0.4 ms`, `41 ms`, `1.42 s`, `6 min 42 s`, `3 h 05 min`."""
    if seconds is None or not known(seconds):
        return NOTHING
    if seconds < 0.9995:
        number, unit = (1e6 * seconds, "µs") if seconds < 0.0000995 else (1000 * seconds, "ms")
        return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.2g} {unit}"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def money(amount: float | None, most: int = 4) -> str:
    """An amount without its currency: two decimals, below 1 two significant digits, at most `most` decimals."""
    if amount is None or not known(amount):
        return NOTHING
    if amount == 0:
        return "0"
    if amount < 0.5 * 10**-most:
        return f"< {10**-most:.{most}f}"
    decimals = min(max(1 - math.floor(math.log10(amount)), 2), most)
    return f"{amount:,.{decimals}f}"


def price(amount: float | None, currency: str | None) -> str:
    """`USD 0.0092`; nothing where there is no price."""
    return f"{currency} {money(amount)}" if currency and amount is not None and known(amount) else ""


def with_cost(text: str, amounts: Iterable[float | None], currency: str | None) -> str:
    """`text`, and what all the amounts come to where each is known."""
    listed = list(amounts)
    if any(amount is None for amount in listed):
        return text
    paid = price(sum(amount for amount in listed if amount is not None), currency)
    return f"{text}, {paid}" if paid else text


def size(num_bytes: float | None) -> str:
    """3000000000 as `3.0 GB` (powers of 1000)."""
    if num_bytes is None or not known(num_bytes):
        return NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


def moment(created: str) -> str:
    """An ISO time as `14 March 2026, 10:32 UTC`; what is no ISO time stays as it is."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def words(name: str) -> str:
    """`out_of_ontology` as `out of ontology`."""
    return name.replace("_", " ")


def arm_name(name: str) -> str:
    """What an arm is called, in tables and figures."""
    return ARM_NAMES.get(name, words(name))


def in_sentence(name: str) -> str:
    """An arm's name inside a sentence: `the fine-tuned model`, `TF-IDF + logistic regression`."""
    if name == "tuned":
        return "the fine-tuned model"
    title = arm_name(name)
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def with_arm_names(sentence: str, arms: Iterable[str]) -> str:
    """A sentence of the result with its arms called as in tables, where they are called as in the recipe."""
    names = "|".join(re.escape(name) for name in arms)
    if not names:
        return sentence
    return re.sub(
        rf"(?<![\w-])(?:{names})(?![\w-])",
        lambda found: in_sentence(found[0]) if found.start() else capital(in_sentence(found[0])),
        sentence,
    )


def in_page_style(sentence: str) -> str:
    """A sentence of the result with its numbers written as the page writes them.

    `41.7 % [-2.0, 45.5]` as `41.7% (−2.0 to 45.5)`, `1.9 -> 1.5` as `1.9 → 1.5`.
    """
    told = re.sub(r"(?<=\d) %", "%", sentence)
    told = re.sub(rf"\[({NUMBER}), ({NUMBER})\]", r"(\1 to \2)", told).replace(" -> ", " → ")
    told = re.sub(r"\bp ([=<]) (?=\d)", "p\u00a0\\1\u00a0", told)  # never parted at the end of a line
    return re.sub(r"(?<![\w.)\]-])-(?=\d)", "−", told)


def title_of(name: str) -> str:
    """A name as the head of a column."""
    return capital(words(name))


def capital(text: str) -> str:
    """`text` as the beginning of a sentence."""
    return text[:1].upper() + text[1:]
