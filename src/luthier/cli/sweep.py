"""`luthier sweep`: a recipe with other values of some keys."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from luthier.cli.options import Json, Overrides


def sweep_command(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), of a run or of stages.", show_default=False)
    ],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/NAME-sweep.", show_default=False)] = None,
    trials: Annotated[int, typer.Option(min=0, help="Trials in all; 0: as the recipe says.")] = 0,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Address of a data base for several machines (SQLAlchemy); by default a file in the folder.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(help="Name of the study in it; by default the recipe's.", metavar="NAME", show_default=False),
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Run the best recipe in full afterwards, with its held-out rows.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be searched and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Try a recipe with other values of some keys, and write down the best: chosen on validation rows alone.

    Goes on where it stopped. The same command several times at once shares the trials.
    """
    from luthier.recipe.space import load_any, resolved_sweep

    loaded = load_any(recipe, overrides or [])
    resolved = resolved_sweep(loaded)
    if dry_run:
        told = {"sweep": resolved.model_copy(update={"trials": trials or resolved.trials}).model_dump()}
        typer.echo(json.dumps(told) if as_json else space_text(told), nl=as_json)
        return
    from luthier.cli.screen import screen
    from luthier.sweeps import sweep

    with screen(quiet=as_json) as listener:
        result = sweep(loaded, out, (), listener, trials=trials, storage=storage or "", study=study or "", final=final)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_sweep(result, out or Path("runs") / f"{loaded.name}-sweep")


def space_text(told: dict[str, Any]) -> str:
    """The sweep as a section of a recipe, without the keys of a search that say nothing."""
    import yaml

    space = told["sweep"]["space"]
    for path, search in space.items():
        kept = {key: value for key, value in search.items() if value not in (None, False, [])}
        space[path] = kept.get("choices", kept)
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100)


def print_sweep(result: dict[str, Any], folder: Path) -> None:
    """The best trials, the best against the recipe as it stands, and where everything is."""
    from luthier.cli.screen import plain_console
    from luthier.report.sweep_page import ranked, short_names, value_words, verdict

    console = plain_console(highlight=False)
    names = short_names(list(result["space"]))
    table = Table("trial", result["metric"]["name"].replace("_", " "), *names.values(), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for trial in ranked(result, "complete")[::-1][:5]:
        best = trial["number"] == result["best"]["number"]
        cells = [value_words(trial["values"][path]) for path in names]
        table.add_row(str(trial["number"]), f"{trial['value']:.4g}", *cells, style="bold" if best else None)
    counts = ", ".join(f"{number} {state}" for state, number in result["counts"].items() if number)
    console.print(f"\n{result['name']}: {counts}\n")
    console.print(table)
    console.print(f"\n{verdict(result)['sentence']}\n")
    if result["final"]:
        console.print(f"Held-out rows: {result['final']['verdict']}\n")
    console.print(f"Page:   {folder / 'sweep.html'}", soft_wrap=True)
    console.print(f"Recipe: {result['best']['recipe']}", soft_wrap=True)
    if not result["final"]:
        console.print(f"Run it: luthier {result['kind']} {shlex.quote(result['best']['recipe'])}", soft_wrap=True)
