"""Documents and tables: found, unpacked, read, and what is said of those that cannot be."""

from __future__ import annotations

import datetime
import gzip
import io
import os
import pickle
import socket
import zipfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import docx
import pypdf
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.documents.docx import zip_problem
from luthier.corpus.documents.find import find_files
from luthier.corpus.documents.hub import found_files
from luthier.corpus.documents.pdf import join_pages, mend_hyphens
from luthier.corpus.documents.read import read_documents
from luthier.corpus.documents.unpack import UnpackError, ending_of, open_bytes, read_bytes
from luthier.errors import DataError
from luthier.recipe.corpus import Input
from luthier.records import Document, Source


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def one(path: Path, **options: int) -> Document | Unreadable:
    [found] = read_documents(path, **options)  # type: ignore[arg-type]
    return found


def problem_of(path: Path, **options: int) -> tuple[str, str]:
    found = one(path, **options)
    assert isinstance(found, Unreadable)
    assert found.source == Source(path.name, 1)
    return found.problem.reason, found.problem.detail


def text_of(path: Path) -> str:
    found = one(path)
    assert isinstance(found, Document), found
    return found.text


def refusal(pattern: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        find_files(str(pattern))
    return str(caught.value)


# --- files ---------------------------------------------------------------------------------------------


def test_a_folder_gives_all_its_visible_files_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/.hidden.md", ".git/c.txt", "a/b/c.pdf", "A.txt"):
        write(tmp_path, name, "x")
    assert [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path))] == [
        "A.txt", "a/b/c.pdf", "a/z.md", "b.txt",
    ]  # fmt: skip
    assert find_files(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["b.txt"]),
        ("**/*.txt", ["a/c.txt", "b.txt"]),
        ("**", ["a/c.txt", "a/d.md", "b.txt"]),
        ("a/[cd].*", ["a/c.txt", "a/d.md"]),
        ("*/c.tx?", ["a/c.txt"]),
        ("a/.*", ["a/.e.txt"]),
    ],
)
def test_globs(tmp_path: Path, pattern: str, names: list[str]) -> None:
    for name in ("b.txt", "a/c.txt", "a/d.md", "a/.e.txt", ".f/g.txt"):
        write(tmp_path, name, "x")
    assert [str(path.relative_to(tmp_path)) for path in find_files(f"{tmp_path}/{pattern}")] == names


def test_a_name_with_brackets_is_a_name_where_it_exists(tmp_path: Path) -> None:
    path = write(tmp_path, "a[1].txt", "x")
    assert find_files(str(path)) == [path]


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path, "out/secret.txt", "x")
    inner = write(tmp_path, "in/a.txt", "x")
    (tmp_path / "in/link.txt").symlink_to(secret)
    (tmp_path / "in/folder").symlink_to(secret.parent)
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/same.txt").symlink_to(inner)
    assert find_files(str(tmp_path / "in")) == [inner, tmp_path / "in/same.txt"]
    assert find_files(f"{tmp_path}/in/**/*.txt") == [inner, tmp_path / "in/same.txt"]
    inner.unlink()
    (tmp_path / "in/same.txt").unlink()
    assert refusal(tmp_path / "in") == (
        f"{tmp_path}/in: all 1 files are links that lead out of the folder, and such links are not followed. "
        "Name the folder they lead to."
    )


def test_nothing_there(tmp_path: Path) -> None:
    write(tmp_path, "data/train.txt", "x")
    (tmp_path / "empty").mkdir()
    end = "Paths in a recipe start at its folder."
    assert refusal(tmp_path / "dta") == f'{tmp_path}/dta: no such file or folder. Did you mean "data"? {end}'
    assert refusal(tmp_path / "no/a.txt") == (
        f"{tmp_path}/no/a.txt: no such file or folder. There is no folder {tmp_path}/no. {end}"
    )
    assert (
        refusal(tmp_path / "empty") == f"{tmp_path}/empty: the folder holds no files. Hidden files do not count. {end}"
    )
    assert refusal(tmp_path / "data/*.csv") == (
        f"{tmp_path}/data/*.csv: no file matches. The folder {tmp_path}/data holds train.txt. Hidden files do not "
        f"count. {end}"
    )
    assert refusal(tmp_path / "d*") == (
        f"{tmp_path}/d*: no file matches. It matches folders only: add /** for the files in them. Hidden files do "
        f"not count. {end}"
    )
    assert refusal(tmp_path / "dat/*.txt").startswith(f'{tmp_path}/dat: no such file or folder. Did you mean "data"?')
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").startswith(f"{tmp_path}/pipe: is not a regular file")


