"""Rows of every shape become the records they mean; every refusal says what is wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.lines import Problem
from luthier.corpus.shapes import SHAPES, convert, detect, read_shape, shape_for, write_as
from luthier.corpus.shapes.registry import DETECTED
from luthier.corpus.wire import kind_of, to_json
from luthier.errors import DataError
from luthier.recipe.corpus import Input, ReadFormat, WriteFormat
from luthier.records import (
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

HERE = Source("rows.jsonl", 7)
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "formats.md"


def user(text):
    return Message("user", text)


def assistant(text, weight=1.0):
    return Message("assistant", text, weight)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


ASKED, ANSWERED = turn("user", "Why is varnish red?"), turn("assistant", "Madder root.")


def read(shape, row):
    return SHAPES[shape].read(row, HERE)


def read_one(shape, row):
    (item,) = read(shape, row)
    assert not isinstance(item, Problem), item.detail
    return item


def refused(shape, row):
    (item,) = read(shape, row)
    assert isinstance(item, Problem), item
    return f"{item.reason}: {item.detail}"


# --- which shape ---------------------------------------------------------------------------------------

DETECT = [
    ("luthier", {"kind": "document", "text": "a", "source": {"file": "b", "line": 1}, "title": None}),
    ("run_export", {"run_type": "llm", "inputs": {"messages": [ASKED]}, "outputs": {"choices": []}}),
    ("run_export", {"inputs": '{"messages": []}', "outputs": None, "id": "1"}),
    ("label_studio", {"id": 1, "data": {"text": "a"}, "annotations": []}),
    ("argilla", {"id": "1", "fields": {"text": "a"}, "responses": {}, "suggestions": {}}),
    ("argilla", {"text": "a", "label.responses": ["x"], "label.responses.status": ["submitted"]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}}),
    ("sharegpt", {"id": "x", "conversations": [{"from": "human", "value": "a"}]}),
    ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
    ("ranking", {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2]}),
    ("ranking", {"question": "a", "candidates": [{"text": "b", "rank": 1}, {"text": "c", "rank": 2}]}),
    ("thumbs", {"prompt": "a", "response": "b", "rating": -1}),
    ("thumbs", {"messages": [ASKED, ANSWERED], "label": False}),
    ("chat", {"messages": [ASKED, ANSWERED]}),
    ("chat", {"input": {"messages": [ASKED]}, "preferred_output": [ANSWERED], "non_preferred_output": [ANSWERED]}),
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}),
    ("alpaca", {"instruction": "a", "context": "", "response": "b", "category": "open_qa"}),
    ("alpaca", {"instruction": "a", "output": "b", "chosen": "b", "rejected": "c"}),
    ("prompt_completion", {"prompt": "a", "completion": " b"}),
    ("trl", {"prompt": "a"}),
    ("trl", {"prompt": "a", "num_responses": 4, "answer_type": "number"}),
    ("trl", {"prompt": [ASKED], "completion": [ANSWERED]}),
    ("trl", {"prompt": "a", "completion": "b", "label": True}),
    ("trl", {"prompt": "a", "chosen": [ASKED, ANSWERED], "rejected": [ASKED, ANSWERED], "messages": [ASKED, ANSWERED]}),
    ("conll", {"tokens": ["a"], "ner_tags": ["O"]}),
    ("conll", {"text": "a b", "tags": "O O"}),
    ("columns", {"text": "a", "label": "B"}),
    ("columns", {"text": "a", "title": "t"}),
    ("columns", {"text": "a", "labels": ["b", "c"]}),
    ("spans", {"text": "a b", "spans": [{"start": 0, "end": 1, "type": "X"}]}),
    ("spans", {"text": "a b", "entities": []}),
    ("spans", {"text": "a b", "label": [[0, 1, "X"]]}),
    ("thumbs", {"prompt": "a", "response": "b", "rating": 0}),
    ("alpaca", {"instruction": "a", "input": "", "answer": "b"}),
    ("trl", {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}),
    ("trl", {"prompt": "a", "chosen_response": "b", "rejected_response": "c"}),
    ("question_answer", {"question": "a", "answer": "b", "source": "web"}),
    ("question_answer", {"query": "a", "response": "b"}),
    ("question_answer", {"problem": "a", "solution": "b", "level": 3}),
    ("question_answer", {"input": "a", "output": "b"}),
    ("question_answer", {"prompt": "a", "response": "b"}),
]


@pytest.mark.parametrize(("name", "row"), DETECT)
def test_a_row_is_detected(name, row):
    assert detect([row]).name == name


def test_a_label_column_is_not_lost():
    (labelled,) = detect([{"text": "a", "label": "B"}]).read({"text": "a", "label": "B"}, HERE)
    assert isinstance(labelled, Labelled)
    (document,) = SHAPES["columns"].read({"text": "a", "label": "B"}, HERE)
    assert isinstance(document, Document)


def test_a_few_bad_rows_do_not_hide_the_shape():
    rows = [{"messages": [ASKED, ANSWERED]}] * 7 + [{"prompt": "a"}, {"x": 1}, {"messages": 5}]
    assert detect(rows).name == "chat"


def test_rows_of_no_shape():
    with pytest.raises(DataError) as raised:
        detect([{"headline": "a", "desk": "b"}], "news.jsonl")
    text = str(raised.value)
    assert text.startswith(
        'news.jsonl: the rows are of no known format. Columns found: "headline", "desk". Known formats:'
    )
    assert text.endswith("Name the columns in `columns`, or set format to columns and text to the text's.")
    assert all(f"{name} (" in text for name in SHAPES)
    with pytest.raises(DataError, match="Columns found: none"):
        detect([])


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "answer": "b", "choices": ["b", "c"]},
        {"question": "a", "answer": "b", "article": "c"},
        {"question": "a", "query": "b", "answer": "c"},
        {"problem": "a", "solution": "b", "answer": "c"},
        {"prompt": "a", "response": "b", "score": 4},
        {"prompt": "a", "better_response": "b"},
        {"instruction": "Answer.", "question": "a", "answer": "b"},
        {"instruction": "Answer.", "question": "a", "output": "b"},
    ],
)
def test_what_could_mean_several_things_is_not_guessed(row):
    with pytest.raises(DataError, match="the rows are of no known format"):
        detect([row])


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"question": "a", "answer": "b"}, Instruction("a", "", "b", HERE)),
        ({"question": "a", "context": "c", "answer": "b"}, Instruction("a", "c", "b", HERE)),
        (
            {"system_prompt": "s", "question": "a", "context": "c", "response": "b"},
            Conversation((Message("system", "s"), user("a\n\nc"), assistant("b")), HERE),
        ),
    ],
)
def test_questions_and_answers(row, record):
    assert read("question_answer", row) == [record]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "a"}, 'missing_field: no "answer" or "response" or "output" or "completion" or "solution". Give the row one, or remove it.'),
        ({"question": "a", "answer": "b", "solution": "c"}, 'ambiguous: "answer" and "solution" could both be meant. Name the columns: columns: {prompt: ..., response: ...}.'),
        ({"question": "a", "answer": 5}, 'wrong_type: "answer" is a number; it must be a text.'),
    ],
)  # fmt: skip
def test_question_answer_refusals(row, expected):
    assert refused("question_answer", row) == expected


def test_ratings_of_a_scale_are_no_thumbs():
    rows = [{"prompt": "a", "answer": "b", "rating": stars} for stars in (1, 5, 3, 4)]
    scale = re.escape("x: the verdicts are numbers of a scale (1, 3, 4, 5), not up and down. Say which are good")
    for chosen in (Input(path="x"), Input(path="x", format="thumbs")):
        with pytest.raises(DataError, match=scale):
            shape_for(chosen, rows, "x")
    mixed = [{"prompt": "a", "completion": "b", "label": number} for number in (1, 0, -1)]
    with pytest.raises(DataError, match="the verdicts are -1, 0, 1. Which is down, -1 or 0?"):
        shape_for(Input(path="x"), mixed, "x")


def test_rows_of_several_shapes():
    rows = [{"messages": [ASKED, ANSWERED]}] * 3 + [{"instruction": "a", "output": "b"}] * 2
    with pytest.raises(DataError) as raised:
        detect(rows, "mixed.jsonl")
    assert str(raised.value) == (
        'mixed.jsonl: the first rows are of several formats: "chat" (3 rows), "alpaca" (2 rows). '
        'Columns found: "messages", "instruction", "output". Part them into files, or set format to the one to read.'
    )


def test_every_format_of_a_recipe_is_a_shape():
    assert set(SHAPES) == (set(ReadFormat.__args__) | set(WriteFormat.__args__)) - {"auto", "document", "lines"}


def test_an_input_chooses_its_shape():
    assert shape_for(Input(path="x", format="alpaca"), []).name == "alpaca"
    assert shape_for(Input(path="x"), [{"messages": [ASKED, ANSWERED]}]).name == "chat"
    columns = shape_for(Input(path="x", text="body", label="topic"), [])
    assert columns.read({"body": "a", "topic": 3}, HERE)[0].label == "3"
    assert isinstance(shape_for(Input(path="x", text="body"), []).read({"body": "a"}, HERE)[0], Document)
    with pytest.raises(DataError, match='the format "document" is not one of rows. Known formats: luthier'):
        shape_for(Input(path="x", format="document"), [])


# --- chat ----------------------------------------------------------------------------------------------


def test_chat():
    row = {
        "messages": [
            turn("developer", "Be brief."),
            ASKED,
            turn("assistant", [{"type": "text", "text": "Mad"}, "der."]),
        ]
    }
    expected = (Message("system", "Be brief."), user("Why is varnish red?"), assistant("Madder."))
    assert read("chat", row) == [Conversation(expected, HERE)]


def test_chat_weights():
    row = {"messages": [ASKED, turn("assistant", "a", weight=0), turn("user", "b"), turn("assistant", "c", weight=1)]}
    record = read_one("chat", row)
    assert [message.weight for message in record.messages] == [1, 0, 1, 1]
    assert SHAPES["chat"].write(record)["messages"][1] == {"role": "assistant", "content": "a", "weight": 0}


def test_chat_tool_results_are_turns():
    row = {"messages": [ASKED, turn("assistant", "look(varnish)"), turn("tool", "red"), ANSWERED]}
    assert [message.role for message in read_one("chat", row).messages] == ["user", "assistant", "tool", "assistant"]


def test_chat_preference():
    row = {
        "input": {"messages": [ASKED]},
        "preferred_output": [ANSWERED],
        "non_preferred_output": [turn("assistant", "No.")],
    }
    expected = Preference((user("Why is varnish red?"),), (assistant("Madder root."),), (assistant("No."),), HERE)
    assert read("chat", row) == [expected]
    assert SHAPES["chat"].write(expected) == row


def calling(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


CALL = calling({"function": {"name": "f", "arguments": "{}"}})
BROKEN_CALL = calling({"function": {"name": "f", "arguments": "[1"}})


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ("hi", 'wrong_type: "messages" is a text; it must be a list of turns.'),
        ([], "no_turns: the conversation has no turns."),
        (["hi"], 'wrong_type: "messages" turn 1 is a text; it must be an object with role and content.'),
        ([turn("usr", "a")], 'unknown_role: "messages" turn 1 has the role "usr". Known: system, user (human), assistant (gpt), tool. Did you mean "user"?'),
        ([turn("critic", "a")], 'unknown_role: "messages" turn 1 has the role "critic". Known: system, user (human), assistant (gpt), tool.'),
        ([{"content": "a"}], 'missing_field: "messages" turn 1 has no role.'),
        ([{"role": "user"}], 'missing_field: "messages" turn 1 has no content.'),
        ([turn("user", 5)], 'wrong_type: "messages" turn 1: its content is a number; it must be a text or text parts.'),
        ([turn("user", " \n")], "empty_text: turn 1 (user) is empty. Write one, or remove the row."),
        ([turn("user", "\ud800")], "encoding: turn 1 (user) holds half a character (a lone \\ud... escape)."),
        ([turn("user", [{"type": "image_url", "image_url": "x"}])], 'not_text: "messages" turn 1 holds a part of type "image_url"; only text parts can be read. Remove the part, or the row.'),
        ([ASKED, calling("f")], 'bad_call: "messages" turn 2: call 1 is a text; it must be an object with a function.'),
        ([ASKED, calling({"function": {}})], 'bad_call: "messages" turn 2: call 1 has no name of a function. Write {"name": ..., "arguments": ...}.'),
        ([ASKED, calling({"id": 5, "function": {"name": "f"}})], 'bad_call: "messages" turn 2: call 1: its id is a number; it must be a text.'),
        ([ASKED, BROKEN_CALL], "bad_call: turn 2: the arguments of \"f\" are no JSON object: '[1'. Mend them, or remove the row."),
        ([{**CALL, "role": "user"}, ANSWERED], "bad_call: turn 1 calls a tool, but it is the user's. Only the assistant's turns may."),
        ([{**ASKED, "reasoning_content": "hm"}, ANSWERED], "bad_reasoning: turn 1 has a reasoning, but it is the user's. Only the assistant's turns may."),
        ([ASKED, {**ANSWERED, "thinking": ["hm"]}], 'bad_reasoning: "messages" turn 2: "thinking" must be a text, and one only.'),
        ([ASKED, turn("assistant", "a", train="no")], 'bad_weight: "messages" turn 2: train and training must be true or false, and say the same.'),
        ([ASKED, turn("assistant", "a", train=False, weight=1)], 'bad_weight: "messages" turn 2 has the weight 1, but says that train is False.'),
        ([ASKED, ANSWERED, ANSWERED], "turn_order: turns 2 and 3 are both the assistant's. Join them, or remove one."),
        ([ASKED, ASKED, ANSWERED], "turn_order: turns 1 and 2 are both the user's. Join them, or remove one."),
        ([ASKED, turn("system", "a"), ANSWERED], "turn_order: turn 2 is the system's, which may only stand at the start."),
        ([ASKED, turn("tool", "a"), ANSWERED], "turn_order: turn 2 is a tool's, but the turn before it did not call one."),
        ([turn("tool", "a"), ANSWERED], "turn_order: turn 1 is a tool's, but nobody called one."),
        ([ASKED], "no_answer: the conversation ends with the user's turn (turn 1); the last must be the assistant's. Remove that turn, or add an answer."),
        ([ANSWERED], "no_user_turn: the conversation has no turn of the user's."),
        ([ASKED, turn("assistant", "a", weight="x")], "bad_weight: turn 2 has the weight 'x'; it must be 0 (not trained on) or more."),
        ([ASKED, turn("assistant", "a", weight=-1)], "bad_weight: turn 2 has the weight -1; it must be 0 (not trained on) or more."),
        ([ASKED, turn("assistant", "a", weight=0)], "nothing_trained: every assistant's turn has weight 0: there is nothing to learn."),
    ],
)  # fmt: skip
def test_chat_refusals(messages, expected):
    assert refused("chat", {"messages": messages}) == expected


def test_rows_with_broken_tools_or_pictures_are_refused():
    row = {"messages": [ASKED, ANSWERED]}
    assert refused("chat", {**row, "tools": [{"type": "function"}]}) == (
        'bad_tools: "tools" entry 1 is no definition of a function: {"name": ..., "parameters": ...}.'
    )
    assert refused("chat", {**row, "tools": "find(x)"}) == 'broken_json: "tools": a text that is not JSON.'
    assert refused("chat", {**row, "tools": "5"}) == (
        'bad_tools: "tools" is a number; it must be a list of tool definitions.'
    )
    assert refused("chat", {**row, "images": ["x.png"]}) == (
        'not_text: the row has "images"; only text can be read. Remove it, or the row.'
    )
    assert len(read("chat", {**row, "tools": [], "images": None})) == 1


# --- texts ---------------------------------------------------------------------------------------------


def test_prompt_completion_keeps_white_space():
    assert read("prompt_completion", {"prompt": "a\n", "completion": " b"}) == [Completion("a\n", " b", HERE)]


def test_alpaca():
    assert read("alpaca", {"instruction": "a", "input": "b", "output": "c"}) == [Instruction("a", "b", "c", HERE)]
    assert read("alpaca", {"instruction": "a", "context": None, "response": "c"}) == [Instruction("a", "", "c", HERE)]


def test_alpaca_with_history_is_a_conversation():
    row = {"instruction": "c", "input": "d", "output": "e", "system": "s", "history": [["a", "b"]]}
    expected = (Message("system", "s"), user("a"), assistant("b"), user("c\n\nd"), assistant("e"))
    assert read("alpaca", row) == [Conversation(expected, HERE)]


def test_alpaca_with_chosen_is_a_preference():
    row = {"instruction": "a", "input": "b", "output": "c", "chosen": "c", "rejected": "d"}
    assert read("alpaca", row) == [Preference((user("a\n\nb"),), (assistant("c"),), (assistant("d"),), HERE)]


def test_alpaca_instances_share_a_group():
    row = {"instruction": "a", "instances": [{"input": "b", "output": "c"}, {"input": "", "output": "d"}]}
    first, second = read("alpaca", row)
    assert (first.context, first.response, second.context, second.response) == ("b", "c", "", "d")
    assert first.source.group == second.source.group == "rows.jsonl:7"


def test_sharegpt_speakers():
    row = {
        "system": "s",
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": "f()"},
            {"from": "observation", "value": "b"},
            {"from": "GPT", "value": "c"},
        ],
    }
    roles = [message.role for message in read_one("sharegpt", row).messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_sharegpt_judged():
    asked = [{"from": "human", "value": "a"}]
    pair = {"conversations": asked, "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}}
    assert read("sharegpt", pair) == [Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)]
    rated = {"conversations": [*asked, {"from": "gpt", "value": "b"}], "label": False}
    assert read("sharegpt", rated) == [Rating((user("a"),), "b", False, HERE)]


def test_sharegpt_refusals():
    start = {"from": "human", "value": "a"}
    assert refused("sharegpt", {"conversations": [start, {"from": "narrator", "value": "b"}]}).startswith(
        'unknown_role: "conversations" turn 2 has the role "narrator". Known:'
    )
    assert refused("sharegpt", {"conversations": [start], "label": True}) == (
        "no_answer: there is a verdict, but the last turn is not the assistant's."
    )
    assert refused("sharegpt", {"conversations": [start], "chosen": {"from": "gpt", "value": "b"}}) == (
        'missing_field: no "rejected". Give the row one, or remove it.'
    )


# --- TRL -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a"}, Prompt((user("a"),), HERE)),
        ({"prompt": [ASKED]}, Prompt((user("Why is varnish red?"),), HERE)),
        ({"prompt": "a", "completion": " b"}, Completion("a", " b", HERE)),
        ({"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")]}, Conversation((user("a"), assistant("b")), HERE)),
        ({"messages": [turn("user", "a"), turn("assistant", "b")]}, Conversation((user("a"), assistant("b")), HERE)),
        ({"prompt": "a", "completion": "b", "label": True}, Rating((user("a"),), "b", True, HERE)),
        ({"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")], "label": "False"}, Rating((user("a"),), "b", False, HERE)),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)),
        ({"chosen": "It is blue.", "rejected": "It is black."}, Preference((user("It is"),), (assistant(" blue."),), (assistant(" black."),), HERE)),
        ({"prompt": [turn("user", "a")], "chosen": [turn("assistant", "b")], "rejected": [turn("assistant", "c")]}, Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)),
        ({"chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "a"), turn("assistant", "c")]}, Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)),
        ({"prompt": "a", "chosen": [turn("user", "a"), turn("assistant", "b")], "rejected": [turn("user", "a"), turn("assistant", "c")]}, Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)),
    ],
)  # fmt: skip
def test_trl(row, expected):
    assert read("trl", row) == [expected]
    assert read("trl_conversational", row) == [expected]


def test_trl_trains_on_the_completion_only():
    row = {
        "prompt": [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
        "completion": [turn("assistant", "d")],
    }
    record = read_one("trl", row)
    assert [message.weight for message in record.messages] == [1, 0, 1, 1]
    assert SHAPES["trl_conversational"].write(record) == row
    every = Conversation(tuple(Message(m.role, m.content) for m in record.messages), HERE)
    assert set(SHAPES["trl_conversational"].write(every)) == {"messages"}


def test_one_answer_that_goes_on_where_the_other_ends():
    chosen = [turn("user", "a"), turn("assistant", "b")]
    rejected = [*chosen, turn("user", "c"), turn("assistant", "d")]
    record = read_one("trl", {"chosen": chosen, "rejected": rejected})
    assert record.prompt == (user("a"),)
    assert record.chosen == (assistant("b"),)
    assert record.rejected == (assistant("b"), user("c"), assistant("d"))


@pytest.mark.parametrize(
    ("columns", "asked"),
    [
        ({"question": "How much?"}, "How much?"),
        ({"system": "s", "question": "How much?"}, "How much?"),
        ({"input": "How much?", "id": "x"}, "How much?"),
        ({"instruction": "Add.", "input": "1 + 1"}, "Add.\n\n1 + 1"),
        ({"id": "a b", "source": "web", "prompt_id": "7"}, "The answer is"),
    ],
)
def test_the_prompt_of_a_pair_may_have_another_name(columns, asked):
    row = {**columns, "chosen": "The answer is 2.", "rejected": "The answer is 3."}
    record = read_one("trl", row)
    assert record.prompt[-1] == user(asked)
    assert "".join(turn.content for turn in (*record.prompt[-1:], *record.chosen)).endswith("2.")
    named = {"chosen_response": "b", "rejected_response": "c"}
    assert read_one("trl", {"prompt": "a", **named}) == Preference(
        (user("a"),), (assistant("b"),), (assistant("c"),), HERE
    )


PAIR = {"chosen": [ASKED, ANSWERED], "rejected": [ASKED, turn("assistant", "No.")]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "rejected": "b"}, 'missing_field: no "chosen". Give the row one, or remove it.'),
        ({"prompt": "a", "chosen": "b"}, 'missing_field: no "rejected". Give the row one, or remove it.'),
        ({"prompt": "a", "chosen": "b", "rejected": 5}, 'wrong_type: "rejected" is a number; it must be a text.'),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty_text: prompt and rejected: turn 2 (assistant) is empty. Write one, or remove the row."),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "same_answers: chosen and rejected are the same. Remove the row."),
        ({"chosen": "a b", "rejected": "a b"}, "same_answers: chosen and rejected are the same. Remove the row."),
        ({"chosen": "yes", "rejected": "no"}, "no_prompt: chosen and rejected share no beginning, so there is no prompt. Add a prompt column."),
        ({"headline": "How much?", "chosen": "It is 2.", "rejected": "It is 3."}, 'no_prompt: which column is the prompt of chosen and rejected? Name it (columns: {prompt: headline}), or call it prompt. Texts beside them: "headline".'),
        ({"chosen": [ANSWERED], "rejected": [turn("assistant", "No.")]}, "no_prompt: chosen and rejected begin with the assistant, and there is no prompt column."),
        ({**PAIR, "rejected": [turn("user", "x"), ANSWERED]}, "prompt_differs: the prompts of chosen and rejected differ at turn 1, the user's. They must be one prompt."),
        ({**PAIR, "prompt": "Another?"}, "prompt_differs: the prompt column is not what chosen and rejected begin with."),
        ({"prompt": "a", "completion": "b", "label": 4}, 'not_a_boolean: "label" is 4; it must be true or false (1 or 0).'),
        ({"prompt": "a", "completion": "b", "label": "fine"}, 'not_a_boolean: "label" is "fine"; it must be true or false (1 or 0).'),
        ({"prompt": "a", "completion": 5}, 'wrong_type: "completion" is a number; it must be a text.'),
        ({"prompt": 5}, 'wrong_type: "prompt" is a number; it must be a text or a list of turns.'),
        ({"completion": "a"}, 'missing_field: no "prompt". Give the row one, or remove it.'),
        ({"prompt": [ASKED, ANSWERED]}, "ends_with_answer: the prompt ends with the assistant's turn (turn 2); the last must be the user's."),
        ({"prompt": "a", "completion": [ANSWERED, ASKED], "label": True}, 'several_turns: "completion" has 2 turns; it must be one turn, the assistant\'s.'),
        ({"prompt": [], "completion": [ANSWERED]}, "no_user_turn: the conversation has no turn of the user's."),
        ({"prompt": []}, "no_prompt: there is no prompt. Give the row one, or remove it."),
        ({"prompt": [ANSWERED, turn("tool", "x")]}, "no_user_turn: the prompt has no turn of the user's."),
        ({"prompt": [ASKED], "chosen": [{**ANSWERED, "weight": 0}], "rejected": [turn("assistant", "No.")]}, 'nothing_trained: every turn of the assistant\'s in "chosen" has weight 0, so nothing of it is compared. Leave the weights out, or the row.'),
        ({"prompt": [ASKED], "chosen": [ANSWERED], "rejected": [ANSWERED, ASKED, turn("assistant", "No.", weight=0)]}, "same_answers: chosen and rejected are the same. Remove the row."),
        ({"prompt": "a", "completion": [{**ANSWERED, "weight": 0}], "label": True}, 'weighted_turns: "completion" has the weight 0, but an answer that was judged counts whole. Leave the weight out, or the row.'),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, 'wrong_type: "margin" is "much"; it must be a number. Mend it, or rename the column.'),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": [4], "score_rejected": 1}, 'wrong_type: "score_chosen" is a list; it must be a number. Mend it, or rename the column.'),
    ],
)  # fmt: skip
def test_trl_refusals(row, expected):
    assert refused("trl", row) == expected


@pytest.mark.parametrize(
    ("columns", "scores"),
    [
        ({"score_chosen": 4, "score_rejected": 1.5}, (4, 1.5)),
        ({"chosen_score": "4", "rejected_score": " 2 "}, (4, 2)),
        ({"chosen-rating": 3.0, "rejected-rating": 3.0}, (3, 3)),
        ({"margin": 2.5}, (2.5, 0)),
        ({"margin": 2.5, "score_chosen": 4, "score_rejected": 1}, (2.5, 0)),
        ({"metadata": {"margin": 1}}, (1, 0)),
        ({"score_chosen": 4, "score_rejected": None}, None),
        ({"margin": float("nan")}, None),
        ({"margin": ""}, None),
    ],
)
def test_a_pair_keeps_its_scores(columns, scores):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    record = read_one("trl", {**pair, **columns})
    assert record == replace(CHOICE, scores=scores)
    written = {} if scores is None else {"score_chosen": scores[0], "score_rejected": scores[1]}
    assert SHAPES["trl"].write(record) == {**pair, **written}
    assert ("scores" in to_json(record)) == (scores is not None)


def test_standard_trl_has_no_place_for_turns():
    record = Prompt((user("a"), assistant("b"), user("c")), HERE)
    assert SHAPES["trl"].write(record) == Problem(
        "several_turns",
        'the prompt has 3 turns, and "trl" rows hold one text of the user\'s. Write it as "trl_conversational".',
    )


# --- HH-RLHF -------------------------------------------------------------------------------------------


def test_hh_rlhf():
    start = "\n\nHuman: a\n\nAssistant: b\n\nwith a blank line\n\nHuman: c\n\nAssistant:"
    record = read_one("hh_rlhf", {"chosen": f"{start} yes", "rejected": f"{start} no"})
    assert record.prompt == (user("a"), assistant("b\n\nwith a blank line"), user("c"))
    assert (record.chosen, record.rejected) == ((assistant("yes"),), (assistant("no"),))
    assert SHAPES["hh_rlhf"].write(record) == {"chosen": f"{start} yes", "rejected": f"{start} no"}


def test_hh_rlhf_other_columns():
    row = {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"}
    assert read("hh_rlhf", row) == [Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)]
    row = {"transcript": "\n\nHuman: a\n\nAssistant: b"}
    assert read("hh_rlhf", row) == [Conversation((user("a"), assistant("b")), HERE)]


def test_hh_rlhf_refusals():
    good = "\n\nHuman: a\n\nAssistant: b"
    assert refused("hh_rlhf", {"chosen": good, "rejected": "b"}) == (
        'no_turns: "rejected" does not begin with "Human:"; a transcript marks each turn by Human: or Assistant:.'
    )
    assert refused("hh_rlhf", {"chosen": good, "rejected": "\n\nHuman: a\n\nAssistant: "}) == (
        "empty_text: prompt and rejected: turn 2 (assistant) is empty. Write one, or remove the row."
    )
    assert refused("hh_rlhf", {"chosen": good, "rejected": "\n\nHuman: x\n\nAssistant: b"}) == (
        "prompt_differs: the prompts of chosen and rejected differ at turn 1, the user's. They must be one prompt."
    )
    assert refused("hh_rlhf", {"chosen": good, "rejected": good}).startswith("same_answers:")
    assert refused("hh_rlhf", {"chosen": good}) == 'missing_field: no "rejected". Give the row one, or remove it.'


def test_transcripts_have_no_place_for_some_turns():
    write = SHAPES["hh_rlhf"].write
    assert write(Conversation((Message("system", "s"), user("a"), assistant("b")), HERE)) == Problem(
        "unknown_role", 'turn 1 is of the role "system"; transcripts know user and assistant.'
    )
    assert write(Conversation((user("a\n\nHuman: b"), assistant("b")), HERE)) == Problem(
        "marks_in_text", 'turn 1 holds "Human:" or "Assistant:" after a blank line.'
    )
    assert write(Conversation((user("a"), assistant("b", 0.5)), HERE)) == Problem(
        "bad_weight", "turn 2 has the weight 0.5, which a transcript cannot hold."
    )


# --- rankings and thumbs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "answers", "scores"),
    [
        ({"answers": ["b", "c"]}, ("b", "c"), None),
        ({"responses": ["b", "c", "d"], "scores": [1, 3, 2]}, ("c", "d", "b"), (3, 2, 1)),
        ({"responses": ["b", "c", "d"], "ranks": [2, 1, 2]}, ("c", "b", "d"), (-1, -2, -2)),
        ({"completions": [{"text": "b", "score": 0.1}, {"text": "c", "score": 0.2}]}, ("c", "b"), (0.2, 0.1)),
        ({"candidates": [{"answer": "b", "rank": 2}, {"answer": "c", "rank": 1}]}, ("c", "b"), (-1, -2)),
    ],
)
def test_ranking(columns, answers, scores):
    assert read("ranking", {"prompt": "a", **columns}) == [Ranking((user("a"),), answers, HERE, scores)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"answers": ["b"]}, "too_few_answers: 1 answer; a ranking needs two or more."),
        ({"answers": ["b", "c"], "ranks": [1, 1]}, "only_ties: all answers are tied: there is no order to learn. Remove the row."),
        ({"answers": ["b", "c"], "scores": [1]}, 'unequal_lengths: 2 answers, but 1 values in "scores".'),
        ({"answers": ["b", "c"], "scores": [1, "x"]}, 'wrong_type: "scores" entry 2 is a text; it must be a number.'),
        ({"answers": ["b", "c"], "scores": [1, float("nan")]}, "wrong_type: score 2 is nan; it must be a number."),
        ({"answers": ["b", "b "], "scores": [2, 1]}, "same_answers: all answers are the same: there is no order to learn. Remove the row."),
        ({"answers": ["b", " "]}, "empty_text: answer 2 is empty. Write one, or remove the row."),
        ({"answers": ["b", 5]}, 'wrong_type: "answers" entry 2 is a number; it must be a text or an object.'),
        ({"answers": "b"}, 'wrong_type: "answers" is a text; it must be a list.'),
        ({"responses": ["b", "c"]}, 'no_order: "responses" has no "ranks" (1 is the best) or "scores". Add them, or call the column "answers", best first.'),
        ({}, 'missing_field: no "answers" or "ranked_answers" or "responses" or "completions" or "candidates" or "outputs". Give the row one, or remove it.'),
    ],
)  # fmt: skip
def test_ranking_refusals(columns, expected):
    assert refused("ranking", {"prompt": "a", **columns}) == expected


@pytest.mark.parametrize(
    ("value", "good"),
    [("up", True), ("Down", False), (True, True), (False, False), (1, True), (-1, False), ("+1", True), ("👎", False), ("true", True),
     (0, False), ("0", False), ("1.0", True), ("No", False), ("desirable", True), ("undesirable", False)],
)  # fmt: skip
def test_thumbs(value, good):
    assert read("thumbs", {"prompt": "a", "answer": "b", "thumb": value}) == [Rating((user("a"),), "b", good, HERE)]
    assert read("trl", {"prompt": "a", "completion": "b", "label": value}) == [Rating((user("a"),), "b", good, HERE)]
    assert read("thumbs", {"messages": [ASKED, ANSWERED], "label": value})[0].good is good


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "answer": "b", "thumb": 2}, 'bad_verdict: "thumb" is 2, which is neither up nor down. Write "up" or "down" (or yes or no, true or false, 1 or 0).'),
        ({"prompt": "a", "answer": "b", "rating": 4}, 'bad_verdict: "rating" is 4, which is neither up nor down. Write "up" or "down" (or yes or no, true or false, 1 or 0).'),
        ({"prompt": "a", "answer": "b", "rating": "meh"}, 'bad_verdict: "rating" is "meh", which is neither up nor down. Write "up" or "down" (or yes or no, true or false, 1 or 0).'),
        ({"prompt": "a", "answer": "b"}, 'missing_field: no "thumb" or "thumbs" or "rating" or "feedback" or "vote" or "label". Give the row one, or remove it.'),
        ({"prompt": "a", "thumb": "up"}, 'missing_field: no "answer" or "response" or "completion" or "output". Give the row one, or remove it.'),
        ({"prompt": "a", "answer": "", "thumb": "up"}, "empty_text: the answer is empty. Write one, or remove the row."),
        ({"messages": [ASKED], "thumb": "up"}, "no_answer: there is a verdict, but the last turn is not the assistant's."),
    ],
)  # fmt: skip
def test_thumbs_refusals(row, expected):
    assert refused("thumbs", row) == expected


# --- columns, native rows ------------------------------------------------------------------------------


def test_columns_refusals():
    assert refused("columns", {"title": "a"}) == 'missing_field: no "text". Give the row one, or remove it.'
    assert refused("columns", {"text": "  "}) == "empty_text: the text is empty. Write one, or remove the row."
    shape = shape_for(Input(path="x", label="topic"), [])
    assert shape.read({"text": "a"}, HERE) == [Problem("missing_field", 'no "topic". Give the row one, or remove it.')]
    assert shape.read({"text": "a", "topic": " "}, HERE) == [
        Problem("empty_text", "the label is empty. Write one, or remove the row.")
    ]


def test_native_rows_keep_their_source():
    row = {"kind": "prompt", "messages": [ASKED], "source": {"file": "first.csv", "line": 3, "licence": "CC0"}}
    assert read_one("luthier", row).source == Source("first.csv", 3, licence="CC0")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"kind": "essay", "source": {}}, 'bad_record: no record kind "essay". Known: document,'),
        ({"kind": "document", "source": {"file": "a", "line": 1}}, "bad_record: not a document record ("),
        ({"kind": "document", "text": 5, "source": {"file": "a", "line": 1}}, "wrong_type: the text is a number; it must be a text."),
        ({"kind": "document", "text": "a", "source": {"file": "a", "line": "1"}}, "bad_record: its source holds something else than texts"),
        ({"kind": "conversation", "messages": [turn("critic", "a")], "source": {"file": "a", "line": 1}}, 'unknown_role: turn 1 has the role "critic". Known: system, user, assistant, tool.'),
        ({"kind": "tagged", "words": ["a"], "tags": [], "source": {"file": "a", "line": 1}}, "unequal_lengths: 1 words, but 0 tags. Give each word one tag."),
        ({"kind": "ranking", "prompt": [ASKED], "answers": ["a", "b"], "scores": [1, 2], "source": {"file": "a", "line": 1}}, "bad_order: the answers are not in the order of their scores, best first."),
        ({"kind": "ranking", "prompt": [ASKED], "answers": ["a", "b"], "scores": [1], "source": {"file": "a", "line": 1}}, "unequal_lengths: 2 answers, but 1 scores."),
        ({"kind": "rating", "prompt": [ASKED], "answer": "a", "good": 1, "source": {"file": "a", "line": 1}}, "not_a_boolean: the verdict is a number; it must be true or false."),
    ],
)  # fmt: skip
def test_native_refusals(row, expected):
    assert refused("luthier", row).startswith(expected)


# --- provenance ----------------------------------------------------------------------------------------


def test_provenance_is_read_under_common_names():
    row = {"prompt": "a", "completion": "b", "license": "MIT", "conversation_id": 12, "created_at": 1714521600}
    source = read_one(
        "prompt_completion", {**row, "metadata": {"url": "https://example.org/a", "synthetic": True}}
    ).source
    assert source == Source(
        "rows.jsonl", 7, "MIT", "12", "2024-05-01T00:00:00+00:00", "https://example.org/a", "unknown"
    )


def test_a_date_nobody_can_read_is_left_out():
    for value in ("May 2024", True, 3, {}, float("inf")):
        assert read_one("prompt_completion", {"prompt": "a", "completion": "b", "date": value}).source.date is None
    assert read_one(
        "prompt_completion", {"prompt": "a", "completion": "b", "date": 1714521600000}
    ).source.date.startswith("2024")


def test_what_the_source_says_stands():
    source = Source("a", 1, licence="CC0")
    assert SHAPES["trl"].read({"prompt": "a", "licence": "MIT"}, source)[0].source.licence == "CC0"


def test_the_columns_an_input_names():
    settings = Input(path="x", licence="CC-BY-4.0", licence_column="terms", group="author", date="written")
    rows = [
        (1, {"prompt": "a", "terms": "MIT", "author": "Ann", "written": "2024-05-01", "group": "other"}),
        (2, {"prompt": "a", "terms": "MIT", "author": "Ann", "written": "May"}),
        (3, {"prompt": "a", "terms": "MIT", "written": "2024-05-01"}),
    ]
    first, second, third = read_shape(rows, SHAPES["trl"], "x.jsonl", settings)
    assert first.source == Source("x.jsonl", 1, "MIT", "Ann", "2024-05-01")
    assert second.problem == Problem(
        "bad_date", '"written" is "May"; the date must be a date in ISO 8601 (2024-05-31).'
    )
    assert third.problem == Problem("missing_field", 'no "author", which the input names for the group.')


def test_an_inputs_licence_fills_what_rows_leave_open():
    rows = [(1, {"prompt": "a"}), (2, {"prompt": "a", "license": "MIT"})]
    found = list(read_shape(rows, SHAPES["trl"], "x.jsonl", Input(path="x", licence="CC0")))
    assert [record.source.licence for record in found] == ["CC0", "MIT"]


def test_problems_of_rows_go_on_with_their_place():
    broken = Problem("broken_json", "not valid JSON.")
    rows = [(3, broken), (4, {"prompt": "\ud800"}), (5, {"prompt": "a"})]
    first, second, third = read_shape(rows, SHAPES["trl"], "x.jsonl")
    assert first == Unreadable(Source("x.jsonl", 3), broken)
    assert (second.source, second.problem.reason, second.text) == (
        Source("x.jsonl", 4),
        "encoding",
        '{"prompt": "\\ud800"}',
    )
    assert third == Prompt((user("a"),), Source("x.jsonl", 5))


# --- from kind to kind ---------------------------------------------------------------------------------

TALK = Conversation((user("a"), assistant("b")), HERE)
CHOICE = Preference((user("a"),), (assistant("b"),), (assistant("c"),), HERE)
ORDER = Ranking((user("a"),), ("b", "c", "d"), HERE, (3, 2, 2))


@pytest.mark.parametrize(
    ("record", "to", "expected"),
    [
        (Instruction("a", "", "b", HERE), "conversation", [TALK]),
        (Instruction("a", "x", "b", HERE), "completion", [Completion("a\n\nx", "b", HERE)]),
        (Completion("a", "b", HERE), "conversation", [TALK]),
        (Labelled("a", "B", HERE, "k"), "completion", [Completion("a", "B", HERE)]),
        (TALK, "conversation", [TALK]),
        (TALK, "instruction", [Instruction("a", "", "b", HERE)]),
        (TALK, "prompt", [Prompt((user("a"),), HERE)]),
        (TALK, "document", [Document("a\nb", HERE)]),
        (CHOICE, "conversation", [TALK]),
        (Rating((user("a"),), "b", True, HERE), "conversation", [TALK]),
    ],
)
def test_convert(record, to, expected):
    assert convert(record, to) == expected


def test_a_preference_becomes_two_ratings_of_one_group():
    up, down = convert(CHOICE, "rating")
    assert (up.answer, up.good, down.answer, down.good) == ("b", True, "c", False)
    assert up.source.group == down.source.group == "rows.jsonl:7"


def test_a_ranking_becomes_preferences():
    pairs = [(p.chosen[0].content, p.rejected[0].content) for p in convert(ORDER, "preference")]
    assert pairs == [("b", "c"), ("b", "d")]  # c and d are tied
    (ends,) = convert(ORDER, "preference", pairs="ends")
    assert (ends.chosen, ends.rejected, ends.source) == ((assistant("b"),), (assistant("d"),), HERE)
    assert ends.scores == (3, 2) and convert(ends, "ranking")[0].scores == (3, 2)
    (unscored,) = convert(replace(ORDER, scores=None), "preference", pairs="ends")
    assert unscored.scores is None and convert(replace(unscored, scores=(1.0, 1.0)), "ranking")[0].scores is None


def test_what_cannot_be_converted():
    assert convert(Tagged(("a",), ("O",), HERE), "rating") == Problem(
        "no_conversion", 'no "rating" can be made of a record of the kind "tagged". It can become: document.'
    )
    assert convert(Rating((user("a"),), "b", False, HERE), "conversation") == Problem(
        "disliked", "an answer with a thumb down is nothing to imitate."
    )
    long = Conversation((user("a"), assistant("b"), user("c"), assistant("d")), HERE)
    assert convert(long, "completion") == Problem(
        "several_turns",
        "only one question and its answer can become a completion; "
        "this conversation has the turns user, assistant, user, assistant.",
    )
    same = Ranking((user("a"),), ("b", "b"), HERE)
    assert convert(same, "preference").reason == "same_answers"
    with pytest.raises(DataError, match=r'no record kind "conversatio". Did you mean "conversation"\? Known: document'):
        convert(TALK, "conversatio")


def test_write_as_changes_the_kind_where_it_must():
    assert write_as(Instruction("a", "", "b", HERE), SHAPES["chat"]) == [
        {"messages": [turn("user", "a"), turn("assistant", "b")]}
    ]
    assert len(write_as(ORDER, SHAPES["trl"])) == 2
    assert write_as(Document("a", HERE), SHAPES["chat"]) == Problem(
        "wrong_kind", '"chat" rows have no place for the kind "document"; they take: conversation, preference.'
    )


# --- the page ------------------------------------------------------------------------------------------

SECTION = re.compile(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
EXAMPLES = re.compile(r"^```json (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = dict(SECTION.findall(PAGE.read_text(encoding="utf-8")))


def test_every_shape_has_its_section_with_an_example():
    assert set(SECTIONS) == set(SHAPES)
    assert [name for name, text in SECTIONS.items() if not EXAMPLES.search(text)] == []


@pytest.mark.parametrize(
    ("name", "becomes", "line"),
    [
        pytest.param(name, becomes, line, id=f"{name}-{becomes}-{number}")
        for name, text in SECTIONS.items()
        for becomes, block in EXAMPLES.findall(text)
        for number, line in enumerate(block.splitlines(), 1)
    ],
)
def test_an_example_is_what_the_page_says(name, becomes, line):
    row = json.loads(line)
    items = SHAPES[name].read(row, HERE)
    if name in ("columns", "text"):
        items = detect([row]).read(row, HERE)
    if becomes.startswith("refused:"):
        assert [item.reason for item in items if isinstance(item, Problem)] == [becomes.removeprefix("refused:")]
        return
    assert [kind_of(item) for item in items] == becomes.split("+"), items
    detected = detect([row]).name
    assert detected == {"trl_conversational": "trl", "text": "columns"}.get(name, name)


def test_the_page_gives_the_order_of_detection():
    listed = re.search(r"order of detection: (.*?)\.", " ".join(PAGE.read_text(encoding="utf-8").split()))
    names = list(dict.fromkeys(shape.name for shape in DETECTED))
    assert re.findall(r"`(\w+)`", listed[1]) == names
