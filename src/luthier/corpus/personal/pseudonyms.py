"""Invented values: the same for the same value everywhere, under one key; nobody's, and of the same kind.

A value is brought to a normal form (case, separators and spelling aside) and hashed with the secret key
(HMAC-SHA256); all that is invented is drawn from that hash, so there is no table to keep and nothing to look up.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

from luthier.corpus.personal import national_ids
from luthier.corpus.personal.checksums import luhn
from luthier.corpus.personal.phone import EXTENSION
from luthier.corpus.personal.spans import digits_of, plain, words_of
from luthier.errors import DataError

MIN_KEY_BYTES = 16
# syllables of invented names: 24 * 16 * 16 of them
STARTS = words_of("Al Bel Cor Dar El Fen Gal Hal Ir Jor Kel Lor Mar Nor Or Per Quin Ros Sel Tar Ul Vel Wen Yor")
MIDDLES = words_of("a an ar e el en i il in o ol on u ul am er")
ENDS = words_of("dan dis gard la lin mas mond nar nis ra rik sa tan ten via win")
PLACE_ENDS = words_of("berg bridge bury by dale field ford ham hurst ley mere mouth stead ton ville wick")
TEST_HOSTS = ("example.com", "example.net", "example.org")  # RFC 2606
TEST_NET = ipaddress.IPv4Network("198.18.0.0/15")  # RFC 2544: test beds; larger than the documentation ranges
TEST_NET_6 = ipaddress.IPv6Network("2001:db8::/32")  # RFC 3849: documentation
MONTH_NAMES = words_of("January February March April May June July August September October November December")


class Draw:
    """Numbers drawn from the hash of one value; the same value gives the same numbers."""

    def __init__(self, key: bytes, kind: str, value: str):
        self.seed = hmac.new(key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()
        self.count = itertools.count()

    def below(self, limit: int) -> int:
        """The next number, 0 to limit - 1."""
        block = hashlib.sha256(self.seed + next(self.count).to_bytes(8, "big")).digest()
        return int.from_bytes(block, "big") % limit

    def among(self, choices: Sequence[str]) -> str:
        """One of them."""
        return choices[self.below(len(choices))]

    def digits(self, count: int) -> str:
        """That many digits."""
        return f"{self.below(10**count):0{count}d}"


class Pseudonyms:
    """Writes invented values under one secret key. The key shows in no representation of it."""

    def __init__(self, key: bytes):
        if len(key) < MIN_KEY_BYTES:
            raise DataError(
                f"the pseudonyms' key has {len(key)} bytes, and needs {MIN_KEY_BYTES} or more: a short key can be "
                "guessed, and every value with it. Make one: python -c 'import secrets; print(secrets.token_hex(32))'"
            )
        self._key = key

    def __call__(self, kind: str, value: str) -> str:
        """The invented value that stands for this one."""
        if kind in ("person", "location"):
            return self.name(kind, value)
        form = normal_form(kind, value)
        draw = Draw(self._key, kind, form)
        if kind in national_ids.TYPES:
            return poured(unissued(kind, form, draw), value)
        return INVENTED.get(kind, invented_secret)(draw, value)

    def name(self, kind: str, value: str) -> str:
        """Word for word, so that a family name alone is the one it is in the full name."""
        return re.sub(r"\w+", lambda word: self.name_word(kind, word[0]), value)

    def name_word(self, kind: str, word: str) -> str:
        """One invented word of a name, or as many digits."""
        draw = Draw(self._key, kind, word.casefold())
        if word.isdigit():
            return draw.digits(len(word))
        ends = ENDS if kind == "person" else PLACE_ENDS
        made = draw.among(STARTS) + draw.among(MIDDLES) + draw.among(ends)
        return made.upper() if word.isupper() and len(word) > 1 else made


def normal_form(kind: str, value: str) -> str:
    """What counts as the same value: case and separators aside; a phone number with or without its country code."""
    folded = " ".join(plain(value).casefold().split())
    if kind == "phone":
        return digits_of(EXTENSION.sub("", folded))[-9:]  # the longest part that all spellings of a number share
    if kind == "ip":
        return str(ipaddress.ip_address(folded))
    if kind in ("iban", "card", *national_ids.TYPES):
        return "".join(char for char in folded if char.isalnum()).upper()
    if kind in ("url", "domain"):
        return folded.rstrip("/")
    return plain(value) if kind in SECRETS else folded


def invented_email(draw: Draw, value: str) -> str:
    """`belandan.corilgard.52204@example.org`."""
    names = [draw.among(STARTS) + draw.among(MIDDLES) + draw.among(ENDS) for _ in range(2)]
    return ".".join(names).lower() + f".{draw.digits(5)}@{draw.among(TEST_HOSTS)}"


def invented_phone(draw: Draw, value: str) -> str:
    """555-0100 to 555-0199, kept free for fiction in every North American area code: 79,200 numbers."""
    area = draw.below(792)  # 200 to 999 without the eight service codes 211, 311, ..., 911
    codes = [code for code in range(200, 1000) if code % 100 != 11]
    return f"{codes[area]}-555-01{draw.digits(2)}"


def invented_iban(draw: Draw, value: str) -> str:
    """Right check digits, of a country that there is none of (ZZ)."""
    account = draw.digits(18)
    number = int("".join(str(int(char, 36)) for char in f"{account}ZZ00"))
    return f"ZZ{98 - number % 97:02d}{account}"


def invented_card(draw: Draw, value: str) -> str:
    """Sixteen digits with Luhn's, beginning with 000000: no issuer of cards has that."""
    number = "000000" + draw.digits(9)
    return next(number + digit for digit in "0123456789" if luhn(number + digit))