# --- compressed files ----------------------------------------------------------------------------------


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def test_endings() -> None:
    assert [ending_of(Path(name)) for name in ("a.JSONL", "a.b.Txt.GZ", "a.csv.zst", "a", "a.gz")] == [
        ".jsonl", ".txt", ".csv", "", "",
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=3000), name=st.sampled_from(["a.gz", "a.zst", "a.txt"]), parts=st.integers(1, 3))
def test_what_was_packed_comes_back(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str, parts: int
) -> None:
    raw = b"".join(packed(name, content) if name != "a.txt" else content for _ in range(parts))
    path = write(tmp_path_factory.mktemp("packed"), name, raw)
    assert read_bytes(path) == content * parts
    with open_bytes(path) as stream:
        assert stream.readline() == (content * parts).partition(b"\n")[0] + (b"\n" if b"\n" in content else b"")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_bomb_ends_at_the_limit(tmp_path: Path, name: str) -> None:
    bomb = write(tmp_path, name, packed(name, b"\n" * 50_000_000))
    assert bomb.stat().st_size < 60_000
    detail = "holds more than 1,000,000 bytes unpacked. If it is what it should be, raise max_file_bytes."
    assert problem_of(bomb, max_file_bytes=1_000_000) == ("too_large", detail)
    with pytest.raises(UnpackError) as caught:
        read_bytes(bomb, 1_000_000)
    assert str(caught.value) == f"{bomb}: {detail}"
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(again), again.reason, again.detail) == (f"{bomb}: {detail}", "too_large", detail)
    exact = write(tmp_path, name, packed(name, b"x" * 1000))
    assert len(read_bytes(exact, 1000)) == 1000
    with pytest.raises(UnpackError):
        read_bytes(exact, 999)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_broken_compression(tmp_path: Path, name: str) -> None:
    whole = packed(name, os.urandom(200_000))
    for broken in (whole[:100_000], whole[:-1], b"not packed", whole[:50_000] + b"\0" * 50 + whole[50_050:]):
        reason, detail = problem_of(write(tmp_path, name, broken))
        assert reason == "broken_file"
        assert detail.startswith("the compressed file is damaged or cut short (")
        assert detail.endswith("). Copy or write it again.")


def test_a_plain_file_over_the_limit(tmp_path: Path) -> None:
    assert problem_of(write(tmp_path, "a.txt", "x" * 1001), max_file_bytes=1000)[0] == "too_large"


