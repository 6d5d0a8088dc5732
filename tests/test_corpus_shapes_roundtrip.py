"""What a shape writes it reads back with the same meaning; and no row, whatever it holds, brings a reader down."""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.fold import row_key
from luthier.corpus.lines import Line, Problem
from luthier.corpus.shapes import SHAPES, conll_text, convert, detect, read_conll, read_shape, shape_for, write_as
from luthier.corpus.shapes.checks import check_record
from luthier.corpus.wire import KINDS
from luthier.errors import DataError
from luthier.recipe.corpus import Input
from luthier.records import (
    Call,
    Completion,
    Conversation,
    Document,
    Instruction,
    Labelled,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Source,
    Tagged,
)

# --- records -------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = ANY_TEXT.filter(lambda text: text.strip())
NAMES = TEXTS.map(str.strip)
SOURCES = st.builds(
    Source,
    st.just("first.csv"),
    st.just(3),
    licence=st.none() | st.sampled_from(["MIT", "CC-BY-4.0"]),
    group=st.none() | NAMES,
    date=st.none() | st.dates().map(str) | st.datetimes().map(lambda date: date.isoformat()),
    url=st.none() | st.just("https://example.org/a"),
    synthetic=st.none() | st.just("model-x"),
)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT, lambda inner: st.lists(inner, max_size=2))
ARGUMENTS = st.dictionaries(ANY_TEXT, JSON, max_size=2).map(lambda value: json.dumps(value, ensure_ascii=False))
CALLS = st.lists(st.builds(Call, NAMES, ARGUMENTS, st.none() | NAMES), min_size=1, max_size=2).map(tuple)
CALLING = st.tuples(
    st.builds(Message, st.just("assistant"), ANY_TEXT, reasoning=ANY_TEXT, calls=CALLS),
    st.builds(Message, st.just("tool"), ANY_TEXT, name=ANY_TEXT, call_id=ANY_TEXT),
)
TOOLS = st.lists(NAMES, min_size=1, max_size=2).map(
    lambda names: json.dumps([{"type": "function", "function": {"name": name}} for name in names], ensure_ascii=False)
)


@st.composite
def dialogues(draw, ends="assistant"):
    """Turns as a conversation may have them, ending with one role."""
    turns = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns.append(Message("user", draw(TEXTS)))
        turns.append(Message("assistant", draw(TEXTS), draw(st.sampled_from([1.0, 0.0, 0.5]))))
        if draw(st.booleans()):
            turns += [Message("tool", draw(TEXTS)), Message("assistant", draw(TEXTS))]
        if draw(st.booleans()):
            turns += [Message("user", draw(TEXTS)), *draw(CALLING), Message("assistant", draw(TEXTS))]
    turns.append(Message("user", draw(TEXTS)))
    turns[0] = replace(turns[0], tools=draw(st.just("") | TOOLS))
    return (*turns, Message("assistant", draw(TEXTS))) if ends == "assistant" else tuple(turns)


PROMPTS = dialogues(ends="user").map(lambda turns: tuple(replace(turn, weight=1.0) for turn in turns))
PROMPTS = PROMPTS | TEXTS.map(lambda text: (Message("user", text),))
ANSWERS = TEXTS.map(lambda text: (Message("assistant", text),)) | st.tuples(TEXTS, TEXTS, TEXTS).map(
    lambda texts: tuple(map(Message, ("assistant", "user", "assistant"), texts))
)


@st.composite
def rankings(draw):
    answers = tuple(draw(st.lists(TEXTS, min_size=2, max_size=4)))
    assume(len({answer.strip() for answer in answers}) > 1)
    scores = draw(st.none() | st.lists(st.integers(-3, 3).map(float), min_size=len(answers), max_size=len(answers)))
    assume(scores is None or len(set(scores)) > 1)
    return Ranking(draw(PROMPTS), answers, draw(SOURCES), scores and tuple(sorted(scores, reverse=True)))


