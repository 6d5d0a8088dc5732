"""When two texts are the same text, and two rows the same row."""

from __future__ import annotations

import hashlib
import unicodedata


def fold_text(text: str) -> str:
    """The form in which copies of a text agree: case, punctuation and white space folded, symbols kept."""
    folded = unicodedata.normalize("NFC", text).casefold()
    spaced = folded.translate({ord(char): fold_char(char) for char in set(folded) if not char.isalnum()})
    return " ".join(spaced.split()) or " ".join(folded.split())


def fold_char(char: str) -> str:
    """Nothing for an invisible format character, a space for punctuation and the like, else the character."""
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    return " " if category[0] in "PZC" or category == "Sk" else char


def row_key(text: str, label: str) -> str:
    """The identity of a row: a hash of its folded text and its label."""
    return hashlib.sha256(f"{fold_text(text)}\n{label}".encode()).hexdigest()
