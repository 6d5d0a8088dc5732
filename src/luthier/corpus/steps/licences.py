"""Which licences may be trained on, however they are spelled."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from luthier.corpus.lines import Problem
from luthier.corpus.steps.base import Finding, Passed
from luthier.errors import DataError
from luthier.recipe.corpus import Licences
from luthier.records import Record

NO_LICENCE = frozenset({"", "unknown", "none", "null", "n/a", "na", "noassertion", "other", "unspecified", "?"})
CREATIVE_COMMONS = re.compile(r"\b(?:cc|creative commons)\b")
CC_TERMS = (
    ("by", r"\bby\b|\battribution\b"),
    ("nc", r"\bnc\b|\bnon ?commercial\b"),
    ("nd", r"\bnd\b|\bno ?deriv\w*\b"),
    ("sa", r"\bsa\b|\bshare ?alike\b"),
)
CC_ZERO = re.compile(r"\bcc ?0\b|\bcc zero\b|\bcreative commons zero\b|\bpublicdomain zero\b")
PUBLIC_DOMAIN = re.compile(r"\bpublic ?domain\b|\bpddl\b")
# first match wins: the longer names stand before those they hold
FAMILIES = (
    ("agpl", r"\ba ?gpl\b|\baffero\b"),
    ("lgpl", r"\bl ?gpl\b|\blesser\b|\blibrary general public\b"),
    ("gfdl", r"\bg?fdl\b|\bfree documentation\b"),
    ("gpl", r"\bgpl\b|\bgeneral public\b"),
    ("apache", r"\bapache\b|\basl\b"),
    ("mpl", r"\bmpl\b|\bmozilla\b"),
    ("epl", r"\bepl\b|\beclipse\b"),
    ("odc-by", r"\bodc by\b|\bopen data commons attribution\b"),
    ("odbl", r"\bodbl\b|\bopen database\b"),
    ("bsd-4-clause", r"\bbsd\b.*\b(?:4|four)\b"),
    ("bsd-3-clause", r"\bbsd\b.*\b(?:3|three|new|revised|modified)\b|\b(?:3|three|new|revised|modified)\b.*\bbsd\b"),
    ("bsd-2-clause", r"\bbsd\b.*\b(?:2|two|simplified)\b|\b(?:2|two|simplified)\b.*\bbsd\b"),
    ("bsd", r"\bbsd\b"),
    ("mit-0", r"\bmit (?:0|no attribution)\b"),
    ("mit", r"\bmit\b|\bexpat\b"),
    ("isc", r"\bisc\b"),
    ("unlicense", r"\bunlicen[cs]e\b"),
    ("cdla-permissive", r"\bcdla permissive\b"),
    ("cdla-sharing", r"\bcdla sharing\b"),
    ("ogl-uk", r"\bogl\b|\bopen government\b"),
)  # fmt: skip
UNVERSIONED = re.compile("bsd|mit")  # numbers in these names count clauses
VERSION = re.compile(r"\b(\d+)(?:\.(\d+))?")
MARKS = re.compile(r"https?://(?:www\.)?|[^\w.]+|_|\.(?!\d)")
DIGITS_AHEAD = re.compile(r"(?<=[a-z])v?(?=\d)")  # gplv3, apache2
CHOICE, TOGETHER = re.compile(r"\s+OR\s+"), re.compile(r"\s+AND\s+")
LATER = re.compile(r"\s+or\s+(?:any\s+)?later(?:\s+version)?\b", re.IGNORECASE)
EXCEPTION = re.compile(r"\s+WITH\s+\S+")


@dataclass(frozen=True)
class Licence:
    """One licence: its family (`cc-by`, `apache`), and its version where it was said."""

    family: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.family}-{self.version}" if self.version else self.family


class LicencesStep:
    """Keeps records whose licence is allowed and not denied.

    Findings: one a record, `licence:cc-by-4.0` or `licence:unknown`. An entry without a version stands for all of
    them; a record that does not say its version is not allowed by an entry that does, but denied by it. Of
    `MIT OR Apache-2.0` one is enough; of `MIT AND CC-BY-4.0` both are needed.

    Raises:
        DataError: an entry stands in both lists, or is blank.
    """

    name = "licences"

    def __init__(self, settings: Licences):
        self.settings = settings
        self.allow = tuple(entry("allow", text) for text in settings.allow)
        self.deny = tuple(entry("deny", text) for text in settings.deny)
        for both in sorted(set(self.allow) & set(self.deny), key=str):
            raise DataError(f'steps.licences: "{both}" stands in allow and in deny. Take it out of one of them.')

    def __call__(self, record: Record) -> Passed:
        """The record as it is, or the problem `licence_unknown`, `licence_denied` or `licence_not_allowed`."""
        text = record.source.licence or ""
        choices = licences_of(text)
        findings = (Finding(f"licence:{canonical(text)}"),)
        problem = self.unknown() if choices is None else self.problem(choices)
        return Passed(None if problem else record, problem, findings)

    def unknown(self) -> Problem | None:
        """The problem of a record that does not say its licence."""
        if not self.allow:
            return None
        return Problem(
            "licence_unknown",
            f"no licence is known; allowed: {names(self.allow)}. Set inputs.licence or licence_column.",
        )

    def problem(self, choices: tuple[tuple[Licence, ...], ...]) -> Problem | None:
        """The problem of a record none of whose choices will do."""
        undenied = [choice for choice in choices if not any(map(self.denied, choice))]
        if not undenied:
            bad = next(licence for licence in choices[0] if self.denied(licence))
            return Problem("licence_denied", f'the licence "{bad}" is denied.')
        if self.allow and not any(all(map(self.allowed, choice)) for choice in undenied):
            bad = next(licence for licence in undenied[0] if not self.allowed(licence))
            return Problem(
                "licence_not_allowed", f'the licence "{bad}" is not among those allowed: {names(self.allow)}.'
            )
        return None

    def allowed(self, licence: Licence) -> bool:
        """Whether an entry of `allow` stands for it."""
        return any(licence.family == good.family and good.version in (None, licence.version) for good in self.allow)

    def denied(self, licence: Licence) -> bool:
        """Whether an entry of `deny` stands for it, or may."""
        return any(
            licence.family == bad.family and (None in (bad.version, licence.version) or bad.version == licence.version)
            for bad in self.deny
        )


def names(licences: tuple[Licence, ...]) -> str:
    """A list for a message."""
    return ", ".join(map(str, licences))


def entry(field: str, text: str) -> Licence:
    """A licence of the recipe's lists."""
    found = licences_of(text)
    if found is None:
        raise DataError(
            f'steps.licences.{field}: "{text}" is no licence. Write an SPDX id (cc-by-4.0) or a word of your own.'
        )
    return found[0][0]


