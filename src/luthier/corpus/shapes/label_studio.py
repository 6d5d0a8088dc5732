"""Label Studio's JSON export: tasks with `data` and `annotations`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.corpus.fold import row_key
from luthier.corpus.lines import Problem
from luthier.corpus.shapes.annotated import agreed, main_text, two_answers
from luthier.corpus.shapes.base import Row, RowShape, list_in, object_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.spans import Span, spans_of, tag_spans
from luthier.corpus.shapes.turns import plain_answer, plain_prompt, read_prompt
from luthier.records import Labelled, Message, Preference, Record, Source, Tagged

SPAN_TYPES = ("labels", "hypertextlabels")
PAIR_PROMPT, PAIR_ANSWERS = "prompt", ("answer1", "answer2")


class LabelStudio(RowShape):
    """Choices become labels, spans become BIO tags, a pairwise choice becomes a preference; other types are refused."""

    name = "label_studio"
    kinds = (Labelled, Tagged, Preference)
    columns = "data, annotations"

    def fits(self, row: Row) -> bool:
        """A task."""
        return isinstance(row.get("data"), Mapping) and isinstance(row.get("annotations", row.get("completions")), list)

    def places(self, row: Row) -> list[Row]:
        """A task's own dates tell when it was imported, not when it was written: only `meta` and `data` count."""
        return [value for name in ("meta", "data") if isinstance(value := row.get(name), Mapping)]

    def placed(self, row: dict[str, object], columns: dict[str, object]) -> dict[str, object]:
        """Provenance goes to the task's `meta`."""
        return {**row, "meta": columns} if columns else row

    def records(self, row: Row, source: Source) -> list[Record | Problem]:
        """One record for each type of annotation."""
        data = object_in(row, "data")
        by_type = results_by_type(row)
        items: list[Record | Problem] = []
        for kind, results in by_type.items():
            try:
                items.append(self.record(kind, agreed(results, kind), data, source))
            except Refused as refused:
                items.append(refused.problem)
        return items

    def record(self, kind: str, results: list[dict[str, Any]], data: Row, source: Source) -> Record:
        """The record of the results of one type."""
        if kind == "choices":
            label = one_choice(results)
            return Labelled(main_text(data), label, source, row_key(main_text(data), label))
        if kind in SPAN_TYPES:
            words: Any = data.get("words")
            found = tag_spans(
                main_text(data), [read_span(result) for result in results], words if is_words(words) else None
            )
            return Tagged(tuple(found[0]), tuple(found[1]), source)
        if kind == "pairwise":
            return read_pair(results, data, source)
        known = "choices, labels and pairwise"
        raise Refused(
            "unsupported_annotation", f'an annotation of type "{kind}" makes no training record. Read: {known}.'
        )

    def row(self, record: Labelled | Tagged | Preference) -> dict[str, object]:
        """A task with one annotation."""
        if isinstance(record, Labelled):
            return task({"text": record.text}, [result("choices", {"choices": [record.label]})])
        if isinstance(record, Tagged):
            text, spans = spans_of(record.words, record.tags)
            if not spans:
                raise Refused("no_annotation", "no word has a tag but O, and a task without spans says nothing.")
            values = [
                {"start": s.start, "end": s.end, "text": text[s.start : s.end], "labels": [s.label]} for s in spans
            ]
            return task({"text": text, "words": list(record.words)}, [result("labels", value) for value in values])
        prompt = plain_prompt(record.prompt, self.name)
        answers = [plain_answer(turns, self.name) for turns in (record.chosen, record.rejected)]
        data: dict[str, object] = {PAIR_PROMPT: prompt, **dict(zip(PAIR_ANSWERS, answers, strict=True))}
        return task(data, [result("pairwise", {"selected": "left"})])


def results_by_type(row: Row) -> dict[str, list[list[dict[str, Any]]]]:
    """For each type of result, what each annotator gave (values only, those of one annotator in a list)."""
    annotations = list_in(row, "annotations" if row.get("annotations") is not None else "completions")
    done = [item for item in annotations if isinstance(item, Mapping) and not item.get("was_cancelled")]
    done = [item for item in done if item.get("ground_truth")] or done
    by_type: dict[str, list[list[dict[str, Any]]]] = {}
    for annotation in done:
        mine: dict[str, list[dict[str, Any]]] = {}
        for found in annotation.get("result") or ():
            if isinstance(found, Mapping) and isinstance(found.get("value"), Mapping):
                value = {"question": found.get("from_name"), **found["value"]}
                mine.setdefault(str(found.get("type")), []).append(value)
        for kind, values in mine.items():
            by_type.setdefault(kind, []).append(values)
    if not by_type:
        raise Refused("no_annotation", "the task has no finished annotation. Label it, or export labelled tasks only.")
    return by_type


def one_choice(results: list[dict[str, Any]]) -> str:
    """The label, where one question got one answer."""
    questions = sorted({str(value.get("question")) for value in results})
    if len(questions) > 1:
        raise Refused(
            "several_questions", f"the choices answer several questions ({', '.join(questions)}); export one."
        )
    choices = [choice for value in results for choice in value.get("choices") or ()]
    if len(choices) != 1 or not isinstance(choices[0], str):
        raise Refused("several_labels", f"{len(choices)} choices were made; a labelled text has one label.")
    return choices[0]


def read_span(value: dict[str, Any]) -> Span:
    """A span with its one label; character offsets."""
    offsets = value.get("globalOffsets") or value
    start, end = offsets.get("start"), offsets.get("end")
    labels = value.get("labels") or value.get("hypertextlabels") or []
    if not isinstance(start, int) or not isinstance(end, int):
        raise Refused("bad_span", "a span has no start and end in characters.")
    if len(labels) != 1:
        raise Refused("several_labels", f"the span from {start} to {end} has {len(labels)} labels; a word has one tag.")
    return Span(start, end, str(labels[0]))


def read_pair(results: list[dict[str, Any]], data: Row, source: Source) -> Preference:
    """The pair of a pairwise choice: the first of the two answers is the left one."""
    prompt, left, right = two_answers(data)
    selected = results[0].get("selected")
    if selected not in ("left", "right"):
        raise Refused("no_annotation", f"neither the left nor the right answer was selected ({selected!r}).")
    chosen, rejected = (left, right) if selected == "left" else (right, left)
    answers = [(Message("assistant", str(data[name])),) for name in (chosen, rejected)]
    return Preference(read_prompt(data[prompt], prompt), answers[0], answers[1], source)


def is_words(value: object) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def task(data: dict[str, object], results: list[dict[str, object]]) -> dict[str, object]:
    """A task with one finished annotation."""
    return {"data": data, "annotations": [{"result": results, "was_cancelled": False}]}


def result(kind: str, value: dict[str, object]) -> dict[str, object]:
    """One result of an annotation."""
    return {"type": kind, "from_name": "label", "to_name": "text", "value": value}
