"""Phone numbers: what the phonenumbers library knows of some countries, and spellings that stand for themselves.

A number is taken when one of these holds: it is written internationally; it is valid in one of the regions; its
groups are those of a national spelling (trunk zero, or 3-3-4 with separators); or a word such as "phone" stands
near. Dates, ranges of years, amounts and ids with another name are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from types import ModuleType

from luthier.corpus.personal.spans import CERTAIN, GUESSED, LIKELY, Span, after, before, digits_of, word_pattern
from luthier.errors import DataError

MAX_SERIES_CHARS = 80  # of numbers one after the other that the library is asked to take apart
MIN_DIGITS, MAX_DIGITS = 7, 15  # E.164; the shortest local numbers of a city
# what a number is made of; no digits may stand right beside it
CANDIDATE = re.compile(
    r"(?<![\w$€£¥#@&/%])(?<![0-9\s][.,])(?<![0-9]:)(?<!\w-)(?<![\w.][+(])(?:\+|\(\+)?(?:\([0-9]{1,5}\)|[0-9]++\)?)"
    # runs of digits are taken whole (++), so that a long one costs no more than its length
    r"(?:(?: ?- ?|[ .·]| ?\(|\) ?| ?/ ?)?\(?[0-9]++\)?){0,8}"
    r"(?: ?(?:x|ext\.?|extension|#) ?[0-9]{1,6})?(?![\w%€£$=]|[.,:/-][0-9]|-[A-Za-z]{0,2}[0-9])",
    re.IGNORECASE,
)
EXTENSION = re.compile(r" ?(?:x|ext\.?|extension|#) ?[0-9]{1,6}$", re.IGNORECASE)
DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}[ ./-]+(?:0?[1-9]|1[0-2])[ ./-]+[0-3]?[0-9]"
    r"|[0-3]?[0-9][ ./-]+[0-3]?[0-9][ ./-]+(?:19|20)[0-9]{2})(?![0-9])"
)
NETWORK = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?[0-9])")
SEASONS = re.compile(r"(?<![0-9])(?:19|20)[0-9]{2} ?[-/] ?(?:19|20)[0-9]{2}(?![0-9])")
YEARS = re.compile(r"\(?(?:1[0-9]{3}|20[0-9]{2})\)?(?:[ /-]+\(?(?:1[0-9]{3}|20[0-9]{2}|[0-9]{2})\)?)+$")
AMOUNT = re.compile(r"[1-9][0-9]{0,2}(?:[ .][0-9]{3})*[ .]000$|[0-9]+\.[0-9]+$|[1-9][0-9]* ?/ ?[0-9]+$")
DECIMAL = re.compile(r"\+?[0-9]+\.[0-9]+$")
INTERNATIONAL = re.compile(r"\(?\+|(?:00|011)[ -]?[1-9]")
NORTH_AMERICAN = re.compile(
    r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?-?|[2-9][0-9]{2}([ .-]))[0-9]{3}(?:(?(1)\1|[ .-]))[0-9]{4}$"
)
TRUNK_ZERO = re.compile(r"\(?0[1-9][0-9]{0,4}\)?(?:[ ./-]+[0-9]{2,8}){1,5}$")
STRONG_WORDS = word_pattern(
    r"(?:tele)?phones?|tele?|telefono?|t[ée]l[ée]phone|téléfono|handy|mobiles?|mobil|móvil|cell ?phone|cellular|"
    r"cell(?= ?:)|fax|hotline|helpline|whatsapp|voicemail|sms|pager|landline|"
    r"call (?:me|us|him|her|them|back|now)(?: \w+)?|"
    r"(?:phone|contact) (?:number|no|nr)|dial|dialed|dialled"
)
WEAK_WORDS = word_pattern(
    r"cell|call|calls|called|calling|ring|rang|reach|contact|contacts|texts?|texted|texting|messages?|messaging|"
    r"answer(?:s|ed|ing)?|desk|office|home|work|toll[- ]free|direct|emergency|switchboard|reception"
)
OTHER_NUMBER = word_pattern(
    r"isbn|issn|doi|version|order|invoice|account|acct|a/c|passport|licen[cs]e|serial|tracking|vin|sku|patent|zip|"
    r"postal code|postcode|iban|ssn|social security|credit card|card|population|id|pin|case|ticket|ref|reference|model|"
    r"part|article|sha|hash|port|coordinates?|lat|lon|latitude|longitude|isrc|imei|score|scores|pages?|pp"
)
UNIT = re.compile(
    r"^ ?(?:%|percent|people|million|billion|thousand|dollars|euros|pounds|usd|eur|gbp|inr|kr|km|miles?|m|kg|years?|"
    r"tons?|tonnes|meters|metres|square|sq|acres|hectares|copies|votes|inhabitants|bytes|[kmg]b)\b",
    re.IGNORECASE,
)
STREET = re.compile(
    r" (?:[A-ZÀ-Þ][\w.'-]* ){1,3}(?i:st|street|rd|road|ave|avenue|av|lane|ln|drive|dr|blvd|boulevard|way|square|sq|"
    r"court|ct|place|pl|terrace|close|crescent|highway|hwy|parkway|pkwy)\b"
)
STREET_CHARS = 40
GROUPS = re.compile(r"[0-9]+")


def phone_numbers(text: str, regions: Sequence[str]) -> Iterator[Span]:
    """Phone numbers in a text; `regions` are the countries whose national numbering plan is known."""
    for match in CANDIDATE.finditer(text):
        found = match[0].strip()
        digits = digits_of(EXTENSION.sub("", found))
        if len(digits) < MIN_DIGITS or len(set(digits)) < 2 or is_other(found):
            continue
        start = match.start() + match[0].index(found)
        if len(digits) > MAX_DIGITS:
            if len(found) <= MAX_SERIES_CHARS:
                yield from inner_numbers(text, start, start + len(found), regions)
            continue
        score = phone_score(text, start, found, digits, regions)
        if score:
            yield Span("phone", *balanced(text, start, start + len(found)), score)


def is_other(found: str) -> bool:
    """Whether a date, a range of years, a list of years or an IP address or network stands there."""
    return bool(DATE.search(found) or SEASONS.search(found) or YEARS.match(found) or NETWORK.match(found))


def phone_score(text: str, start: int, found: str, digits: str, regions: Sequence[str]) -> float:
    """How sure it is that these digits are a phone number; 0: they are none."""
    bare = EXTENSION.sub("", found)
    left, right = before(text, start), after(text, start + len(found)).partition("\n")[0]
    context = context_score(left, right)
    grouped = len(GROUPS.findall(bare)) > 1
    is_led = INTERNATIONAL.match(bare) and (bare[0] in "(+" or grouped or context)  # 00... alone may be a padded id
    if is_led and is_international(bare) and not DECIMAL.match(bare):
        return CERTAIN
    if UNIT.match(right) or AMOUNT.match(bare) or (not context and OTHER_NUMBER.search(left)):
        return 0
    if STREET.match(after(text, start + len(found), STREET_CHARS)):  # postcode and house number
        return 0
    if bare.startswith("+") or OTHER_NUMBER.search(left[-14:]) or not is_number_shape(bare):  # the nearest word counts
        return 0
    if grouped and (NORTH_AMERICAN.match(bare) or (TRUNK_ZERO.match(bare) and 9 <= len(digits) <= 12)):
        return LIKELY
    is_valid = len(digits) >= 9 and not bare.endswith(")") and is_valid_in(bare, tuple(regions))
    if grouped and is_valid:
        return LIKELY
    if context == GUESSED and not grouped and not is_valid:
        return 0  # bare digits need more than a word that numbers of every kind stand beside
    return context


def context_score(left: str, right: str) -> float:
    """What the words around say: LIKELY beside "phone" and the like, GUESSED beside "call", "office" and the like."""
    if STRONG_WORDS.search(left) or STRONG_WORDS.search(right):
        return LIKELY
    return GUESSED if WEAK_WORDS.search(left) or WEAK_WORDS.search(right) else 0


def is_number_shape(bare: str) -> bool:
    """Groups as people write them: at most six, none of one digit but the first, no decimals and no fractions."""
    groups = GROUPS.findall(bare)
    is_decimal = "." in bare and "-" in bare
    return (
        len(groups) <= 6
        and all(len(group) > 1 for group in groups[1:])
        and not is_decimal
        and ("/" not in bare or bare[0] == "0")
    )


def balanced(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without a bracket that is not closed, or not opened, in it."""
    inner = text[start:end]
    if inner.endswith(")") and inner.count(")") > inner.count("("):
        end -= 1
    if inner.startswith("(") and inner.count("(") > inner.count(")"):
        start += 1
    return start, end


