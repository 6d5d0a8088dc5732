"""Personal data and secrets: what is found, what is left alone, and what is written in its stead."""

import importlib.util
import ipaddress
import itertools
import json
import os
import pickle
import re
from pathlib import Path

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.personal.checksums import base58check, bech32, luhn, mod11_10, mod97, verhoeff
from luthier.corpus.personal.names import pieces
from luthier.corpus.personal.national_ids import is_issued
from luthier.corpus.personal.pseudonyms import Pseudonyms
from luthier.corpus.personal.registry import OWN_TYPES, TYPES, Wanted, find_personal, placeholder, wanted
from luthier.corpus.personal.spans import Span, plain, without_overlaps
from luthier.corpus.steps.personal import PersonalStep
from luthier.corpus.wire import texts_of
from luthier.errors import DataError
from luthier.recipe.corpus import Personal
from luthier.records import Conversation, Document, Labelled, Message, Preference, Ranking, Source, Tagged

ALL = Wanted(frozenset(OWN_TYPES))
SOURCE = Source("rows.jsonl", 1)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def found(text, what=ALL):
    """(type, value) of each span."""
    return [(span.type, text[span.start : span.end]) for span in find_personal(text, what)]


def masked(text):
    return PersonalStep(Personal(action="mask"), None)(Document(text, SOURCE)).record.text