@st.composite
def tagged(draw):
    """Words with BIO tags that can follow each other, or with plain tags."""
    words, tags = draw(st.lists(NAMES, min_size=1, max_size=6)), []
    if draw(st.booleans()):
        return Tagged(tuple(words), tuple(draw(st.sampled_from(["NN", "VB"])) for _ in words), draw(SOURCES))
    for _ in words:
        inside = [f"I{tags[-1][1:]}"] if tags and tags[-1] != "O" else []
        tags.append(draw(st.sampled_from(["O", "B-PER", "B-LOC-x", *inside])))
    return Tagged(tuple(words), tuple(tags), draw(SOURCES))


@st.composite
def preferences(draw):
    chosen, rejected = draw(ANSWERS), draw(ANSWERS)
    assume([turn.content for turn in chosen] != [turn.content for turn in rejected])
    scores = draw(st.none() | st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float)))
    return Preference(draw(PROMPTS), chosen, rejected, draw(SOURCES), scores)


RECORDS = {
    Document: st.builds(Document, TEXTS, SOURCES, st.none() | TEXTS),
    Labelled: st.builds(lambda text, label, source: Labelled(text, label, source, row_key(text, label)), TEXTS, NAMES, SOURCES),
    Conversation: st.builds(Conversation, dialogues(), SOURCES),
    Completion: st.builds(Completion, TEXTS, TEXTS, SOURCES),
    Instruction: st.builds(Instruction, TEXTS, ANY_TEXT, TEXTS, SOURCES),
    Prompt: st.builds(Prompt, PROMPTS, SOURCES),
    Preference: preferences(),
    Ranking: rankings(),
    Rating: st.builds(Rating, PROMPTS, TEXTS, st.booleans(), SOURCES),
    Tagged: tagged(),
}  # fmt: skip
NO_PLACE = {
    "trl": {"several_turns", "tool_calls"},
    "sharegpt": {"several_turns", "tool_calls", "reasoning"},
    "hh_rlhf": {"unknown_role", "bad_weight", "marks_in_text", "tool_calls"},
    "label_studio": {"several_turns", "bad_tag", "no_annotation", "tool_calls"},
    "argilla": {"several_turns", "bad_tag", "tool_calls"},
    "thumbs": {"tool_calls"},
    "ranking": {"tool_calls"},
    "spans": {"bad_tag"},
}
CASES = [(name, kind) for name, shape in SHAPES.items() for kind in shape.kinds if name != "text"]


def spoken(turns):
    return [(turn.role, turn.said, turn.name, turn.call_id, turn.tools) for turn in turns]


def meaning(record):
    """What must survive, a pair's scores too: where its prompt ends does not count, nor do a ranking's distances."""
    source = replace(record.source, file="", line=0)
    if isinstance(record, Preference):
        both = ((*record.prompt, *answer) for answer in (record.chosen, record.rejected))
        return source, [spoken(turns) for turns in both], record.scores
    if isinstance(record, Ranking):
        scores = record.scores or tuple(range(len(record.answers), 0, -1))
        return source, spoken(record.prompt), record.answers, [sum(o > s for o in scores) for s in scores]
    return source, replace(record, source=source)


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind.__name__}" for name, kind in CASES])
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_written_is_read_back(name, kind, data):
    record = data.draw(RECORDS[kind])
    check_record(record)
    shape = shape_for(Input(path="x", label="label"), []) if (name, kind) == ("columns", Labelled) else SHAPES[name]
    row = shape.write(record)
    if isinstance(row, Problem):
        assert row.reason in NO_PLACE.get(name, ())
        return
    back = shape.read(json.loads(json.dumps(row)), Source("again.jsonl", 1))
    assert not any(isinstance(item, Problem) for item in back), back
    assert shape.fits(row)
    if name == "run_export" and record.source.group is None and len(back) == 2:  # the pair got a group of its own
        record = replace(record, source=replace(record.source, group="again.jsonl:1"))
    if name == "luthier":
        assert back == [record]
    assert meaning(record) in [meaning(item) for item in back]


