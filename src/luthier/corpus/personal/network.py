"""E-mail addresses, IP addresses, URLs (with or without credentials) and host names."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from luthier.corpus.personal.spans import GUESSED, LIKELY, Span, before, near, word_pattern, words_of

LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
HOST_OF_EMAIL = re.compile(rf"@((?:{LABEL}\.){{1,8}}[^\W\d_]{{2,24}})(?![\w@]|-\w)")
LOCAL_SIGNS = frozenset(".!#$%&'*+/=?^_`{|}~-")
LOCAL_CHARS = 64  # RFC 5321
SPELLED_AT = re.compile(r"[\[({] ?at ?[\])}]", re.IGNORECASE)
SPELLED_EMAIL = re.compile(
    r"(?<![\w.])[\w.+-]{1,64} ?[\[({] ?at ?[\])}] ?[\w-]{1,63}(?: ?[\[({] ?dot ?[\])}] ?|\.)[A-Za-z]{2,24}"
    r"(?:(?: ?[\[({] ?dot ?[\])}] ?|\.)[A-Za-z]{2,24})?(?!\w)",
    re.IGNORECASE,
)
FILE_ENDINGS = words_of("png jpg jpeg gif svg webp css js mp3 mp4 pdf html json")

IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.\w|-\w)")
IPV6 = re.compile(r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,33}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3})?(?![\w:])")
NO_ADDRESS = word_pattern(r"version|versions|releases?|sections?|§|rfc|chapters?|clauses?|v|ver|build|firmware|oid")
SHORT_DIGITS = 5
ADDRESS_WORDS = word_pattern(r"ip|ips|ipv4|address|addresses|host|hosts|server|dns|ping|gateway|resolver")

URL = re.compile(
    r"(?<![A-Za-z0-9+.-])(?:[A-Za-z][A-Za-z0-9+-]{1,20}://|www[0-9]?\.(?=[\w-]))[^\s<>\"`{}|\\^\x00-\x1f]+",
    re.IGNORECASE,
)
CREDENTIALS = re.compile(r"[A-Za-z][A-Za-z0-9+-]*://[^\s/@:]*:[^\s/@]+@[^\s/]")
URL_SCHEMES = words_of("http https ftp ftps sftp ssh git svn ws wss rtsp ldap ldaps smb irc")
CLOSING = {")": "(", "]": "["}

DOMAIN = re.compile(rf"(?<![\w@.:/\\-])(?:{LABEL}\.){{1,6}}[A-Za-z]{{2,24}}(?![\w@(]|-\w|\.\w)")
# endings that are no attribute's name in a program (`self.name`, `value.info`), nor a word after a full stop
GENERIC_ENDINGS = words_of("com net org edu gov mil biz coop museum xyz")
# countries whose ending is neither a word nor a file's ending; the others need www, a second-level name or a scheme
COUNTRY_ENDINGS = words_of(
    "ae ar au bg br ca ch cl cn co cy cz de dk ee es eu fi fr gr hk hr hu ie il io ir jp ke kr kz lk lu lv mx ng "
    "nl nz pe pk pt ro ru sa se sg si sk th tr tw ua ug uk uy ve vn za ai tv"
)
SECOND_LEVEL = words_of("co com net org gov edu ac or ne go gob gouv")


def emails(text: str) -> Iterator[Span]:
    """`local@host.tld`, found from the @ outwards so that long runs of letters cost nothing; and `local [at] host`."""
    if "@" in text:
        for match in HOST_OF_EMAIL.finditer(text):
            start = local_start(text, match.start())
            if start < match.start() and match[1].rpartition(".")[2].lower() not in FILE_ENDINGS:
                yield Span("email", start, match.end())
    if SPELLED_AT.search(text):
        for match in SPELLED_EMAIL.finditer(text):
            yield Span("email", match.start(), match.end(), LIKELY)


def local_start(text: str, at: int) -> int:
    """Where the part before the @ begins; `at` itself where there is none."""
    start = at
    while start and at - start < LOCAL_CHARS and (text[start - 1].isalnum() or text[start - 1] in LOCAL_SIGNS):
        start -= 1
    while start < at and not (text[start].isalnum() or text[start] == "_"):
        start += 1
    return at if text[at - 1 : at] == "." else start


def ip_addresses(text: str) -> Iterator[Span]:
    """Version 4 and 6, valid, and of some machine: no loopback, no mask, no version number."""
    if text.count(".") >= 3:
        for match in IPV4.finditer(text):
            score = ipv4_score(text, match)
            if score:
                yield Span("ip", match.start(), match.end(), score)
    if text.count(":") >= 2:
        for match in IPV6.finditer(text):
            previous = text[match.start() - 1 : match.start()]
            if not (previous.isalnum() or previous in ("_", ":", ".")) and is_ipv6(match[0]):
                yield Span("ip", match.start(), match.end())


def ipv4_score(text: str, match: re.Match[str]) -> float:
    """How sure it is an address; 0 where it is none."""
    parts = match[0].split(".")
    if any(int(part) > 255 or (part[0] == "0" and len(part) > 1) for part in parts):
        return 0
    if parts[0] in ("0", "127", "255") or NO_ADDRESS.search(before(text, match.start(), 12)):
        return 0
    # 1.2.3.4 and 3.1.1.11 are versions or sections, unless something says address
    if sum(map(len, parts)) <= SHORT_DIGITS:
        is_release = text[match.start() - 1 : match.start()] == "/"  # of a program: name/2.3.3.1
        return GUESSED if near(text, match.start(), match.end(), ADDRESS_WORDS) and not is_release else 0
    return LIKELY


def is_ipv6(text: str) -> bool:
    """Whether these are groups of a full or shortened IPv6 address; `a::b` of a programming language is not."""
    groups = [group for group in text.split(":") if group]
    if text.count(":") < 2 or len(groups) < 2 or not any(char.isdigit() for char in text):
        return False
    if "::" in text and len(groups) < 4 and len(groups[0]) < 3:
        return False
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def urls(text: str) -> Iterator[Span]:
    """`scheme://...` and `www....`; type `url_credentials` where a name and password stand before the host."""
    if "://" not in text and "www" not in text.lower():
        return
    for match in URL.finditer(text):
        url = trimmed(match[0])
        scheme, mark, rest = url.partition("://")
        if mark and CREDENTIALS.match(url):
            yield Span("url_credentials", match.start(), match.start() + len(url))
        elif (mark and rest and scheme.lower() in URL_SCHEMES) or (not mark and "." in url[4:]):
            yield Span("url", match.start(), match.start() + len(url))


def trimmed(url: str) -> str:
    """Without the sentence's punctuation at its end; a closing bracket stays where the URL opened it."""
    end = len(url)
    unopened = {close: url.count(close) - url.count(opening) for close, opening in CLOSING.items()}
    while end and (url[end - 1] in ".,;:!?'*_" or unopened.get(url[end - 1], 0) > 0):
        if url[end - 1] in CLOSING:
            unopened[url[end - 1]] -= 1
        end -= 1
    return url[:end]


def domains(text: str) -> Iterator[Span]:
    """Host names without a scheme, such as `shop.example.co.uk`."""
    if "." not in text:
        return
    for match in DOMAIN.finditer(text):
        if is_domain(match[0]):
            yield Span("domain", match.start(), match.end(), LIKELY)


def is_domain(text: str) -> bool:
    """Whether the ending is one of the web's, and the whole no abbreviation, file name or missing space."""
    labels = text.split(".")
    ending = labels[-1]
    if (
        not (ending.islower() or text.isupper())
        or len(labels[-2]) < 2
        or not any(char.isalpha() for char in labels[-2])
    ):
        return False
    ending = ending.lower()
    if ending in GENERIC_ENDINGS or (len(labels) > 2 and labels[-2].lower() in SECOND_LEVEL and len(ending) == 2):
        return True
    return ending in COUNTRY_ENDINGS and len(labels[-2]) >= 3
