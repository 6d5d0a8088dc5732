"""From a template of this folder to a page: one self-contained HTML file, whatever it is about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from luthier.files import write_text
from luthier.report.numbers import (
    arm_name,
    count,
    decimal,
    duration,
    in_sentence,
    moment,
    money,
    p_value,
    percent,
    points,
    price,
    size,
    title_of,
    words,
)

Values = dict[str, Any]

WIDE, NARROW = 720.0, 335.0  # natural widths of a drawing: the text column, and a phone of 375 px


def save_page(path: Path, html: str) -> None:
    """A whole page, or what stood there before. What UTF-8 cannot hold (a lone surrogate in a reply) becomes `?`."""
    write_text(path, html.encode("utf-8", errors="replace").decode("utf-8"))


def rendered(template: str, values: Values) -> str:
    """A template of this folder with its values, the styles and the filters: one file that loads nothing."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=points, duration=duration, count=count, money=money, decimal=decimal,
        p_value=p_value, size=size, moment=moment, arm=arm_name, words=words, in_sentence=in_sentence,
        price=price, title_of=title_of,
    )  # fmt: skip
    styles = (folder / "page.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(values, styles=styles)


def filled(values: Values, fields: Sequence[str]) -> Values:
    """`values`, with None for every field that is absent."""
    return {**dict.fromkeys(fields), **values}