# --- text and Markdown ---------------------------------------------------------------------------------


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "One.\r\nTwo.\rThree.\n")
    assert list(read_documents(path)) == [Document("One.\nTwo.\nThree.\n", Source("a.txt", 1))]
    assert next(read_documents(path, file="sub/a.txt")).source == Source("sub/a.txt", 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "na\u00efve \u201cquote\u201d\nand more\n"
    assert text_of(write(tmp_path, "a.txt", text.encode(encoding))) == text


def test_lines_of_two_encodings(tmp_path: Path) -> None:
    raw = "caf\u00e9\n".encode() + "caf\u00e9\r\n".encode("cp1252")
    assert text_of(write(tmp_path, "a.txt", raw)) == "caf\u00e9\ncaf\u00e9\n"


@pytest.mark.parametrize(
    ("raw", "reason", "start"),
    [
        (b"one\ncaf\x81\n", "encoding", "line 2: byte 0x81 at position 4 is neither UTF-8 nor plausible"),
        (b"one\nPK\0\3", "not_text", "line 2 holds a zero byte: no text file. Save it as UTF-8 text."),
        (b"\xff\xfea\0b", "encoding", "starts as UTF-16, but byte 5 is none. Save the file as UTF-8."),
        (b"", "empty_text", "the file has no text. Write some, or remove the file."),
        (b" \n\n", "empty_text", "the file has no text."),
    ],
)
def test_texts_that_cannot_be_read(tmp_path: Path, raw: bytes, reason: str, start: str) -> None:
    found, detail = problem_of(write(tmp_path, "a.txt", raw))
    assert found == reason
    assert detail.startswith(start)


def test_front_matter(tmp_path: Path) -> None:
    text = "---\ntitle: The cats\ndate: 2024-02-03\nlicense: CC-BY-4.0\nurl: https://x.org/a\ntags: [a]\n---\n\n# Cats\n\nText.\n"
    assert one(write(tmp_path, "a.md", text)) == Document(
        "# Cats\n\nText.\n",
        Source("a.md", 1, licence="CC-BY-4.0", date="2024-02-03", url="https://x.org/a"),
        "The cats",
    )


@pytest.mark.parametrize(
    "text", ["---\na: [\n---\nText.", "---\njust words\n---\nText.", "---\n\nA rule, then text.", "Text. ---"]
)
def test_what_is_no_front_matter_stays_in_the_text(tmp_path: Path, text: str) -> None:
    assert text_of(write(tmp_path, "a.markdown", text)) == text


def test_the_first_heading_is_the_title(tmp_path: Path) -> None:
    found = one(write(tmp_path, "a.md", "Intro.\n\n# The cats #\n\n# More\n"))
    assert isinstance(found, Document)
    assert (found.title, found.source.date) == ("The cats", None)


# --- HTML ----------------------------------------------------------------------------------------------

PAGE = """<!doctype html><html><head><title> The \n cats </title><meta charset="utf-8">
<link rel="license" href="https://creativecommons.org/licenses/by/4.0/"><link rel="canonical" href="https://x.org/cats">
<meta property="article:published_time" content="2024-02-03T10:00:00Z"><script src="https://x.org/a.js"></script></head>
<body><nav><a href="/">Home</a> <a href="/about">About us</a></nav><article><h1>Cats of note</h1>
<p>Cats sl\u00e9ep for most of the day, and they like warm places by the window more than anything.</p>
<h2>Food</h2><p>They eat fish. They eat mice, and a great many other small animals besides those.</p>
<img src="https://x.org/a.png"></article><footer>Imprint and cookies</footer></body></html>"""


def test_a_page_gives_its_main_text_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    found = one(write(tmp_path, "a.html", PAGE))
    assert isinstance(found, Document)
    assert found.text.startswith("# Cats of note\n\nCats sl\u00e9ep for most")
    assert "## Food\n\nThey eat fish." in found.text
    assert "About us" not in found.text
    assert "cookies" not in found.text
    assert found.title == "The cats"
    licence = "https://creativecommons.org/licenses/by/4.0/"
    assert found.source == Source("a.html", 1, licence=licence, date="2024-02-03", url="https://x.org/cats")


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("cp1252", "iso-8859-1"), ("cp1251", "windows-1251"), ("utf-8", "no-such-thing"), ("utf-16", "utf-8")],
)
def test_a_page_is_read_in_the_encoding_it_declares(tmp_path: Path, encoding: str, declared: str) -> None:
    word = "\u043a\u043e\u0448\u043a\u0430" if encoding == "cp1251" else "caf\u00e9 \u201cx\u201d"
    page = f'<meta http-equiv=type content="text/html; charset={declared}"><p>The word is {word}, and no other one.</p>'
    assert word in text_of(write(tmp_path, "a.htm", page.encode(encoding)))


@pytest.mark.parametrize(
    ("page", "reason"),
    [("", "empty_text"), ("<div>" * 30_000 + "x", "no_text"), ("<script>var x = 1;</script>", "no_text")],
)
def test_pages_without_text(tmp_path: Path, page: str, reason: str) -> None:
    found, detail = problem_of(write(tmp_path, "a.html", page))
    assert found == reason
    if reason == "no_text":
        assert detail == "no main text found in the page. Is it built by scripts? Save it as shown, or as text."


