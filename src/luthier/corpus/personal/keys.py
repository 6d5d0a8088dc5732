"""Secrets: keys of well-known services by their prefix, tokens, private keys, and passwords that are assigned."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from luthier.corpus.personal.spans import LIKELY, PLACEHOLDER, Span

# a key begins with the literal, and goes on as the expression says; the literal alone is looked for first
ISSUED_KEYS = tuple(
    (hint, re.compile(rf"(?<![A-Za-z0-9]){re.escape(hint)}{rest}(?![A-Za-z0-9])"))
    for hint, rest in (
        ("AKIA", r"[A-Z0-9]{16}"),  # AWS, long-lived
        ("ASIA", r"[A-Z0-9]{16}"),  # AWS, temporary
        ("ghp_", r"[A-Za-z0-9]{36,255}"),
        ("gho_", r"[A-Za-z0-9]{36,255}"),
        ("ghu_", r"[A-Za-z0-9]{36,255}"),
        ("ghs_", r"[A-Za-z0-9]{36,255}"),
        ("ghr_", r"[A-Za-z0-9]{36,255}"),
        ("github_pat_", r"[A-Za-z0-9_]{22,255}"),
        ("glpat-", r"[A-Za-z0-9_-]{20,64}"),
        ("xox", r"[abeoprs]-[A-Za-z0-9-]{10,250}"),  # Slack
        ("https://hooks.slack.com/services/", r"[A-Za-z0-9/]{20,80}"),
        (
            "sk-",
            r"(?=[A-Za-z0-9_-]{0,250}[0-9])(?:[a-z]{2,8}[0-9]{0,2}-){0,2}[A-Za-z0-9_-]{20,250}",
        ),  # OpenAI and alike
        ("AIza", r"[A-Za-z0-9_-]{35}"),  # Google
        ("ya29.", r"[A-Za-z0-9_-]{20,250}"),
        ("sk_live_", r"[A-Za-z0-9]{16,250}"),  # Stripe
        ("sk_test_", r"[A-Za-z0-9]{16,250}"),
        ("rk_live_", r"[A-Za-z0-9]{16,250}"),
        ("pk_live_", r"[A-Za-z0-9]{16,250}"),
        ("whsec_", r"[A-Za-z0-9+/=]{24,128}"),
        ("hf_", r"[A-Za-z0-9]{30,64}"),  # Hugging Face
        ("npm_", r"[A-Za-z0-9]{36}"),
        ("pypi-AgEI", r"[A-Za-z0-9_-]{50,250}"),
        ("SG.", r"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),  # SendGrid
        ("shpat_", r"[0-9a-fA-F]{32}"),
        ("dop_v1_", r"[0-9a-f]{64}"),
        ("AccountKey=", r"[A-Za-z0-9+/]{60,100}={0,2}"),  # Azure storage
    )
)
TELEGRAM = re.compile(r"(?<![\w-])[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![\w-])")
TOKEN = re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,6000}\.[A-Za-z0-9_-]{8,2000}")
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----BEGIN )[\s\S]){1,20000}?-----END [A-Z0-9 ]{0,40}"
    r"PRIVATE KEY(?: BLOCK)?-----|-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s]{0,20000}"
)
SEPARATOR = re.compile(r"=>|:=|={1,3}|:")
NAME_CHARS = 32  # before the separator
NAME = re.compile(
    r"(?:(?P<password>password|passwd|passphrase|passcode|(?<![a-z])pass|pwd)|secret|token|"
    r"(?:api|access|secret|auth|private|account|signing|encryption|master)[_ -]?key)"
    r"(?:[_-](?:id|value|string))?[\"'\]]{0,2} {0,4}$",
    re.IGNORECASE,
)
VALUE = re.compile(r" {0,4}(?P<quote>[\"'`]?)(?P<value>[^\s\"'`<>,;&]{6,512})")
BEARER = re.compile(r"(?<!\w)bearer (?P<value>[A-Za-z0-9._~+/-]{16,2000}=*)", re.IGNORECASE)
NO_SECRET = re.compile(
    r"^[$%{(\[<*.]|[({]|^(?:x+|\*+|\.+|-+)$|your|example|changeme|placeholder|dummy|redacted|process\.|environ|getenv|"
    r"config|settings\.|self\.|https?:",
    re.IGNORECASE,
)
IDENTIFIER = re.compile(r"[A-Za-z_]+(?:[._-][A-Za-z_]*)*")
MIN_BITS_PASSWORD, MIN_BITS_KEY = (
    2.2,
    3.0,
)  # Shannon entropy of a character; English words stand near 2.5, keys over 3.5


def secrets(text: str) -> Iterator[Span]:
    """Keys, tokens, private keys and assigned passwords."""
    if "-----BEGIN " in text:
        for match in PRIVATE_KEY.finditer(text):
            yield Span("private_key", match.start(), match.start() + len(match[0].rstrip()))
    if "eyJ" in text:
        for match in TOKEN.finditer(text):
            yield Span("token", match.start(), match.end())
    for hint, pattern in ISSUED_KEYS:
        if hint in text:
            for match in pattern.finditer(text):
                yield Span("api_key", match.start(), match.end())
    if ":AA" in text:
        for match in TELEGRAM.finditer(text):
            yield Span("api_key", match.start(), match.end())
    yield from assigned(text)


def assigned(text: str) -> Iterator[Span]:
    """The values of `password = ...`, `api_key: ...`, `Bearer ...`: only what looks like a secret, not prose."""
    for separator in SEPARATOR.finditer(text):
        name = NAME.search(text, max(0, separator.start() - NAME_CHARS), separator.start())
        match = VALUE.match(text, separator.end()) if name else None
        if name is None or match is None:
            continue
        is_password = name["password"] is not None
        value = match["value"] if match["quote"] else match["value"].rstrip(".!?:)]}")
        is_name = not match["quote"] and IDENTIFIER.fullmatch(value)  # of a variable, in a program
        if not is_name and is_secret(value, is_password) and not PLACEHOLDER.search(value):
            kind = "password" if is_password else "api_key"
            yield Span(kind, match.start("value"), match.start("value") + len(value), LIKELY)
    if "earer " not in text:
        return
    for match in BEARER.finditer(text):
        if is_secret(match["value"], is_password=False):
            yield Span("token", match.start("value"), match.end("value"), LIKELY)


def is_secret(value: str, is_password: bool) -> bool:
    """Letters mixed with digits or signs, and enough entropy a character; a key also needs twelve characters."""
    if len(value) < (6 if is_password else 12) or NO_SECRET.search(value):
        return False
    letters = any(char.isalpha() for char in value)
    digits = any(char.isdigit() for char in value)
    signs = any(not char.isalnum() for char in value) and is_password
    mixed = (letters and digits) or (letters and signs) or (digits and signs)
    return mixed and bits_a_character(value) >= (MIN_BITS_PASSWORD if is_password else MIN_BITS_KEY)


def bits_a_character(value: str) -> float:
    """Shannon entropy of the characters of a value, in bits."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())
