"""`luthier lr-find`: which learning rate suits a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Json, Overrides


def lr_find_command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), of a run or of stages.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/NAME-lr-find.", show_default=False)] = None,
    stage: Annotated[
        str, typer.Option(help="Name or number of a stage; by default the first.", show_default=False)
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder with the stages before it; by default runs/NAME.", show_default=False),
    ] = None,
    low: Annotated[float, typer.Option(help="The first rate.")] = 1e-6,
    high: Annotated[float, typer.Option(help="The last rate, if it does not diverge before.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps from the first to the last.")] = 80,
    as_json: Json = False,
) -> None:
    """Find a learning rate: a short training whose rate rises at every step, until it diverges (Smith 2017).

    Writes the curve as lr_find.json and lr_find.svg. No training is changed.
    """
    from luthier.cli.screen import screen
    from luthier.recipe.space import load_any

    loaded = load_any(recipe, overrides or [])
    from luthier.rate_search import find_rate

    with screen(quiet=as_json) as listener:
        found = find_rate(loaded, out, (), listener, stage, run, (low, high), steps)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(found["sentence"])
    if found["head_learning_rate"]:
        typer.echo(f"The head's rate rose along: tune.head_learning_rate: {found['head_learning_rate']:.2g}.")
    if found["plot"]:
        typer.echo(f"The curve: {found['plot']}")