# --- what is found: (a text, the type, the value)
VALUES = [
    ("Write to ana.silva+lists@mail.example.co.uk, please.", "email", "ana.silva+lists@mail.example.co.uk"),
    ("Write to ana [at] example [dot] com", "email", "ana [at] example [dot] com"),
    ("mailto:Ünal@exämple.de.", "email", "Ünal@exämple.de"),
    ("from <b_ob@sub.domain.museum>", "email", "b_ob@sub.domain.museum"),
    ("call +44 20 7946 0018 now", "phone", "+44 20 7946 0018"),
    ("reach me: +1 (415) 555-2671.", "phone", "+1 (415) 555-2671"),
    ("(415) 555-2671 is hers", "phone", "(415) 555-2671"),
    ("415.555.2671x12 is hers", "phone", "415.555.2671x12"),
    ("he left 020 7946 0018 on a note", "phone", "020 7946 0018"),
    ("Tel.: 030/901820", "phone", "030/901820"),
    ("Tel:5551234567", "phone", "5551234567"),
    ("My phone number is 450 0840", "phone", "450 0840"),
    ("001-415-555-2671", "phone", "001-415-555-2671"),
    ("to GB82 WEST 1234 5698 7654 32 today", "iban", "GB82 WEST 1234 5698 7654 32"),
    ("iban de89370400440532013000.", "iban", "de89370400440532013000"),
    ("paid with 4111 1111 1111 1111 on Monday", "card", "4111 1111 1111 1111"),
    ("paid with 3782-822463-10005", "card", "3782-822463-10005"),
    ("from 81.2.69.160, twice", "ip", "81.2.69.160"),
    ("host 1.2.3.4 is down", "ip", "1.2.3.4"),
    ("from 2a00:1450:4009:80b::200e port 80", "ip", "2a00:1450:4009:80b::200e"),
    ("see https://example.org/a_(b)?q=1.", "url", "https://example.org/a_(b)?q=1"),
    ("(see www.example.org)", "url", "www.example.org"),
    ("postgres://admin:hunter2@db.internal:5432/x", "url_credentials", "postgres://admin:hunter2@db.internal:5432/x"),
    ("shop at books.example.co.uk today", "domain", "books.example.co.uk"),
    ("shop at example.com.", "domain", "example.com"),
    ("SSN 536-90-4399", "us_ssn", "536-90-4399"),
    ("social security number 536904399", "us_ssn", "536904399"),
    ("her ITIN: 912-70-1234", "us_itin", "912-70-1234"),
    ("NHS number 943 476 5919", "uk_nhs", "943 476 5919"),
    ("NI: AB 12 34 56 C", "uk_nino", "AB 12 34 56 C"),
    ("né le 5 mai, 1 85 05 78 006 084 91", "fr_nir", "1 85 05 78 006 084 91"),
    ("Steuer-ID 86095742719", "de_tax_id", "86095742719"),
    ("DNI 12345678Z", "es_dni", "12345678Z"),
    ("NIE X1234567L", "es_dni", "X1234567L"),
    ("CF RSSMRA85T10A562S", "it_codice_fiscale", "RSSMRA85T10A562S"),
    ("BSN: 111222333", "nl_bsn", "111222333"),
    ("PESEL 44051401359", "pl_pesel", "44051401359"),
    ("o CPF 529.982.247-25", "br_cpf", "529.982.247-25"),
    ("nr 811228-9874", "se_personnummer", "811228-9874"),
    ("hetu 131052-308T", "fi_hetu", "131052-308T"),
    ("CPR-nr 070761-4285", "dk_cpr", "070761-4285"),
    ("85.07.30-033.28", "be_national", "85.07.30-033.28"),
    ("NIF 123456789", "pt_nif", "123456789"),
    ("AHV 756.9217.0769.85", "ch_ahv", "756.9217.0769.85"),
    ("PPS number 1234567T", "ie_pps", "1234567T"),
    ("Aadhaar 2341 2341 2346", "in_aadhaar", "2341 2341 2346"),
    ("SIN 130 692 544", "ca_sin", "130 692 544"),
    ("tax file number 123 456 782", "au_tfn", "123 456 782"),
    ("ID 8001015009087", "za_id", "8001015009087"),
    ("11010519491231002X", "cn_resident_id", "11010519491231002X"),
    ("born on 3 April 1960 in Ulm", "date_of_birth", "3 April 1960"),
    ("DOB: 04/03/1960", "date_of_birth", "04/03/1960"),
    ("geboren am 3. März 1960", "date_of_birth", "3. März 1960"),
    ("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "crypto_wallet", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "crypto_wallet", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
]
# written in two parts, so that no scanner of repositories takes them for real ones
SECRETS = [
    ("api_key", "AKIA" + "Q3EGRIFW7K2MZ5TX"),
    ("api_key", "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"),
    ("api_key", "xoxb-" + "123456789012-abcdefGHIJKL"),
    ("api_key", "sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2"),
    ("api_key", "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q"),
    ("api_key", "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"),
    ("token", "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"),
    ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIBOgIBAAJBAKj34Gky\n-----END RSA PRIVATE KEY-----"),
]
ASSIGNED = [
    ("password = 'hunter2!x'", "password", "hunter2!x"),
    ('"api_key": "9f8a7b6c5d4e3f2a1b0c"', "api_key", "9f8a7b6c5d4e3f2a1b0c"),
    ("DB_PASSWORD=s3cr3tPass", "password", "s3cr3tPass"),
    ("Authorization: Bearer a81f23bc99d0e7a1b2c3", "token", "a81f23bc99d0e7a1b2c3"),
]


@pytest.mark.parametrize(("text", "kind", "value"), VALUES, ids=[f"{case[1]}-{case[2][:14]}" for case in VALUES])
def test_found(text, kind, value):
    assert (kind, value) in found(text)


@pytest.mark.parametrize(("kind", "value"), SECRETS)
def test_secrets_found(kind, value):
    assert found(f"use {value} here") == [(kind, value)]


@pytest.mark.parametrize(("text", "kind", "value"), ASSIGNED)
def test_assigned_secrets_found(text, kind, value):
    assert found(text) == [(kind, value)]


def test_every_type_has_an_example():
    shown = {case[1] for case in VALUES} | {kind for kind, _ in SECRETS} | {case[1] for case in ASSIGNED}
    assert set(OWN_TYPES) - shown == {"no_fodselsnummer"}
    assert found("fødselsnummer 01010750160") == [("no_fodselsnummer", "01010750160")]


# --- what is left alone
@pytest.mark.parametrize(
    "text",
    [
        "From 1914-1918 and 1939 - 1945, 2017-2018 2018-2019",
        "on 2001-05-03 and 12.10.1999 and 5/7/2012, call 12-10-1999",
        "version 10.0.19041.1 of it, section 4.3.2.1, v1.2.3.4",
        "0.0.0.0 and 127.0.0.1 and 255.255.255.0 and 300.1.2.3 and 1.2.3",
        "call it 1,000,000 times; it called for 100 000 000 people",
        "ISBN 978-3-16-148410-0 and order 1234567890",
        "4111 1111 1111 1112 and 0000 0000 0000 0000",  # no Luhn, no card
        "GB82 WEST 1234 5698 7654 33",  # wrong check digits
        "000-12-3456 and 666-12-3456 and 912-12-3456 and 123-00-4567 and 123-45-0000",
        "std::vector a::b 12:34:56 10:30",
        "e.g. this.That, p.m. and end.The next, main.py, self.name, Node.js",
        "password = os.environ['DB_PASSWORD'], token: <your-token>, api_key=None, password: please choose one",
        "password = fallback_getpass",
        "The 9434765919 stars of 12345678A",  # no word that names the number; wrong letter
        "icon@2x.png and @handle and a @ b",
        "3.14159265358979 and -12345678.9 and 1/31415926",
        "$415 555 2671",
        "at work $76000-22800=53200, call 20.300-31000/mm3",
        "range 20.300-31000/mm3, CI 198.03-257.45, id 0043207, in 191571918 (20), host bowtie2/2.3.3.1",
        "cell adhesion (GO:0007155), enzyme EC 3.1.1.11",
        "12790890\nIs telephone follow-up useful?",
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNb",
        "in May 1960 the tower was opened on 3 April 1961",
        "",
    ],
)
def test_left_alone(text):
    assert found(text) == []


def test_other_scripts_digits_and_spaces():
    assert found("Tel. +44 20 7946 0018") == [("phone", "+44 20 7946 0018")]
    assert found("SSN ５３６‑９０‑４３９９") == [("us_ssn", "５３６‑９０‑４３９９")]
    assert found("ana＠example．org") == [("email", "ana＠example．org")]


@given(st.text())
def test_plain_keeps_the_length(text):
    assert len(plain(text)) == len(text)


def test_regions_make_national_numbers_known():
    text = "lascia 06 6982 0000 o 312 345 6789 a lei"
    assert ("phone", "312 345 6789") in found(text, Wanted(frozenset(["phone"]), ("IT",)))


def test_types_narrow_the_search():
    text = "ana@example.org, 81.2.69.160"
    assert found(text, wanted(["ip"], ["US"], None)) == [("ip", "81.2.69.160")]
    assert wanted([], ["US"], None).types == set(OWN_TYPES)


# --- check digits, against published examples and by what they promise: any one wrong digit is noticed
@pytest.mark.parametrize(
    ("check", "valid"),
    [
        (luhn, "79927398713"),
        (verhoeff, "2363"),
        (mod11_10, "86095742719"),
        (lambda text: mod97(f"GB{text[:2]}WEST{text[2:]}"), "8212345698765432"),
    ],
)
def test_check_digits_notice_one_wrong_digit(check, valid):
    assert check(valid)
    for place, digit in enumerate(valid):
        for wrong in set("0123456789") - {digit}:
            assert not check(valid[:place] + wrong + valid[place + 1 :])


def test_wallet_checksums():
    assert base58check("3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy") and not base58check("3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLz")
    assert not base58check("z" * 36)
    assert bech32("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0")  # bech32m
    assert bech32("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4")
    assert not bech32("bc1Qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")


# --- spans
def test_longest_span_stays_then_the_surest():
    spans = [Span("a", 0, 4, 0.6), Span("b", 2, 9, 0.6), Span("c", 9, 12, 0.6), Span("d", 9, 12, 1.0)]
    assert [span.type for span in without_overlaps(spans)] == ["b", "d"]
    assert [span.type for span in without_overlaps(spans, taken=[(8, 9)])] == ["a", "d"]


@pytest.mark.parametrize(
    "text", ["card 4111 1111 1111 1111 415-555-2671 x", "Tel 4111 1111 1111 1111 0207 946 0018, fax 415-555-2671"]
)
def test_what_one_finding_hid_is_found_in_its_place(text):
    values = found(text)
    assert ("card", "4111 1111 1111 1111") in values
    assert ("phone", "415-555-2671") in values


def test_long_texts_are_cut_between_words():
    text = "word " * 45_000 + "x" * 210_000
    parts = list(pieces(text))
    assert "".join(part for _, part in parts) == text
    assert [offset for offset, _ in parts] == [0, *itertools.accumulate(len(part) for _, part in parts)][:-1]
    assert all(len(part) <= 100_000 for _, part in parts)
    assert all(part.endswith(("word", "x")) for _, part in parts)


PIECES = st.one_of(
    st.sampled_from([case[0] for case in VALUES]),
    st.sampled_from([case[2] for case in VALUES] + [value for _, value in SECRETS]),
    st.sampled_from(["<PHONE>", "<EMAIL", "phone ", "12", "-", ".", "@", "://", "card ", "=", "password=", "(", ")"]),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=7).flatmap(
    lambda pieces: st.sampled_from(["", " ", "\n"]).map(lambda s: s.join(pieces))
)


@settings(deadline=None, max_examples=150)
@given(TEXTS)
def test_masked_text_holds_nothing_more(text):
    spans = find_personal(text, ALL)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    assert find_personal(masked(text), ALL) == []


@settings(deadline=None, max_examples=100)
@given(st.lists(PIECES, min_size=1, max_size=8))
def test_masked_words_hold_nothing_more_and_stay_as_many(words):
    record = Tagged(tuple(words), ("O",) * len(words), SOURCE)
    step = PersonalStep(Personal(action="mask"), None)
    once = step(record).record
    assert len(once.words) == len(words) and once.tags == record.tags
    again = step(once)
    assert again.record == once and again.findings == ()


@pytest.mark.parametrize(
    "text", ["1" * 50_000 + "a", "12-" * 9_000 + "a", "http://a.b/" + ")" * 50_000, "a@" * 20_000, "-sk-" * 9_000]
)
def test_odd_long_texts_are_no_trap(text):
    assert len(find_personal(text, ALL)) <= 1


# --- the step
def test_report_counts_and_changes_nothing():
    record = Document("ana@example.org or 81.2.69.160", SOURCE, title="by bob@example.org")
    passed = PersonalStep(Personal(), None)(record)
    assert passed.record is record and passed.problem is None
    assert [(f.kind, f.field, f.start, f.end) for f in passed.findings] == [
        ("email", 0, 0, 15),
        ("ip", 0, 19, 30),
        ("email", 1, 3, 18),
    ]


def test_mask_writes_typed_placeholders():
    record = Document("ana@example.org or 81.2.69.160", SOURCE, title="by bob@example.org")
    passed = PersonalStep(Personal(action="mask"), None)(record)
    assert passed.record == Document("<EMAIL> or <IP>", SOURCE, title="by <EMAIL>")
    assert placeholder("us_ssn") == "<US_SSN>"


def test_drop_says_types_and_never_values():
    passed = PersonalStep(Personal(action="drop"), None)(Labelled("ana@example.org, bo@example.org", "x", SOURCE, "k"))
    assert passed.record is None
    assert passed.problem.reason == "personal_data"
    assert (
        passed.problem.detail
        == "holds email (2). To keep such records, set steps.personal.action to mask or pseudonym."
    )
    kept = Labelled("nothing here", "x", SOURCE, "k")
    assert PersonalStep(Personal(action="drop"), None)(kept).record is kept


@pytest.mark.parametrize("action", ["report", "mask", "pseudonym", "drop"])
def test_no_value_in_what_the_ledger_gets(action):
    values = [case[2] for case in VALUES] + [value for _, value in SECRETS]
    step = PersonalStep(Personal(action=action), KEY)
    for value in values:
        passed = step(Document(f"this is it: {value}", SOURCE))
        told = repr((passed.findings, passed.problem))
        assert value not in told and KEY.decode() not in repr(vars(step))


def test_off_looks_at_nothing():
    record = Document("ana@example.org", SOURCE)
    passed = PersonalStep(Personal(action="off"), None)(record)
    assert passed.record is record and passed.findings == ()


def test_tagged_value_over_several_words():
    record = Tagged(("Call", "(415)", "555-2671,", "Ana"), ("O", "B", "I", "O"), SOURCE)
    step = PersonalStep(Personal(action="mask"), None)(record)
    assert step.record.words == ("Call", "<PHONE>", "<PHONE>,", "Ana")
    assert [(f.kind, f.field, f.start, f.end) for f in step.findings] == [("phone", 1, 0, 5)]
    invented = PersonalStep(Personal(action="pseudonym"), KEY)(record).record
    assert len(invented.words) == 4 and invented.words[2].endswith(",")
    assert re.fullmatch(r"[0-9]{3}-555-01[0-9]{2}", invented.words[1] + invented.words[2][:-1])
    assert PersonalStep(Personal(), None)(record).record is record
    assert PersonalStep(Personal(action="drop"), None)(record).record is None


def test_step_goes_to_other_processes():
    step = pickle.loads(pickle.dumps(PersonalStep(Personal(action="pseudonym"), KEY)))  # noqa: S301
    record = Document("ana@example.org", SOURCE)
    assert step(record) == PersonalStep(Personal(action="pseudonym"), KEY)(record)
    assert step.name == "personal"


# --- pseudonyms
def invented(kind, value, key=KEY):
    return Pseudonyms(key)(kind, value)


def test_same_value_same_pseudonym_in_all_records_and_fields():
    step = PersonalStep(Personal(action="pseudonym"), KEY)
    ask, one, two = Message("user", "I am ana@example.org"), Message("assistant", "Ana@Example.org?"), "ana@example.org"
    records = [
        Preference((ask,), (one,), (Message("assistant", two),), SOURCE),
        Ranking((ask,), (two, "no"), SOURCE),
        Conversation((ask, one), SOURCE),
    ]
    emails = {value for record in records for text in texts_of(step(record).record) for _, value in found(text)}
    assert len(emails) == 1
    assert emails != {"ana@example.org"}


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("phone", "+1 (604) 696-5272", "604-696-5272"),
        ("phone", "+44 7700 900123", "07700 900123"),
        ("card", "4111 1111 1111 1111", "4111111111111111"),
        ("iban", "GB82 WEST 1234 5698 7654 32", "gb82west12345698765432"),
        ("ip", "2A00:1450:0:0:0:0:0:1", "2a00:1450::1"),
        ("url", "https://example.org/a/", "https://Example.org/a"),
        ("person", "ANA  Silva", "Ana silva"),
    ],
)
def test_spellings_of_one_value_agree(kind, one, other):
    assert invented(kind, one).casefold().split() == invented(kind, other).casefold().split()