# --- PDF -----------------------------------------------------------------------------------------------


def pdf_of(*pages: list[str]) -> bytes:
    """A PDF with lines of Helvetica on its pages."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for lines in pages:
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 50 700 Td {shown} ET".encode() if lines else b""
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
        kids.append(len(objects) + 1)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % len(objects)
        )
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return out + head + table + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, len(out))


def test_a_pdf_is_its_pages_with_words_mended(tmp_path: Path) -> None:
    raw = pdf_of(
        ["This is an exam-", "ple of a well-", "known thing."], ["A well-known page", "that goes"], ["on here."]
    )
    assert text_of(write(tmp_path, "a.pdf", raw)) == (
        "This is an example of a well-known thing.\n\nA well-known page\nthat goes\non here."
    )
    assert text_of(write(tmp_path, "a.pdf.gz", gzip.compress(raw))).startswith("This is an example")


def test_title_and_date_of_a_pdf(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_of(["Text."])))
    writer.add_metadata({"/Title": " The cats ", "/CreationDate": "D:20240203100000Z"})
    writer.write(tmp_path / "a.pdf")
    assert one(tmp_path / "a.pdf") == Document("Text.", Source("a.pdf", 1, date="2024-02-03"), "The cats")
    writer.add_metadata({"/CreationDate": "yesterday"})
    writer.write(tmp_path / "b.pdf")
    assert one(tmp_path / "b.pdf") == Document("Text.", Source("b.pdf", 1))


def test_a_pdf_without_text(tmp_path: Path) -> None:
    detail = "the PDF has 2 pages without any text. Scanned? Run OCR on it first."
    assert problem_of(write(tmp_path, "a.pdf", pdf_of([], []))) == ("no_text", detail)
    assert problem_of(write(tmp_path, "a.pdf", pdf_of([])))[1].startswith("the PDF has 1 page without")


def test_an_encrypted_pdf(tmp_path: Path) -> None:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_of(["Text."])))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "a.pdf")
    assert problem_of(tmp_path / "a.pdf") == ("encrypted", "the PDF asks for a password. Save a copy without one.")
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_of(["Text."])))
    writer.encrypt("", "secret", algorithm="RC4-128")
    writer.write(tmp_path / "b.pdf")
    assert text_of(tmp_path / "b.pdf") == "Text."


def test_a_broken_pdf(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for raw in (b"%PDF-1.4 nothing", b"no pdf", pdf_of(["Text."])[:80]):
        reason, detail = problem_of(write(tmp_path, "a.pdf", raw))
        assert reason == "broken_file"
        assert detail.startswith("not a readable PDF (")
        assert detail.endswith("). Open it and save it again.")
    assert caplog.records == []


def test_the_text_of_a_pdf_is_bounded(tmp_path: Path) -> None:
    raw = pdf_of(["x" * 90] * 40, ["y" * 90] * 40)
    path = write(tmp_path, "a.pdf.gz", gzip.compress(raw))
    assert problem_of(path, max_file_bytes=len(raw) - 1)[0] == "too_large"
    stream = pypdf.PdfWriter(clone_from=io.BytesIO(raw))
    for page in stream.pages:
        page.compress_content_streams()
    stream.write(tmp_path / "b.pdf")
    size = (tmp_path / "b.pdf").stat().st_size
    assert problem_of(tmp_path / "b.pdf", max_file_bytes=size) == (
        "too_large",
        f"the text has more than {size:,} characters.",
    )


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("an exam-\nple", "an example"),
        ("exam- \n ple", "example"),
        ("exam\u00ad\nple and so\u00adft", "example and soft"),
        ("Anne-\nMarie", "Anne-Marie"),
        ("1998-\n1999 and 3-\nfold", "1998-\n1999 and 3-fold"),
        ("a co-\nop; the co-op", "a co-op; the co-op"),
        ("a co-\nop; the coop and co-op", "a coop; the coop and co-op"),
        ("a list:\n- one\n- two", "a list:\n- one\n- two"),
        ("yes -\nno", "yes -\nno"),
    ],
)
def test_hyphens_at_line_ends(text: str, mended: str) -> None:
    assert mend_hyphens(text) == mended


def test_long_words_take_no_long_time() -> None:
    start = perf_counter()
    assert mend_hyphens("x" * 300_000) == "x" * 300_000
    assert perf_counter() - start < 2


def test_pages_are_joined_by_their_ends() -> None:
    assert join_pages(["It goes ", "\non.\n", "", "New. "]) == "It goes\non.\n\nNew."


# --- DOCX ----------------------------------------------------------------------------------------------


def test_a_docx_gives_headings_lists_and_tables(tmp_path: Path) -> None:
    document = docx.Document()
    document.core_properties.title = "The cats"
    document.core_properties.created = datetime.datetime(2024, 2, 3)
    document.add_heading("Cats", 1)
    document.add_paragraph("They sleep.")
    document.add_paragraph("")
    document.add_heading("Food", 2)
    document.add_paragraph("fish", style="List Bullet")
    document.add_paragraph("mice", style="List Number")
    table = document.add_table(2, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "name", "age\nin years"
    table.cell(1, 0).merge(table.cell(1, 1)).text = "none"
    document.add_paragraph("End.")
    document.save(tmp_path / "a.docx")
    text = "# Cats\n\nThey sleep.\n\n## Food\n\n- fish\n- mice\n\nname | age in years\nnone\n\nEnd.\n"
    assert one(tmp_path / "a.docx") == Document(text, Source("a.docx", 1, date="2024-02-03"), "The cats")


def zipped(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = zipped({"word/document.xml": b" " * 20_000_000})
    assert problem_of(write(tmp_path, "a.docx", bomb), max_file_bytes=1_000_000) == (
        "too_large",
        "holds more than 1,000,000 bytes unpacked. If it should, raise max_file_bytes.",
    )


def test_a_zip_that_lies_about_its_sizes() -> None:
    honest = zipped({"word/document.xml": b" " * 2_000_000})
    size = (2_000_000).to_bytes(4, "little")
    lying = honest.replace(size, (10).to_bytes(4, "little"))
    assert lying != honest
    problem = zip_problem(lying, 1_000_000)
    assert problem is not None
    assert problem.reason in ("broken_file", "too_large")


def test_docx_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert problem_of(write(tmp_path, "a.docx", b"PK nothing"))[0] == "broken_file"
    reason, detail = problem_of(write(tmp_path, "a.docx", zipped({"a.txt": b"x"})))
    assert reason == "broken_file"
    assert detail.startswith("not a readable DOCX (")
    assert problem_of(write(tmp_path, "a.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 600))[0] == "encrypted"
    docx.Document().save(tmp_path / "b.docx")
    detail = "the DOCX has no text. Are its pages pictures? Run OCR on it first."
    assert problem_of(tmp_path / "b.docx") == ("no_text", detail)


def test_an_unknown_ending_is_a_problem_of_that_file(tmp_path: Path) -> None:
    reason, detail = problem_of(write(tmp_path, "a.odt", "x"))
    assert reason == "unknown_ending"
    assert detail == (
        'unknown file ending ".odt". Documents: .txt, .text, .md, .markdown, .html, .htm, .pdf, .docx (and .gz, '
        ".zst). Save it as .docx."
    )
    assert problem_of(tmp_path / "gone.txt") == (
        "unreadable_file",
        "cannot be read: No such file or directory. Check the path and its permissions.",
    )


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=400), ending=st.sampled_from(["txt", "md", "html", "pdf", "docx", "txt.gz", "pdf.zst"]))
def test_any_bytes_give_a_document_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, ending: str
) -> None:
    head = {"pdf": b"%PDF-1.4\n", "docx": b"PK\3\4", "html": b"<p>"}.get(ending, b"")
    found = one(write(tmp_path_factory.getbasetemp(), f"any.{ending}", head + raw))
    assert (found.text.strip() != "") if isinstance(found, Document) else found.problem.detail


# --- data sets of the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Puts files of the data set some/rows into the cache; without a network that is all there is."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("luthier.corpus.documents.hub.fetch_from_hub", lambda *asked: "no network")
    folder = tmp_path / "home" / "datasets" / "some--rows"

    def put(*names: str, readme: str = "") -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text('{"text": "a"}\n')
        if readme:
            (folder / "README.md").write_text(f"---\n{readme}---\n# Rows\n")

    return put


def of_hub(**settings) -> tuple[list[str], str]:
    """Names of the files that are read, and what is said to be left out."""
    found = found_files(Input.model_validate({"path": "hub:some/rows", **settings}))
    return [path.name for path in found.files], found.left_out


def test_of_a_hub_data_set_the_training_split_is_read(hub):
    hub("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet",
        "data/validation.jsonl", "notes.csv", "dataset_infos.json")  # fmt: skip
    names, left_out = of_hub()
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert left_out == (
        "hub:some/rows: the split train is read; left out: the splits test, validation; files of no split (notes.csv)."
    )
    assert of_hub(split="test")[0] == ["test-00000-of-00001.parquet"]
    assert of_hub(path="hub:some/rows/data/*.parquet")[0][0] == "test-00000-of-00001.parquet", "named as they are"
    assert of_hub(path="hub:some/rows/data/*.parquet", split="test")[0] == ["test-00000-of-00001.parquet"]
    with pytest.raises(DataError) as refused:
        of_hub(split="tset")
    assert str(refused.value) == (
        'hub:some/rows: has no split "tset"; there is test, train, validation. Say which: {path: hub:some/rows, split: '
        "test}, or name files: hub:some/rows/PATH."
    )


def test_files_that_name_no_split_are_all_for_training(hub):
    hub("rows.json", "more.csv", "dataset_info.json")
    assert of_hub() == (["more.csv", "rows.json"], "")


def test_of_several_configurations_one_has_to_be_named(hub):
    """As the README tells them: its patterns decide, not the names of files."""
    hub("en/a.jsonl", "en/b.jsonl", "de/a.jsonl", readme="""configs:
