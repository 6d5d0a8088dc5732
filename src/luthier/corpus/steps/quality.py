"""Published rules of quality for documents: what share of a page may be repeats, symbols, bullets, fragments.

Gopher: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", section A.1.1
and table A1. FineWeb: Penedo et al. 2024, "The FineWeb Datasets", section 3.6. Both were found on English web pages:
words are what stands between white space (not so in Chinese, Japanese or Thai), stop words are English. Each rule
can be switched off by name.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from luthier.corpus.lines import Problem
from luthier.corpus.steps.base import Passed
from luthier.errors import DataError, did_you_mean
from luthier.recipe.corpus import Quality
from luthier.records import Document, Record

TABLE_A1 = "Rae et al. 2021, table A1"
SECTION_A11 = "Rae et al. 2021, section A.1.1"
SECTION_36 = "Penedo et al. 2024, section 3.6"
BULLETS = ("•", "‣", "◦", "▪", "●", "-", "*", "·", "–")
ELLIPSES = ("...", "…")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
SENTENCE_ENDS = tuple(".!?。！？؟।…")
CLOSING_MARKS = "\"'”’»)]*_"
SHORT_LINE_CHARS = 30


class Page:
    """A document as the rules see it; what several rules need is counted once.

    `tokens` stand between white space; `words` are those with a letter or digit, without the marks around them.
    """

    def __init__(self, text: str):
        self.text = text
        self.tokens = text.split()
        self.lines = [line.strip() for line in text.split("\n") if line.strip()]
        self.paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]

    @cached_property
    def words(self) -> list[str]:
        """Tokens without the punctuation around them; bare punctuation is none."""
        return [word for token in self.tokens if (word := bare(token))]

    @cached_property
    def folded(self) -> list[str]:
        """The words in lower case, for repeats."""
        return [word.casefold() for word in self.words]

    @cached_property
    def num_word_chars(self) -> int:
        """Characters of all words: the denominator of n-gram shares."""
        return sum(map(len, self.folded))

    @cached_property
    def repeated_5_grams(self) -> float:
        """Share of 5-gram repeats; where it is 0, no longer n-gram repeats."""
        return repeated_share(self.folded, 5, self.num_word_chars)


@dataclass(frozen=True)
class Rule:
    """A measure with the values it may take. `inclusive`: the bounds themselves are allowed."""

    name: str
    what: str
    measure: Callable[[Page], float]
    low: float | None
    high: float | None
    source: str
    inclusive: bool = True

    def problem(self, page: Page) -> Problem | None:
        """The problem of a page outside the bounds, with the measured value and the threshold."""
        value = self.measure(page)
        low = self.low is not None and (value < self.low or (value == self.low and not self.inclusive))
        high = self.high is not None and (value > self.high or (value == self.high and not self.inclusive))
        if not low and not high:
            return None
        bound, side = (self.low, "least") if low else (self.high, "most")
        allowed = f"at {side} {bound:g}" if self.inclusive else f"{'more' if low else 'less'} than {bound:g}"
        return Problem(self.name, f"{self.what}: {value:.3g}, allowed is {allowed} ({self.source}).")


class QualityStep:
    """Drops documents that break a rule; other records pass. The reason in the ledger is the rule's name.

    Raises:
        DataError: `off` names a rule that does not exist, or the word limits leave no room.
    """

    name = "quality"

    def __init__(self, settings: Quality):
        if settings.minimum_words > settings.maximum_words:
            raise DataError(
                f"steps.quality.minimum_words ({settings.minimum_words}) is above maximum_words "
                f"({settings.maximum_words}): no document could pass. Swap them."
            )
        known = [rule.name for rule in (*gopher(settings), *FINEWEB)]
        for name in settings.off:
            if name not in known:
                raise DataError(
                    f'steps.quality.off: no rule "{name}".{did_you_mean(name, known)} Rules: {", ".join(known)}.'
                )
        self.rules = tuple(rule for rule in rules_of(settings) if rule.name not in settings.off)

    def __call__(self, record: Record) -> Passed:
        """The document, or the first rule it breaks."""
        if not self.rules or not isinstance(record, Document):
            return Passed(record)
        page = Page(record.text)
        problem = next((found for rule in self.rules if (found := rule.problem(page))), None)
        return Passed(None if problem else record, problem)


def rules_of(settings: Quality) -> tuple[Rule, ...]:
    """The rules that were asked for, cheap ones first."""
    match settings.rules:
        case "off":
            return ()
        case "gopher":
            return gopher(settings)
        case "fineweb":
            return FINEWEB
        case "both":
            return (*FINEWEB, *gopher(settings))


# --- measures ------------------------------------------------------------------------------------------


def num_words(page: Page) -> float:
    """Words of the page."""
    return len(page.words)


def mean_word_chars(page: Page) -> float:
    """Mean length of a word."""
    return share(sum(map(len, page.words)), len(page.words))


def hashes_per_word(page: Page) -> float:
    """Hash signs for each token."""
    return share(page.text.count("#"), len(page.tokens))


def ellipses_per_word(page: Page) -> float:
    """Ellipses for each token."""
    return share(sum(page.text.count(mark) for mark in ELLIPSES), len(page.tokens))


def bullet_lines(page: Page) -> float:
    """Share of lines that begin with a bullet."""
    return share(sum(line.startswith(BULLETS) for line in page.lines), len(page.lines))


def ellipsis_lines(page: Page) -> float:
    """Share of lines that end in an ellipsis."""
    return share(sum(line.endswith(ELLIPSES) for line in page.lines), len(page.lines))


def alphabetic_words(page: Page) -> float:
    """Share of tokens with a letter."""
    return share(sum(any(map(str.isalpha, token)) for token in page.tokens), len(page.tokens))


def num_stop_words(page: Page) -> float:
    """How many of the eight English stop words occur."""
    return len(STOP_WORDS.intersection(page.folded))


def duplicate_lines(page: Page) -> float:
    """Share of lines that stood before."""
    return share(len(page.lines) - len(set(page.lines)), len(page.lines))


def duplicate_paragraphs(page: Page) -> float:
    """Share of paragraphs that stood before."""
    return share(len(page.paragraphs) - len(set(page.paragraphs)), len(page.paragraphs))


def duplicate_line_chars(page: Page) -> float:
    """Share of characters in lines that stood before."""
    return repeated_chars(page.lines)


def duplicate_paragraph_chars(page: Page) -> float:
    """Share of characters in paragraphs that stood before."""
    return repeated_chars(page.paragraphs)


def top_n_gram(page: Page, n: int) -> float:
    """Share of the words' characters in the most frequent n-gram, all its occurrences together.

    Of n-grams that occur equally often the longest counts; an n-gram that occurs once is no repeat.
    """
    counts = Counter(n_grams(page.folded, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
    return min(1.0, share(longest * most, page.num_word_chars))


def duplicate_n_grams(page: Page, n: int) -> float:
    """Share of the words' characters in n-grams that stood before; overlapping ones count once."""
    if page.repeated_5_grams == 0 or n == 5:
        return page.repeated_5_grams
    return repeated_share(page.folded, n, page.num_word_chars)