VALUES_BY_TYPE = {case[1]: case[2] for case in VALUES} | dict(SECRETS) | {"person": "Ana Silva", "location": "Ulm"}


@pytest.mark.parametrize("kind", sorted(VALUES_BY_TYPE))
def test_pseudonym_is_stable_under_its_key_only(kind):
    value = VALUES_BY_TYPE[kind]
    assert invented(kind, value) == invented(kind, value) != value
    assert invented(kind, value) != invented(kind, value, OTHER_KEY)
    assert len({invented(kind, value, bytes([number]) * 16) for number in range(20)}) > 15


def test_names_are_replaced_word_for_word():
    full, family = invented("person", "Ana Silva"), invented("person", "Silva")
    assert full.split()[1] == family and len(full.split()) == 2
    assert invented("person", "SILVA") == family.upper()
    assert invented("location", "12 Main Street").split()[0] != "12"
    assert len({invented("person", f"name{number}") for number in range(200)}) > 190


def test_pseudonyms_are_valid_and_nobodys():
    for number in range(40):
        assert re.fullmatch(r"[a-z]+\.[a-z]+\.[0-9]{5}@example\.(com|net|org)", invented("email", f"{number}@a.de"))
        phone = invented("phone", f"+44 20 7946 00{number:02d}")
        assert re.fullmatch(r"[2-9][0-9]{2}-555-01[0-9]{2}", phone) and phone[1:3] != "11"
        assert phonenumbers.is_possible_number(phonenumbers.parse(phone, "US"))
        card = invented("card", f"411111111111{number:04d}")
        assert luhn(card) and len(card) == 16 and card.startswith("000000")
        iban = invented("iban", f"GB82WEST123456987654{number:02d}")
        assert mod97(iban) and iban.startswith("ZZ")
        assert ipaddress.ip_address(invented("ip", f"81.2.69.{number}")) in ipaddress.ip_network("198.18.0.0/15")
        assert ipaddress.ip_address(invented("ip", f"2a00::{number}")) in ipaddress.ip_network("2001:db8::/32")
        assert re.fullmatch(r"https://d[0-9]{10}\.example\.(com|net|org)/", invented("url", f"www.a{number}.de"))
    assert invented("url_credentials", "ftp://me:pw@host/").startswith("ftp://user:example@d")
    assert len({invented("phone", f"+1415555{number:04d}") for number in range(300)}) > 290


