"""The recipe: one strict YAML file that says everything about a run. No torch here.

Unknown keys are errors with the nearest known name, all problems are reported at once, and each default
stands here and nowhere else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, ValidationError

from luthier.errors import RecipeError, did_you_mean
from luthier.recipe.base import Part, Seed, Share, explain, sound_sections
from luthier.recipe.columns import ColumnNames
from luthier.recipe.corpus import Corpus
from luthier.recipe.prior import ClassPrior, prior_problems
from luthier.recipe.reading import RecipeSource, absolute, apply_overrides, read_values, require_kind, source_name
from luthier.recipe.sweep import Sweep
from luthier.recipe.synthetic import Synthetic
from luthier.recipe.template import ChatTemplate
from luthier.recipe.training import Training, tune_problems

ArmName = Literal["majority", "tfidf", "zero_shot", "best_prompt", "few_shot", "retrieval", "tuned"]
ALL_ARMS: tuple[ArmName, ...] = get_args(ArmName)


class Task(Part):
    """What the model must do. One object in training, in every arm, in evaluation and in `predict`."""

    kind: Literal["classify"] = Field("classify", description="What the model must do.")
    instruction: str = Field(
        "Classify the text into one of the categories.",
        min_length=1,
        description="What the model is told to do; stands before every text.",
    )
    labels: list[str] = Field(
        description="The labels, in their one canonical spelling. Case, spaces and & / and / _ in the data "
        "are folded onto it.",
        min_length=2,
    )
    aliases: dict[str, str] = Field(
        default_factory=dict, description="Other spellings found in the data, each with its label."
    )
    wording: Literal["auto", "as_is"] = Field(
        "auto",
        description="How labels read in prompts and answers: `auto` writes MEDIA_AND_ARTS as Media And Arts, which "
        "models know as words; `as_is` keeps the spelling. Data and results keep the label either way.",
    )
    text_name: str = Field("Text", min_length=1, description="What a text is called in the prompt.")
    answer_name: str = Field("Category", min_length=1, description="What the answer is called in the prompt.")
    wordings: list[str] = Field(
        default_factory=list,
        description="Further instructions that the `best_prompt` arm tries beside `instruction` and the built-in ones.",
    )
    abstention: str = Field(
        "UNABLE_TO_CLASSIFY",
        min_length=1,
        description="The answer that counts as `abstained` when a generated reply says it.",
    )


class Data(Part):
    """Where the rows are, and how they are split."""

    train: str | None = Field(
        None,
        description="Training rows: .jsonl, .csv, .tsv, .parquet or a text file of `text|LABEL` lines. Must be given, "
        "unless `corpus` is.",
    )
    test: str | None = Field(None, description="Held-out rows. Without it, `test_share` of `train` is held out.")
    format: Literal["auto", "jsonl", "csv", "lines"] = Field(
        "auto", description="File format; `auto` goes by the file's ending."
    )
    columns: ColumnNames = Field(
        default_factory=dict,
        description="Columns of the text and of the label, as an input of `corpus` names them: `{text: [headline, "
        "description], label: desk}` puts two columns together.",
    )
    join: str = Field("\n\n", description="What stands between several columns of the text.")
    text: str = Field("text", description="Column that holds the text (JSONL, CSV).")
    label: str = Field("label", description="Column that holds the label (JSONL, CSV).")
    separator: str = Field(
        "|",
        min_length=1,
        description="Separator of `lines` files, the last one counts; or of a CSV file's columns: left at `|`, the "
        "header says which of comma, semicolon, tab and pipe it is.",
    )
    validation_share: Share = Field(
        0.12, description="Share of the training rows on which everything is chosen (never the test rows)."
    )
    test_share: Share = Field(0.2, description="Share held out when there is no test file.")
    max_tokens: int = Field(512, ge=8, description="Rows whose text has more tokens are dropped, and said.")
    class_prior: ClassPrior | None = Field(
        None,
        description="How often each label comes among the rows to be sorted, where that is known: `train` (as in the "
        "training rows), `uniform`, or a share for each label. Every arm's answers are weighted so that the labels "
        "come in these shares, by the texts of the test rows, without their labels. Left out: answers as scored.",
    )
    corpus: Corpus | None = Field(
        None, description="Prepare the rows first, from documents or records of any shape (`luthier data prepare`)."
    )
    synthetic: Synthetic | None = Field(
        None,
        description="Records to be written by a model; `luthier data synthesize` reads it, `luthier run` does not.",
    )
    max_dropped_share: float = Field(
        0.5, ge=0, le=1, description="The run refuses when more than this share of a file's rows is dropped."
    )


class Tune(Training):
    """How the `tuned` arm learns."""

    method: Literal["head", "candidates", "sft"] = Field(
        "head",
        description="`head`: a classification head on the mean hidden state of the text, started from the "
        "label tokens; `candidates`: cross-entropy over the labels' log-probabilities; "
        "`sft`: next-token loss on the label.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all labels (`head`, `candidates`)."
    )
    refit: bool = Field(
        True,
        description="Train anew on training and validation rows once the first training has been validated: the whole "
        "schedule, or, where that overfits, one that ends at the best step. Costs a second training; the temperature "
        "stays that of the first.",
    )


class Ask(Part):
    """How the prompt arms are chosen, all on validation rows."""

    validation_rows: int = Field(64, ge=8, description="Validation rows on which prompts and shots are chosen.")
    shots: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [8, 16], min_length=1, description="Numbers of examples `few_shot` tries."
    )
    shot_draws: int = Field(2, ge=1, description="Random draws of examples `few_shot` tries for each number.")
    neighbours: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [2, 4], min_length=1, description="Numbers of examples `retrieval` tries."
    )
    batch_tokens: int = Field(2048, ge=64, description="Most distinct tokens of one scoring pass.")
    generate_rows: int = Field(
        0,
        ge=0,
        description="Also let the model write its answer on this many test rows, zero-shot, and report how "
        "each reply parsed (0 = off).",
    )


class Judge(Part):
    """What counts as worth it."""

    confidence: Share = Field(0.95, description="Confidence of every interval.")
    minimum_gain: float = Field(0.02, ge=0, lt=1, description="Smallest gain in accuracy worth having.")


class Cost(Part):
    """What a machine costs, so that seconds become money."""

    machine_per_hour: float = Field(0.10, ge=0, description="Price of this machine for an hour.")
    currency: str = Field("USD", description="Currency of that price.")

    def priced(self, training: dict[str, Any]) -> dict[str, Any]:
        """A training's values with all the time it took, validation and refit included, and what that cost."""
        total = training["seconds"] + training["validation_seconds"]
        return {**training, "total_seconds": total, "cost": total / 3600 * self.machine_per_hour}