def invented_ip(draw: Draw, value: str) -> str:
    """An address of a range kept free for tests (version 4) or documentation (version 6)."""
    network = TEST_NET_6 if ":" in value else TEST_NET
    return str(network[draw.below(network.num_addresses - 2) + 1])


def invented_url(draw: Draw, value: str) -> str:
    """A host of its own under a domain kept free for examples; with invented credentials where there were some."""
    scheme, mark, rest = value.partition("://")
    credentials = "user:example@" if "@" in rest.partition("/")[0] else ""
    return f"{scheme if mark else 'https'}://{credentials}{invented_domain(draw, value)}/"


def invented_domain(draw: Draw, value: str) -> str:
    """`d0123456789.example.com`."""
    return f"d{draw.digits(10)}.{draw.among(TEST_HOSTS)}"


def invented_wallet(draw: Draw, value: str) -> str:
    """An Ethereum address whose first half is zero: nobody can have its key but by chance."""
    return f"0x{draw.below(16**20):040x}"


def invented_date(draw: Draw, value: str) -> str:
    """Another date as it is written: year within five of the true one, day and month 1 to 12 (valid in any order)."""

    def number(match: re.Match[str]) -> str:
        if len(match[0]) == 4:
            return str(int(match[0]) - 5 + draw.below(11))
        return f"{1 + draw.below(12):0{len(match[0])}d}"[-2:]

    with_numbers = re.sub(r"[0-9]+", number, plain(value))
    return re.sub(r"[^\W\d_]{3,}", lambda match: draw.among(MONTH_NAMES), with_numbers)


def invented_secret(draw: Draw, value: str) -> str:
    """A word that says what it is, and digits to tell secrets apart."""
    return f"example-{draw.digits(12)}"


SECRETS = ("api_key", "token", "private_key", "password", "url_credentials", "crypto_wallet")
INVENTED: Mapping[str, Callable[[Draw, str], str]] = {
    "email": invented_email,
    "phone": invented_phone,
    "iban": invented_iban,
    "card": invented_card,
    "ip": invented_ip,
    "url": invented_url,
    "url_credentials": invented_url,
    "domain": invented_domain,
    "crypto_wallet": invented_wallet,
    "date_of_birth": invented_date,
}


def unissued(kind: str, form: str, draw: Draw) -> str:
    """Characters of the same classes that fail the type's check, so that they are no person's number."""
    while True:
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        made = "".join(draw.digits(1) if char.isdigit() else draw.among(letters) for char in form)
        if not national_ids.is_issued(kind, made):
            return made


def poured(characters: str, value: str) -> str:
    """The characters in place of the value's letters and digits; its separators stay."""
    rest = iter(characters)
    return "".join(next(rest) if char.isalnum() else char for char in value)
