"""National numbers of persons: a shape, a check, and for bare digits a word nearby that names the number.

One line of `RULES` a spelling. The check gets the characters without separators, letters in upper case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from luthier.corpus.personal.checksums import luhn, mod11_10, verhoeff, weighted
from luthier.corpus.personal.spans import CERTAIN, CHECKED, Span, near, word_pattern

DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
HETU_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
PPS_LETTERS = "WABCDEFGHIJKLMNOPQRSTUV"
RESIDENT_CHECKS = "10X98765432"
# value of a character at an odd place of a codice fiscale: digits and the first ten letters agree
ODD_TEN = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
ODD_REST = (2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
CODICE_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (*ODD_TEN, *ODD_TEN, *ODD_REST), strict=True))


# where it is worth to try the rules: each number has six digits or more, at most eight other characters around them
DIGITS = re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5,}")
MARGIN_CHARS = 10


@dataclass(frozen=True)
class IdRule:
    """One spelling of one country's number. `words`: one of them must stand near; None: the shape says enough."""

    type: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool]
    words: re.Pattern[str] | None = None


def is_date(year: str, month: str, day: str) -> bool:
    """Whether there is such a day; a year of two digits counts as 19.. or 20.., whichever has the day."""
    centuries = ("19", "20") if len(year) == 2 else ("",)
    for century in centuries:
        try:
            date(int(century + year), int(month), int(day))
        except ValueError:
            continue
        return True
    return False


def us_ssn(digits: str) -> bool:
    """No area 000, 666 or 900 to 999, no group 00, no serial 0000: the Social Security Administration issues none."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def us_itin(digits: str) -> bool:
    """Area 900 to 999, and a group the tax service uses."""
    group = int(digits[3:5])
    return digits[0] == "9" and (50 <= group <= 65 or 70 <= group <= 88 or 90 <= group <= 92 or 94 <= group <= 99)


def uk_nhs(digits: str) -> bool:
    """Weights 10 to 2, modulo 11; not ten times one digit."""
    return len(set(digits)) > 1 and (11 - weighted(digits, range(10, 1, -1)) % 11) % 11 == int(digits[9])


def uk_nino(text: str) -> bool:
    """Prefixes that are not given out; there is no check digit."""
    return text[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def fr_nir(text: str) -> bool:
    """The last two digits are 97 less the remainder of the others; Corsica's 2A and 2B count as 19 and 18."""
    number = text[:13].replace("2A", "19").replace("2B", "18")
    month = int(text[3:5])
    return (1 <= month <= 12 or month >= 20) and number.isdigit() and 97 - int(number) % 97 == int(text[13:])


def de_tax_id(digits: str) -> bool:
    """MOD 11,10; of the first ten digits exactly one stands two or three times."""
    repeated = [digits[:10].count(digit) for digit in set(digits[:10])]
    return sum(count > 1 for count in repeated) == 1 and max(repeated) <= 3 and mod11_10(digits)


def es_dni(text: str) -> bool:
    """The letter is the number modulo 23; a foreigner's X, Y, Z stands for 0, 1, 2."""
    number = {"X": "0", "Y": "1", "Z": "2"}.get(text[0], text[0]) + text[1:8]
    return number.isdigit() and DNI_LETTERS[int(number) % 23] == text[8]


def it_codice_fiscale(text: str) -> bool:
    """Odd places by table, even places by value, modulo 26 gives the last letter."""
    odd = sum(CODICE_ODD[char] for char in text[0:15:2])
    even = sum(int(char) if char.isdigit() else ord(char) - 65 for char in text[1:15:2])
    return chr(65 + (odd + even) % 26) == text[15]


