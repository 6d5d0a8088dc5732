"""Copies: words and signatures, LSH and exact Jaccard, which record stays, common lines, repeated passages."""

import json
import os
import random
import re
import string
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.duplicates import lines, substrings
from luthier.corpus.duplicates.clusters import bands_and_rows, find_clusters, proposal_probability
from luthier.corpus.duplicates.cuts import cut_out, open_seen, save_seen
from luthier.corpus.duplicates.signatures import (
    Signatures,
    bytes_a_document,
    exact_keys,
    hex_keys,
    open_signatures,
    save_signatures,
    shingles_of,
    sign,
)
from luthier.corpus.duplicates.words import fold_word, offsets_of, word_pattern, word_spans, words_of
from luthier.corpus.wire import key_of
from luthier.errors import DataError
from luthier.recipe.corpus import Duplicates
from luthier.records import Document, Source

NEAR = Duplicates()


def jaccard3(first, second, num_words=3):
    """The definition, by sets of tuples; a text of fewer words is one shingle."""
    sets = []
    for text in (first, second):
        words = words_of(text)
        sets.append({tuple(words[at : at + num_words]) for at in range(max(len(words) - num_words + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def random_texts(count, seed, vocabulary=3_000, length=40):
    rng = random.Random(seed)  # noqa: S311
    return [" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(length)) for _ in range(count)]


def varied(text, changes, rng):
    words = text.split()
    for at in rng.sample(range(len(words)), changes):
        words[at] = f"x{rng.randrange(10**9)}"
    return " ".join(words)


def family_corpus(seed, num_families=12, copies=6):
    """Families of texts, from exact copies to half rewritten ones, mixed."""
    rng = random.Random(seed)  # noqa: S311
    texts = []
    for base in random_texts(num_families, seed):
        texts += [varied(base, rng.choice((0, 0, 1, 1, 2, 4, 8)), rng) for _ in range(copies)]
    rng.shuffle(texts)
    return texts


def decide(texts, wanted=NEAR, cuts=()):
    bounds = [0, *sorted(cuts), len(texts)]
    units = [sign(texts[a:b], wanted) for a, b in pairwise(bounds)]
    return find_clusters(units, wanted)


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_folded_and_written_alike_in_any_script():
    assert words_of("Don't STOP, snake_case 3.5") == ["don", "t", "stop", "snake", "case", "3", "5"]
    assert words_of("CAFÉ cafe\u0301 ﬁne Straße ＡＢＣ") == ["café", "café", "fine", "strasse", "abc"]
    assert words_of("soft\u00adhyphen zero\u200bwidth") == ["softhyphen", "zerowidth"]
    assert words_of("हिन्दी 한국어") == ["हिन्दी", "한국어"]
    assert words_of("東京タワー 2024年") == ["東", "京", "タ", "ワ", "ー", "2024", "年"]
    assert words_of("!? 🎉") == []


@given(st.text(max_size=60))
def test_every_word_has_its_place_in_the_text(text):
    spans = word_spans(text)
    assert [fold_word(text[start:end]) for start, end in spans] == words_of(text)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


@given(st.text(alphabet=string.printable, max_size=60))
def test_plain_ascii_takes_a_short_way_to_the_same_words(text):
    assert words_of(text) == [fold_word(word) for word in word_pattern().findall(text)]
    assert words_of(text) == re.findall(r"[a-z0-9]+", text.lower())


# --- signatures ------------------------------------------------------------------------------------------------------


def test_shingles_are_sorted_distinct_and_never_missing():
    found = shingles_of(["a b c d a b c", "a b", "", "🎉", "🎉🎉", "..."], 3)
    assert found.lengths_B.tolist() == [4, 1, 1, 1, 1, 1]  # "a b c" stands twice
    rows = np.split(found.values, found.offsets_B1[1:-1])
    assert all((np.diff(row.astype(np.int64)) > 0).all() for row in rows)
    assert len({row[0] for row in rows[1:]}) == 5


def test_word_order_counts_within_a_shingle_only():
    first, second, third = (
        set(row) for row in np.split(shingles_of(["a b c d", "d a b c", "c b a d"], 3).values, [2, 4])
    )
    assert len(first & second) == 1
    assert not first & third


def test_a_unit_is_signed_text_by_text():
    texts = ["", "one", *random_texts(5, 1), "ab " * 1_400_000, *random_texts(3, 2)]  # the long one fills a chunk
    whole = sign(texts, NEAR)
    alone = [sign([text], NEAR) for text in texts]
    assert np.array_equal(whole.keys_B2, np.concatenate([part.keys_B2 for part in alone]))
    assert np.array_equal(whole.shingles, np.concatenate([part.shingles for part in alone]))
    assert np.array_equal(whole.minhash_PB, np.concatenate([part.minhash_PB for part in alone], axis=1))
    assert whole.lengths_B.tolist() == [len(text) for text in texts]
    more = sign(texts[:3], NEAR.model_copy(update={"permutations": 200}))
    assert np.array_equal(more.minhash_PB[:120], whole.minhash_PB[:, :3])


def test_minhash_estimates_jaccard_as_well_as_datasketch():
    datasketch = pytest.importorskip("datasketch")
    num_permutations = 128
    rng = random.Random(5)  # noqa: S311
    pairs = [(text, varied(text, number % 12, rng)) for number, text in enumerate(random_texts(240, 5, length=60))]
    signatures = sign([text for pair in pairs for text in pair], NEAR.model_copy(update={"permutations": 128}))
    ours, theirs, spread = [], [], []
    for number, pair in enumerate(pairs):
        exact = jaccard3(*pair)
        both = signatures.minhash_PB[:, 2 * number : 2 * number + 2]
        peers = [datasketch.MinHash(num_perm=num_permutations) for _ in pair]
        for peer, text in zip(peers, pair, strict=True):
            words = words_of(text)
            peer.update_batch([" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)])
        ours.append((both[:, 0] == both[:, 1]).mean() - exact)
        theirs.append(peers[0].jaccard(peers[1]) - exact)
        spread.append(exact * (1 - exact) / num_permutations)
    expected = np.sqrt(np.mean(spread))  # about 0.034; 240 pairs: 5 % statistical error of the spread
    for errors in (np.array(ours), np.array(theirs)):
        assert abs(errors.mean()) < 4 * expected / np.sqrt(len(pairs))
        assert 0.8 < np.sqrt((errors**2).mean()) / expected < 1.2


def test_keys_agree_where_folded_texts_do():
    keys = exact_keys(["Hello,  World!", "hello world", "hello worlds", ""])
    assert (keys[0] == keys[1]).all()
    assert len({key.tobytes() for key in keys}) == 3
    record = Document("Hello", Source("a.txt", 1))
    given_keys = hex_keys([key_of(record), key_of(Document("HELLO!", Source("b.txt", 2)))])
    assert (given_keys[0] == given_keys[1]).all()
    assert given_keys[0].tobytes().hex() == key_of(record)[:32]
    assert np.array_equal(sign(["x", "y"], NEAR, [key_of(record)] * 2).keys_B2[0], given_keys[0])


def test_units_come_back_from_disk(tmp_path):
    texts = random_texts(30, 3)
    for number, part in enumerate((texts, [])):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_signatures(sign(part, NEAR), folder)
        back = open_signatures(folder)
        assert np.array_equal(back.shingles, sign(part, NEAR).shingles)
        assert back.minhash_PB.shape == (120, len(part))
    saved = sum(file.stat().st_size - 128 for file in (tmp_path / "0").iterdir())  # 128: the head of a .npy file
    assert saved == pytest.approx(30 * bytes_a_document(NEAR, 38), abs=16)
    assert bytes_a_document(NEAR.model_copy(update={"near": 0.0}), 38) == 32


def test_a_damaged_index_says_which_file_and_what_to_do(tmp_path):
    save_signatures(sign(["a"], NEAR), tmp_path)
    (tmp_path / "shingles.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"shingles\.npy: the duplicate index is missing or damaged .* run again\."):
        open_signatures(tmp_path)
    (tmp_path / "keys_B2.npy").unlink()
    with pytest.raises(DataError, match=r"keys_B2\.npy: the duplicate index is missing"):
        open_signatures(tmp_path)


# --- bands -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_find_pairs_at_the_threshold(near):
    bands, rows = bands_and_rows(near, 120)
    assert bands * rows <= 120
    assert proposal_probability(near, bands, rows) >= 0.99
    assert rows == 120 or proposal_probability(near, 120 // (rows + 1), rows + 1) < 0.99  # no sharper cut would do


def test_the_proposal_probability_is_that_of_the_formula_and_of_real_signatures():
    assert proposal_probability(0.8, 20, 6) == pytest.approx(1 - (1 - 0.8**6) ** 20)
    sizes = np.array([60, 40])  # two sets that share 40 of 80 shingles have similarity 0.5; a band of 2 agrees in 1/4
    rng = np.random.default_rng(7)
    agree = 0
    for _ in range(60):
        values = rng.integers(0, 1 << 32, size=80, dtype=np.uint64)
        both = Signatures(
            np.zeros((2, 2), np.uint64),
            sizes,
            np.zeros(0, np.uint32),
            offsets_of([0, 0]),
            minhash_of([values[:60], values[20:]]),
        )
        agree += (both.minhash_PB[:, 0] == both.minhash_PB[:, 1]).reshape(-1, 2).all(axis=1).sum()
    assert agree / (60 * 60) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 3600))


def minhash_of(sets):
    from luthier.corpus.duplicates.signatures import minhash, permutations
    from luthier.corpus.duplicates.words import Ragged

    return minhash(Ragged(np.concatenate(sets), offsets_of([len(values) for values in sets])), *permutations(120))


def test_too_few_permutations_for_a_low_threshold_is_said():
    with pytest.raises(
        DataError, match=r"duplicates\.near: 16 permutations cannot find pairs of similarity 0\.05\. Raise"
    ):
        find_clusters([sign(["a"], Duplicates(near=0.05, permutations=16))], Duplicates(near=0.05, permutations=16))


# --- clusters --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sets(st.integers(1, 71), max_size=5), st.sampled_from(["first", "longest"]))
@settings(max_examples=15, deadline=None)
def test_the_decision_does_not_depend_on_how_the_corpus_was_cut(seed, cuts, keep):
    texts, wanted = family_corpus(seed), Duplicates(keep=keep)
    whole, parts = decide(texts, wanted), decide(texts, wanted, cuts)
    for name in ("leader_N", "twin_N", "similarity_N", "exact_N", "links_E2", "link_similarity_E"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name


@given(st.integers(0, 10**6), st.sampled_from([0.5, 0.8]), st.sampled_from(["first", "longest"]))
@settings(max_examples=15, deadline=None)
def test_what_goes_is_like_what_stays_and_better_records_stay(seed, near, keep):
    texts = family_corpus(seed)
    found = decide(texts, Duplicates(near=near, keep=keep))
    for record, twin in enumerate(found.twin_N.tolist()):
        assert found.twin_N[twin] == twin
        assert found.similarity_N[record] == pytest.approx(jaccard3(texts[record], texts[twin]))
        assert found.similarity_N[record] >= near - 1e-9
        if record != twin:
            better = len(texts[twin]) > len(texts[record]) if keep == "longest" else twin < record
            assert better or (keep == "longest" and len(texts[twin]) == len(texts[record]) and twin < record)
        assert found.exact_N[record] == (record != twin and words_of(texts[record]) == words_of(texts[twin]))


@pytest.mark.parametrize("near", [0.5, 0.8])
def test_nothing_that_stays_is_like_anything_else_that_stays(near):
    texts = family_corpus(11)
    found = decide(texts, Duplicates(near=near, permutations=240))
    kept = np.flatnonzero(found.stays_N).tolist()
    assert max(jaccard3(texts[a], texts[b]) for a in kept for b in kept if a < b) < near
    links = {tuple(link) for link in found.links_E2.tolist()}
    leaders = sorted(set(found.leader_N.tolist()))
    assert links == {(a, b) for a in leaders for b in leaders if a < b and jaccard3(texts[a], texts[b]) >= near}


def test_groups_show_each_cluster_once():
    base, other = random_texts(2, 4)
    found = decide([other, base, base.upper(), "alone", base + "!", other + " more"])
    assert list(found.groups()) == [(0, [5]), (1, [2, 4])]
    assert found.exact_N.tolist() == [False, False, True, False, True, False]
    assert list(decide(["a b c d", "e f g h"]).groups()) == []


def test_settings_choose_exact_near_or_neither():
    base = random_texts(1, 4)[0]
    texts = [base, base + "!", base + " more"]
    assert decide(texts, Duplicates(near=0.0)).twin_N.tolist() == [0, 0, 2]
    assert decide(texts, Duplicates(near=0.0, exact=False)).twin_N.tolist() == [0, 1, 2]
    only_near = decide(texts, Duplicates(exact=False))
    assert only_near.twin_N.tolist() == [0, 0, 0]
    assert not only_near.exact_N.any()
    assert decide(texts, Duplicates(keep="longest")).twin_N.tolist() == [2, 2, 2]
    assert decide([]).twin_N.tolist() == []


def test_ten_thousand_copies_of_one_text_take_no_square_of_work():
    rng = random.Random(6)  # noqa: S311
    base = random_texts(1, 6, length=60)[0]
    texts = [base] + [varied(base, 1, rng) for _ in range(9_999)]
    found = decide(texts, NEAR, cuts=(3_000, 6_000))
    assert found.twin_N.tolist() == [0] * 10_000
    assert len(found.links_E2) < 20 * 10_000  # all pairs would be 50 million


def test_members_of_a_big_bucket_are_searched_again_when_its_leader_goes():
    # In half of the bands 0 and 1 share a bucket, in the other half 1 shares one with 2 ... 40 and leads it. 1 is like
    # 0 and goes; 2 ... 40 are all alike, but were compared with 1 only. 41 shares a bucket with 5 and goes for it,
    # before 5 goes itself. 5 is a little different, so 41 is less like 2, which stays, than like 5.
    many = list(range(100))
    fifth = [*range(1, 100), 300]
    first, second = [*range(20, 100), *range(200, 220)], [*range(10, 100), *range(210, 220)]
    sets = [first, second, *([many] * 3), fifth, *([many] * 35), fifth[5:]]
    minhash_PB = np.zeros((120, 42), dtype=np.uint32)
    minhash_PB[:60, 2:41] = np.arange(2, 41)
    minhash_PB[60:, 0] = 1
    minhash_PB[:, 41] = np.repeat([5, 2], 60)
    unit = Signatures(
        np.arange(84, dtype=np.uint64).reshape(42, 2),
        np.ones(42, dtype=np.int64),
        np.concatenate(sets).astype(np.uint32),
        offsets_of([len(values) for values in sets]),
        minhash_PB,
    )
    found = find_clusters([unit], NEAR)
    assert found.twin_N.tolist() == [0, 0, *([2] * 40)]
    assert found.similarity_N.tolist() == pytest.approx([1, 90 / 110, 1, 1, 1, 99 / 101, *([1] * 35), 94 / 101])


def test_a_text_and_most_of_it_are_near_copies():
    words = random_texts(1, 8)[0].split()
    found = decide([" ".join(words), " ".join(words[:34])])
    assert found.twin_N.tolist() == [0, 0]
    assert found.similarity_N[1] == pytest.approx(32 / 38)


# --- lines and passages ----------------------------------------------------------------------------------------------


def in_units(texts, cuts):
    bounds = [0, *sorted(cuts), len(texts)]
    return [texts[a:b] for a, b in pairwise(bounds)]


LINES = st.lists(st.sampled_from(["Menu", "menu ", "Home | About", "one", "two", "---", "", "  tab"]), max_size=6)


@given(st.lists(LINES, min_size=1, max_size=12), st.sets(st.integers(0, 12), max_size=3), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_common_lines_go_from_their_nth_document_on(documents, cuts, lines_every):
    texts = ["\n".join(document) for document in documents]
    expected, seen = [], {}
    folded = [[" ".join(line.split()).casefold() for line in text.split("\n")] for text in texts]
    for text, keys in zip(texts, folded, strict=True):
        gone = {key for key in keys if any(map(str.isalnum, key)) and seen.get(key, 0) >= lines_every - 1}
        kept = [line for line, key in zip(text.split("\n"), keys, strict=True) if key not in gone]
        expected.append("\n".join(kept).strip("\n") if gone else text)
        for key in set(keys):
            seen[key] = seen.get(key, 0) + 1
    units = in_units(texts, {cut for cut in cuts if cut <= len(texts)})
    known = lines.known_lines([lines.see_lines(unit) for unit in units], lines_every)
    got = [
        trimmed
        for unit, part in zip(units, known, strict=True)
        for trimmed in lines.drop_lines(unit, part, lines_every)
    ]
    assert [trimmed.text for trimmed in got] == expected
    for text, trimmed in zip(texts, got, strict=True):
        assert all("\n" not in text[start:end] and start < end for start, end in trimmed.cuts)


DOCUMENT = st.lists(st.sampled_from("abc"), min_size=0, max_size=40)


@given(st.lists(DOCUMENT, min_size=1, max_size=8), st.sets(st.integers(0, 8), max_size=3))
@settings(max_examples=60, deadline=None)
def test_passages_are_cut_where_an_earlier_document_has_them(documents, cuts):
    length, seen, expected = 8, set(), []
    for words in documents:
        windows = [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]
        gone = {at + step for at, window in enumerate(windows) if window in seen for step in range(length)}
        expected.append([word for at, word in enumerate(words) if at not in gone])
        seen.update(windows)
    texts = [" ".join(words) for words in documents]
    units = in_units(texts, {cut for cut in cuts if cut <= len(texts)})
    known = substrings.known_passages([substrings.see_passages(unit, length) for unit in units])
    got, first = [], 0
    for unit, part in zip(units, known, strict=True):
        got += substrings.cut_passages(unit, part, first, length)
        first += len(unit)
    assert [words_of(trimmed.text) for trimmed in got] == expected


def test_a_cut_leaves_readable_text_and_says_where_it_was():
    shared = "the quick brown fox jumps over the lazy dog today"
    texts = [f"First. {shared}. End.", f'New start.\n\n{shared.upper()}."\n\nNew end.', f"{shared}"]
    seen = substrings.see_passages(texts, 8)
    [known] = substrings.known_passages([seen])
    first, second, third = substrings.cut_passages(texts, known, 0, 8)
    assert first.text == texts[0] and first.cuts == ()
    assert second.text == "New start.\n\nNew end."
    [(start, end)] = second.cuts
    assert texts[1][start:end] == f'{shared.upper()}."'
    assert third.text == ""
    assert cut_out("a b c", [(2, 3)]).text == "a c"


def test_too_short_a_passage_is_refused():
    with pytest.raises(
        DataError, match=r"duplicates\.substring_words: 3 is too short: .* Use 8 or more \(50 is usual\)"
    ):
        substrings.see_passages(["a"], 3)


def test_counts_come_back_from_disk(tmp_path):
    seen = lines.see_lines(["Menu\nText", "Menu"])
    save_seen(seen, tmp_path)
    back = open_seen(tmp_path)
    assert back.num_documents == 2
    assert (
        back.count_K.tolist() == seen.count_K.tolist() == sorted(seen.count_K.tolist(), key=seen.count_K.tolist().index)
    )
    assert sorted(back.count_K.tolist()) == [1, 2]
    assert np.array_equal(back.hashes_K, seen.hashes_K)


@pytest.mark.slow
def test_natural_pairs_reach_the_bars():
    folder = os.environ.get("LUTHIER_SHARED_DATA")
    if not folder:
        pytest.skip("LUTHIER_SHARED_DATA is not set")
    lines_of_file = (
        (Path(folder) / "near_dup_natural" / "pairs.jsonl").read_text(encoding="utf-8").strip("\n").split("\n")
    )
    rows = [json.loads(line) for line in lines_of_file]
    found = [decide([row["text1"], row["text2"]]).twin_N[1] == 0 for row in rows]
    high = [hit for hit, row in zip(found, rows, strict=True) if row["jaccard3"] >= 0.8]
    low = [hit for hit, row in zip(found, rows, strict=True) if row["jaccard3"] < 0.4]
    assert sum(high) / len(high) >= 0.97
    assert sum(low) / len(low) <= 0.01
