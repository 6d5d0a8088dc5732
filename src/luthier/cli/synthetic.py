"""`luthier data synthesize`: parse, one call, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.options import Json, Overrides


def synthesize_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)],
    out: Annotated[Path, typer.Option(help="File of the new records (JSON lines).", show_default=False)],
    overrides: Overrides = None,
    classifier: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished run that labels texts in round trips (`labels_by: classifier`).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model write new records from seeds, filtered, and marked as synthetic.

    Goes on where it stopped.
    """
    from luthier.synthetic.settings import load_synthetic

    settings = load_synthetic(recipe, overrides or [])
    from luthier.cli.screen import screen
    from luthier.synthetic.run import Tools, synthesize

    with screen(quiet=as_json) as listener:
        ledger = synthesize(settings, out, listener, Tools(classify=classify_by(classifier) if classifier else None))
    if as_json:
        typer.echo(json.dumps(ledger, ensure_ascii=False))
    else:
        print_ledger(ledger, out)


def classify_by(run_folder: Path) -> Any:
    """Labels of texts by the adapter of a run."""
    from luthier.predictor import load

    predictor = load(run_folder)
    return lambda texts: [answer.label for answer in predictor.predict(list(texts))]


def print_ledger(ledger: dict[str, Any], out: Path) -> None:
    """What was asked for, what was kept, and why the rest went."""
    for name, entry in ledger["kinds"].items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in entry["dropped"].items())
        typer.echo(
            f"{name}: {entry['requested']} asked for, {entry['kept']} kept"
            + (f"; dropped: {reasons}" if reasons else "")
        )
    for reason, count in ledger["unreadable_seeds"].items():
        typer.echo(f"note: {count} seed rows could not be read ({reason})")
    typer.echo(f"\n{ledger['kept']} records in {out}, marked as written by {ledger['generator']['name']}")
