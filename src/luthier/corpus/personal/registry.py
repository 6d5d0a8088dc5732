"""All detectors in one table, and the search of a text with those that are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from luthier.corpus.personal import bank, dates, keys, names, national_ids, network, phone
from luthier.corpus.personal.spans import PLACEHOLDER, Span, plain, without_overlaps
from luthier.errors import DataError, did_you_mean

MANY_DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5}")  # the least that any number looked for has


@dataclass(frozen=True)
class Wanted:
    """What to look for: types, the regions of phone numbers, and the model for names (None: none)."""

    types: frozenset[str]
    regions: tuple[str, ...] = ("US", "GB")
    names_model: str | None = None


@dataclass(frozen=True)
class Family:
    """A family of types, a cheap test of the plain text that spares the search, and the search."""

    types: tuple[str, ...]
    worth_it: Callable[[str], bool]
    find: Callable[[str, Wanted], Iterator[Span]]


def has_numbers(text: str) -> bool:
    """Six digits close to one another."""
    return MANY_DIGITS.search(text) is not None


def has_digit(text: str) -> bool:
    """Any digit."""
    return any(digit in text for digit in "0123456789")


def always(text: str) -> bool:
    """The search has its own test."""
    return True


FAMILIES = (
    Family(("email",), always, lambda text, wanted: network.emails(text)),
    Family(("url", "url_credentials"), always, lambda text, wanted: network.urls(text)),
    Family(("domain",), always, lambda text, wanted: network.domains(text)),
    Family(("ip",), has_digit, lambda text, wanted: network.ip_addresses(text)),
    Family(("phone",), has_numbers, lambda text, wanted: phone.phone_numbers(text, wanted.regions)),
    Family(("iban",), has_numbers, lambda text, wanted: bank.ibans(text)),
    Family(("card",), has_numbers, lambda text, wanted: bank.cards(text)),
    Family(("crypto_wallet",), has_digit, lambda text, wanted: bank.wallets(text)),
    Family(national_ids.TYPES, has_numbers, lambda text, wanted: national_ids.national_ids(text, wanted.types)),
    Family(("api_key", "token", "private_key", "password"), always, lambda text, wanted: keys.secrets(text)),
    Family(("date_of_birth",), has_digit, lambda text, wanted: dates.dates_of_birth(text)),
    Family(names.TYPES, always, lambda text, wanted: names.names(text, wanted.names_model)),
)
MODEL_TYPES = frozenset(names.TYPES)
TYPES = tuple(name for family in FAMILIES for name in family.types)
OWN_TYPES = tuple(name for name in TYPES if name not in MODEL_TYPES)


def wanted(types: Sequence[str], regions: Sequence[str], names_model: str | None) -> Wanted:
    """What the settings ask for; no types: all, those of the names model only where there is one.

    Raises:
        DataError: a type or region that does not exist, a type that needs the names model, no such model here.
    """
    for name in types:
        if name not in TYPES:
            raise DataError(
                f'steps.personal.types: "{name}" is no type of personal data.{did_you_mean(name, TYPES)} '
                f"Known: {', '.join(TYPES)}."
            )
        if name in MODEL_TYPES and names_model is None:
            raise DataError(f'steps.personal.types: "{name}" needs a model. Set steps.personal.names to presidio.')
    chosen = frozenset(types or (TYPES if names_model else OWN_TYPES))
    if "phone" in chosen:
        phone.check_regions(regions)
    if names_model is not None and chosen & MODEL_TYPES:
        names.check_model(names_model)
    return Wanted(chosen, tuple(regions), names_model)


def placeholder(kind: str) -> str:
    """What stands in a masked text: `<EMAIL>`."""
    return f"<{kind.upper()}>"


def find_once(text: str, what: Wanted) -> list[Span]:
    """One search: spans of the wanted types, in order, none over another or over a placeholder."""
    flat = plain(text)
    found = (
        span
        for family in FAMILIES
        if not what.types.isdisjoint(family.types) and family.worth_it(flat)
        for span in family.find(flat, what)
        if span.type in what.types
    )
    return without_overlaps(found, taken=(match.span() for match in PLACEHOLDER.finditer(text)))


def find_personal(text: str, what: Wanted) -> list[Span]:
    """All spans, in order, none over another: searched again with what was found masked, until nothing is found.

    So a text that was masked holds nothing more to find: that is the same search.
    """
    spans: list[Span] = []
    while new := find_once(replaced(text, spans, placeholder_of), what):
        spans = sorted([*spans, *(in_original(span, spans) for span in new)], key=lambda span: span.start)
    return spans


def placeholder_of(span: Span, value: str) -> str:
    """The placeholder of a span, whatever its value."""
    return placeholder(span.type)


def replaced(text: str, spans: Sequence[Span], write: Callable[[Span, str], str]) -> str:
    """The text with each span (in order, none over another) written anew by `write(span, value)`."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], write(span, text[span.start : span.end])]
        end = span.end
    return "".join([*parts, text[end:]])


def in_original(span: Span, masked: Sequence[Span]) -> Span:
    """A span of the masked text, in characters of the text before."""
    shift = 0
    for other in masked:
        if span.start + shift < other.start:
            break
        shift += other.end - other.start - len(placeholder(other.type))
    return Span(span.type, span.start + shift, span.end + shift, span.score)
