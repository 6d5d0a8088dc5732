"""The corpus part of a recipe: where documents and records come from, and what is done to them. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.base import Part, Seed, Share, Variable
from luthier.recipe.columns import ColumnNames

ReadFormat = Literal[
    "auto", "document", "columns", "lines", "luthier", "chat", "prompt_completion", "alpaca", "sharegpt", "trl",
    "hh_rlhf", "ranking", "thumbs", "conll", "label_studio", "argilla", "run_export", "question_answer", "spans",
]  # fmt: skip
WriteFormat = Literal[
    "luthier", "text", "columns", "chat", "prompt_completion", "alpaca", "sharegpt", "trl", "trl_conversational",
    "hh_rlhf", "ranking", "thumbs", "conll", "label_studio", "argilla", "run_export", "question_answer", "spans",
]  # fmt: skip


class Input(Part):
    """One source of records."""

    path: str = Field(
        description="A file, a folder or a glob; compressed files (.gz, .zst) are read as what they hold. "
        "`hub:OWNER/NAME` fetches the training split of a data set from the hub, "
        "`hub:OWNER/NAME/data/train*.parquet` some of its files."
    )
    split: str | None = Field(
        None, description="Split of a data set of the hub: train (also where nothing is said), validation, test, or "
        "what it calls its own.",
    )  # fmt: skip
    config: str | None = Field(
        None, description="Configuration (subset) of a data set of the hub; needed where it has several."
    )
    format: ReadFormat = Field(
        "auto", description="What the rows are; `auto` looks at the file's ending and first rows."
    )
    columns: ColumnNames = Field(
        default_factory=dict,
        description="Columns of a table by the names that luthier reads: `{prompt: question, response: answer}`, "
        "`{text: [headline, description], label: desk}`. They are renamed before the format is found.",
    )
    join: str = Field("\n\n", description="What stands between several columns of one name (`columns`).")
    text: str = Field("text", description="Column of the text (`columns`).")
    separator: str = Field(
        "|",
        min_length=1,
        description="What parts text and label (`lines`; the last one counts), or the columns of a CSV file: left at "
        "`|`, the header says which of comma, semicolon, tab and pipe it is.",
    )
    label: str | None = Field(None, description="Column of the label (`columns`); without it, rows are documents.")
    tag_names: list[str] = Field(
        default_factory=list,
        description="The names of tags that are written as numbers, from 0 on: `[O, B-PER, I-PER]`.",
    )
    licence: str | None = Field(
        None, description="Licence of the rows, where they do not say it (SPDX id, or your word)."
    )
    licence_column: str | None = Field(None, description="Column that holds each row's licence.")
    group: str | None = Field(
        None, description="Column whose value keeps rows on one side of a split (author, document)."
    )
    date: str | None = Field(None, description="Column that holds each row's date (ISO 8601).")
    weight: float = Field(1.0, gt=0, strict=False, description="Weight in a mixture.")
    task: str | None = Field(None, description="Task tag in a mixture; by default the file's name.")

    @model_validator(mode="after")
    def named_once(self) -> Input:
        """A column is named in one place."""
        for name, single in (("text", self.text != "text"), ("label", self.label is not None)):
            if single and name in self.columns:
                raise ValueError(f"{name} and columns.{name} both name a column; leave one of them out")
        return self


class Repair(Part):
    """Mended text: mojibake, Unicode forms, control characters, white space, boilerplate lines."""

    enabled: bool = Field(True, description="Mend texts.")
    boilerplate: list[str] = Field(
        default_factory=list, description="Further lines to drop (regular expressions, matched against the whole line)."
    )


class Language(Part):
    """The language a record is in."""

    enabled: bool = Field(True, description="Find the language of each record, for the ledger.")
    keep: list[str] = Field(default_factory=list, description="Languages to keep (ISO 639-1); empty keeps all.")
    minimum_confidence: float = Field(0.5, ge=0, le=1, description="Below it a record counts as of unknown language.")
    minimum_chars: int = Field(40, ge=0, description="Shorter records are not judged, and kept.")


class Quality(Part):
    """Published rules of quality for documents."""

    rules: Literal["off", "gopher", "fineweb", "both"] = Field("off", description="Whose rules to apply.")
    off: list[str] = Field(default_factory=list, description="Rules, by name, that are not applied.")
    minimum_words: int = Field(50, ge=0, description="Fewest words (gopher_words).")
    maximum_words: int = Field(100_000, ge=1, description="Most words (gopher_words).")


class Duplicates(Part):
    """Copies and near copies."""

    exact: bool = Field(True, description="Drop records whose texts agree once case and punctuation are folded.")
    near: Annotated[float, Field(ge=0, le=1)] = Field(
        0.8, strict=False, description="Drop near copies from this Jaccard similarity of word shingles on; 0 = off."
    )
    shingle_words: int = Field(3, ge=1, description="Words of a shingle.")
    permutations: int = Field(120, ge=16, description="MinHash permutations; 4 bytes a document each.")
    keep: Literal["first", "longest"] = Field("first", description="Which record of a cluster stays.")
    lines: bool = Field(False, description="Drop lines that stand in many documents (headers, footers).")
    lines_every: int = Field(6, ge=2, description="A line goes from its this-many-th document on (`lines`).")
    substring_words: int = Field(
        0, ge=0, description="Cut repeats of at least this many words that stood in an earlier document; 0 = off."
    )


class Personal(Part):
    """Personal data and secrets."""

    action: Literal["off", "report", "mask", "pseudonym", "drop"] = Field(
        "report",
        description="`report` counts; `mask` writes <EMAIL>; `pseudonym` writes the same invented value for the same "
        "person everywhere; `drop` drops the record.",
    )
    types: list[str] = Field(default_factory=list, description="Types to look for; empty: all that need no model.")
    regions: list[str] = Field(
        default_factory=lambda: ["US", "GB"],
        description="Countries whose national spelling of phone numbers is known (ISO 3166-1).",
    )
    key_variable: Variable = Field(
        "LUTHIER_PSEUDONYM_KEY", description="Environment variable that holds the pseudonyms' secret key."
    )
    names: Literal["off", "presidio"] = Field("off", description="Look for names and addresses with a local model.")
    names_model: str = Field("en_core_web_sm", description="The local spaCy model for `names`.")


class Licences(Part):
    """Which licences may be trained on."""

    allow: list[str] = Field(default_factory=list, description="Keep only these; empty keeps all that are not denied.")
    deny: list[str] = Field(default_factory=list, description="Drop these.")


class Labels(Part):
    """Which labels rows may have."""

    allow: list[str] = Field(
        default_factory=list,
        description="The labels, in their one canonical spelling; rows with others are dropped. Empty keeps labels as "
        "they are.",
    )
    aliases: dict[str, str] = Field(default_factory=dict, description="Other spellings, each with its label.")


class Templating(Part):
    """Records written as one training text each: a prompt and its completion."""

    layout: Literal["off", "hash", "own"] = Field(
        "off",
        description="`hash`: ### Instruction, ### Context (where there is one), ### Response; `own`: yours.",
    )
    prompt: str = Field("", description="Own prompt template (Jinja, sandboxed); its names are the record's fields.")
    completion: str = Field("{{ response }}", description="Own template of the completion.")


class Chunking(Part):
    """Documents cut to fit the context window."""

    max_tokens: int = Field(0, ge=0, description="Most tokens of a piece; 0 leaves documents whole.")
    overlap_tokens: int = Field(0, ge=0, description="Tokens of the piece before that are said again.")
    model: str = Field("smollm2-135m-instruct", description="Model whose tokenizer counts.")


class Splitting(Part):
    """Held-out records."""

    validation_share: float = Field(0.0, ge=0, lt=1, description="Share set aside for choosing.")
    test_share: float = Field(0.0, ge=0, lt=1, description="Share held out.")
    by: Literal["seed", "time"] = Field("seed", description="At random by seed, or the newest rows (needs dates).")
    stratify: bool = Field(True, description="Keep each label's share.")
    frozen: str | None = Field(
        None, description="File of test rows by hash: written when missing, and obeyed by every later run."
    )


class Contamination(Part):
    """Training rows that stand in what the model will be tested on."""

    against: list[str] = Field(default_factory=list, description="Files to compare with, beside the test part.")
    probes: bool = Field(True, description="Also compare with the benchmark probes that come with luthier.")
    ngram_words: int = Field(13, ge=3, description="A shared run of this many words is contamination.")
    near: Annotated[float, Field(ge=0, le=1)] = Field(0.8, strict=False, description="So is this Jaccard similarity.")
    action: Literal["report", "drop"] = Field("report", description="What becomes of such training rows.")


class Mixing(Part):
    """How inputs are mixed into one training order."""

    enabled: bool = Field(False, description="Write one mixed order instead of the inputs one after the other.")
    temperature: float = Field(
        1.0, gt=0, strict=False, description="Shares go by (weight * rows) ** (1 / temperature)."
    )
    epochs: float = Field(1.0, gt=0, strict=False, description="Passes over the rows, all in all.")
    replay: str | None = Field(None, description="File of general records mixed in against forgetting.")
    replay_share: Share = Field(0.1, description="Their share.")


class Steps(Part):
    """What is done to each record, in this order."""

    repair: Repair = Field(default_factory=Repair, description="Mended text.")
    language: Language = Field(default_factory=Language, description="Languages.")
    quality: Quality = Field(default_factory=Quality, description="Rules of quality.")
    licences: Licences = Field(default_factory=Licences, description="Licences.")
    labels: Labels = Field(default_factory=Labels, description="Labels.")
    personal: Personal = Field(default_factory=Personal, description="Personal data and secrets.")
    chunking: Chunking = Field(default_factory=Chunking, description="Documents cut to pieces.")


class Corpus(Part):
    """A corpus to prepare: inputs, steps, duplicates, split, contamination, mixture, output."""

    seed: Seed = Field(0, description="Every random choice follows from it.")
    inputs: list[Input] = Field(min_length=1, description="Where records come from.")
    steps: Steps = Field(default_factory=Steps, description="What is done to each record.")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="Copies and near copies.")
    split: Splitting = Field(default_factory=Splitting, description="Held-out records.")
    contamination: Contamination = Field(default_factory=Contamination, description="Train against test.")
    mixing: Mixing = Field(default_factory=Mixing, description="Mixture of the inputs.")
    template: Templating = Field(default_factory=Templating, description="Training texts instead of records.")
    output: Literal["jsonl", "parquet"] = Field("jsonl", description="How shards are written.")
    write: WriteFormat = Field("luthier", description="The shape of the rows that are written.")
    as_read: bool = Field(
        False,
        description="Write rows of tables as they were read, with all their columns, in the place of records in the "
        "shape of `write`. Only where no step changes a record.",
    )
    shard_rows: int = Field(50_000, ge=1, description="Rows of one shard.")
    max_dropped_share: float = Field(0.9, ge=0, le=1, description="More dropped rows than this is an error.")
    max_line_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="Longer lines are dropped unread.")
    max_file_bytes: int = Field(1024**3, ge=1024, description="Most bytes a compressed or binary file may unpack to.")
