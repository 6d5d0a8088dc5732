"""`luthier data ...`: look at data, prepare it, move it between formats, split it, audit it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from luthier.cli.options import Json, Overrides, ReadFormat, WriteFormat
from luthier.cli.synthetic import synthesize_command
from luthier.errors import DataError, RecipeError

if TYPE_CHECKING:
    from luthier.corpus.build.run import Shard
    from luthier.corpus.steps.chunking import TokenCounter
    from luthier.recipe import Corpus

data_app = typer.Typer(no_args_is_help=True, help="Look at data, prepare it, convert, split and audit it.")

Sources = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE|FILES...", help="A recipe (YAML), or files, folders, globs.", show_default=False),
]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the label, of plain columns.", show_default=False)]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text, of plain columns.", show_default=False)]
OutFolder = Annotated[Path, typer.Option(help="Folder to write.", show_default=False)]


@data_app.command("prepare")
def prepare_command(
    sources: Sources,
    out: OutFolder,
    overrides: Overrides = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Do only this part of the units, I from 0 to N-1; without it: the rest, and the merge."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    as_json: Json = False,
) -> None:
    """Read, clean, de-duplicate and split documents or records; every row ends in a part or in the ledger.

    Goes on where it stopped. With files, --set names keys of the corpus: --set steps.personal.action=mask
    """
    from luthier.cli.screen import print_ledger, screen
    from luthier.corpus.build import prepare_corpus
    from luthier.report.data_page import data_sheet, write_data_page

    corpus = corpus_from(sources, overrides or [])
    with screen(quiet=as_json) as listener:
        counter = counter_for(corpus)
        ledger = prepare_corpus(corpus, out, listener, workers, read_shard(shard), counter)
    if "rows_in" in ledger:
        from luthier.files import write_text

        write_data_page(out / "data.html", ledger)
        write_text(out / "datasheet.md", data_sheet(ledger))
    if as_json:
        typer.echo(json.dumps(ledger, ensure_ascii=False))
    elif "rows_in" in ledger:
        print_ledger(ledger, out)
    else:
        typer.echo(
            f"{ledger['done']} of {ledger['units']} units are done in {out}. Call prepare without --shard to merge."
        )


@data_app.command("convert")
def convert_command(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder or glob.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.", show_default=False)],
    to: Annotated[
        WriteFormat,
        typer.Option(
            metavar="FORMAT", help=f"Format to write: {', '.join(get_args(WriteFormat))}.", show_default=False
        ),
    ],
    read_as: Annotated[
        ReadFormat,
        typer.Option(
            "--from",
            metavar="FORMAT",
            help=f"Format of the rows; auto looks. One of {', '.join(get_args(ReadFormat))}.",
        ),
    ] = "auto",
    text: TextColumn = None,
    label: LabelColumn = None,
    pairs: Annotated[
        Literal["all", "ends"], typer.Option(help="Of a ranking: all pairs, or ends (best against worst).")
    ] = "all",
    as_json: Json = False,
) -> None:
    """Move records from one format to another; what has no place there is counted and said."""
    from luthier.corpus.exchange import convert_files, input_of

    done = convert_files(input_of(source, text, label, read_as), target, to, pairs)
    if as_json:
        typer.echo(json.dumps(done, ensure_ascii=False))
        return
    typer.echo(
        f"{done['rows_in']:,} records in, {done['rows_out']:,} rows written to {target} ({done['from']} to {to})."
    )
    for reason, entry in done["dropped"].items():
        typer.echo(f"  dropped {entry['count']:,}: {reason}; first: {entry['source']}: {entry['detail']}")


@data_app.command("split")
def split_command(
    sources: Sources,
    out: OutFolder,
    test_share: Annotated[float, typer.Option(min=0, max=0.99, help="Share held out.")] = 0.1,
    validation_share: Annotated[float, typer.Option(min=0, max=0.99, help="Share set aside for choosing.")] = 0.1,
    by: Annotated[Literal["seed", "time"], typer.Option(help="seed, or time: the newest rows are test.")] = "seed",
    text: TextColumn = None,
    label: LabelColumn = None,
    group: Annotated[str | None, typer.Option(help="Column that keeps rows together.", show_default=False)] = None,
    frozen: Annotated[
        Path | None, typer.Option(help="File of frozen test rows: written, then obeyed.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another split.")] = 0,
    as_json: Json = False,
) -> None:
    """Split rows without changing them: each label its share, groups whole, exact copies out, all columns kept."""
    from luthier.cli.screen import print_ledger, screen
    from luthier.corpus.build import prepare_corpus
    from luthier.corpus.exchange import split_corpus

    settings = {
        "test_share": test_share,
        "validation_share": validation_share,
        "by": by,
        "frozen": None if frozen is None else str(frozen.absolute()),
    }
    corpus = split_corpus(sources, settings, {"text": text, "label": label, "group": group}, seed)
    with screen(quiet=as_json) as listener:
        ledger = prepare_corpus(corpus, out, listener)
    if as_json:
        typer.echo(json.dumps(ledger, ensure_ascii=False))
    else:
        print_ledger(ledger, out)


@data_app.command("audit")
def audit_command(
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="File, folder or glob.", show_default=False)],
    test: Annotated[str, typer.Argument(metavar="TEST", help="File, folder or glob.", show_default=False)],
    text: TextColumn = None,
    label: LabelColumn = None,
    ngram_words: Annotated[int, typer.Option(min=3, help="A shared run of this many words counts.")] = 13,
    near: Annotated[float, typer.Option(min=0, max=1, help="So does this Jaccard similarity.")] = 0.8,
    probes: Annotated[bool, typer.Option(help="Also look for known benchmarks in TRAIN.")] = True,
    rows: Annotated[int, typer.Option(min=0, help="Pairs to show.")] = 20,
    as_json: Json = False,
) -> None:
    """Say which training rows stand in the test, with the words that agree. Deletes nothing; exit code 3 if any."""
    from luthier.corpus.exchange import audit_files, input_of

    settings = {"ngram_words": ngram_words, "near": near, "probes": probes}
    found = audit_files(input_of(train, text, label), input_of(test, text, label), settings)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        typer.echo(
            f"{found['train_rows_hit']:,} of {found['num_train']:,} training rows share text with "
            f"{found['test_rows_hit']:,} of {found['num_test']:,} test rows."
        )
        for how, count in found["counts"].items():
            typer.echo(f"  {how}: {count:,}")
        for hit in found["hits"][:rows]:
            typer.echo(f"{hit['train']} and {hit['test']}: {hit['how']}, {hit['amount']}")
            typer.echo(f"  train: {hit['train_text']}\n  test:  {hit['test_text']}")
        if len(found["hits"]) > rows:
            typer.echo(f"... and {len(found['hits']) - rows:,} more; --rows shows them, --json has them all.")
    if found["hits"]:
        raise typer.Exit(3)


data_app.command("synthesize")(synthesize_command)


@data_app.command("peek")
def peek_command(
    sources: Sources,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 3,
    text: TextColumn = None,
    label: LabelColumn = None,
    as_json: Json = False,
) -> None:
    """Of a recipe: ledger, labels, lengths, rows with trained and untrained tokens. Of files: the first records."""
    if is_recipe(sources) and (text is not None or label is not None):
        raise DataError("--text and --label are for files; a recipe names the columns of its inputs itself.")
    if is_recipe(sources) and not prepares(sources[0]):
        from luthier.cli.screen import Plain, print_peek, print_peek_stages
        from luthier.peek import peek
        from luthier.pipeline import Pipeline
        from luthier.recipe.space import load_any
        from luthier.recipe.stages import TrainRecipe

        recipe, listener = load_any(sources[0], overrides or []), Plain(quiet=as_json)
        if isinstance(recipe, TrainRecipe):
            from luthier.stages.peeking import peek_stages

            stages = peek_stages(recipe, rows, listener)
            typer.echo(json.dumps(stages, ensure_ascii=False)) if as_json else print_peek_stages(stages)
            return
        pipeline = Pipeline(recipe, Path(), listener)
        found = peek(pipeline.recipe, pipeline.tuned_prompt, pipeline.prepared, rows, pipeline.model.context_tokens)
        typer.echo(json.dumps(found, ensure_ascii=False)) if as_json else print_peek(found)
        return
    from luthier.cli.screen import print_records
    from luthier.corpus.build.units import limits_of
    from luthier.corpus.exchange import first_records, with_columns
    from luthier.corpus.unread import unread_notes

    corpus = with_columns(corpus_from(sources, overrides or []), text, label)
    records = first_records(corpus, rows)
    for note in unread_notes(corpus.inputs, limits_of(corpus)):
        typer.echo(f"note: {note}", err=True)
    typer.echo(json.dumps(records, ensure_ascii=False)) if as_json else print_records(records)


def is_recipe(sources: list[str]) -> bool:
    """Whether the one source is a recipe."""
    return len(sources) == 1 and Path(sources[0]).suffix.lower() in (".yaml", ".yml")


def prepares(recipe: str) -> bool:
    """Whether a recipe has a corpus and no task to peek at."""
    from luthier.recipe import load_corpus

    try:
        load_corpus(recipe)
    except RecipeError:
        return False
    return "task:" not in Path(recipe).read_text(encoding="utf-8")


def corpus_from(sources: list[str], overrides: list[str]) -> Corpus:
    """The corpus of a recipe, or of some files."""
    from luthier.recipe import corpus_of, load_corpus

    return load_corpus(sources[0], overrides) if is_recipe(sources) else corpus_of(sources, overrides)


def read_shard(text: str | None) -> Shard | None:
    """`1/4` as a shard.

    Raises:
        DataError: not of that form.
    """
    from luthier.corpus.build.run import Shard

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise DataError(f'--shard "{text}": write I/N with I from 0 to N-1, such as 0/4.')
    return Shard(int(found[1]), int(found[2]))


def counter_for(corpus: Corpus) -> TokenCounter | None:
    """Counts tokens where chunking asks for a model; None else, and lengths are in words."""
    if not corpus.steps.chunking.max_tokens:
        return None
    from luthier.models.load import load_tokenizer, token_counter
    from luthier.models.store import find_model

    return token_counter(load_tokenizer(find_model(corpus.steps.chunking.model)))
