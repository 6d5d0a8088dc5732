"""Argilla's exports: records with `fields` and `responses` (versions 1 and 2), or flat `QUESTION.responses` columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.corpus.fold import row_key
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.annotated import PROVENANCE_NAMES, agreed, answer_names, main_text, two_answers
from luthier.corpus.shapes.base import ANSWER_NAMES, PROMPT_NAMES, Row, RowShape, has, name_in, type_name
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.label_studio import is_words
from luthier.corpus.shapes.ranking import ranked, read_number
from luthier.corpus.shapes.spans import Span, spans_of, tag_spans
from luthier.corpus.shapes.thumbs import as_verdict
from luthier.corpus.shapes.turns import framed, plain_answer, prompt_as_value, read_answer, read_prompt
from luthier.records import Labelled, Message, Preference, Ranking, Rating, Record, Source, Tagged

RESPONSES, SUGGESTION = ".responses", ".suggestion"
NO_FIELDS = {"id", "_server_id", "status", "metadata", "vectors", "inserted_at", "updated_at", *PROVENANCE_NAMES}


@dataclass(frozen=True)
class Item:
    """A record of any version in one form: `answers` are the values people gave to each question.

    Where nobody answered, they are the suggestions, and `agent` names the model that made them.
    """

    fields: Row
    answers: dict[str, list[Any]]
    agent: str | None = None


class Argilla(RowShape):
    """A label becomes a label, a ranking a ranking, spans BIO tags, a chosen answer a preference, a thumb a rating."""

    name = "argilla"
    kinds = (Labelled, Tagged, Ranking, Preference, Rating)
    columns = "fields, responses"

    def fits(self, row: Row) -> bool:
        """Fields with responses or suggestions, or flat columns of them."""
        nested = isinstance(row.get("fields"), Mapping) and ("responses" in row or "suggestions" in row)
        return nested or any(str(name).endswith(RESPONSES) for name in row)

    def places(self, row: Row) -> list[Row]:
        """The record's metadata, and what stands beside the fields of a flat row."""
        return [value for value in (row.get("metadata"), row) if isinstance(value, Mapping)]

    def placed(self, row: dict[str, object], columns: dict[str, object]) -> dict[str, object]:
        """Provenance goes to the metadata."""
        return {**row, "metadata": columns} if columns else row

    def records(self, row: Row, source: Source) -> list[Record | Problem]:
        """One record for each question that was answered."""
        item = flat_item(row) if "fields" not in row else nested_item(row)
        if item.agent is not None:
            source = replace(source, synthetic=source.synthetic or item.agent)
        answered = {question: values for question, values in item.answers.items() if values}
        if not answered:
            raise Refused("no_annotation", "nobody answered a question of this record. Label it, or leave it out.")
        items: list[Record | Problem] = []
        for question, values in answered.items():
            try:
                items.append(read_answered(agreed(values, question), item.fields, question, source))
            except Refused as refused:
                items.append(refused.problem)
        return items

    def row(self, record: Any) -> dict[str, object]:
        """A record of version 2."""
        match record:
            case Labelled():
                return answered({"text": record.text}, "label", record.label)
            case Tagged():
                text, spans = spans_of(record.words, record.tags)
                value = [{"start": span.start, "end": span.end, "label": span.label} for span in spans]
                return answered({"text": text, "words": list(record.words)}, "spans", value)
            case Rating():
                asked = {"prompt": prompt_as_value(record.prompt), "answer": record.answer}
                return answered(asked, "thumb", "up" if record.good else "down")
            case Preference():
                pair = [plain_answer(turns, self.name) for turns in (record.chosen, record.rejected)]
                return answered(with_answers(record.prompt, pair), "preference", "answer-1")
        fields = with_answers(record.prompt, record.answers)
        scores = record.scores or tuple(-float(index) for index in range(len(record.answers)))
        ranks = [1 + sum(other > score for other in scores) for score in scores]
        value = [{"value": f"answer-{number}", "rank": rank} for number, rank in enumerate(ranks, start=1)]
        return answered(fields, "ranking", value)


# --- one form for all versions -------------------------------------------------------------------------


def nested_item(row: Row) -> Item:
    """A record with `fields`. Version 2 has responses by question, version 1 one object a person with all values."""
    fields = row["fields"]
    if not isinstance(fields, Mapping):
        raise Refused("wrong_type", f'"fields" is {type_name(fields)}; it must be an object.')
    responses, suggestions = row.get("responses") or {}, row.get("suggestions") or {}
    answers: dict[str, list[Any]] = {}
    for question, given in question_pairs(responses):
        answers.setdefault(question, []).append(given)
    if answers:
        return Item(fields, answers)
    agent = None
    for question, given in question_pairs(suggestions):
        answers.setdefault(question, []).append(given.get("value") if isinstance(given, Mapping) else given)
        agent = agent or str((isinstance(given, Mapping) and given.get("agent")) or "suggestion")
    return Item(fields, answers, agent)


def question_pairs(value: Any) -> list[tuple[str, Any]]:
    """(question, what was given) of responses or suggestions; discarded and unfinished responses are left out."""
    if isinstance(value, Mapping):
        lists = [(question, given if isinstance(given, list) else [given]) for question, given in value.items()]
        return [(question, plain_given(given)) for question, many in lists for given in many if is_submitted(given)]
    found: list[tuple[str, Any]] = []
    for given in value if isinstance(value, list) else ():
        if not isinstance(given, Mapping) or not is_submitted(given):
            continue
        if isinstance(given.get("values"), Mapping):
            found += [(question, plain_given(one)) for question, one in given["values"].items()]
        elif given.get("question_name") is not None:
            found.append((str(given["question_name"]), given))
    return found