class Recipe(Part):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run folder.")
    seed: Seed = Field(0, description="Every random choice follows from it.")
    model: str = Field(
        "smollm2-135m-instruct",
        description="Starter name, hub id (a revision may follow it: owner/name@revision), folder or GGUF file.",
    )
    attention: Literal["auto", "grouped", "dense", "padded"] = Field(
        "auto", description="Token forest backend; `auto` is `grouped` for proven families, else `padded`."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Factors of the linear layers' products; sums stay float32. `auto` is `bfloat16` where the "
        "processor (AMX, AVX512-BF16) or the GPU multiplies in it, else `float32`.",
    )
    task: Task = Field(description="What the model must do.")
    data: Data = Field(description="The rows.")
    arms: list[ArmName] = Field(
        default_factory=lambda: list(ALL_ARMS), min_length=1, description="Ways that are compared."
    )
    tune: Tune = Field(default_factory=Tune, description="How the tuned arm learns.")
    prompt: ChatTemplate = Field(default_factory=ChatTemplate, description="The chat template of all prompts.")
    ask: Ask = Field(default_factory=Ask, description="How the prompt arms are chosen.")
    judge: Judge = Field(default_factory=Judge, description="What counts as worth it.")
    cost: Cost = Field(default_factory=Cost, description="Prices.")
    sweep: Sweep | None = Field(
        None, description="What is searched for better values; `luthier sweep` reads it, `luthier run` does not."
    )