ID_VALUES = [
    (case[1], case[2])
    for case in VALUES
    if "_" in case[1] and case[1] not in ("date_of_birth", "crypto_wallet", "url_credentials")
]


@pytest.mark.parametrize(("kind", "value"), ID_VALUES)
def test_invented_ids_keep_their_shape_and_fail_their_check(kind, value):
    made = invented(kind, value)
    assert [char.isalnum() for char in made] == [char.isalnum() for char in value]
    assert [char.isdigit() for char in made] == [char.isdigit() for char in value]
    bare = "".join(char for char in value if char.isalnum())
    assert is_issued(kind, bare)
    assert not is_issued(kind, "".join(char for char in made if char.isalnum()))
    assert invented(kind, bare) == "".join(char for char in made if char.isalnum())


def test_invented_dates_keep_their_form():
    assert re.fullmatch(r"[1-9][0-9]? [A-Z][a-z]+ 19[56][0-9]", invented("date_of_birth", "13 April 1960"))
    assert re.fullmatch(r"(0[1-9]|1[0-2])/(0[1-9]|1[0-2])/19[56][0-9]", invented("date_of_birth", "04/03/1960"))


# --- errors
def test_pseudonyms_need_a_key():
    with pytest.raises(DataError, match=r"Set the environment variable LUTHIER_PSEUDONYM_KEY to 32 random characters"):
        PersonalStep(Personal(action="pseudonym"), None)
    with pytest.raises(DataError, match=r"the pseudonyms' key has 5 bytes, and needs 16 or more: a short key can be"):
        PersonalStep(Personal(action="pseudonym"), b"short")


