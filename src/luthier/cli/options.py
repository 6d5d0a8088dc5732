"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

# the names that `--to`, `--from` and `--dtype` take; written out, for a command starts without what knows them
WriteFormat = Literal[
    "luthier", "run_export", "label_studio", "argilla", "sharegpt", "hh_rlhf", "ranking", "thumbs", "chat", "alpaca",
    "prompt_completion", "trl", "conll", "columns", "trl_conversational", "text", "question_answer", "spans",
]  # fmt: skip
ReadFormat = Literal[
    "auto", "document", "columns", "lines", "luthier", "chat", "prompt_completion", "alpaca", "sharegpt", "trl",
    "hh_rlhf", "ranking", "thumbs", "conll", "label_studio", "argilla", "run_export", "question_answer", "spans",
]  # fmt: skip
WeightType = Literal["float32", "bfloat16", "float16"]

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
        help="File of texts: one a line, or a column of a table (.jsonl, .ndjson, .json, .csv, .tsv, .parquet); also "
        "packed (.gz, .zst); - reads lines from standard input.",
        show_default=False,
    ),
]
Column = Annotated[
    str | None, typer.Option(help="Column of a --file that is a table; by default text.", show_default=False)
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out rows that cannot be read or are too long, with the reason; exit code 3 if there are any.",
    ),
]
AnswerFile = Annotated[
    Path | None,
    typer.Option(
        help="Write the answers to a file (.csv, .tsv, .jsonl), beside the columns of their rows.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value and nothing else on standard output.")]
