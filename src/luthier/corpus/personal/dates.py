"""Dates of birth: a date right after words that say so. A date alone is no finding."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.corpus.personal.spans import LIKELY, Span

MONTHS = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?|januar|februar|märz|mai|juni|juli|oktober|dezember|janvier|février|mars|avril|juin|"
    "juillet|août|septembre|octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|"
    "octubre|noviembre|diciembre|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
)
YEAR = r"(?:1[89]|20)[0-9]{2}"
DATE = (
    rf"{YEAR}[-/. ](?:0?[1-9]|1[0-2])[-/. ][0-3]?[0-9]"
    rf"|[0-3]?[0-9][-/. ]{{1,2}}[0-3]?[0-9][-/. ]{{1,2}}(?:{YEAR}|[0-9]{{2}})"
    rf"|(?:{MONTHS})\.? [0-3]?[0-9](?:st|nd|rd|th)?,? {YEAR}"
    rf"|[0-3]?[0-9](?:st|nd|rd|th|er|\.)?(?: of| de)? (?:{MONTHS})\.?,?(?: de)? {YEAR}"
)
BIRTH = re.compile(
    r"(?<!\w)(?:born|birth ?date|birth ?day|date of birth|birth|d\.?o\.?b\.?|geb(?:oren|urtsdatum|\.)|"
    r"née?|date de naissance|fecha de nacimiento|nacid[oa]|data di nascita|nat[oa]|geboortedatum)"
    rf"(?:[\s:=,(\"']|is|was|on|am|le|el|il|the|in [^\W\d]{{2,20}}){{1,8}}?(?P<date>{DATE})(?![0-9])",
    re.IGNORECASE,
)


HINTS = ("born", "birth", "dob", "d.o.b", "geb", "né", "nacid", "nacim", "nasc", "naiss", "nato", "nata", "geboorte")


def dates_of_birth(text: str) -> Iterator[Span]:
    """Dates after "born", "date of birth", "DOB" and the like, in five languages."""
    lowered = text.lower()
    if not any(hint in lowered for hint in HINTS):
        return
    for match in BIRTH.finditer(text):
        yield Span("date_of_birth", match.start("date"), match.end("date"), LIKELY)
