"""`luthier`: every command is thin. Nothing that imports torch is imported before it is needed."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

import luthier
from luthier.cli.data import data_app
from luthier.cli.lr_find import lr_find_command
from luthier.cli.options import AnswerFile, Column, Json, Overrides, SkipBad, TextFile, WeightType
from luthier.cli.sweep import sweep_command
from luthier.errors import LuthierError, RunError
from luthier.processes import is_first, num_processes, rank
from luthier.signals import ASKED, interrupt

if TYPE_CHECKING:
    from luthier.predictor import Answer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Adapt a language model to your domain, prove on held-out rows that it was worth it, and use the result.",
)
models_app = typer.Typer(no_args_is_help=True, help="Find, fetch and describe models.")
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")


def print_version(wanted: bool) -> None:
    """`luthier 0.1.0`, and the end of the command."""
    if wanted:
        typer.echo(f"luthier {luthier.__version__}")
        raise typer.Exit


@app.callback()
def general(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the command itself; what it does is said above."""


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)]


@app.command("run")
def run_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/NAME.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe: every arm on the same held-out rows, the adapter, the report page.

    Goes on where it stopped.
    """
    from luthier.recipe import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        typer.echo(json.dumps(loaded.model_dump()) if as_json else dump_recipe(loaded), nl=as_json)
        return
    from luthier.cli.screen import print_result, screen
    from luthier.pipeline import run

    with screen(quiet=as_json) as listener:
        result = run(loaded, out, listener=listener)
    if not is_first():
        return
    folder = out or Path("runs") / loaded.name
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_result(result, folder)


@app.command("train")
def train_command(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/NAME.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe of stages: continued pre-training, fine-tuning, preferences; held-out figures before and after.

    Goes on where it stopped.
    """
    from luthier.recipe.stages import dump_stages, load_stages

    loaded = load_stages(recipe, overrides or [])
    if dry_run:
        typer.echo(json.dumps(loaded.model_dump()) if as_json else dump_stages(loaded), nl=as_json)
        return
    from luthier.cli.screen import print_stages, screen
    from luthier.stages import train

    with screen(quiet=as_json) as listener:
        result = train(loaded, out, listener=listener)
    if not is_first():
        return
    folder = out or Path("runs") / loaded.name
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_stages(result, folder)


app.command("sweep")(sweep_command)
app.command("lr-find")(lr_find_command)


@app.command("predict")
def predict_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    text: Annotated[
        list[str] | None, typer.Option(help="A text to label. May be given again.", show_default=False)
    ] = None,
    file: TextFile = None,
    column: Column = None,
    stage: Annotated[
        str | None, typer.Option(help="Which stage to ask; by default the last with a head.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Which task of a stage that learnt several.", show_default=False)
    ] = None,
    class_prior: Annotated[
        Literal["train", "uniform"] | None,
        typer.Option(
            help="`train` or `uniform`: weigh the labels anew, to come here as in the training rows, or evenly.",
            show_default=False,
        ),
    ] = None,
    skip_bad: SkipBad = False,
    out: AnswerFile = None,
    as_json: Json = False,
) -> None:
    """Label texts with the adapter of a run, with probabilities; grades, numbers and tags too, by a stage's head.

    One line a text: label, probability, text, parted by tabs.
    """
    from luthier.cli.answers import answer_values, answered, check_out, label_lines, tell
    from luthier.cli.texts import read_texts
    from luthier.predictor import is_of_stages, load

    check_out(out, file)
    texts = read_texts(text or [], file, column=column)
    if is_of_stages(run_folder):
        if class_prior is not None:
            raise RunError(f"{run_folder}: --class-prior is for runs of `luthier run`, this is one of stages.")
        from luthier.stages import load_head

        head = load_head(run_folder, stage, task)
        told = answered(texts, head.problems, lambda some: map(with_probability, head.predict(some)), skip_bad)
    elif stage is not None or task is not None:
        raise RunError(f"{run_folder}: a run of `luthier run` has one adapter, no stages or tasks. Leave both out.")
    else:
        predictor = load(run_folder)
        told = answered(
            texts, predictor.problems, lambda some: map(label_parts, predictor.predict(some, class_prior)), skip_bad
        )
    tell(told, label_lines(told), answer_values(told), as_json, out)


def label_parts(answer: Answer) -> dict[str, Any]:
    """What an adapter says, without the text."""
    return {"label": answer.label, "probability": answer.probability, "probabilities": answer.probabilities}


def with_probability(answer: dict[str, Any]) -> dict[str, Any]:
    """What a head says, with the probability of its label, or the highest of several labels."""
    shares = answer.get("probabilities")
    if shares is None:
        return answer
    probability = shares[answer["label"]] if "label" in answer else max(shares.values())
    return {**{name: value for name, value in answer.items() if name != "probabilities"}, "probability": probability,
            "probabilities": shares}  # fmt: skip


@app.command("score")
def score_command(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run with a reward stage.", show_default=False)
    ],
    rows: Annotated[
        str,
        typer.Argument(
            metavar="ROWS",
            help="Rows of prompts and answers, in any format: conversations, pairs, rankings, ratings.",
            show_default=False,
        ),
    ],
    stage: Annotated[
        str | None, typer.Option(help="Which reward stage to ask; by default the last.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Which task of a stage that learnt several.", show_default=False)
    ] = None,
    skip_bad: SkipBad = False,
    out: AnswerFile = None,
    as_json: Json = False,
) -> None:
    """Score answers with a reward model that `luthier train` left: normalised reward, reward, line, answer."""
    from luthier.cli.answers import check_out, tell
    from luthier.cli.scores import score_line, score_values, scored

    check_out(out, rows)
    told = scored(run_folder, rows, stage, task, skip_bad)
    tell(told, map(score_line, told), score_values(told), as_json, out)