def load_recipe(recipe: RecipeSource, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a recipe's plain values.

    Paths in a file are relative to its folder, those in values and in `overrides` to the current one.

    `overrides` are `path.to.key=value` texts, values in YAML. Raises RecipeError with every problem found.
    """
    values, problems = read_values(recipe, overrides)
    require_kind(values, source_name(recipe), ("run",), problems)
    return parse_recipe(values, source_name(recipe), problems)


def load_corpus(path: str | Path, overrides: Sequence[str] = ()) -> Corpus:
    """The corpus of a recipe file (`data.corpus`); what else the recipe says need not be there yet."""
    values, problems = read_values(Path(path), overrides)
    require_kind(values, str(path), ("prepare",), problems)
    data = values.get("data")
    corpus = data.get("corpus") if isinstance(data, dict) else None
    if not isinstance(corpus, dict):
        raise RecipeError(str(path), [*problems, "has no section data.corpus with the key inputs."])
    return parse_corpus(corpus, str(path), problems, "data.corpus.")


def corpus_of(files: Sequence[str], overrides: Sequence[str] = ()) -> Corpus:
    """A corpus of some files, all else at its default; `overrides` are `path.to.key=value` inside the corpus."""
    values: dict[str, Any] = {"inputs": [{"path": absolute(file)} for file in files]}
    return parse_corpus(values, "the command", apply_overrides(values, overrides))


def parse_corpus(values: Mapping[str, Any], source: str, problems: Sequence[str] = (), prefix: str = "") -> Corpus:
    """A Corpus from plain values; RecipeError lists all problems at once."""
    try:
        corpus = Corpus.model_validate(values)
    except ValidationError as error:
        told = [explain(item, Corpus) for item in error.errors()]
        told += corpus_problems(sound_sections(Corpus, values, error.errors()))
        raise RecipeError(source, [*problems, *(prefix + problem for problem in told)]) from None
    if found := [*problems, *(prefix + problem for problem in corpus_problems(dict(corpus)))]:
        raise RecipeError(source, found)
    return corpus


def corpus_problems(sections: Mapping[str, Any]) -> list[str]:
    """Rules of a corpus that need more than one field; a section left out has problems of its own."""
    problems = []
    split, steps, template, mixing = (sections.get(name) for name in ("split", "steps", "template", "mixing"))
    if split and split.validation_share + split.test_share >= 1:
        problems.append("split: validation_share and test_share leave nothing to train on.")
    if steps and steps.language.keep and not steps.language.enabled:
        problems.append("steps.language.keep: has no effect while steps.language.enabled is false.")
    if steps and steps.labels.aliases and not steps.labels.allow:
        problems.append("steps.labels.aliases: name the labels themselves in steps.labels.allow.")
    if template and template.layout == "own" and not template.prompt:
        problems.append("template.prompt: layout own needs a template.")
    if template and template.layout != "own" and template.prompt:
        problems.append("template.prompt: has no effect unless template.layout is own.")
    if steps and steps.chunking.max_tokens and steps.chunking.overlap_tokens >= steps.chunking.max_tokens:
        problems.append("steps.chunking: overlap_tokens must be smaller than max_tokens.")
    changes = changing_steps(sections) if sections.get("as_read") else []
    if changes:
        problems.append(f"as_read: rows are written as they were read, which {', '.join(changes)} would change.")
    if mixing and (mixing.replay or mixing.temperature != 1.0) and not mixing.enabled:
        problems.append("mixing: set enabled: true, or its other keys do nothing.")
    return problems


def changing_steps(sections: Mapping[str, Any]) -> list[str]:
    """Settings of a corpus under which its records are not as they were read."""
    steps, template, duplicates = (sections.get(name) for name in ("steps", "template", "duplicates"))
    changes = {
        "steps.repair.enabled": steps and steps.repair.enabled,
        "steps.labels.allow": steps and steps.labels.allow,
        "steps.personal.action": steps and steps.personal.action in ("mask", "pseudonym"),
        "steps.chunking.max_tokens": steps and steps.chunking.max_tokens,
        "template.layout": template and template.layout != "off",
        "duplicates.lines": duplicates and duplicates.lines,
        "duplicates.substring_words": duplicates and duplicates.substring_words,
    }
    return [name for name, changing in changes.items() if changing]


def parse_recipe(values: Mapping[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> Recipe:
    """A Recipe from plain values; RecipeError lists all problems (and those handed in) at once."""
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        told = [explain(item, Recipe) for item in error.errors()]
        told += cross_field_problems(sound_sections(Recipe, values, error.errors()))
        raise RecipeError(source, [*problems, *told]) from None
    if found := [*problems, *cross_field_problems(dict(recipe))]:
        raise RecipeError(source, found)
    return recipe


def cross_field_problems(sections: Mapping[str, Any]) -> list[str]:
    """Rules that need more than one field, all of them; a section left out has problems of its own."""
    problems = []
    data, task, arms, tune = (sections.get(name) for name in ("data", "task", "arms", "tune"))
    if data:
        problems += data_problems(data)
    if task:
        problems += task_problems(task)
    if data and task:
        problems += prior_problems(data.class_prior, task.labels)
    if arms and len(set(arms)) != len(arms):
        problems.append("arms: a name stands twice.")
    if tune:
        problems += tune_problems(tune, "tune", validated=True) + refit_problems(tune)
    return problems


def data_problems(data: Data) -> list[str]:
    """Rows come from a file or from a corpus, which holds out and sets aside as a run wants it."""
    problems = []
    if (data.train is None) == (data.corpus is None):
        problems.append("data: give either train (a file of rows) or corpus (inputs to prepare).")
    problems += [
        f"data.columns.{name}: a run reads a text and its label; leave it out, or train by `luthier train`."
        for name in data.columns
        if name not in ("text", "label")
    ]
    if not isinstance(data.columns.get("label", ""), str):
        problems.append("data.columns.label: name one column.")
    problems += [
        f"data.{name}: data.columns.{name} names a column too; leave one of them out."
        for name in ("text", "label")
        if name in data.columns and getattr(data, name) != name
    ]
    if data.corpus is not None:
        problems += [f"data.corpus.{problem}" for problem in corpus_problems(dict(data.corpus))]
        if data.corpus.split.validation_share:
            problems.append("data.corpus.split.validation_share: a run sets data.validation_share aside; use that.")
        if data.columns:
            problems.append("data.columns: with data.corpus, name the columns in data.corpus.inputs.")
        if data.test is not None:
            problems.append("data.test: with data.corpus, hold rows out by data.corpus.split.test_share.")
    return problems


def task_problems(task: Task) -> list[str]:
    """Labels, aliases and the abstention are told apart by their folded spelling."""
    problems = []
    folded: dict[str, str] = {}
    for label in task.labels:
        key = fold_label(label)
        if not key:
            problems.append(f"task.labels: {label!r} has no letters or digits.")
        elif key in folded:
            problems.append(f'task.labels: "{label}" and "{folded[key]}" are the same label once spelling is folded.')
        folded[key] = label
    for alias, label in task.aliases.items():
        meant = folded.setdefault(fold_label(alias), label)
        if not fold_label(alias):
            problems.append(f"task.aliases: {alias!r} has no letters or digits.")
        elif meant != label:
            problems.append(
                f'task.aliases: "{alias}" stands for "{label}", but its folded spelling is that of "{meant}".'
            )
        if label not in task.labels:
            problems.append(
                f'task.aliases: "{alias}" stands for "{label}", which is not in task.labels.'
                + did_you_mean(label, task.labels)
            )
    if fold_label(task.abstention) in folded:
        problems.append(f'task.abstention: "{task.abstention}" is also a label or an alias.')
    return problems


def refit_problems(tune: Tune) -> list[str]:
    """A training on all rows has no validation to look at."""
    return [
        f"tune.refit: trains on the validation rows too, and {key}: plateau has to look at them. Set "
        f"tune.refit: false, or another {key}."
        for key, kind in (("schedule", tune.schedule), ("unfreeze", tune.unfreeze))
        if tune.refit and kind.kind == "plateau"
    ]


def fold_label(label: str) -> str:
    """The form in which spellings of one label agree: `Arts & Culture` = `ARTS_AND_CULTURE` = `arts and culture`."""
    spaced = label.casefold().replace("&", " and ")
    return " ".join("".join(char if carries_meaning(char) else " " for char in spaced).split())


def carries_meaning(char: str) -> bool:
    """Letters, digits, the marks that belong to letters (Hindi vowels), and what tells C, C++ and C# apart."""
    return char.isalnum() or char in "+#" or unicodedata.category(char).startswith("M")


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)
