"""Cutting documents: nothing is lost, nothing is too long, and the cuts stand where a reader would make them."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.steps.chunking import Chunker, blocks_of, units_of
from luthier.errors import DataError
from luthier.recipe.corpus import Chunking
from luthier.records import Document, Source

Counter = Callable[[list[str]], list[int]]
WORD = re.compile(r"\w+|[^\w\s]")


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def count_pieces(texts: list[str]) -> list[int]:
    """Like a word-piece tokenizer with a start token: six letters a token, white space counts in pairs."""
    return [
        1 + sum(-(-len(word) // 6) for word in WORD.findall(text)) + len(re.findall(r"\s\s", text)) for text in texts
    ]


def count_bytes(texts: list[str]) -> list[int]:
    return [-(-len(text.encode()) // 3) for text in texts]


def count_jumpy(texts: list[str]) -> list[int]:
    """Does not add up: a whole has more tokens than its parts."""
    return [len(text) // 4 + len(text) ** 2 // 4000 for text in texts]


COUNTERS = [count_words, count_pieces, count_bytes, count_jumpy]


def document(text: str, group: str | None = None) -> Document:
    return Document(text, Source("a.md", 7, licence="MIT", group=group, date="2024-01-02"), title="A")


def cut(text: str, max_tokens: int, overlap_tokens: int = 0, counter: Counter = count_words) -> list[str]:
    chunker = Chunker(Chunking(max_tokens=max_tokens, overlap_tokens=overlap_tokens), counter)
    return [piece.text for piece in chunker.pieces(document(text))]


parts = st.sampled_from(
    ["One two three. ", "Is it so? ", "Yes", "\n", "\n\n", "# Head\n", "## Low\n\n", "word ", "x" * 40, " ", "\u3002",
     "\u4f60\u597d", "```\n", "- item\n", "e.g. that ", "\U0001f600", "\t", "1. first\n", "| a | b |\n", "\r\n"]
)  # fmt: skip
texts = st.lists(parts, max_size=60).map("".join) | st.text(max_size=300)


@settings(max_examples=250, deadline=None)
@given(text=texts, max_tokens=st.integers(4, 40), counter=st.sampled_from(COUNTERS))
def test_pieces_put_together_are_the_text_and_none_is_too_long(text: str, max_tokens: int, counter: Counter) -> None:
    pieces = cut(text, max_tokens, counter=counter)
    assert "".join(pieces) == text
    assert max(counter(pieces)) <= max_tokens
    assert pieces == [text] or all(pieces)


@settings(max_examples=150, deadline=None)
@given(text=texts, max_tokens=st.integers(8, 40), share=st.floats(0.1, 0.5), counter=st.sampled_from(COUNTERS))
def test_an_overlap_repeats_text_and_never_costs_the_limit(
    text: str, max_tokens: int, share: float, counter: Counter
) -> None:
    overlap = int(max_tokens * share)
    pieces = cut(text, max_tokens, overlap, counter)
    assert max(counter(pieces)) <= max_tokens
    # each piece starts within the text so far, or right behind it, and brings something new
    ends = {len(pieces[0])}
    for piece in pieces[1:]:
        places = [at for at in range(len(text)) if text.startswith(piece, at)]
        ends = {at + len(piece) for at in places for end in ends if at <= end < at + len(piece)}
    assert len(text) in ends


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_blocks_and_units_part_the_text(text: str) -> None:
    assert "".join(text[start:end] for start, end, _, _ in blocks_of(text)) == text
    assert "".join(text[unit.start : unit.end] for unit in units_of(text)) == text


def test_a_document_that_fits_is_left_as_it_is() -> None:
    whole = document("One two three.")
    assert Chunker(Chunking(max_tokens=3), count_words).pieces(whole) == [whole]
    assert Chunker(Chunking(max_tokens=0), count_words).pieces(document("x " * 999)) == [document("x " * 999)]


def test_pieces_carry_provenance_and_one_group() -> None:
    pieces = Chunker(Chunking(max_tokens=3), count_words).pieces(document("One two three. Four five six."))
    assert [piece.text for piece in pieces] == ["One two three. ", "Four five six."]
    assert {(piece.title, piece.source.licence, piece.source.date, piece.source.line) for piece in pieces} == {
        ("A", "MIT", "2024-01-02", 7)
    }
    groups = {piece.source.group for piece in pieces}
    assert len(groups) == 1
    assert groups != {None}
    other = Document("One two three. Four five six.", Source("a.md", 8))
    assert Chunker(Chunking(max_tokens=3), count_words).pieces(other)[0].source.group not in groups
    given_group = Chunker(Chunking(max_tokens=3), count_words).pieces(
        document("One two three. Four five.", group="mine")
    )
    assert {piece.source.group for piece in given_group} == {"mine"}


def test_cuts_prefer_headings_then_paragraphs_then_sentences_then_words() -> None:
    heading = "One two three. Four five six.\n\nSeven eight.\n\n# Head\n\nNine ten. Eleven."
    assert cut(heading, 12) == ["One two three. Four five six.\n\nSeven eight.\n\n", "# Head\n\nNine ten. Eleven."]
    paragraph = "One two three. Four five.\n\nSix seven. Eight nine."
    assert cut(paragraph, 8) == ["One two three. Four five.\n\n", "Six seven. Eight nine."]
    sentence = "One two three. Four five six seven. Eight nine."
    assert cut(sentence, 8) == ["One two three. Four five six seven. ", "Eight nine."]
    words = "one two three four five six"
    assert cut(words, 4) == ["one two three four ", "five six"]
    lines = "one two three\nfour five six seven"
    assert cut(lines, 5) == ["one two three\n", "four five six seven"]
    assert cut("abcdefghij", 4, counter=lambda texts: [len(text) for text in texts])[0] == "abc"


def test_a_higher_heading_is_the_better_place() -> None:
    text = "a b c d e f.\n\n# High\n\ng.\n\n## Low\n\nh i j k l."
    assert cut(text, 12) == ["a b c d e f.\n\n", "# High\n\ng.\n\n## Low\n\nh i j k l."]
    assert cut(text.replace("# High", "### High"), 12)[0].endswith("g.\n\n")


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    max_tokens=st.integers(6, 20),
    counter=st.sampled_from([count_words, count_pieces]),
)
def test_a_heading_never_ends_a_piece(sizes: list[int], max_tokens: int, counter: Counter) -> None:
    text = "".join(f"# H{number}\n\n{'word ' * size}end.\n\n" for number, size in enumerate(sizes))
    for piece in cut(text, max_tokens, counter=counter):
        assert not piece.rstrip().splitlines()[-1].startswith("#")


@pytest.mark.parametrize(
    "text",
    [
        "It cost 3.50 dollars in all.",
        "Dr. Smith met J. R. Jones there.",
        "See e.g. Table 2 and Fig. 3 for more.",
        "the end. of it",
        "Version 2.0 is out.",
        "1. Take it",
    ],
)
def test_these_are_one_sentence(text: str) -> None:
    assert len(list(units_of(text))) == 1


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            'He said "no." Then he left! Why? (Nobody knew.)',
            ['He said "no." ', "Then he left! ", "Why? ", "(Nobody knew.)"],
        ),
        ("It was in 1999. Then it ended.", ["It was in 1999. ", "Then it ended."]),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]),
        ("Items:\n- one\n- two\n2) three", ["Items:\n", "- one\n", "- two\n", "2) three"]),
        ("Wait\u2026 No.", ["Wait\u2026 ", "No."]),
        ("A wrapped\nline. Next\nline.", ["A wrapped\nline. ", "Next\nline."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[unit.start : unit.end] for unit in units_of(text)] == sentences


def test_a_hash_in_code_is_no_heading() -> None:
    text = "Run:\n\n```\n# a comment\n\nrun. It\n```\n# Head\ntext\n"
    assert [(text[start:end], kind) for start, end, _, kind in blocks_of(text)] == [
        ("Run:\n\n", "prose"),
        ("```\n# a comment\n\nrun. It\n```\n", "code"),
        ("# Head\n", "heading"),
        ("text\n", "prose"),
    ]


def test_the_overlap_is_whole_sentences() -> None:
    text = "One two. Three four. Five six. Seven eight. Nine ten."
    assert cut(text, 6, 2) == [
        "One two. Three four. ",
        "Three four. Five six. Seven eight. ",
        "Seven eight. Nine ten.",
    ]
    # nothing smaller than a sentence is said again
    assert cut("one two three four five six", 4, 2) == ["one two ", "three four ", "five six"]


def test_tokens_are_counted_in_few_calls() -> None:
    calls: list[int] = []

    def counter(texts: list[str]) -> list[int]:
        calls.append(len(texts))
        return count_pieces(texts)

    text = "".join(f"Sentence number {number} says a thing or two.\n\n" for number in range(3000))
    pieces = cut(text, 128, counter=counter)
    assert len(calls) <= 4
    assert sum(count_pieces(pieces)) / len(pieces) > 100


@pytest.mark.parametrize(
    "text",
    [
        "." * 100_000,
        "One two. " * 20_000,
        "word " * 20_000,
        "x" * 100_000,
        "\n" * 50_000,
        "# \n" * 20_000,
        "a\n\n" * 20_000,
    ],
)
def test_odd_texts_take_no_odd_time(text: str) -> None:
    start = perf_counter()
    pieces = cut(text, 100, counter=count_bytes)
    assert perf_counter() - start < 5
    assert "".join(pieces) == text
    assert max(count_bytes(pieces)) <= 100


def test_short_documents_are_counted_in_one_call() -> None:
    calls: list[int] = []

    def counter(texts: list[str]) -> list[int]:
        calls.append(len(texts))
        return count_words(texts)

    found = Chunker(Chunking(max_tokens=9), counter).pieces_of_each([document("a b"), document("c"), document("")])
    assert [len(pieces) for pieces in found] == [1, 1, 1]
    assert calls == [3]


def test_too_few_tokens_for_a_character() -> None:
    with pytest.raises(DataError) as caught:
        cut("\U0001f600\U0001f600", 1, counter=count_bytes)
    assert str(caught.value) == (
        "chunking.max_tokens: 1 are fewer than the one character '\U0001f600' takes. Set it to some hundred."
    )


def test_an_overlap_of_more_than_half() -> None:
    with pytest.raises(DataError) as caught:
        cut("a", 10, 6)
    assert str(caught.value) == (
        "chunking.overlap_tokens is 6, more than half of chunking.max_tokens (10): pieces would mostly repeat each "
        "other. Set it to 5 or less."
    )
