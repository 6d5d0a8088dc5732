"""Texts from the command line, a file or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from luthier.errors import DataError


def read_texts(texts: list[str], file: Path | None, to_do: str = "label") -> list[str]:
    """The texts to label or answer; DataError where there are none."""
    found = list(texts)
    if file is not None:
        try:
            content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise DataError(f"{file}: no such file. Give a text file with one text a line, or use --text.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 text ({error}).") from error
        found += [line.strip() for line in content.splitlines() if line.strip()]
    if not found:
        raise DataError(f"nothing to {to_do}: give --text, or --file with one text a line.")
    return found