def is_international(bare: str) -> bool:
    """Whether a country code and a number of a possible length follow the + or 00."""
    digits = digits_of(re.sub(r"\(0\)", "", bare))
    if not bare.lstrip("(").startswith("+"):
        digits = digits[2:] if digits.startswith("00") else digits[3:]
    library = phonenumbers()
    try:
        return bool(library.is_possible_number(library.parse("+" + digits, None)))
    except library.NumberParseException:
        return False


@lru_cache(maxsize=10_000)
def is_valid_in(bare: str, regions: tuple[str, ...]) -> bool:
    """Whether the national numbering plan of one of the regions has such a number."""
    library = phonenumbers()
    for region in regions:
        try:
            if library.is_valid_number_for_region(library.parse(bare, region), region):
                return True
        except library.NumberParseException:
            continue
    return False


def inner_numbers(text: str, start: int, end: int, regions: Sequence[str]) -> Iterator[Span]:
    """Several numbers written one after the other: the library's matcher takes them apart."""
    for region in regions:
        for match in phonenumbers().PhoneNumberMatcher(text[start:end], region):
            yield Span("phone", start + match.start, start + match.end, LIKELY)


def check_regions(regions: Sequence[str]) -> None:
    """Raise DataError for a region that the library has no numbering plan for."""
    for region in regions:
        if region not in phonenumbers().SUPPORTED_REGIONS:
            raise DataError(
                f'steps.personal.regions: "{region}" is no country with a numbering plan. Write its two letters '
                "(ISO 3166-1) in upper case, such as US, GB or DE."
            )


@cache
def phonenumbers() -> ModuleType:
    """The library, loaded when the first number is looked at."""
    try:
        import phonenumbers as library
    except ImportError as error:
        raise DataError("finding phone numbers needs the data extra: pip install 'luthier[data]'") from error
    return library