def canonical(text: str) -> str:
    """How the ledger calls a licence: one spelling for all ways to write it, `unknown` where there is none."""
    choices = licences_of(text)
    if choices is None:
        return "unknown"
    return " OR ".join(" AND ".join(map(str, choice)) for choice in choices)


def licences_of(text: str) -> tuple[tuple[Licence, ...], ...] | None:
    """The choices a licence expression gives, each with the licences that hold together; None: it says nothing."""
    if text.strip().casefold() in NO_LICENCE:
        return None
    plain = EXCEPTION.sub("", LATER.sub("", text)).strip("() ")
    return tuple(tuple(licence(part) for part in TOGETHER.split(choice.strip("() "))) for choice in CHOICE.split(plain))


def licence(text: str) -> Licence:
    """One licence by family and version; a name that is not known is its own family, in one spelling."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = " ".join(DIGITS_AHEAD.sub(" ", MARKS.sub(" ", folded)).split())
    if CC_ZERO.search(spaced):
        return Licence("cc0", "1.0")
    if CREATIVE_COMMONS.search(spaced.replace("creativecommons", "creative commons")):
        terms = [term for term, pattern in CC_TERMS if re.search(pattern, spaced)]
        if terms:
            return Licence("-".join(["cc", *terms]), version_in(spaced))
    if PUBLIC_DOMAIN.search(spaced):
        return Licence("public-domain")
    for family, pattern in FAMILIES:
        if re.search(pattern, spaced):
            return Licence(family, None if UNVERSIONED.match(family) else version_in(spaced))
    own = re.sub(r"\b(?:the|licen[cs]e)\b", " ", spaced).split() or spaced.split()
    return Licence("-".join(own))


def version_in(spaced: str) -> str | None:
    """`4.0` of `cc by 4.0`, `2.0` of `apache 2`; None where no version is said."""
    found = VERSION.search(spaced)
    return f"{found[1]}.{found[2] or '0'}" if found else None
