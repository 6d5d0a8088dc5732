"""The texts in a JSON value: what steps may judge and mask without breaking it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def text_leaves(text: str) -> list[str]:
    """Every text value in a JSON text, in its order; the names of fields are none. A text that is no JSON is its own.

    A record that was not checked yet may hold such a text.
    """
    try:
        return list(leaves_of(json.loads(text)))
    except (TypeError, ValueError, RecursionError):
        return [text]


def leaves_of(value: Any) -> Iterator[str]:
    """Every text value of a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves_of(item)


def with_leaves(text: str, texts: Iterator[str]) -> str:
    """The JSON text with the next texts in the place of its own; as it was where they are the same."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return next(texts)
    filled = filled_leaves(value, texts)
    return text if filled == value else json.dumps(filled, ensure_ascii=False)


def filled_leaves(value: Any, texts: Iterator[str]) -> Any:
    """A JSON value with the next texts in the place of its own."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {name: filled_leaves(item, texts) for name, item in value.items()}
    return [filled_leaves(item, texts) for item in value] if isinstance(value, list) else value
