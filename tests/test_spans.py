"""Entities in tags, by hand for every way in which a sequence can be odd, and the figures that rest on them."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.methods.heads.spans import agreement, as_bio, entities, is_chunk_tag, likeliest, well_formed

# What seqeval 1.2.2 answers (get_entities, its last word counted in): 200,000 random sequences of these and like tags
# gave no difference. Types a and b; the third column is why.
CASES = [
    ("", set(), "nothing"),
    ("O O", set(), "no entity"),
    ("B-a I-a O B-b", {("a", 0, 2), ("b", 3, 4)}, "as it should be"),
    ("B-a B-a", {("a", 0, 1), ("a", 1, 2)}, "a new B begins a new entity"),
    ("I-a I-a O", {("a", 0, 2)}, "an I without a B begins one"),
    ("O I-a", {("a", 1, 2)}, "after O too"),
    ("B-a I-b", {("a", 0, 1), ("b", 1, 2)}, "an I of another type begins one"),
    ("B-a I-b I-a", {("a", 0, 1), ("b", 1, 2), ("a", 2, 3)}, "each time"),
    ("B-a I-a", {("a", 0, 2)}, "open at the end"),
    ("B-a I-a E-a I-a", {("a", 0, 3), ("a", 3, 4)}, "BIOES: an E ends it"),
    ("B-a I-a L-a", {("a", 0, 3)}, "BILOU: an L ends it"),
    ("S-a S-a", {("a", 0, 1), ("a", 1, 2)}, "an S stands alone"),
    ("U-a I-a", {("a", 0, 1), ("a", 1, 2)}, "a U too, and an I behind it begins one"),
    ("E-a I-a", {("a", 0, 1), ("a", 1, 2)}, "an E without a beginning is one of one word"),
    ("B I O I", {("_", 0, 2), ("_", 3, 4)}, "tags without a type have one in common"),
    ("B-a-b I-a-b", {("a-b", 0, 2)}, "a type may hold a hyphen"),
]


@pytest.mark.parametrize(("tags", "wanted", "why"), CASES, ids=[why for _, _, why in CASES])
def test_entities_by_hand(tags, wanted, why):
    assert entities(tags.split()) == wanted


def test_agreement_by_hand():
    """Gold: a over 0:2, b at 3. Given: a over 0:2, b over 3:5. One is right; the b has a word too many."""
    assert agreement(["B-a", "I-a", "O", "B-b", "O"], ["B-a", "I-a", "O", "B-b", "I-b"]) == (1, 2, 2)
    assert agreement(["B-a", "I-a"], ["B-b", "I-b"]) == (0, 1, 1), "another type"
    assert agreement(["O"], ["O"]) == (0, 0, 0)


SPANS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.integers(0, 2)), max_size=6)


@given(spans=SPANS)
def test_what_is_written_as_bio_is_read_back(spans):
    tags, wanted = [], set()
    for kind, size, gap in spans:
        wanted.add((kind, len(tags), len(tags) + size))
        tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 1), *["O"] * gap]
    assert entities(tags) == wanted
    assert agreement(tags, tags) == (len(wanted), len(wanted), len(wanted))


@given(tags=st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b", "E-a", "S-b"]), max_size=8))
def test_every_word_that_is_not_o_is_in_one_entity(tags):
    """Entities part the tagged words: none is left out, none counts twice."""
    covered = [word for _, start, stop in entities(tags) for word in range(start, stop)]
    assert sorted(covered) == [word for word, tag in enumerate(tags) if tag != "O"]


@pytest.mark.parametrize(
    ("tag", "good"), [("O", True), ("B-x", True), ("I", True), ("NN", False), ("b-x", False), ("Ox", False)]
)
def test_which_tags_name_entities(tag, good):
    assert is_chunk_tag(tag) == good


# --- well-formed sequences ------------------------------------------------------------------------------------------


def test_well_formed_by_hand():
    for tags in ("", "O", "B-a I-a I-a O B-b", "B-a B-a", "B-a I-a E-a S-a", "B I"):
        assert well_formed(tags.split()), tags
    for tags in ("I-a", "O I-a", "B-a I-b", "B-a E-a I-a", "S-a I-a", "L-a"):
        assert not well_formed(tags.split()), tags


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y", "I"]), max_size=7))
def test_iob1_as_bio_names_the_same_entities(tags):
    assert well_formed(as_bio(tags)) and entities(as_bio(tags)) == entities(tags)
    assert as_bio((*tags, "E-x")) == (*tags, "E-x"), "BIOES is left as it is"


def test_the_likeliest_well_formed_tags_by_hand():
    """Word by word: O (0.6), I-a (0.5). B-a I-a scores 0.3 * 0.5 = 0.15; O O scores 0.6 * 0.3 = 0.18."""
    scores = np.log([[0.6, 0.3, 0.1], [0.3, 0.2, 0.5]])
    assert likeliest(scores, ("O", "B-a", "I-a")) == [0, 0]
    scores[0] = np.log([0.5, 0.4, 0.1])
    assert likeliest(scores, ("O", "B-a", "I-a")) == [1, 2], "0.4 * 0.5 = 0.20 against 0.5 * 0.3 = 0.15"


@given(seed=st.integers(0, 2**32 - 1), words=st.integers(1, 5))
def test_the_likeliest_well_formed_tags_are_the_best_of_all(seed, words):
    tags = ("B-a", "I-a", "O", "I-b", "E-a")  # no B-b: an I-b has nothing to stand behind
    scores = np.random.default_rng(seed).normal(size=(words, len(tags)))
    possible = [path for path in product(range(len(tags)), repeat=words) if well_formed([tags[i] for i in path])]
    best = max(possible, key=lambda path: sum(scores[word, tag] for word, tag in enumerate(path)))
    assert likeliest(scores, tags) == list(best)