def test_unknown_type_region_and_model():
    with pytest.raises(
        DataError, match=r'steps.personal.types: "emails" is no type of personal data. Did you mean "email"'
    ):
        PersonalStep(Personal(types=["emails"]), None)
    with pytest.raises(DataError, match=r'regions: "UK" is no country with a numbering plan. Write its two letters'):
        PersonalStep(Personal(regions=["UK"]), None)
    with pytest.raises(DataError, match=r'"person" needs a model. Set steps.personal.names to presidio'):
        PersonalStep(Personal(types=["person"]), None)
    assert {"person", "location"} == set(TYPES) - set(OWN_TYPES)


def test_a_missing_model_is_not_downloaded():
    installed = all(importlib.util.find_spec(name) for name in ("presidio_analyzer", "spacy"))
    expected = (
        "Install it: python -m spacy download none_such" if installed else "pip install (presidio-analyzer|spacy)"
    )
    with pytest.raises(DataError, match=expected):
        PersonalStep(Personal(names="presidio", names_model="none_such"), None)


@pytest.mark.slow
def test_bars_on_the_shared_set():
    folder = os.environ.get("LUTHIER_SHARED_DATA")
    if folder is None:
        pytest.skip("LUTHIER_SHARED_DATA names no folder")
    rows = [json.loads(line) for line in (Path(folder) / "pii_presidio" / "pii.jsonl").read_text().splitlines()]
    names = {
        "CREDIT_CARD": "card",
        "PHONE_NUMBER": "phone",
        "EMAIL_ADDRESS": "email",
        "IBAN_CODE": "iban",
        "US_SSN": "us_ssn",
    }
    for theirs, ours in names.items():
        hits = labelled = taken = 0
        for row in rows:
            places = {(span["start"], span["end"]) for span in row["spans"] if span["type"] == theirs}
            spans = {(span.start, span.end) for span in find_personal(row["text"], ALL) if span.type == ours}
            hits, labelled, taken = hits + len(places & spans), labelled + len(places), taken + len(spans)
        assert hits / labelled >= 0.95 and hits / taken >= 0.95
