"""Mended text: mojibake, HTML entities, Unicode forms, control characters, white space, boilerplate lines.

Meaning stays: indentation, fenced code, tabs between columns, the edges of prompts and completions, and the
joiners that emoji, Persian and Indic scripts are written with.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator

from luthier.corpus.lines import Problem
from luthier.corpus.steps.base import Finding, Passed
from luthier.corpus.wire import texts_of, with_texts
from luthier.errors import DataError
from luthier.recipe.corpus import Repair
from luthier.records import Completion, Document, Instruction, Record, Tagged

try:
    import ftfy
except ImportError:  # the optional extra `data`
    ftfy = None  # type: ignore[assignment]

# One repair can lay open the next (an entity that hides mojibake): they are repeated until nothing changes.
MOST_ROUNDS = 20
# A pattern of the user's may backtrack; boilerplate lines are short.
MOST_LINE_CHARS = 1000
MOST_BLANK_LINES = 2

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
LINE_ENDS = re.compile("\r\n|[\r\v\f\u2028\u2029]")
# A flag of a region (England, Scotland) is a black flag and tag characters; other tag characters are invisible text.
# Also gone: other control characters, soft hyphens, invisible spaces and operators, marks that reorder the text.
UNSEEN = re.compile(
    "(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u2060-\u206f\u202a-\u202e\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f]"
)
SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]")
ODD_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
LIGATURES = {ord(char): unicodedata.normalize("NFKC", char) for char in "ﬀﬁﬂﬃﬄﬅﬆ"}
RUN_OF_SPACE = re.compile(r"(?<=\S)[ \t]{2,}(?=\S)")
FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
CODE_INDENT = ("    ", "\t")

BOILERPLATE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(we|this (web)?site|our (web)?site) uses? cookies\b.{0,300}",
        r"by (continuing to (use|browse)|using) (this|our|the) (web)?site,? you (agree|consent|accept)\b.{0,300}",
        r"(accept|allow|reject|manage) (all )?cookies( preferences| settings)?\W*",
        r"cookie (policy|settings|preferences|notice)\W*",
        r"share (this|on|via|to)( (article|post|page|story))?\W*"
        r"((facebook|twitter|x|linkedin|whatsapp|e-?mail|reddit|pinterest|tumblr|telegram)\W*)*",
        r"((facebook|twitter|linkedin|whatsapp|e-?mail|reddit|pinterest|tumblr|telegram)\b\W*){2,}",
        r"(subscribe|sign up)( now| today)?( (to|for) (our|the) ([\w-]+ ){0,3}(newsletter|mailing list|updates))?\W*",
        r"(like|follow|find|join) us on (facebook|twitter|x|instagram|linkedin|youtube)\b.{0,80}",
        r"(log ?in|sign ?in)( or (register|sign ?up|subscribe))?( to (continue|comment|read more))?\W*",
        r"(click here|tap here) to (subscribe|read more|continue reading|share)\W*",
        r"(skip to (main )?content|back to top|print this page|advertisement|sponsored content|read more|load more)\W*",
        r"(please )?(enable|turn on) javascript\b.{0,200}",
        r"(copyright )?(©|\(c\)) ?\d{4}.{0,80}all rights reserved\W*",
        r"all rights reserved\W*",
    )
)


class RepairStep:
    """Mends every text of a record.

    Findings, one a text each: `entity`, `mojibake`, `control`, `unicode`, `space`, `boilerplate`. Built-in
    boilerplate lines leave documents only (a turn or a headline may well say no more than "Sign up");
    patterns of the user leave all records but tagged words.

    Raises:
        DataError: ftfy is missing, or a pattern is no regular expression.
    """

    name = "repair"

    def __init__(self, settings: Repair):
        if ftfy is None:
            raise DataError("steps.repair needs the data extra: pip install 'luthier[data]'")
        self.settings = settings
        self.own = tuple(compiled(index, pattern) for index, pattern in enumerate(settings.boilerplate))

    def __call__(self, record: Record) -> Passed:
        """The mended record, or the problem `empty_after_repair`."""
        if not self.settings.enabled:
            return Passed(record)
        texts = texts_of(record)
        mended: list[str] = []
        findings: list[Finding] = []
        for index, text in enumerate(texts):
            repaired, kinds = repair_text(text, self.patterns(record), keep_edges=isinstance(record, Completion))
            mended.append(repaired)
            findings += [Finding(kind, index) for kind in kinds]
            if text and not repaired.strip() and not may_be_empty(record, index):
                return Passed(None, empty(index, len(texts), kinds), tuple(findings))
        unchanged = tuple(mended) == texts
        return Passed(record if unchanged else with_texts(record, mended), None, tuple(findings))

    def patterns(self, record: Record) -> tuple[re.Pattern[str], ...]:
        """What a whole line has to match to be dropped from this record."""
        if isinstance(record, Tagged):
            return ()
        return (*BOILERPLATE, *self.own) if isinstance(record, Document) else self.own


def compiled(index: int, pattern: str) -> re.Pattern[str]:
    """A pattern of the recipe."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"steps.repair.boilerplate[{index}]: {pattern!r} is no regular expression: {error}. "
            "It is matched against the whole line; put a backslash before . ( [ + * ? that mean themselves."
        ) from None


