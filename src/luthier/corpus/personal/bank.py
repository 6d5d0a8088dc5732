"""IBANs, payment cards and addresses of crypto wallets: all with check digits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.corpus.personal.checksums import base58check, bech32, luhn, mod97
from luthier.corpus.personal.spans import CERTAIN, LIKELY, Span, digits_of, near, word_pattern, words_of

IBAN_START = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")
# characters of an IBAN by country (the SWIFT registry)
IBAN_LENGTHS = {
    name[:2]: int(name[2:])
    for name in words_of(
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 "
        "EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 "
        "KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 "
        "PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 "
        "VA22 VG24 XK20 YE30"
    )
}

CARD = re.compile(
    r"(?<![\w.])(?<![0-9][ -])(?:"
    r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"  # 16 or 19 digits by fours
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}"  # 14 or 15 digits (Diners, American Express)
    r"|[0-9]{12,19})(?![\w]|\.[0-9])"
)
CARD_WORDS = word_pattern(
    r"cards?|cc|credit|debit|visa|master ?card|amex|american express|maestro|discover|diners|jcb|unionpay|cvv|cvc|"
    r"kreditkarte|carte|tarjeta|cart[ãa]o|carta"
)
# (lowest prefix, highest prefix, lengths in digits), as the schemes publish them
CARD_ISSUERS = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),  # Mastercard
    ("34", "34", (15,)),
    ("37", "37", (15,)),  # American Express
    ("300", "305", (14, 16)),
    ("3095", "3095", (14, 16)),
    ("36", "36", (14, 16)),
    ("38", "39", (14, 16)),  # Diners
    ("6011", "6011", (16, 19)),
    ("644", "649", (16, 19)),
    ("65", "65", (16, 19)),  # Discover
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("3528", "3589", (16, 19)),
    ("1800", "1800", (15,)),
    ("2131", "2131", (15,)),  # JCB
    ("2200", "2204", (16,)),  # Mir
    ("508", "508", (16,)),
    ("81", "82", (16,)),  # RuPay
    ("5018", "5018", tuple(range(12, 20))),
    ("5020", "5020", tuple(range(12, 20))),
    ("5038", "5038", tuple(range(12, 20))),
    ("56", "58", tuple(range(12, 20))),
    ("6304", "6304", tuple(range(12, 20))),
    ("639", "639", tuple(range(12, 20))),
    ("6759", "6759", tuple(range(12, 20))),
    ("6761", "6763", tuple(range(12, 20))),
    ("0604", "0604", tuple(range(12, 20))),  # Maestro
)

WALLETS = (
    (re.compile(r"(?<![^\W_])[13][1-9A-HJ-NP-Za-km-z]{25,34}(?![^\W_])"), base58check),
    (re.compile(r"(?<![^\W_])bc1[02-9ac-hj-np-z]{11,71}(?![^\W_])", re.IGNORECASE), bech32),
    (re.compile(r"(?<![^\W_])0x[0-9a-fA-F]{40}(?![^\W_])"), lambda address: len(set(address[2:].lower())) > 4),
)


def ibans(text: str) -> Iterator[Span]:
    """Country, its length, and the check digits; with or without spaces between groups."""
    for match in IBAN_START.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2].upper())
        end = end_of_characters(text, match.start(), length) if length else None
        if end is not None:
            bare = re.sub(r"[ -]", "", text[match.start() : end])
            if mod97(bare):
                yield Span("iban", match.start(), end)


def end_of_characters(text: str, start: int, count: int) -> int | None:
    """Where `count` ASCII letters and digits end, single spaces or hyphens between them; None where they do not."""
    end = start
    while count and end < len(text):
        if text[end].isascii() and text[end].isalnum():
            count -= 1
        elif text[end] not in " -" or text[end - 1] in " -":
            return None
        end += 1
    return None if count or (end < len(text) and text[end].isalnum()) else end


def cards(text: str) -> Iterator[Span]:
    """Luhn's digit, and an issuer's prefix and length; beside a word such as "card", any 12 to 19 digits with Luhn."""
    for match in CARD.finditer(text):
        digits = digits_of(match[0])
        if len(set(digits)) < 2 or not luhn(digits):
            continue
        if is_issued(digits):
            yield Span("card", match.start(), match.end(), CERTAIN)
        elif near(text, match.start(), match.end(), CARD_WORDS):
            yield Span("card", match.start(), match.end(), LIKELY)


def is_issued(digits: str) -> bool:
    """Whether some scheme issues numbers of this prefix and length."""
    return any(
        len(digits) in lengths and lowest <= digits[: len(lowest)] <= highest
        for lowest, highest, lengths in CARD_ISSUERS
    )


def wallets(text: str) -> Iterator[Span]:
    """Bitcoin addresses by their checksum; Ethereum's by shape (their checksum is optional)."""
    for pattern, check in WALLETS:
        for match in pattern.finditer(text):
            if check(match[0]):
                yield Span("crypto_wallet", match.start(), match.end())
