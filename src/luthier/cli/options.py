"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a key of the recipe: path.to.key=value. May be given again.",
        metavar="KEY=VALUE",
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option(
        help="File of texts: one a line, or a column of a .jsonl, .csv or .tsv; - reads standard input.",
        show_default=False,
    ),
]
Column = Annotated[
    str | None, typer.Option(help="Column of a .jsonl, .csv or .tsv --file; by default text.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else on standard output.")]
