"""What exports of labelling tools have in common: fields with texts, and several people's judgements of one item."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.corpus.shapes.base import PROMPT_NAMES, Row, name_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.provenance import NAMES
from luthier.corpus.shapes.turns import SYSTEM_NAMES

PROVENANCE_NAMES = {name for names in NAMES.values() for name in names}


def main_text(fields: Row) -> str:
    """The text that was labelled: `text`, or the only field that holds one."""
    texts = {name: value for name, value in fields.items() if isinstance(value, str) and name not in PROVENANCE_NAMES}
    if "text" in texts:
        return texts["text"]
    if len(texts) != 1:
        found = ", ".join(f'"{name}"' for name in texts) or "none"
        raise Refused("missing_field", f'no "text", and not just one text field beside it (found: {found}).')
    return next(iter(texts.values()))


def answer_names(fields: Row) -> list[str]:
    """Names of the fields that hold answers to compare: all texts but the prompt, in their order."""
    others = {*PROMPT_NAMES, *PROVENANCE_NAMES, *SYSTEM_NAMES, "id"}
    return [name for name, value in fields.items() if isinstance(value, str) and name not in others]


def two_answers(fields: Row) -> tuple[str, str, str]:
    """Names of the prompt's field and of the two answers' fields."""
    prompt, answers = name_in(fields, PROMPT_NAMES), answer_names(fields)
    if len(answers) != 2:
        found = ", ".join(f'"{name}"' for name in answers) or "none"
        raise Refused("missing_field", f"a pair needs two text fields beside the prompt (found: {found}).")
    return prompt, answers[0], answers[1]


def agreed(values: Sequence[Any], question: str) -> Any:
    """What all annotators said; Refused where they do not agree: whose word counts is not for a reader to say."""
    distinct = list(unique(values))
    if len(distinct) > 1:
        said = ", ".join(json.dumps(value, ensure_ascii=False)[:40] for value in distinct[:4])
        detail = f'annotators disagree on "{question}" ({said}). Settle it in the tool, or mark one as ground truth.'
        raise Refused("annotators_disagree", detail)
    return distinct[0]


def unique(values: Iterable[Any]) -> Iterable[Any]:
    """Values without their repeats, in their order; lists and objects too."""
    seen = set()
    for value in values:
        key = json.dumps(value, sort_keys=True, default=str)
        if key not in seen:
            seen.add(key)
            yield value
