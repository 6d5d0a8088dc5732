"""Repair, language, quality and licences: what is changed, what goes, and what the ledger says of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.fold import row_key
from luthier.corpus.steps.base import Finding
from luthier.corpus.steps.language import LanguageStep
from luthier.corpus.steps.licences import LicencesStep, canonical
from luthier.corpus.steps.quality import FINEWEB, Page, QualityStep, gopher
from luthier.corpus.steps.repair import BOILERPLATE, RepairStep, repair_text
from luthier.errors import DataError
from luthier.recipe.corpus import Language, Licences, Quality, Repair
from luthier.records import Completion, Conversation, Document, Instruction, Labelled, Message, Source, Tagged

HERE = Source("notes.jsonl", 3)


def document(text: str, licence: str | None = None) -> Document:
    return Document(text, Source("notes.jsonl", 3, licence=licence))


def refusal(make) -> str:
    with pytest.raises(DataError) as caught:
        make()
    return str(caught.value)


# --- repair --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mended", "kinds"),
    [
        ("clean text — “quoted”, naïve 東京", "clean text — “quoted”, naïve 東京", ()),
        ("schÃ¶n", "schön", ("mojibake",)),
        ("ascii\nschÃ¶n\nschön", "ascii\nschön\nschön", ("mojibake",)),
        ("A &amp; B", "A & B", ("entity",)),
        ("&amp;amp;", "&", ("entity",)),
        ("<b>A &amp; B</b>", "<b>A &amp; B</b>", ()),
        ("sch&Atilde;&para;n", "schön", ("entity", "mojibake")),
        ("a\x00b\x1b[31mred\x1b[0m\u200bc\ufeff\u202ed\xad", "abredcd", ("control",)),
        ("hidden\U000e0041\U000e0042", "hidden", ("control",)),
        (
            "flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            (),
        ),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم", ()),
        ("cafe\u0301 ﬁne", "café fine", ("unicode",)),
        ("\ud83d\ude00 \ud83d!", "😀 \ufffd!", ("mojibake",)),
        ("a  b\xa0 c   ", "a b c", ("space",)),
        ("one\ttwo \t three", "one\ttwo\tthree", ("space",)),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd", ("space",)),
        ("\n\n a\n\n\n\n\nb\n\n", " a\n\n\nb", ("space",)),
        ("  alone ", "alone", ("space",)),
        ("- item\n  - inner  item", "- item\n  - inner item", ("space",)),
        ("def f(a,  b):\n    x  = 1\n\ty =  2 ", "def f(a, b):\n    x  = 1\n\ty =  2", ("space",)),
        ("```\na  b\n\n\n\n\nc\n```\nd  e", "```\na  b\n\n\n\n\nc\n```\nd e", ("space",)),
        ("~~~\n```\na  b\n~~~\nc  d", "~~~\n```\na  b\n~~~\nc d", ("space",)),
    ],
)
def test_repair_mends_what_is_broken_and_leaves_the_rest(text, mended, kinds):
    assert repair_text(text) == (mended, kinds)


@given(
    st.text(
        alphabet=st.sampled_from(
            list("ab&;#<lgtamp \t\n\r`~    Ã¶¤€\xa0\xad\u0301e\x00\x1b[1m\u200b\u2028\ud83d\ude00ﬁ東")
        )
    )
)
@settings(max_examples=400)
def test_repair_is_idempotent_and_leaves_nothing_broken(text):
    once, _ = repair_text(text, BOILERPLATE)
    assert repair_text(once, BOILERPLATE) == (once, ())
    assert not set(once) & set("\r\x00\x1b\u200b\u2028\xad")
    assert "\n\n\n\n" not in once or "```" in once or "~~~" in once or "\t" in once or "    " in once
    assert not any(line.endswith((" ", "\t")) for line in once.split("\n"))
    once.encode()


@given(st.text())
def test_repair_is_idempotent_on_any_text(text):
    once, _ = repair_text(text)
    assert repair_text(once) == (once, ())


def test_boilerplate_lines_leave_documents_and_only_whole_lines():
    page = "Storm hits coast\nShare on Facebook | Twitter\nWe use cookies to improve your visit.\nWe share on Facebook what we like."
    passed = RepairStep(Repair())(document(page))
    assert passed.record == document("Storm hits coast\nWe share on Facebook what we like.")
    assert passed.findings == (Finding("boilerplate", 0),)


@pytest.mark.parametrize(
    ("line", "goes"),
    [
        ("Facebook Twitter E-mail", True),
        ("Facebook bought a company", False),
        ("Subscribe to our weekly newsletter!", True),
        ("Subscribe to our view of the world", False),
        ("Accept all cookies", True),
        ("Cookies are baked at 180 degrees", False),
        ("© 2020 A Company. All rights reserved.", True),
        ("Follow us on Instagram for more", True),
        ("Share this page: X | LinkedIn", True),
        ("Share this with your doctor", False),
        ("Read more", True),
        ("Read more books", False),
    ],
)
def test_built_in_boilerplate_lines(line, goes):
    passed = RepairStep(Repair())(document(f"First\n{line}\nLast"))
    assert passed.record.text == ("First\nLast" if goes else f"First\n{line}\nLast")


def test_built_in_boilerplate_spares_labelled_rows_and_the_users_patterns_do_not():
    row = Labelled("Sign up now", "AD", HERE, row_key("Sign up now", "AD"))
    assert RepairStep(Repair())(row).record is row
    passed = RepairStep(Repair(boilerplate=[r"Page \d+"]))(
        Conversation((Message("user", "Sum up\nPage 7"), Message("assistant", "Page 7 says no")), HERE)
    )
    assert passed.record == Conversation((Message("user", "Sum up"), Message("assistant", "Page 7 says no")), HERE)


def test_boilerplate_is_not_looked_for_in_very_long_lines():
    line = "all rights reserved" + "!" * 1000
    assert RepairStep(Repair())(document(line)).record == document(line)


def test_a_text_that_becomes_empty_is_a_problem():
    passed = RepairStep(Repair())(document("Advertisement\n\u200b\n"))
    assert passed.record is None
    assert passed.problem.reason == "empty_after_repair"
    assert passed.problem.detail == "nothing is left of the text (removed: control, space, boilerplate)."
    turns = (Message("user", "Hello"), Message("assistant", "\x00"))
    assert "text 2 of 2 (removed: control)" in RepairStep(Repair())(Conversation(turns, HERE)).problem.detail


def test_texts_that_may_be_empty_stay():
    step = RepairStep(Repair())
    assert step(Instruction("Say hi", " ", "hi", HERE)).record == Instruction("Say hi", "", "hi", HERE)
    called = Conversation((Message("user", "Look it up"), Message("assistant", "")), HERE)
    assert step(called).record is called


def test_the_edges_of_prompt_and_completion_are_part_of_the_format():
    passed = RepairStep(Repair())(Completion("good  film\n\n###\n\n", " positive\n", HERE))
    assert passed.record == Completion("good film\n\n###\n\n", " positive\n", HERE)
    assert passed.findings == (Finding("space", 0),)


def test_repair_makes_the_row_key_anew_and_spares_tags():
    passed = RepairStep(Repair())(Labelled("schÃ¶n", "A", HERE, row_key("schÃ¶n", "A")))
    assert passed.record == Labelled("schön", "A", HERE, row_key("schön", "A"))
    tagged = Tagged(("Share", "Bonn"), ("O", "B-LOC"), HERE)
    assert RepairStep(Repair(boilerplate=["Bonn"]))(tagged).record is tagged


def test_repair_can_be_switched_off_and_refuses_bad_patterns():
    broken = document("schÃ¶n  ")
    assert RepairStep(Repair(enabled=False))(broken).record is broken
    message = refusal(lambda: RepairStep(Repair(boilerplate=["ok", "(open"])))
    assert message.startswith("steps.repair.boilerplate[1]: '(open' is no regular expression: missing ), unterminated")


# --- language ------------------------------------------------------------------------------------------

ENGLISH = "The committee said on Tuesday that it would publish the report before the end of the year."
FRENCH = "Le comité a déclaré mardi qu'il publierait le rapport avant la fin de l'année prochaine."


def test_the_language_is_named_in_the_ledger():
    step = LanguageStep(Language())
    assert step(document(ENGLISH)).findings == (Finding("language:en"),)
    assert step(document(FRENCH)).findings == (Finding("language:fr"),)
    assert step(document("Hello")).findings == (Finding("language:short"),)
    assert step(document(FRENCH)).record == document(FRENCH)


def test_other_languages_go_and_short_texts_stay():
    step = LanguageStep(Language(keep=["EN"]))
    passed = step(document(FRENCH))
    assert passed.record is None
    assert passed.problem.reason == "language"
    assert passed.problem.detail.startswith("the text is in fr (confidence ")
    assert passed.problem.detail.endswith("); kept: en.")
    assert passed.findings == (Finding("language:fr"),)
    assert step(document("Bonjour")).record == document("Bonjour")
    assert step(Tagged(tuple(ENGLISH.split()), ("O",) * len(ENGLISH.split()), HERE)).problem is None


def test_a_language_that_is_not_sure_is_unknown():
    numbers = document("1 22 333 4444 " * 10)
    passed = LanguageStep(Language(keep=["en"]))(numbers)
    assert passed.findings == (Finding("language:unknown"),)
    assert passed.problem.detail.startswith("no language is sure (")
    assert LanguageStep(Language(keep=["en", "unknown"]))(numbers).record is numbers
    sure = LanguageStep(Language(minimum_confidence=1.0))(document(ENGLISH + " " + FRENCH))
    assert sure.findings == (Finding("language:unknown"),)


def test_code_and_addresses_are_not_judged():
    text = (
        FRENCH + "\n```\n" + "for the value in the list of the values that were given to the function\n" * 30 + "```\n"
    )
    assert LanguageStep(Language())(document(text)).findings == (Finding("language:fr"),)


def test_unknown_languages_to_keep_are_refused():
    message = refusal(lambda: LanguageStep(Language(keep=["eng"])))
    assert message.startswith('steps.language.keep: no language "eng". Did you mean "en"? Use codes of ISO 639-1: ')


# --- quality -------------------------------------------------------------------------------------------

RULES = {rule.name: rule for rule in (*gopher(Quality()), *FINEWEB)}
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def distinct(num_words: int, start: int = 0) -> list[str]:
    """Five-letter words that do not repeat."""
    letters = [(index // 676 % 26, index // 26 % 26, index % 26) for index in range(start, start + num_words)]
    return ["q" + "".join(ALPHABET[place] for place in word) + "x" for word in letters]


def words(num_words: int) -> str:
    return " ".join(distinct(num_words))


def lines(*counted: tuple[int, str]) -> str:
    return "\n".join(
        f"{text} {index}" if "{" not in text else text.format(index)
        for times, text in counted
        for index in range(times)
    )


def with_repeat(num_words: int, run: int, times: int) -> str:
    """`num_words` words of one length of which the first `run` stand `times` times."""
    body = distinct(num_words - run * times, start=run)
    step = len(body) // times
    return " ".join(
        word
        for part in range(times)
        for word in (*distinct(run), *body[part * step : (part + 1) * step if part < times - 1 else None])
    )


@pytest.mark.parametrize(
    ("rule", "passes", "fails", "value"),
    [
        ("gopher_words", words(50), words(49) + " —", 49),
        ("gopher_words", words(100_000), words(100_001), 100_001),
        ("gopher_word_length", "abc, abc!", "abc (ab)", 2.5),
        ("gopher_word_length", "a" * 10, "a" * 11, 11),
        ("gopher_hashes", "# " + words(9), "# " + words(8), 1 / 9),
        ("gopher_ellipses", "wait... " + words(9), "wait… " + words(8), 1 / 9),
        ("gopher_bullets", lines((9, "- a"), (1, "b")), lines((10, "• a")), 1.0),
        ("gopher_ellipsis_lines", lines((3, "{}..."), (7, "b")), lines((4, "{}…"), (6, "b")), 0.4),
        ("gopher_alphabetic", "a b c d 5", "a b c 4 5", 0.6),
        ("gopher_stop_words", "The end of it, the end.", "The end, the end.", 1),
        ("gopher_duplicate_lines", "a\n" * 4 + lines((6, "b")), "a\n" * 5 + lines((5, "b")), 0.4),
        (
            "gopher_duplicate_paragraphs",
            "a\n\n" * 4 + "b\n\nc\n\nd\n\ne\n\nf\n\ng",
            "a\n\n" * 5 + "b\n\nc\n\nd\n\ne\n\nf",
            0.4,
        ),
        ("gopher_duplicate_line_characters", "aa\naa\nbbbbbb", "aaa\naaa\nbbbb", 0.3),
        ("gopher_duplicate_paragraph_characters", "aa\n\naa\n\nbbbbbb", "aaa\n\naaa\n\nbbbb", 0.3),
        ("gopher_top_2_gram", with_repeat(20, 2, 2), with_repeat(19, 2, 2), 4 / 19),
        ("gopher_top_3_gram", with_repeat(34, 3, 2), with_repeat(33, 3, 2), 6 / 33),
        ("gopher_top_4_gram", with_repeat(50, 4, 2), with_repeat(49, 4, 2), 8 / 49),
        ("gopher_duplicate_5_grams", with_repeat(40, 6, 2), with_repeat(39, 6, 2), 6 / 39),
        ("gopher_duplicate_6_grams", with_repeat(50, 7, 2), with_repeat(49, 7, 2), 7 / 49),
        ("gopher_duplicate_7_grams", with_repeat(62, 8, 2), with_repeat(61, 8, 2), 8 / 61),
        ("gopher_duplicate_8_grams", with_repeat(75, 9, 2), with_repeat(74, 9, 2), 9 / 74),
        ("gopher_duplicate_9_grams", with_repeat(91, 10, 2), with_repeat(90, 10, 2), 10 / 90),
        ("gopher_duplicate_10_grams", with_repeat(110, 11, 2), with_repeat(109, 11, 2), 11 / 109),
        ("fineweb_punctuation", lines((1, "{}.”"), (7, "b")), lines((12, "{}."), (88, "b")), 0.12),
        ("fineweb_duplicate_lines", "a\na\nbbbbbbbbb", "a\na\nbbbbbbbb", 0.1),
        ("fineweb_short_lines", lines((66, "a"), (34, "a" * 29)), lines((67, "a"), (33, "a" * 29)), 0.67),
    ],
)
def test_each_rule_just_inside_and_just_outside_its_threshold(rule, passes, fails, value):
    assert RULES[rule].problem(Page(passes)) is None
    assert RULES[rule].measure(Page(fails)) == pytest.approx(value)
    assert RULES[rule].problem(Page(fails)).reason == rule


def test_every_rule_has_its_test_and_its_source():
    tested = {case[0] for case in test_each_rule_just_inside_and_just_outside_its_threshold.pytestmark[0].args[1]}
    assert tested == set(RULES)
    assert all("et al. 20" in rule.source for rule in RULES.values())


def test_overlapping_repeats_count_once():
    """10 words, all equal: 5-grams 2 to 6 are repeats, of which words 2 to 10 are covered."""
    assert RULES["gopher_duplicate_5_grams"].measure(Page("same " * 10)) == pytest.approx(9 / 10)
    assert RULES["gopher_top_2_gram"].measure(Page("same " * 10)) == 1.0


def test_a_document_goes_with_the_rule_the_value_and_the_threshold():
    step = QualityStep(Quality(rules="gopher"))
    passed = step(document(words(12)))
    assert passed.record is None
    assert passed.problem.reason == "gopher_words"
    assert passed.problem.detail == "words: 12, allowed is at least 50 (Rae et al. 2021, section A.1.1)."
    row = Labelled("too short", "A", HERE, "key")
    assert step(row).record is row
    punctuation = RULES["fineweb_punctuation"].problem(Page("no end"))
    assert (
        punctuation.detail
        == "lines that end a sentence: 0, allowed is more than 0.12 (Penedo et al. 2024, section 3.6)."
    )


def test_rules_can_be_chosen_and_switched_off():
    assert QualityStep(Quality())(document("x")).problem is None
    short = "The word of the day was said to have been that, and it was good."
    assert QualityStep(Quality(rules="fineweb"))(document(short)).problem is None
    assert QualityStep(Quality(rules="both"))(document(short)).problem.reason == "gopher_words"
    assert QualityStep(Quality(rules="both", off=["gopher_words"]))(document(short)).problem is None
    assert QualityStep(Quality(rules="gopher", minimum_words=5))(document(short)).problem is None
    assert QualityStep(Quality(rules="gopher"))(document("")).problem.reason == "gopher_words"


def test_wrong_quality_settings_are_refused():
    message = refusal(lambda: QualityStep(Quality(off=["gopher_word"])))
    assert message.startswith(
        'steps.quality.off: no rule "gopher_word". Did you mean "gopher_words"? Rules: gopher_words, '
    )
    message = refusal(lambda: QualityStep(Quality(minimum_words=10, maximum_words=9)))
    assert message == "steps.quality.minimum_words (10) is above maximum_words (9): no document could pass. Swap them."


# --- licences ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (["cc-by-4.0", "CC BY 4.0", "CC-BY 4", "Creative Commons Attribution 4.0 International", "https://creativecommons.org/licenses/by/4.0/"], "cc-by-4.0"),
        (["CC BY-NC-SA 3.0", "Creative Commons Attribution-NonCommercial-ShareAlike 3.0 Unported", "cc_by_nc_sa_3.0"], "cc-by-nc-sa-3.0"),
        (["CC BY-ND"], "cc-by-nd"),
        (["CC0", "cc0-1.0", "CC Zero", "https://creativecommons.org/publicdomain/zero/1.0/"], "cc0-1.0"),
        (["Apache 2", "apache-2.0", "Apache License, Version 2.0", "Apache2", "ASL 2.0", "https://www.apache.org/licenses/LICENSE-2.0"], "apache-2.0"),
        (["MIT", "The MIT License", "mit license", "https://opensource.org/licenses/MIT"], "mit"),
        (["BSD-3-Clause", "3-clause BSD license", "New BSD"], "bsd-3-clause"),
        (["BSD 2 clause", "Simplified BSD"], "bsd-2-clause"),
        (["GPLv3", "GPL-3.0-only", "GPL-3.0-or-later", "GPL 3 or later", "GNU General Public License v3.0", "GPL-3.0+"], "gpl-3.0"),
        (["LGPL-2.1", "GNU Lesser General Public License v2.1"], "lgpl-2.1"),
        (["AGPLv3", "GNU Affero General Public License 3"], "agpl-3.0"),
        (["GPL-2.0-only WITH Classpath-exception-2.0"], "gpl-2.0"),
        (["ODC-By 1.0", "Open Data Commons Attribution License v1.0"], "odc-by-1.0"),
        (["Public Domain", "public-domain"], "public-domain"),
        (["House licence", "house-license", "the House License"], "house"),
        (["MIT OR Apache-2.0", "(MIT OR Apache 2)"], "mit OR apache-2.0"),
        (["MIT AND CC-BY-4.0"], "mit AND cc-by-4.0"),
        ([" ", "unknown", "None", "NOASSERTION", "n/a"], "unknown"),
    ],
)  # fmt: skip
def test_spellings_of_one_licence_agree(spellings, name):
    assert {canonical(spelling) for spelling in spellings} == {name}
    assert name == "unknown" or canonical(name) == name


@pytest.mark.parametrize(
    ("licence", "allow", "deny", "reason"),
    [
        ("CC BY 4.0", ["cc-by-4.0", "mit"], [], None),
        ("CC BY 4.0", ["cc-by"], [], None),
        ("CC BY", ["cc-by-4.0"], [], "licence_not_allowed"),
        ("CC BY-NC 4.0", ["cc-by"], [], "licence_not_allowed"),
        (None, ["cc-by"], [], "licence_unknown"),
        ("unknown", ["cc-by"], [], "licence_unknown"),
        (None, [], ["cc-by-nc"], None),
        ("CC BY-NC 3.0", [], ["cc-by-nc"], "licence_denied"),
        ("CC BY-NC", [], ["cc-by-nc-4.0"], "licence_denied"),
        ("CC BY-NC 3.0", [], ["cc-by-nc-4.0"], None),
        ("GPL-3.0 OR MIT", ["mit"], ["gpl"], None),
        ("GPL-3.0 AND MIT", ["mit"], ["gpl"], "licence_denied"),
        ("MIT AND Apache-2.0", ["mit"], [], "licence_not_allowed"),
        ("anything", [], [], None),
    ],
)
def test_allowed_denied_and_unknown_licences(licence, allow, deny, reason):
    record = document("text", licence)
    passed = LicencesStep(Licences(allow=allow, deny=deny))(record)
    assert (passed.problem.reason if passed.problem else None) == reason
    assert passed.record is (None if reason else record)
    assert passed.findings == (Finding(f"licence:{canonical(licence or '')}"),)


def test_licence_problems_say_what_to_do():
    step = LicencesStep(Licences(allow=["cc by 4", "mit"], deny=["gpl"]))
    details = [step(document("x", licence)).problem.detail for licence in (None, "GPLv2", "Apache 2")]
    assert details == [
        "no licence is known; allowed: cc-by-4.0, mit. Set inputs.licence or licence_column.",
        'the licence "gpl-2.0" is denied.',
        'the licence "apache-2.0" is not among those allowed: cc-by-4.0, mit.',
    ]


def test_wrong_licence_lists_are_refused():
    message = refusal(lambda: LicencesStep(Licences(allow=["CC BY 4.0"], deny=["cc-by-4.0"])))
    assert message == 'steps.licences: "cc-by-4.0" stands in allow and in deny. Take it out of one of them.'
    message = refusal(lambda: LicencesStep(Licences(deny=["unknown"])))
    assert message.startswith('steps.licences.deny: "unknown" is no licence. Write an SPDX id')