- {config_name: en, data_files: [{split: train, path: en/a*}, {split: test, path: [en/b.jsonl]}]}
- {config_name: de, data_files: "de/*.jsonl"}
""")  # fmt: skip
    with pytest.raises(DataError) as refused:
        of_hub()
    assert str(refused.value) == (
        "hub:some/rows: has 2 configurations: en, de. Say which: {path: hub:some/rows, config: en}."
    )
    assert of_hub(config="en") == (
        ["a.jsonl"],
        "hub:some/rows: the split train is read; left out: the split test; the configurations de.",
    )
    assert of_hub(config="en", split="test")[0] == ["b.jsonl"]
    with pytest.raises(DataError, match='no configuration "ed"; there is en, de'):
        of_hub(config="ed")


def test_a_default_configuration_is_read(hub):
    hub("en.jsonl", "de.jsonl", readme="""configs:
- {config_name: de, data_files: de.jsonl}
- {config_name: en, data_files: en.jsonl, default: true}
""")  # fmt: skip
    assert of_hub()[0] == ["en.jsonl"] and of_hub(config="de")[0] == ["de.jsonl"]


def test_folders_with_training_rows_each_are_configurations(hub):
    hub("en/train.csv", "en/test.csv", "de/train.csv")
    with pytest.raises(DataError, match="has 2 configurations: de, en"):
        of_hub()
    assert of_hub(config="en")[0] == ["train.csv"]


def test_a_split_that_is_not_in_the_cache_is_said(hub):
    hub("train.csv", readme="""configs:
- {config_name: default, data_files: [{split: train, path: train.csv}, {split: test, path: test.csv}]}
""")  # fmt: skip
    assert of_hub()[0] == ["train.csv"]
    with pytest.raises(DataError, match='the files of the split "test" \\(test.csv\\) are neither in the cache nor'):
        of_hub(split="test")


def test_splits_are_for_the_hub(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match=r"a.csv: split is for data sets of the hub \(hub:OWNER/NAME\)"):
        found_files(Input(path=str(tmp_path / "a.csv"), split="test"))
