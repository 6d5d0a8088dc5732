"""The language a record is in, found by character statistics; nothing is fetched for it."""

from __future__ import annotations

import functools
import re
from typing import Any

from luthier.corpus.lines import Problem
from luthier.corpus.steps.base import Finding, Passed
from luthier.corpus.wire import whole_text
from luthier.errors import DataError, did_you_mean
from luthier.recipe.corpus import Language
from luthier.records import Record

UNKNOWN, SHORT = "unknown", "short"
# enough to be sure; the beginning of a book need not be followed by the rest
MOST_CHARS = 4000
FENCED = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.MULTILINE | re.DOTALL)
ADDRESS = re.compile(r"(https?://|www\.)\S+|\S+@\S+\.\w+")


class LanguageStep:
    """Names each record's language, and drops what is in none of the languages to keep.

    Findings: one a record, `language:en`; `language:unknown` below `minimum_confidence`, `language:short` under
    `minimum_chars` characters (such records are kept). With `keep` set, a record of unknown language goes, unless
    `unknown` is among the languages to keep.

    Raises:
        DataError: py3langid is missing, or `keep` names a language it does not know.
    """

    name = "language"

    def __init__(self, settings: Language):
        self.settings = settings
        self.keep = {code.casefold() for code in settings.keep}
        known = [*identifier().labels, UNKNOWN]
        for code in sorted(self.keep.difference(known)):
            raise DataError(
                f'steps.language.keep: no language "{code}".{did_you_mean(code, known)} '
                f"Use codes of ISO 639-1: {', '.join(known)}."
            )

    def __call__(self, record: Record) -> Passed:
        """The record as it is, or the problem `language`, which names the language that was found."""
        text = judged_part(whole_text(record))
        if len(text) < self.settings.minimum_chars:
            return Passed(record, None, (Finding(f"language:{SHORT}"),))
        guess, confidence = detect(text)
        found = guess if confidence >= self.settings.minimum_confidence else UNKNOWN
        findings = (Finding(f"language:{found}"),)
        if self.keep and found not in self.keep:
            return Passed(None, self.problem(found, guess, confidence), findings)
        return Passed(record, None, findings)

    def problem(self, found: str, guess: str, confidence: float) -> Problem:
        """What was found instead of the languages to keep."""
        kept = ", ".join(sorted(self.keep))
        if found == UNKNOWN:
            sure = f"{guess} has {confidence:.2f}, minimum_confidence is {self.settings.minimum_confidence:g}"
            return Problem("language", f"no language is sure ({sure}); kept: {kept}.")
        return Problem("language", f"the text is in {found} (confidence {confidence:.2f}); kept: {kept}.")


def judged_part(text: str) -> str:
    """The beginning of a text, without fenced code and addresses, which are English in every language."""
    return " ".join(ADDRESS.sub(" ", FENCED.sub(" ", text[: 2 * MOST_CHARS])).split())[:MOST_CHARS]


def detect(text: str) -> tuple[str, float]:
    """The most likely language (ISO 639-1) and its probability."""
    language, confidence = identifier().classify(text)
    return str(language), float(confidence)


@functools.cache
def identifier() -> Any:
    """The classifier with its bundled model: made once in a process, never changed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise DataError("steps.language needs the data extra: pip install 'luthier[data]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
