"""The synthetic part of a recipe: who writes new records, from which seeds, of what kind, and what may stay.

No torch here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.base import Part, Seed, Variable
from luthier.recipe.corpus import Input, Steps

UnitShare = Annotated[float, Field(ge=0, le=1, strict=False)]


class Writer(Part):
    """The model that writes."""

    engine: Literal["local", "endpoint"] = Field(
        "local", description="A model on this machine, or a server that speaks the OpenAI chat protocol."
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="`local`: starter name, hub id, folder or GGUF file; else the server's name.",
    )
    batch_rows: int = Field(16, ge=1, description="Replies written together (`local`).")
    base_url: str | None = Field(None, description="Address of the server, up to and with `/v1` (`endpoint`).")
    key_variable: Variable | None = Field(
        None, description="Environment variable that holds the server's key; without it no key is sent."
    )
    length_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the server calls the limit of a reply's length."
    )
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at a time (`endpoint`).")
    retries: int = Field(5, ge=0, description="How often a request is sent again after 429, 5xx or a timeout.")
    timeout_seconds: float = Field(120.0, gt=0, strict=False, description="Longest wait for a reply.")
    max_wait_seconds: float = Field(60.0, ge=0, strict=False, description="Longest pause between two tries.")
    max_reply_bytes: int = Field(1_000_000, ge=1000, description="Longer replies are given up.")


class Draws(Part):
    """How tokens are drawn."""

    temperature: float = Field(0.8, ge=0, le=5, strict=False, description="0 always takes the most likely token.")
    top_p: float = Field(0.95, gt=0, le=1, strict=False, description="Only the likeliest tokens that hold this share.")
    top_k: int = Field(0, ge=0, description="Only this many likeliest tokens; 0 = all.")
    max_new_tokens: int = Field(256, ge=1, description="Longest reply; what is cut off there is dropped.")


class Questions(Part):
    """Question and answer pairs from documents."""

    per_seed: int = Field(1, ge=1, description="Pairs asked for from each document.")
    most_passage_words: int = Field(400, ge=20, description="Words of a document that are shown, from its beginning.")
    min_supported_share: UnitShare = Field(
        0.7, description="Share of the answer's content words that must stand in the passage."
    )
    round_trip_f1: UnitShare = Field(
        0.0, description="Ask the question again with the passage; least token F1 of the two answers. 0 = do not ask."
    )


class Paraphrases(Part):
    """Labelled rows said in other words."""

    per_seed: int = Field(1, ge=1, description="Paraphrases asked for of each row.")
    round_trip: bool = Field(False, description="The text must be given its label back (`labels_by`).")


class Preferences(Part):
    """Two answers to the prompt of a conversation or instruction, one better."""

    decide: Literal["design", "reference"] = Field(
        "design",
        description="`design`: one is asked for badly; `reference`: two samples, the one closer to the seed's own "
        "answer (token F1) is chosen.",
    )
    per_seed: int = Field(1, ge=1, description="Pairs asked for from each prompt.")
    other_temperature: float = Field(
        1.0, ge=0, le=5, strict=False, description="Temperature of the second sample (`reference`)."
    )
    min_margin: UnitShare = Field(0.05, description="Least difference of the scores (`reference`).")


class Examples(Part):
    """New labelled rows for rare labels, after worked examples."""

    target: int = Field(ge=1, description="Rows each label should have; labels below it are written for.")
    shots: int = Field(4, ge=1, description="Rows of the label that are shown, drawn by seed.")
    attempts: float = Field(
        2.0, ge=1, strict=False, description="Rows asked for per missing row, as some are dropped; spare ones go too."
    )
    round_trip: bool = Field(False, description="The text must be given its label back (`labels_by`).")


class Columns(Part):
    """A text for each row of a table, from its other columns."""

    path: str = Field(description="The table: CSV, TSV or JSON lines.")
    use: list[str] = Field(
        default_factory=list, description="Columns that are shown; empty: all but `text` and `label`."
    )
    text: str = Field("text", description="The column to write; rows that have a text there are left alone.")
    label: str | None = Field(None, description="Column of the label: the records become labelled rows.")
    must_mention: list[str] = Field(
        default_factory=list, description="Columns whose value has to stand in the text, word for word."
    )
    min_supported_share: UnitShare = Field(
        0.4, description="Share of the text's content words that must stand in the columns."
    )
    about: str = Field("a short description", description="What to write, after the word `Write`.")
    licence: str | None = Field(None, description="Licence of the table.")


class Filters(Part):
    """What a generated record must keep to. The corpus steps come on top."""

    min_words: int = Field(3, ge=0, description="Fewest words of what was written.")
    max_words: int = Field(400, ge=1, description="Most words of what was written.")
    max_seed_similarity: UnitShare = Field(
        0.8,
        description="Jaccard similarity of word 3-grams to a seed from which a record goes; also the share of a "
        "paraphrase's or new row's 3-grams that may stand in the seeds it was made from.",
    )
    max_own_similarity: UnitShare = Field(0.7, description="The same among the generated records.")
    leak_words: int = Field(8, ge=3, description="A run of this many words of our own instruction is a leaked prompt.")


class Synthetic(Part):
    """Records written by a model from seeds. Give one or more of the kinds; each takes the seeds that fit it."""

    seed: Seed = Field(0, description="Every random choice follows from it.")
    writer: Writer = Field(default_factory=Writer, description="The model that writes.")
    draws: Draws = Field(default_factory=Draws, description="How tokens are drawn.")
    inputs: list[Input] = Field(
        default_factory=list, description="The seeds. Give training rows only, never test rows."
    )
    most_seeds: int = Field(0, ge=0, description="Use only this many seeds of each kind, drawn by seed; 0 = all.")
    questions: Questions | None = Field(None, description="Question and answer pairs from documents.")
    paraphrases: Paraphrases | None = Field(None, description="Labelled rows said in other words.")
    preferences: Preferences | None = Field(None, description="A better and a worse answer to one prompt.")
    examples: Examples | None = Field(None, description="New rows for rare labels.")
    columns: Columns | None = Field(None, description="Texts for the rows of a table.")
    labels_by: Literal["writer", "classifier"] = Field(
        "writer", description="Who labels in a round trip: the writer, asked without examples, or a given classifier."
    )
    language: str = Field("", description="Language to write in, said in the prompts (`French`); empty says nothing.")
    filters: Filters = Field(default_factory=Filters, description="What may stay.")
    steps: Steps = Field(default_factory=Steps, description="Corpus steps that each record goes through.")


KINDS = ("questions", "paraphrases", "preferences", "examples", "columns")


def synthetic_problems(settings: Synthetic) -> list[str]:
    """Rules that need more than one field, all of them."""
    problems = []
    wanted = [name for name in KINDS if getattr(settings, name) is not None]
    if not wanted:
        problems.append(f"give at least one kind: {', '.join(KINDS)}.")
    if not settings.inputs and any(name != "columns" for name in wanted):
        problems.append("inputs: name the files of the seeds.")
    if settings.writer.engine == "endpoint":
        url = settings.writer.base_url or ""
        if not url.startswith(("http://", "https://")):
            problems.append("writer.base_url: give the server's address, such as http://localhost:8000/v1.")
        elif "@" in url.partition("://")[2].partition("/")[0]:
            problems.append("writer.base_url: holds a name or password; put the key into an environment variable.")
        elif "?" in url or "#" in url:
            problems.append(
                "writer.base_url: has a ? or # in it, and paths are put behind it. Give the address alone, and a key "
                "in an environment variable."
            )
    elif settings.writer.base_url or settings.writer.key_variable:
        problems.append("writer: base_url and key_variable belong to engine: endpoint.")
    if settings.filters.min_words > settings.filters.max_words:
        problems.append("filters: min_words is more than max_words.")
    if settings.steps.chunking.max_tokens:
        problems.append("steps.chunking: generated records are not cut; leave max_tokens at 0.")
    return problems