@app.command("answer")
def answer_command(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a finished run of stages.", show_default=False)
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="A text to answer. May be given again.", show_default=False)
    ] = None,
    file: TextFile = None,
    column: Column = None,
    stage: Annotated[
        str | None, typer.Option(help="Which stage to ask; by default the last.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Which task of a stage that learnt several.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 writes the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws, where the temperature is above 0.")] = 0,
    skip_bad: SkipBad = False,
    out: AnswerFile = None,
    as_json: Json = False,
) -> None:
    """Let the model that `luthier train` left answer texts, asked as it was trained."""
    from luthier.cli.answers import answer_values, answered, check_out, reply_lines, tell
    from luthier.cli.texts import read_texts

    check_out(out, file)
    texts = read_texts(text or [], file, "answer", column)
    from luthier.generation.sampling import Sampling
    from luthier.stages import load

    model = load(run_folder, stage, task)

    def reply(some: list[str]) -> list[dict[str, Any]]:
        replies = model.answer(some, max_tokens, Sampling(temperature, seed=seed))
        return [{"answer": each.text, "finished": each.finished} for each in replies]

    told = answered(texts, model.problems, reply, skip_bad)
    tell(told, reply_lines(told), answer_values(told), as_json, out)


@app.command("merge")
def merge_command(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the model that is written; a new one.", show_default=False)],
    stage: Annotated[
        str | None,
        typer.Option(help="Which stage of a run of stages; by default the last.", show_default=False),
    ] = None,
    dtype: Annotated[
        WeightType,
        typer.Option(help="Type of the weights: float32 (exact), bfloat16 or float16 (half the size, rounded)."),
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Write a run's adapter into its model: a model folder for transformers, vLLM and others, and for `model:`."""
    from luthier.merging import merge

    done = merge(run_folder, out, stage, dtype)
    if as_json:
        typer.echo(json.dumps(done))
        return
    head = " The head lies beside it (head.safetensors)." if done["head"] else ""
    typer.echo(f"{done['folder']}: {done['model']} with {done['adapter']}, {done['weights_bytes'] / 1e6:.0f} MB.{head}")


@models_app.command("list")
def list_command(as_json: Json = False) -> None:
    """Starter models, and what is in the cache."""
    from luthier.models.store import list_models

    rows = [
        {"name": name, "about": about, "folder": None if path is None else str(path)}
        for name, about, path in list_models()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        folder = row["folder"] or f"not fetched: luthier models pull {row['name']}"
        typer.echo(f"{row['name']}\n    {row['about']}\n    {folder}")


ModelName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Starter name, hub id, folder or GGUF file.", show_default=False),
]


@models_app.command("pull")
def pull_command(name: ModelName) -> None:
    """Fetch a model into the cache (converting GGUF), and print its folder."""
    from luthier.models.store import find_model

    typer.echo(str(find_model(name)))


@models_app.command("show")
def show_command(name: ModelName, as_json: Json = False) -> None:
    """Describe a model: family, size, context, chat template, whether it runs on the token forest."""
    from luthier.models.load import describe_model

    found: dict[str, Any] = describe_model(name)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key, value in found.items():
        typer.echo(f"{key:16} {value}")


def refuse_several(words: list[str]) -> None:
    """RunError where torchrun has started several processes of a command that is for one."""
    if num_processes() > 1 and words[:1] not in (["run"], ["train"]):
        raise RunError(
            f"luthier {' '.join(words[:1])} runs in one process; `run` and `train` share their work among several. "
            "Start it without torchrun (and unset WORLD_SIZE)."
        )


# what a path can be in the way that no part of the program looks for
CAUSES = {
    errno.ENAMETOOLONG: "a name in this path is too long for the file system. Give a shorter one.",
    errno.EACCES: "this account may not open it. Give another path, or change who may read it.",
    errno.EPERM: "this account may not do that here. Give another path.",
    errno.ENOSPC: "the disk is full. Free some space and run the same command again.",
    errno.ENOENT: "there is no such file or folder, and none can be made there. Give another path.",
    errno.EISDIR: "is a folder where a file has to be. Move it away, or give another path.",
}


def main() -> None:
    """Entry point. Exit codes: 1 an error that the user can mend (one message), 2 a command line that is none.

    3 where a command is done and there is something to look at, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another alphabet gets what it can show
            stream.reconfigure(errors="backslashreplace")
    ASKED.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's background would have it
            signal.signal(number, interrupt)
    try:
        answer_errors()
    finally:  # it ends anyway, and nothing is to print over that
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def answer_errors() -> None:
    """The command, with every error that can be mended as one message."""
    from luthier.stopped import Stopped

    try:
        refuse_several(sys.argv[1:])
        app()
    except Stopped as stop:
        typer.echo(stop, err=True)
        sys.exit(stop.exit_code)
    except SystemExit as ended:
        if ended.code == 130:  # what Typer makes of a KeyboardInterrupt
            typer.echo("stopped: finished stages are kept. Run the same command again to go on.", err=True)
            sys.exit(128 + (ASKED or [signal.SIGINT])[0])
        raise
    except LuthierError as error:
        fail(error)
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or "standard output"
        fail(f"{where}: {CAUSES.get(error.errno) or f'{error.strerror}.'}")


def fail(told: object) -> NoReturn:
    """End with an error that the user can mend."""
    typer.echo(f"Error: {told}" if is_first() else f"Error in process {rank()}: {told}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