def may_be_empty(record: Record, index: int) -> bool:
    """Whether a text may have held white space alone: the context of an instruction."""
    return isinstance(record, Instruction) and index == 1


def empty(index: int, num_texts: int, kinds: tuple[str, ...]) -> Problem:
    """The problem of a text that has nothing left."""
    which = "the text" if num_texts == 1 else f"text {index + 1} of {num_texts}"
    return Problem("empty_after_repair", f"nothing is left of {which} (removed: {', '.join(kinds) or 'space'}).")


def repair_text(
    text: str, boilerplate: tuple[re.Pattern[str], ...] = (), keep_edges: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The mended text and the kinds of repair that changed it. Mended again, it stays as it is.

    `keep_edges` leaves white space at both ends: in a prompt and its completion it is part of the format.
    """
    repairs: tuple[tuple[str, Callable[[str], str]], ...] = (
        ("entity", unescape),
        ("mojibake", fix_mojibake),
        ("space", lambda value: LINE_ENDS.sub("\n", value)),
        ("control", drop_controls),
        ("unicode", fix_unicode),
        ("space", lambda value: fix_space(value, keep_edges)),
        ("boilerplate", lambda value: drop_boilerplate(value, boilerplate)),
    )
    kinds: list[str] = []
    for _ in range(MOST_ROUNDS):
        before = text
        for kind, repair in repairs:
            changed = repair(text)
            if changed != text and kind not in kinds:
                kinds.append(kind)
            text = changed
        if text == before:
            break
    return text, tuple(kinds)


def unescape(text: str) -> str:
    """`&amp;` and the like as what they stand for; not in text that holds markup, where they are meant."""
    return text if "&" not in text or "<" in text else html.unescape(text)


def fix_mojibake(text: str) -> str:
    """UTF-8 that was read as something else, line by line: lines of one text may have different histories."""
    if text.isascii():
        return text
    text = SURROGATES.sub(whole_character, text)
    return "".join(line if line.isascii() else ftfy.fix_encoding(line) for line in text.splitlines(keepends=True))


def whole_character(match: re.Match[str]) -> str:
    """The character of a surrogate pair; the replacement character for half a pair."""
    return match[0].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def drop_controls(text: str) -> str:
    """Without terminal escapes, control characters and characters that cannot be seen."""
    if text.replace("\n", "").isprintable():
        return text
    return UNSEEN.sub(lambda match: match[1] or "", ESCAPES.sub("", text))


def fix_unicode(text: str) -> str:
    """NFC, and the ligatures of old type as their letters."""
    return text if text.isascii() else unicodedata.normalize("NFC", text.translate(LIGATURES))


def fix_space(text: str, keep_edges: bool) -> str:
    """White space without runs, line ends without trailing space, at most two blank lines together."""
    if keep_edges:
        core = text.strip()
        start = text.index(core)
        return text[:start] + fix_space(core, keep_edges=False) + text[start + len(core) :] if core else text
    lines = [*without_long_gaps((fix_line(line, code), code) for line, code in with_code(text.split("\n")))]
    while lines and not lines[-1].strip():
        lines.pop()
    while lines and not lines[0].strip():
        lines.pop(0)
    return lines[0].strip() if len(lines) == 1 else "\n".join(lines)


def with_code(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is code: fenced, or indented as code is."""
    fence = ""
    for line in lines:
        found = FENCE.match(line)
        opens_or_closes = found is not None and (not fence or found[1].startswith(fence))
        yield line, bool(fence) or opens_or_closes or line.startswith(CODE_INDENT)
        if opens_or_closes and found is not None:
            fence = "" if fence else found[1]


def fix_line(line: str, code: bool) -> str:
    """Code loses trailing space only; other lines also runs of space behind their indentation."""
    if code:
        return line.rstrip(" \t")
    return RUN_OF_SPACE.sub(one_space, ODD_SPACES.sub(" ", line)).rstrip()


def one_space(match: re.Match[str]) -> str:
    """A tab stays a tab: it may part columns."""
    return "\t" if "\t" in match[0] else " "


def without_long_gaps(lines: Iterator[tuple[str, bool]]) -> Iterator[str]:
    """The lines, without the third and further blank ones in a row outside code."""
    num_blank = 0
    for line, code in lines:
        num_blank = 0 if line else num_blank + 1
        if num_blank <= MOST_BLANK_LINES or code:
            yield line


def drop_boilerplate(text: str, patterns: tuple[re.Pattern[str], ...]) -> str:
    """The text without the lines that match one of the patterns as a whole."""
    if not patterns:
        return text
    lines = text.split("\n")
    kept = [line for line in lines if not is_boilerplate(line.strip(), patterns)]
    return text if len(kept) == len(lines) else "\n".join(kept)


def is_boilerplate(line: str, patterns: tuple[re.Pattern[str], ...]) -> bool:
    """Whether a line says nothing of the document."""
    return 0 < len(line) <= MOST_LINE_CHARS and any(pattern.fullmatch(line) for pattern in patterns)
