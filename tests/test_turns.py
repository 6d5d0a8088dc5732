"""What rows say beside role and content: system columns, train flags, reasoning, tools and their calls."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from luthier.corpus.documents.tables import write_table
from luthier.corpus.exchange import convert_files
from luthier.corpus.lines import Problem
from luthier.corpus.rows import LIMITS, read_input
from luthier.corpus.shapes import SHAPES, convert, detect
from luthier.corpus.wire import from_json, key_of, texts_of, to_json, with_texts
from luthier.recipe.corpus import Input
from luthier.records import Call, Conversation, Message, Preference, Prompt, Rating, Source

HERE = Source("rows.jsonl", 1)
SYSTEM = Message("system", "Be a pirate.")
ASKED = {"role": "user", "content": "Weather?"}
ANSWERED = {"role": "assistant", "content": "Sunny."}
SCHEMA = {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": SCHEMA}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Cremona"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "21"}
TALK = (
    Message("user", "Weather?", tools=json.dumps(TOOLS)),
    Message("assistant", "", calls=(Call("look", '{"city": "Cremona"}', "c1"), Call("look", '{"city": "Cremona"}', "c2"))),
    Message("tool", "21", name="look", call_id="c1"),
    Message("assistant", "Sunny."),
)  # fmt: skip


def read(row):
    """The one record of a row, in the format that its columns show."""
    (record,) = detect([row]).read(row, HERE)
    return record


PAIR = {"chosen": "Arr", "rejected": "Hello"}
ROWS = {
    "trl pair": {"prompt": "Hi", **PAIR},
    "trl turns": {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, {**ANSWERED, "content": "Rain."}]},
    "alpaca pair": {"instruction": "Hi", "input": "", **PAIR},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Arr"},
    "alpaca instances": {"instruction": "Hi", "instances": [{"input": "", "output": "Arr"}]},
    "chat": {"messages": [ASKED, ANSWERED]},
    "openai pair": {"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED],
                    "non_preferred_output": [{**ANSWERED, "content": "Rain."}]},
    "texts": {"prompt": "Hi", "completion": "Arr"},
    "rating": {"prompt": "Hi", "completion": "Arr", "label": True},
    "prompt": {"prompt": "Hi"},
    "thumbs": {"prompt": "Hi", "answer": "Arr", "thumb": "up"},
    "ranking": {"prompt": "Hi", "answers": ["Arr", "Hello"]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Arr"}]},
    "transcripts": {"chosen": "\n\nHuman: Hi\n\nAssistant: Arr", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello"},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_read_in_every_format(name, column):
    record = read({**ROWS[name], column: "Be a pirate."})
    turns = getattr(record, "messages", None) or record.prompt
    assert turns[0] == SYSTEM and turns[1].role == "user"
    plain = read(ROWS[name])
    assert read({**ROWS[name], column: None}) == read({**ROWS[name], column: ""}) == plain


def test_a_system_column_and_another_system_turn_are_refused():
    row = {"messages": [{"role": "system", "content": "Be brief."}, ASKED, ANSWERED]}
    assert read({**row, "system": " Be brief.\n"}) == read(row)
    assert read({**row, "system": "Be a pirate."}) == Problem(
        "system_differs", 'the turns begin with another system message than "system" has.'
    )


@pytest.mark.parametrize("flag", ["train", "training"])
def test_train_flags_are_weights(flag):
    row = {"messages": [ASKED, {**ANSWERED, flag: False}, ASKED, {**ANSWERED, flag: True}, ASKED, ANSWERED]}
    assert [turn.weight for turn in read(row).messages if turn.role == "assistant"] == [0, 1, 1]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_reasoning_is_kept(name):
    record = read({"messages": [ASKED, {**ANSWERED, name: "The sky is blue."}]})
    assert record.messages[1] == Message("assistant", "Sunny.", reasoning="The sky is blue.")
    assert SHAPES["chat"].write(record)["messages"][1] == {**ANSWERED, "reasoning_content": "The sky is blue."}
    assert SHAPES["sharegpt"].write(record).reason == "reasoning", "no place for it"
    assert convert(record, "instruction").reason == "reasoning"


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), [SCHEMA], json.dumps([SCHEMA])])
def test_tools_calls_and_their_results_are_kept(tools):
    record = read({"messages": [ASKED, CALLING, RESULT, ANSWERED], "tools": tools})
    assert record == Conversation(TALK, HERE)
    hash(record)
    assert from_json(json.loads(json.dumps(to_json(record)))) == record
    written = SHAPES["chat"].write(record)
    assert written == {"messages": [ASKED, {**CALLING, "content": ""}, RESULT, ANSWERED], "tools": TOOLS}
    assert read(written) == record


def test_arguments_may_be_an_object_and_the_old_spelling_is_read():
    call = {"name": "look", "arguments": {"city": "Cremona"}}
    rows = [{**ASKED}, {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "look", "content": ""}, ANSWERED]  # fmt: skip
    record = read({"messages": rows, "functions": [SCHEMA]})
    assert record.messages[1].calls == (Call("look", '{"city": "Cremona"}'),)
    assert record.messages[2] == Message("tool", "", name="look"), "a tool may have nothing to say"
    assert record.messages[0].tools == json.dumps(TOOLS)


def test_null_columns_of_tables_mean_nothing():
    row = {"messages": [{**ASKED, "tool_calls": None}, {**ANSWERED, "tool_calls": [], "name": None}], "tools": None}
    assert read(row) == read({"messages": [ASKED, ANSWERED]})


def test_llama_factory_rows_with_calls():
    calls = [{"name": "look", "arguments": {"city": "Cremona"}}] * 2
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps(calls)},
            {"from": "observation", "value": "21"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "system": "Be a pirate.",
        "tools": json.dumps([SCHEMA]),
    }
    record = read(row)
    assert [turn.role for turn in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.messages[2] == Message("assistant", "", calls=(Call("look", '{"city": "Cremona"}'),) * 2)
    assert record.messages[0] == replace(SYSTEM, tools=json.dumps(TOOLS))
    written = SHAPES["sharegpt"].write(record)
    assert written["tools"] == row["tools"] and written["conversations"][2] == row["conversations"][1]
    assert read(written) == record
    both = replace(record, messages=(*record.messages[:-1], replace(record.messages[2], content="I look.")))
    assert SHAPES["sharegpt"].write(both) == Problem(
        "tool_calls",
        'a turn says something and calls a tool; "sharegpt" rows hold one of both. Write the rows as "chat".',
    )


def test_a_call_that_is_text_stays_text():
    turns = [{"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "look(Cremona)"}]
    assert read({"conversations": turns}).messages[1] == Message("assistant", "look(Cremona)")


def test_pairs_may_differ_in_their_calls_alone():
    other = {**CALLING, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"city": "Rome"}}}]}
    row = {"prompt": [ASKED], "chosen": [CALLING], "rejected": [other], "tools": TOOLS}
    record = read(row)
    assert isinstance(record, Preference) and record.prompt == TALK[:1] and record.chosen == TALK[1:2]
    assert read({**row, "rejected": [CALLING]}).reason == "same_answers"
    assert SHAPES["trl_conversational"].read(SHAPES["trl_conversational"].write(record), HERE) == [record]


def test_a_thumb_or_a_rank_has_no_place_for_calls():
    problem = read({"prompt": [ASKED], "completion": [CALLING], "label": True})
    assert problem == Problem(
        "tool_calls",
        '"completion" calls a tool; rated and ranked answers are texts. Give pairs, or leave the row out.',
    )
    assert SHAPES["thumbs"].write(Rating(TALK[:1], "x", True, HERE)).reason == "tool_calls"


def test_texts_in_calls_are_seen_and_masked():
    calls = (Call("mail", '{"to": ["a@b.org", 5], "at": {"text": "x\\ny"}}'),)
    turns = (Message("user", "Write."), Message("assistant", "", reasoning="Hm.", calls=calls))
    record = Conversation(turns, HERE)
    assert texts_of(record) == ("Write.", "", "Hm.", "a@b.org", "x\ny")
    masked = with_texts(record, ("Write.", "", "Ah.", "<EMAIL>", "x\ny"))
    assert masked.messages[1].reasoning == "Ah."
    assert masked.messages[1].calls == (Call("mail", '{"to": ["<EMAIL>", 5], "at": {"text": "x\\ny"}}'),)
    assert with_texts(record, texts_of(record)) == record


def test_keys_tell_calls_and_tools_apart():
    turns = (TALK[0], replace(TALK[1], calls=(Call("look", '{"n": 1}'),)))
    others = [
        (turns[0], replace(turns[1], calls=(Call("look", '{"n": 2}'),))),
        (turns[0], replace(turns[1], calls=(Call("see", '{"n": 1}'),))),
        (replace(turns[0], tools=""), turns[1]),
    ]
    assert len({key_of(Conversation(each, HERE)) for each in (turns, *others)}) == 4
    assert len({key_of(Prompt(each[:1], HERE)) for each in (turns, others[2])}) == 2


def test_records_without_calls_are_written_as_before():
    record = Conversation((Message("user", "Hi"), Message("assistant", "Ho", 0.5)), HERE)
    assert to_json(record)["messages"] == [
        {"role": "user", "content": "Hi", "weight": 1.0},
        {"role": "assistant", "content": "Ho", "weight": 0.5},
    ]


def test_in_parquet_tools_are_text_so_that_they_stay_as_they_are(tmp_path):
    other = {"name": "see", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
    rows = [{"messages": [ASKED, CALLING, RESULT, ANSWERED], "tools": [tool]} for tool in (SCHEMA, other)]
    write_table(tmp_path / "a.jsonl", rows, "jsonl")
    convert_files(Input(path=str(tmp_path / "a.jsonl")), tmp_path / "b.parquet", "chat")
    read = [list(read_input(Input(path=str(tmp_path / name)), LIMITS)) for name in ("a.jsonl", "b.parquet")]
    assert [row.messages for row in read[0]] == [row.messages for row in read[1]]
    assert json.loads(read[1][1].messages[0].tools) == [{"type": "function", "function": other}]


def test_columns_that_nobody_reads_are_counted(tmp_path):
    lines = [{"messages": [ASKED, ANSWERED], "system": "Be kind.", "licence": "MIT", "persona": "Ann", "id": None}] * 2
    write_table(tmp_path / "a.jsonl", [*lines, {"messages": [ASKED], "persona": "Ann"}], "jsonl")
    unread = Counter()
    read = list(read_input(Input(path=str(tmp_path / "a.jsonl")), LIMITS, unread))
    assert len(read) == 3 and unread == {"persona": 2}, "of rows that could be read"
