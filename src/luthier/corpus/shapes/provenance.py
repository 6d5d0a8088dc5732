"""Where a row came from, under the names people give it: licence, group, date, url, synthetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from luthier.records import Source

NAMES = {
    "licence": ("licence", "license", "licence_id", "license_id"),
    "group": ("group", "group_id", "conversation_id", "thread_id", "document_id", "doc_id"),
    "date": ("date", "created_at", "timestamp", "created"),
    "url": ("url", "source_url"),
    "synthetic": ("synthetic", "generator"),
}
# 1973 in seconds: a smaller number is no time stamp; from the second on it counts milliseconds
EPOCH_SECONDS = 100_000_000
EPOCH_MILLISECONDS = 100_000_000_000


def filled(source: Source, places: Iterable[Mapping[str, object]]) -> Source:
    """The source with what the row says of itself; what the source says already stands."""
    places = list(places)
    missing = {field: names for field, names in NAMES.items() if getattr(source, field) is None}
    found = {field: provenance_in(places, field, names) for field, names in missing.items()}
    known: dict[str, Any] = {field: value for field, value in found.items() if value is not None}
    return replace(source, **known) if known else source


def provenance_in(places: Iterable[Mapping[str, object]], field: str, names: Iterable[str]) -> str | None:
    """The first usable value under some names."""
    values = (place.get(name) for place in places for name in names)
    return next((text for value in values if (text := as_provenance(field, value)) is not None), None)


def as_provenance(field: str, value: object) -> str | None:
    """A value as provenance, or None where it is none (an object, an empty text, a date nobody can read)."""
    if field == "date":
        return iso_date(value)
    if isinstance(value, bool):
        return "unknown" if field == "synthetic" and value else None
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int) and field == "group" else None


def iso_date(value: object) -> str | None:
    """A date as ISO 8601: from such a text (checked, kept as it is), a date, or seconds or milliseconds since 1970."""
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    if isinstance(value, str):
        text = value.strip()
        try:
            datetime.fromisoformat(text)
        except ValueError:
            return None
        return text
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= EPOCH_SECONDS:
        return None
    try:
        return datetime.fromtimestamp(value / 1000 if value >= EPOCH_MILLISECONDS else value, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return None


def provenance_columns(source: Source) -> dict[str, object]:
    """What is known of a record, as columns of its row."""
    return {field: value for field in NAMES if (value := getattr(source, field)) is not None}