def nl_bsn(digits: str) -> bool:
    """The test of eleven: weights 9 to 2, and -1."""
    return len(set(digits)) > 1 and weighted(digits, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def pl_pesel(digits: str) -> bool:
    """A birth date (the century is in the month), and weights 1, 3, 7, 9."""
    month = int(digits[2:4]) % 20
    return (
        is_date(digits[:2], str(month), digits[4:6]) and weighted(digits, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0
    )


def br_cpf(digits: str) -> bool:
    """Two check digits, weights from 10 and from 11 down to 2."""
    first = weighted(digits, range(10, 1, -1)) * 10 % 11 % 10
    second = weighted(digits, range(11, 1, -1)) * 10 % 11 % 10
    return len(set(digits)) > 1 and digits[9:] == f"{first}{second}"


def se_personnummer(digits: str) -> bool:
    """A birth date (a coordination number's day is 60 more), and Luhn over the last ten digits."""
    short = digits[-10:]
    return is_date(short[:2], short[2:4], str(int(short[4:6]) % 60)) and luhn(short)


def fi_hetu(text: str) -> bool:
    """A birth date, and the letter of date and number modulo 31."""
    number = text[:6] + text[-4:-1]
    return is_date(text[4:6], text[2:4], text[:2]) and HETU_LETTERS[int(number) % 31] == text[-1]


def dk_cpr(digits: str) -> bool:
    """A birth date; the check digit has not been kept to since 2007."""
    return is_date(digits[4:6], digits[2:4], digits[:2])


def no_fodselsnummer(digits: str) -> bool:
    """Two check digits modulo 11."""
    first = weighted(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    second = weighted(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11
    return first == second == 0 and int(digits[2:4]) % 40 in range(1, 13)


def be_national(digits: str) -> bool:
    """97 less the remainder of the first nine digits, with a 2 before them from the year 2000 on."""
    check = int(digits[9:])
    return check in (97 - int(digits[:9]) % 97, 97 - int("2" + digits[:9]) % 97) and int(digits[2:4]) % 20 <= 12


def pt_nif(digits: str) -> bool:
    """Weights 9 to 2, modulo 11."""
    check = 11 - weighted(digits, range(9, 1, -1)) % 11
    return int(digits[8]) == (0 if check >= 10 else check)


def ch_ahv(digits: str) -> bool:
    """The check digit of an EAN-13."""
    return weighted(digits, (1, 3) * 6 + (1,)) % 10 == 0


def ie_pps(text: str) -> bool:
    """Weights 8 to 2, a second letter counts nine times, modulo 23 gives the first letter."""
    total = weighted(text[:7], range(8, 1, -1)) + (9 * (ord(text[8]) - 64) if len(text) == 9 else 0)
    return PPS_LETTERS[total % 23] == text[7]


def in_aadhaar(digits: str) -> bool:
    """Verhoeff's digit."""
    return verhoeff(digits)


def ca_sin(digits: str) -> bool:
    """Luhn's digit; none begins with 0 or 8."""
    return digits[0] not in "08" and luhn(digits)


def au_tfn(digits: str) -> bool:
    """Weights 1, 4, 3, 7, 5, 8, 6, 9, 10, modulo 11."""
    return len(set(digits)) > 1 and weighted(digits, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def za_id(digits: str) -> bool:
    """A birth date, and Luhn's digit."""
    return is_date(digits[:2], digits[2:4], digits[4:6]) and luhn(digits)


def cn_resident_id(text: str) -> bool:
    """A birth date, and ISO 7064 MOD 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return (
        is_date(text[6:10], text[10:12], text[12:14]) and RESIDENT_CHECKS[weighted(text[:17], weights) % 11] == text[17]
    )


def shape(expression: str) -> re.Pattern[str]:
    """The expression between things that are neither letters, digits nor a hyphen or point that leads to some."""
    return re.compile(rf"(?<![^\W_])(?<![0-9][-.]){expression}(?![^\W_]|[-.][0-9])")


RULES = (
    IdRule("us_ssn", shape(r"[0-9]{3}-[0-9]{2}-[0-9]{4}"), us_ssn),
    IdRule("us_ssn", shape(r"[0-9]{3} ?[0-9]{2} ?[0-9]{4}"), us_ssn, word_pattern(r"ssn|social security|soc sec")),
    IdRule("us_itin", shape(r"9[0-9]{2}-[0-9]{2}-[0-9]{4}"), us_itin),
    IdRule("us_itin", shape(r"9[0-9]{8}"), us_itin, word_pattern(r"itin|taxpayer")),
    IdRule("uk_nhs", shape(r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}"), uk_nhs, word_pattern(r"nhs|national health")),
    IdRule(
        "uk_nino",
        shape(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]"),
        uk_nino,
    ),
    IdRule(
        "fr_nir",
        shape(r"[1-478] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?-?[0-9]{2}"),
        fr_nir,
    ),
    IdRule(
        "de_tax_id",
        shape(r"[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}"),
        de_tax_id,
        word_pattern(r"steuer\w*|id-?nr|identifikationsnummer|tin|tax"),
    ),
    IdRule("es_dni", shape(r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]"), es_dni),
    IdRule(
        "it_codice_fiscale",
        shape(r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"),
        it_codice_fiscale,
    ),
    IdRule("nl_bsn", shape(r"[0-9]{9}"), nl_bsn, word_pattern(r"bsn|burgerservicenummer|sofi\w*")),
    IdRule("pl_pesel", shape(r"[0-9]{11}"), pl_pesel, word_pattern(r"pesel\w*")),
    IdRule("br_cpf", shape(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"), br_cpf),
    IdRule("br_cpf", shape(r"[0-9]{11}"), br_cpf, word_pattern(r"cpf")),
    IdRule("se_personnummer", shape(r"(?:19|20)?[0-9]{6}[-+][0-9]{4}"), se_personnummer),
    IdRule(
        "se_personnummer",
        shape(r"(?:19|20)?[0-9]{10}"),
        se_personnummer,
        word_pattern(r"personnummer|samordningsnummer|person(?:al)? (?:identity )?number"),
    ),
    IdRule("fi_hetu", shape(r"[0-3][0-9][01][0-9]{3}[-+A-FU-Y][0-9]{3}[0-9A-Y]"), fi_hetu),
    IdRule("dk_cpr", shape(r"[0-3][0-9][01][0-9]{3}-?[0-9]{4}"), dk_cpr, word_pattern(r"cpr\w*|cpr-?nr|personnummer")),
    IdRule(
        "no_fodselsnummer",
        shape(r"[0-7][0-9]{5} ?[0-9]{5}"),
        no_fodselsnummer,
        word_pattern(r"f[øo]dselsnummer|fnr|d-?nummer|personnummer"),
    ),
    IdRule("be_national", shape(r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}"), be_national),
    IdRule(
        "be_national",
        shape(r"[0-9]{11}"),
        be_national,
        word_pattern(r"rijksregister\w*|registre national|niss|insz|rrn|national number"),
    ),
    IdRule("pt_nif", shape(r"[1-9][0-9]{2} ?[0-9]{3} ?[0-9]{3}"), pt_nif, word_pattern(r"nif|contribuinte")),
    IdRule("ch_ahv", shape(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}"), ch_ahv),
    IdRule("ie_pps", shape(r"[0-9]{7}[A-W][A-IW]?"), ie_pps, word_pattern(r"ppsn?|pps no|personal public service")),
    IdRule(
        "in_aadhaar", shape(r"[2-9][0-9]{3}([ -]?)[0-9]{4}\1[0-9]{4}"), in_aadhaar, word_pattern(r"aadhaa?r|uidai|uid")
    ),
    IdRule("ca_sin", shape(r"[0-9]{3}([ -]?)[0-9]{3}\1[0-9]{3}"), ca_sin, word_pattern(r"sin|social insurance|nas")),
    IdRule("au_tfn", shape(r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}"), au_tfn, word_pattern(r"tfn|tax file")),
    IdRule("za_id", shape(r"[0-9]{6} ?[0-9]{4} ?[0-9]{3}"), za_id, word_pattern(r"id|identity|rsa|said")),
    IdRule("cn_resident_id", shape(r"[1-8][0-9]{5}(?:19|20)[0-9]{9}[0-9X]"), cn_resident_id),
)
TYPES = tuple(dict.fromkeys(rule.type for rule in RULES))


def national_ids(text: str, types: frozenset[str]) -> Iterator[Span]:
    """The numbers of the types asked for; one that a word nearby names is surer than one of the shape alone."""
    rules = [rule for rule in RULES if rule.type in types]
    for digits in DIGITS.finditer(text):
        window = max(0, digits.start() - MARGIN_CHARS), digits.end() + MARGIN_CHARS
        for rule in rules:
            for match in rule.pattern.finditer(text, *window):
                if not rule.check(bare(match[0])):
                    continue
                if rule.words is None or near(text, match.start(), match.end(), rule.words):
                    yield Span(rule.type, match.start(), match.end(), CERTAIN if rule.words else CHECKED)


def bare(found: str) -> str:
    """Without separators, in upper case."""
    return "".join(char for char in found if char.isalnum()).upper()


def is_issued(kind: str, characters: str) -> bool:
    """Whether bare characters of the type's shape could be a person's number (a US number also as a taxpayer's)."""
    checks = [rule.check for rule in RULES if rule.type == kind]
    return any(check(characters) for check in [*checks, *([us_itin] if kind == "us_ssn" else [])])
