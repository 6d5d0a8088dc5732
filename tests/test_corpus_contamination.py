"""Contamination: each way of sharing text, what does not count, spans shown, probes, and the counts that add up."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus import probes as bundled
from luthier.corpus.contamination import (
    MAX_HITS_A_RECORD,
    SHOWN_CHARS,
    TEMPLATE_RECORDS,
    TestIndex,
    audit,
    audited_texts,
    batches,
    longest_chain,
)
from luthier.corpus.duplicates.words import hash_words, words_of
from luthier.corpus.probes import PROBE_WORDS, STRIDE, Probes, load_probes, probe_runs
from luthier.recipe.corpus import Contamination
from luthier.records import (
    Completion,
    Conversation,
    Document,
    Instruction,
    Labelled,
    Message,
    Preference,
    Prompt,
    Source,
    Tagged,
)

PLAIN = Contamination(probes=False)
QUESTION = "A farmer keeps twelve goats and sells three of them every spring, how many are left after two springs?"
FILLER = "Quite unlike anything else, this sentence stands around what is shared so that nothing is whole. "


def at(line, file="train.jsonl"):
    return Source(file, line)


def document(text, line=1, file="train.jsonl"):
    return Document(text, at(line, file))


def only(found):
    [hit] = found.hits
    return hit


# --- each way of sharing ---------------------------------------------------------------------------------------------


def test_the_same_text_is_found_whatever_its_case_punctuation_and_kind():
    train = [document("Something else entirely, my friend.", 1), document(QUESTION.upper().replace(",", " --"), 2)]
    found = audit(train, [Labelled(QUESTION, "maths", at(7, "test.csv"), "k")], PLAIN)
    hit = only(found)
    assert (hit.how, hit.train_index, hit.test_index) == ("same text", 1, 0)
    assert (str(hit.train), str(hit.test)) == ("train.jsonl line 2", "test.csv line 7")
    assert hit.num_words == 19
    assert str(hit) == (
        "train.jsonl line 2 and test.csv line 7: same text, 19 words\n"
        f"  train: {QUESTION.upper().replace(',', ' --')}\n  test:  {QUESTION}"
    )
    assert (found.num_train, found.num_test, found.counts()) == (2, 1, {"same text": 1})
    assert (found.train_indices(), found.test_indices()) == ([1], [0])


def test_one_field_of_a_record_is_enough():
    turns = (Message("system", "Be kind."), Message("user", QUESTION), Message("assistant", "Six."))
    found = audit([Conversation(turns, at(3))], [Prompt((Message("user", QUESTION),), at(1, "test"))], PLAIN)
    assert only(found).how == "same text"
    short = Instruction("Say yes", "", "Yes", at(1))
    assert audit([short], [Instruction("Say no", "", "Yes", at(1))], PLAIN).hits == []  # one word is no evidence
    assert only(audit([short], [Instruction("say YES!", "", "yes", at(1))], PLAIN)).how == "same text"


def test_a_shared_run_is_shown_as_it_stands_on_either_side():
    run = "the goats are sold three by three in every spring until none of them is left"
    train = document(f"{FILLER} So, {run.title()}! {FILLER}")
    test = document(f"Once upon a time {run}, they say, and there was nobody left who had a word to say.", 4, "test")
    hit = only(audit([train], [test], PLAIN))
    assert (hit.how, hit.num_words, hit.similarity) == ("shared run", 16, None)
    assert (hit.train_text, hit.test_text) == (run.title(), run)


def test_twelve_shared_words_are_no_contamination_and_thirteen_are():
    words = [f"w{number}" for number in range(13)]
    for count, expected in ((12, {}), (13, {"shared run": 1})):
        run = " ".join(words[:count])
        train, test = document(f"{FILLER} {run} ends here."), document(f"Before it {run} after and so on for long.")
        assert audit([train], [test], PLAIN).counts() == expected
    assert audit([train], [test], PLAIN.model_copy(update={"ngram_words": 14})).counts() == {}


def test_the_longest_of_several_runs_is_shown_once():
    first, second = " ".join(f"a{n}" for n in range(14)), " ".join(f"b{n}" for n in range(20))
    train, test = document(f"{first} x y z {FILLER} {second}"), document(f"{second} other words {first} {second}")
    hit = only(audit([train], [test], PLAIN))
    assert (hit.num_words, hit.test_text) == (20, second)


def test_a_short_test_text_counts_as_a_whole_only():
    short = "How many goats does the farmer have left?"  # eight words
    found = audit([document(f"{FILLER} {short} {FILLER}")], [document(short, 1, "test")], PLAIN)
    hit = only(found)
    assert (hit.how, hit.num_words, hit.train_text) == ("short text", 8, short[:-1])
    part = document(f"{FILLER} {short[:-6]} today? {FILLER}")
    assert audit([part], [document(short, 1, "test")], PLAIN).hits == []
    tiny = "How many goats are there now?"  # six words
    assert audit([document(f"{FILLER} {tiny}")], [document(tiny, 1, "test")], PLAIN).hits == []


@pytest.mark.parametrize("num_words", range(8, PLAIN.ngram_words))
def test_every_length_of_a_short_test_text_is_looked_for(num_words):
    short = " ".join(f"w{number}" for number in range(num_words))
    hit = only(audit([document(f"{FILLER} {short} {FILLER}")], [document(short, 1, "test")], PLAIN))
    assert (hit.how, hit.num_words, hit.train_text) == ("short text", num_words, short)


def test_one_text_of_five_words_among_others_is_the_same_text_and_one_of_four_is_not():
    for shared, expected in (("Write me a short poem", {"same text": 1}), ("Write me a poem", {})):
        train, test = (
            Instruction(shared, "", "Roses are red.", at(1)),
            Instruction(shared, "", "Violets.", at(1, "test")),
        )
        assert audit([train], [test], PLAIN).counts() == expected


@pytest.mark.parametrize(("first", "between", "then"), [(13, 1, 30), (30, 1, 13), (30, 5, 13)])
def test_of_two_runs_in_the_same_texts_the_longer_one_is_shown_whole(first, between, then):
    """Both stand at the same distance in the two texts, so the second begins where the first was followed to."""
    one, other = ([f"{name}{number}" for number in range(first + between + then)] for name in "ab")
    other[:first], other[first + between :] = one[:first], one[first + between :]
    hit = only(audit([document(" ".join(one))], [document(" ".join(other), 1, "test")], PLAIN))
    start = 0 if first > then else first + between
    assert (hit.how, hit.num_words, hit.train_text) == ("shared run", 30, " ".join(one[start : start + 30]))


def test_a_near_copy_has_its_similarity():
    words = [f"w{number}" for number in range(120)]
    changed = [f"x{number}" if number % 12 == 6 and number < 48 else word for number, word in enumerate(words)]
    found = audit([document(" ".join(changed))], [document(" ".join(words), 1, "test")], PLAIN)
    assert only(found).how == "shared run"  # stronger
    every_word = PLAIN.model_copy(update={"ngram_words": 100})
    hit = only(audit([document(" ".join(changed))], [document(" ".join(words), 1, "test")], every_word))
    assert (hit.how, hit.num_words) == ("near copy", 0)
    assert hit.similarity == pytest.approx(106 / 130)  # 4 words changed: 12 of 118 runs of three differ
    assert "near copy, Jaccard 0.82" in str(hit)
    off = every_word.model_copy(update={"near": 0.0})
    assert audit([document(" ".join(changed))], [document(" ".join(words), 1, "test")], off).hits == []


# --- what does not count ---------------------------------------------------------------------------------------------


def test_system_prompts_are_not_compared():
    system = Message("system", QUESTION)
    answer = (Message("assistant", "Certainly."),)
    train = Conversation((system, Message("user", "One two three?"), *answer), at(1))
    test = Preference((system, Message("user", "Four five six?")), answer, (Message("assistant", "No."),), at(1))
    assert audit([train], [test], PLAIN).hits == []
    assert audited_texts(test) == ["Four five six?", "Certainly.", "No."]
    assert audited_texts(Tagged(("New", "York"), ("B", "I"), at(1))) == ["New York"]
    assert audited_texts(Completion("  ", "x", at(1))) == ["x"]


def test_an_instruction_that_all_test_rows_share_is_named_and_not_counted():
    template = "Read the following newspaper headline with care and then say which one of the topics fits"
    tests = [document(f"{template}: number{n} headline about thing{n}", n, "test") for n in range(TEMPLATE_RECORDS + 1)]
    train = [document(f"{template}: something else altogether here today"), document(tests[3].text, 2)]
    found = audit(train, tests, PLAIN)
    assert found.templates == (template,)
    assert [(hit.train_index, hit.test_index, hit.how) for hit in found.hits] == [(1, 3, "same text")]
    few = audit(train, tests[:TEMPLATE_RECORDS], PLAIN)
    assert few.templates == ()
    assert few.counts() == {"same text": 1, "shared run": 2 * TEMPLATE_RECORDS - 1}
    own = " ".join(f"own{n}" for n in range(13))
    tests[5] = document(f"{template}: number5 {own}", 5, "test")
    word_more = document(f"{template}: number5 headline and nothing else that is known")
    hit = only(audit([word_more, document(f"{template}: number5 {own} ends")], tests, PLAIN))
    assert (hit.train_index, hit.num_words, hit.test_text) == (1, 14, f"number5 {own}")
    instructions = [
        Instruction("Write a poem of four lines", "", f"poem{n}", at(n)) for n in range(TEMPLATE_RECORDS + 1)
    ]
    same_field = audit([Instruction("Write a poem of four lines", "", "mine", at(1))], instructions, PLAIN)
    assert (same_field.hits, same_field.templates) == ([], ("Write a poem of four lines",))


def test_a_run_that_ends_in_an_instruction_that_all_rows_share_is_not_counted():
    """Twelve words of the row and the first of the instruction are thirteen words, and no evidence."""
    template = "Read the following newspaper headline with care and then say which one of the topics fits"
    own = " ".join(f"own{n}" for n in range(13))
    tests = [document(f"number{n}: {template}", n, "test") for n in range(TEMPLATE_RECORDS)]
    tests.append(document(f"{own} {template}", TEMPLATE_RECORDS, "test"))
    twelve = document(f"{own.removeprefix('own0 ')} {template.split()[0]} something else altogether")
    assert audit([twelve], tests, PLAIN).hits == []
    assert only(audit([document(f"{own} and on it goes")], tests, PLAIN)).num_words == 13


def test_hits_of_one_record_are_limited_and_counted():
    tests = [document(QUESTION, line, "test") for line in range(MAX_HITS_A_RECORD + 5)]
    found = audit([document(QUESTION)], tests, PLAIN)
    assert (len(found.hits), found.num_left_out) == (MAX_HITS_A_RECORD, 5)


def test_long_texts_are_shortened():
    text = " ".join(f"word{number}" for number in range(500))
    hit = only(audit([document(text)], [document(text)], PLAIN))
    assert len(hit.train_text) == SHOWN_CHARS + 3
    assert hit.train_text.startswith("word0 ") and hit.train_text.endswith(" word499")


def test_long_training_texts_go_through_in_batches():
    long = "filler " * 300_000
    train = [document(long, 1), document(f"{long} {QUESTION}", 2), document(long, 3)]
    assert [len(batch) for batch in batches(train)] == [1, 1, 1]
    assert [len(batch) for batch in batches([document("a")] * 2_300)] == [1000, 1000, 300]
    hit = only(audit(train, [document(QUESTION, 1, "test")], PLAIN))
    assert (hit.train_index, hit.how, hit.num_words) == (1, "shared run", 19)


def test_empty_sides_and_empty_texts_give_no_hits():
    assert audit([], [document(QUESTION)], Contamination()).hits == []
    assert audit([document(QUESTION)], [], PLAIN).hits == []
    assert audit([document(" ")], [document("")], PLAIN).hits == []


# --- against the definition ------------------------------------------------------------------------------------------


WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=24)


@given(st.lists(WORDS, min_size=1, max_size=5), st.lists(WORDS, min_size=1, max_size=5), st.integers(9, 13))
@settings(max_examples=80, deadline=None)
def test_runs_are_those_of_the_definition(train, test, num_words):
    def shared(first, second):
        best = 0
        for a in range(len(first)):
            for b in range(len(second)):
                length = 0
                while a + length < len(first) and b + length < len(second) and first[a + length] == second[b + length]:
                    length += 1
                best = max(best, length)
        return best

    expected = set()
    for i, first in enumerate(train):
        for j, second in enumerate(test):
            length = shared(first, second)
            if first == second:
                expected.add((i, j, "same text", len(first)))
            elif length >= num_words:
                expected.add((i, j, "shared run", length))
            elif 8 <= len(second) < num_words and length == len(second):
                expected.add((i, j, "short text", length))
    wanted = Contamination(probes=False, near=0.0, ngram_words=num_words)
    found = audit([document(" ".join(words)) for words in train], [document(" ".join(words)) for words in test], wanted)
    assert {(hit.train_index, hit.test_index, hit.how, hit.num_words) for hit in found.hits} == expected


def test_a_pickled_index_finds_the_same_in_parts():
    rng = random.Random(3)  # noqa: S311
    tests = [document(" ".join(f"w{rng.randrange(400)}" for _ in range(30)), line, "test") for line in range(40)]
    train = [document(rng.choice(tests).text[: rng.randrange(20, 140)], line) for line in range(2_500)]
    whole = audit(train, tests, PLAIN)
    index = pickle.loads(pickle.dumps(TestIndex(tests, PLAIN)))  # noqa: S301
    parts = [hit for first in range(0, 2_500, 700) for hit in index.check(train[first : first + 700], first)[0]]
    assert parts == whole.hits
    assert len(parts) > 500


# --- probes ----------------------------------------------------------------------------------------------------------


def own_probes(rows):
    pieces = probe_runs(hash_words([words_of(row) for row in rows]))
    hashes, numbers = (np.concatenate([piece[part] for piece in pieces]) for part in (2, 1))
    order = np.argsort(hashes)
    return Probes(("goats",), hashes[order], np.zeros(len(order), np.uint8), (numbers[order] + 1).astype(np.uint16))


def probe_hits(text, rows):
    return TestIndex([], Contamination(), own_probes(rows)).check([document(text)])[0]


def test_a_benchmark_row_in_the_training_text_is_found_and_named():
    rows = ["Nothing like it stands anywhere near the words of the other row, that much is sure.", QUESTION]
    [hit] = probe_hits(f"{FILLER} {QUESTION} {FILLER}", rows)
    assert (hit.test, hit.probe, hit.test_index, hit.num_words) == ("goats row 2", "goats", -1, 19)
    assert (hit.how, hit.train_text, hit.test_text) == ("shared run", QUESTION[:-1], "")
    assert str(hit) == f"train.jsonl line 1 and goats row 2: shared run, 19 words\n  train: {QUESTION[:-1]}"


def test_the_longest_of_a_records_texts_is_shown_for_a_benchmark_row():
    part = " ".join(QUESTION.split()[:13])
    record = Instruction(part, "", QUESTION, at(1))
    index = TestIndex([], Contamination(), own_probes([QUESTION]))
    [hit] = index.check([record])[0]
    assert hit.num_words == 19
    [hit] = index.check([Instruction(QUESTION, "", part, at(1))])[0]
    assert hit.num_words == 19


@pytest.mark.parametrize("start", range(8))
def test_every_run_of_sixteen_words_of_a_benchmark_row_is_found(start):
    words = [f"w{number}" for number in range(30)]
    run = words[start : start + PROBE_WORDS + STRIDE - 1]
    [hit] = probe_hits(f"{FILLER} {' '.join(run)} {FILLER}", [" ".join(words)])
    assert hit.num_words >= PROBE_WORDS
    assert probe_hits(f"{FILLER} {' '.join(run[: PROBE_WORDS - 1])} {FILLER}", [" ".join(words)]) == []


def test_short_benchmark_rows_count_as_a_whole():
    row = "How many goats does the farmer have left?"
    [hit] = probe_hits(f"{FILLER} {row} {FILLER}", [row, "Too short to tell."])
    assert (hit.how, hit.num_words) == ("short text", 8)
    assert probe_hits(f"{FILLER} Too short to tell. {FILLER} {row[:-6]}", [row, "Too short to tell."]) == []


def test_chains_join_overlapping_runs_only():
    assert longest_chain([(0, 13), (4, 17), (40, 53)]) == (0, 17)
    assert longest_chain([(40, 53), (0, 8)]) == (40, 53)


def test_the_bundled_probes_are_hashes_only_and_small():
    file = Path(bundled.__file__).with_name("hashes.npz")
    assert file.stat().st_size < 1_500_000
    found = load_probes()
    assert "gsm8k" in found.names and len(set(found.names)) == len(found.names)
    assert found.hashes_G.dtype == np.uint64
    assert (found.hashes_G[1:] >= found.hashes_G[:-1]).all()
    assert set(np.unique(found.name_G)) == set(range(len(found.names)))
    assert found.row_G.min() == 1
    assert audit([document(QUESTION)], [], Contamination()).hits == []


@pytest.mark.slow
def test_the_bundled_probes_are_those_of_the_benchmarks():
    folder = os.environ.get("LUTHIER_SHARED_DATA")
    if not folder:
        pytest.skip("LUTHIER_SHARED_DATA is not set")
    program = Path(__file__).parent.parent / "benchmarks" / "build_probes.py"
    done = subprocess.run([sys.executable, program, folder, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