def punctuated_lines(page: Page) -> float:
    """Share of lines that end as sentences do, closing quotes and brackets aside."""
    return share(sum(line.rstrip(CLOSING_MARKS).endswith(SENTENCE_ENDS) for line in page.lines), len(page.lines))


def short_lines(page: Page) -> float:
    """Share of lines under 30 characters."""
    return share(sum(len(line) < SHORT_LINE_CHARS for line in page.lines), len(page.lines))


def share(part: float, whole: float) -> float:
    """part / whole; 0 where there is nothing."""
    return part / whole if whole else 0.0


def bare(token: str) -> str:
    """A token without the punctuation and symbols at its ends."""
    if token.isalnum():
        return token
    start, end = 0, len(token)
    while start < end and is_mark(token[start]):
        start += 1
    while end > start and is_mark(token[end - 1]):
        end -= 1
    return token[start:end]


def is_mark(char: str) -> bool:
    """Whether a character is punctuation or a symbol."""
    return unicodedata.category(char)[0] in "PS"


def repeated_chars(pieces: Sequence[str]) -> float:
    """Share of the characters that stand in pieces which stood before."""
    total = sum(map(len, pieces))
    return share(total - sum(map(len, set(pieces))), total)


def n_grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    """Runs of n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def repeated_share(words: Sequence[str], n: int, num_chars: int) -> float:
    """Share of the words' characters in second and later occurrences of an n-gram, each word counted once."""
    seen: set[tuple[str, ...]] = set()
    counted_to = chars = 0  # words before `counted_to` are counted
    for start, gram in enumerate(n_grams(words, n)):
        if gram in seen:
            chars += sum(map(len, words[max(start, counted_to) : start + n]))
            counted_to = start + n
        else:
            seen.add(gram)
    return share(chars, num_chars)