def is_submitted(given: Any) -> bool:
    """Whether a response counts; no status means that it was exported as an answer."""
    return not isinstance(given, Mapping) or given.get("status") in (None, "submitted", "completed")


def plain_given(given: Any) -> Any:
    """The value of a response; a suggestion stays whole for its agent's name."""
    if isinstance(given, Mapping) and "value" in given and "agent" not in given:
        return given["value"]
    return given


def flat_item(row: Row) -> Item:
    """A flat row: `QUESTION.responses`, `QUESTION.responses.status`, `QUESTION.suggestion`, all else is fields."""
    fields = {name: value for name, value in row.items() if "." not in name and name not in NO_FIELDS}
    answers: dict[str, list[Any]] = {}
    for name, value in row.items():
        if name.endswith(RESPONSES) and isinstance(value, list):
            statuses = row.get(f"{name}.status")
            submitted = statuses if isinstance(statuses, list) else ["submitted"] * len(value)
            pairs = zip(value, submitted, strict=False)
            answers[name.removesuffix(RESPONSES)] = [given for given, status in pairs if status == "submitted"]
    if any(answers.values()):
        return Item(fields, answers)
    suggested = {name: value for name, value in row.items() if name.endswith(SUGGESTION) and value is not None}
    agents = [row.get(f"{name}.agent") for name in suggested]
    agent = next((str(agent) for agent in agents if agent), "suggestion") if suggested else None
    return Item(fields, {name.removesuffix(SUGGESTION): [value] for name, value in suggested.items()}, agent)


# --- values to records ---------------------------------------------------------------------------------


def read_answered(value: Any, fields: Row, question: str, source: Source) -> Record:
    """The record of one question's answer, by the kind of its value."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return read_spans(value, fields, source) if "start" in value[0] else read_ranks(value, fields, question, source)
    if isinstance(value, list | tuple):
        if len(value) > 1 and all(isinstance(item, str) and item in fields for item in value):
            return read_ranks(
                [{"value": item, "rank": rank} for rank, item in enumerate(value)], fields, question, source
            )
        if not value and "words" in fields:
            return read_spans(value, fields, source)
        if len(value) != 1:
            raise Refused("several_labels", f'"{question}" has {len(value)} values; a labelled text has one label.')
        value = value[0]
    prompted = any(has(fields, name) for name in PROMPT_NAMES)
    if isinstance(value, str) and prompted and value in answer_names(fields):
        return read_choice(value, fields, source)
    good = as_verdict(value) if isinstance(value, str | bool) else None  # a number may be one of many stars
    if good is not None and any(has(fields, name) for name in ANSWER_NAMES):
        prompt, answer = name_in(fields, PROMPT_NAMES), name_in(fields, ANSWER_NAMES)
        return Rating(
            framed(fields, read_prompt(fields[prompt], prompt)), read_answer(fields[answer], answer), good, source
        )
    if isinstance(value, str):
        text = main_text(fields)
        return Labelled(text, value, source, row_key(text, value))
    detail = (
        f'"{question}" is {type_name(value)} ({value}); stars are neither up nor down. Ask for a label or a ranking.'
    )
    raise Refused("rating_scale", detail)


def read_spans(value: Any, fields: Row, source: Source) -> Tagged:
    """BIO tags of spans with `start`, `end` and `label`."""
    spans = []
    for item in value:
        start, end = item.get("start"), item.get("end")
        if not isinstance(start, int) or not isinstance(end, int):
            raise Refused("bad_span", "a span has no start and end in characters.")
        spans.append(Span(start, end, str(item.get("label"))))
    words: Any = fields.get("words")
    found = tag_spans(main_text(fields), spans, words if is_words(words) else None)
    return Tagged(tuple(found[0]), tuple(found[1]), source)


def read_ranks(value: Any, fields: Row, question: str, source: Source) -> Ranking:
    """A ranking of the fields that are named, by rank; equal ranks are ties and then stand as equal scores."""
    ranks = [read_number(item.get("rank"), f'"{question}" rank') for item in value]
    answers = []
    for item in value:
        if not isinstance(item.get("value"), str) or item["value"] not in fields:
            raise Refused("missing_field", f'"{question}" ranks "{item.get("value")}", but no field has that name.')
        answers.append(read_answer(fields[item["value"]], str(item["value"])))
    prompt = name_in(fields, PROMPT_NAMES)
    question_asked = framed(fields, read_prompt(fields[prompt], prompt))
    found = ranked(question_asked, tuple(answers), tuple(-rank for rank in ranks), source)
    return found if len(set(ranks)) < len(ranks) else replace(found, scores=None)


def read_choice(value: str, fields: Row, source: Source) -> Preference:
    """The pair of which one answer's field was chosen."""
    prompt, first, second = two_answers(fields)
    rejected = second if value == first else first
    answers = [(Message("assistant", str(fields[name])),) for name in (value, rejected)]
    return Preference(framed(fields, read_prompt(fields[prompt], prompt)), answers[0], answers[1], source)


def with_answers(prompt: Any, answers: Any) -> dict[str, object]:
    """Fields of a prompt and its answers."""
    texts = {f"answer-{number}": text for number, text in enumerate(answers, start=1)}
    return {"prompt": prompt_as_value(prompt), **texts}


def answered(fields: Mapping[str, object], question: str, value: object) -> dict[str, object]:
    """A record with one answer."""
    return {"fields": dict(fields), "responses": {question: [{"value": value}]}, "suggestions": {}}