@settings(max_examples=60)
@given(record=RECORDS[Tagged])
def test_conll_text_is_read_back(record):
    text = conll_text(record)
    if isinstance(text, Problem):
        assert text.reason == "white_space"
        assert any(len(word.split()) != 1 for word in (*record.words, *record.tags))
        return
    lines = [Line(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    (back,) = read_conll(lines, "a.conll")
    group = record.source.group and " ".join(record.source.group.split())
    expected = replace(record, source=replace(record.source, group=group))
    assert meaning(back) == meaning(expected)


@settings(max_examples=60)
@given(record=st.one_of(*RECORDS.values()), to=st.sampled_from(sorted(KINDS)))
def test_a_converted_record_keeps_the_rules_and_its_provenance(record, to):
    made = convert(record, to)
    if isinstance(made, Problem):
        assert made.reason in {
            "no_conversion",
            "several_turns",
            "disliked",
            "same_answers",
            "turn_order",
            "empty_text",
            "tool_calls",
        }
        return
    for item in made:
        assert type(item) is KINDS[to]
        check_record(item)
        assert replace(item.source, group=None) == replace(record.source, group=None)
        assert item.source.group == record.source.group or (record.source.group is None and len(made) > 1)


# --- any row at all ------------------------------------------------------------------------------------

COLUMN_NAMES = [
    "messages", "prompt", "completion", "chosen", "rejected", "label", "conversations", "from", "value", "role", "content",
    "weight", "instruction", "input", "output", "instances", "history", "system", "answers", "responses", "scores", "ranks",
    "rank", "score", "text", "title", "thumb", "words", "tags", "tokens", "ner_tags", "data", "annotations", "result", "type",
    "choices", "labels", "start", "end", "selected", "fields", "suggestions", "metadata", "inputs", "outputs", "generations",
    "message", "kwargs", "id", "run_type", "trace_id", "start_time", "feedback", "extra", "kind", "source", "file", "line",
    "key", "good", "answer", "preferred_output", "transcript", "a.responses", "a.responses.status", "a.suggestion", "date",
    "licence", "group", "question", "solution", "spans", "entities", "tokens", "chosen_response", "tool_calls", "tools", "function", "name", "arguments", "reasoning_content", "train", "tool_call_id", "values", "status", "globalOffsets", "additional_kwargs",
]  # fmt: skip
WORDS = [
    "user",
    "assistant",
    "a",
    " ",
    "\n\nHuman: a\n\nAssistant: b",
    "B-X",
    "O",
    "left",
    "[]",
    "{}",
    '{"messages": []}',
    "\ud800",
]
LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats() | st.sampled_from([*WORDS, *sorted(KINDS), "choices", "labels"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMN_NAMES), inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(COLUMN_NAMES), VALUES, max_size=6)


def places(value, path=()):
    """The path of every value inside a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


@st.composite
def damaged_rows(draw):
    """A good row of some shape with one of its values, at any depth, replaced by anything."""
    record = draw(st.one_of(*RECORDS.values()))
    rows = [row for shape in SHAPES.values() if isinstance(row := shape.write(record), dict)]
    row = json.loads(json.dumps(draw(st.sampled_from(rows))))
    path = draw(st.sampled_from([path for path in places(row) if path]))
    return put(row, path, draw(VALUES))


@settings(max_examples=120)
@given(row=damaged_rows() | ROWS)
def test_no_row_brings_a_reader_down(row):
    for shape in SHAPES.values():
        assert isinstance(shape.fits(row), bool)
        for item in read_shape([(1, row)], shape, "x.jsonl"):
            if isinstance(item, Unreadable):
                assert item.problem.reason
                assert item.problem.detail.endswith(".")
                item.text.encode("utf-8")
            else:
                check_record(item)
                assert all(written(item, other) for other in SHAPES.values())


def written(record, shape):
    rows = write_as(record, shape)
    return isinstance(rows, Problem) or all(json.dumps(row) for row in rows)


@settings(max_examples=50)
@given(rows=st.lists(damaged_rows(), max_size=3))
def test_detection_answers_or_says_why_not(rows):
    try:
        assert detect(rows).name in SHAPES
    except DataError as error:
        assert "format" in str(error)