# --- rules ---------------------------------------------------------------------------------------------

TOP_N_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_N_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

FINEWEB = (
    Rule("fineweb_punctuation", "lines that end a sentence", punctuated_lines, 0.12, None, SECTION_36, inclusive=False),
    Rule(
        "fineweb_duplicate_lines", "characters in repeated lines", duplicate_line_chars, None, 0.1, SECTION_36,
        inclusive=False,
    ),
    Rule("fineweb_short_lines", "lines under 30 characters", short_lines, None, 0.67, SECTION_36, inclusive=False),
)  # fmt: skip


def gopher(settings: Quality) -> tuple[Rule, ...]:
    """Gopher's rules; the word limits are the recipe's."""
    most, fewest = settings.maximum_words, settings.minimum_words
    quality = (
        Rule("gopher_words", "words", num_words, fewest, most, SECTION_A11),
        Rule("gopher_word_length", "mean characters of a word", mean_word_chars, 3, 10, SECTION_A11),
        Rule("gopher_hashes", "hash signs a word", hashes_per_word, None, 0.1, SECTION_A11),
        Rule("gopher_ellipses", "ellipses a word", ellipses_per_word, None, 0.1, SECTION_A11),
        Rule("gopher_bullets", "lines that begin with a bullet", bullet_lines, None, 0.9, SECTION_A11),
        Rule("gopher_ellipsis_lines", "lines that end in an ellipsis", ellipsis_lines, None, 0.3, SECTION_A11),
        Rule("gopher_alphabetic", "words with a letter", alphabetic_words, 0.8, None, SECTION_A11),
        Rule("gopher_stop_words", "English stop words (of eight)", num_stop_words, 2, None, SECTION_A11),
        Rule("gopher_duplicate_lines", "lines that repeat", duplicate_lines, None, 0.3, TABLE_A1),
        Rule("gopher_duplicate_paragraphs", "paragraphs that repeat", duplicate_paragraphs, None, 0.3, TABLE_A1),
        Rule(
            "gopher_duplicate_line_characters", "characters in repeated lines", duplicate_line_chars,
            None, 0.2, TABLE_A1,
        ),
        Rule(
            "gopher_duplicate_paragraph_characters", "characters in repeated paragraphs", duplicate_paragraph_chars,
            None, 0.2, TABLE_A1,
        ),
    )  # fmt: skip
    top = tuple(
        table_rule(f"gopher_top_{n}_gram", f"characters in the most frequent {n}-gram", partial(top_n_gram, n=n), most)
        for n, most in TOP_N_GRAMS.items()
    )
    duplicates = tuple(
        table_rule(
            f"gopher_duplicate_{n}_grams", f"characters in repeats of {n} words", partial(duplicate_n_grams, n=n), most
        )
        for n, most in DUPLICATE_N_GRAMS.items()
    )
    return (*quality, *top, *duplicates)


def table_rule(name: str, what: str, measure: Callable[[Page], float], high: float) -> Rule:
    """A rule of Gopher's table A1."""
    return Rule(name, what, measure, None, high, TABLE_A1)
