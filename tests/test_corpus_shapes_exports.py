"""CoNLL files and the exports of labelling tools and trace stores."""

import itertools
import tracemalloc

import pytest

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.lines import Line, Problem
from luthier.corpus.rows import LIMITS, read_input
from luthier.corpus.shapes import SHAPES, conll_text, detect, read_conll
from luthier.errors import DataError
from luthier.recipe.corpus import Input
from luthier.records import Conversation, Labelled, Message, Preference, Ranking, Rating, Source, Tagged

HERE = Source("export.json", 2)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def read(shape, row):
    return SHAPES[shape].read(row, HERE)


def refused(shape, row):
    (item,) = read(shape, row)
    assert isinstance(item, Problem), item
    return f"{item.reason}: {item.detail}"


# --- CoNLL ---------------------------------------------------------------------------------------------


def conll(text):
    lines = [Line(number, line) for number, line in enumerate(text.split("\n"), start=1)]
    return list(read_conll(lines, "a.conll"))


def test_conll_sentences():
    found = conll("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter\tB-PER\nvan Dam\tI-PER")
    assert found == [
        Tagged(("EU", "rejects"), ("B-ORG", "O"), Source("a.conll", 1)),
        Tagged(("Peter", "van Dam"), ("B-PER", "I-PER"), Source("a.conll", 5)),
    ]


def test_conll_documents_and_comments():
    found = conll(
        "-DOCSTART- -X- O\n\na O\n\nb O\n\n-DOCSTART-\n\n# licence = MIT\n# date = 2024-05-01\n# sent_id = 4\nc O\n"
    )
    groups = [record.source.group for record in found]
    assert groups == ["a.conll document 1", "a.conll document 1", "a.conll document 2"]
    assert (found[2].source.licence, found[2].source.date, found[2].source.line) == ("MIT", "2024-05-01", 9)
    assert [record.words for record in found] == [("a",), ("b",), ("c",)]


def test_iob1_is_read():
    assert [record.tags for record in conll("a I-X\nb O\nc I-Y\n\nd B-Y\ne I-X")] == [
        ("I-X", "O", "I-Y"), ("B-Y", "I-X"),
    ]  # fmt: skip


def test_a_hash_is_a_word_too():
    assert conll("# O\n#tag=1 O\n= O")[0].words == ("#", "#tag=1", "=")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a O\nb", 'missing_field: line 2 ("b") has no tag. Write the word, a space and its tag.'),
        ("a I-X\nb E-X", 'bad_tag: word 1 ("a"): the tag "I-X" cannot come first; an entity begins with "B-X".'),
        ("a O\nb L-X", 'bad_tag: word 2 ("b"): the tag "L-X" cannot follow "O"; an entity begins with "B-X".'),
        (
            "a B-Y\nb I-X\nc E-X",
            'bad_tag: word 2 ("b"): the tag "I-X" cannot follow "B-Y"; an entity begins with "B-X".',
        ),
        ("a S-X\nb E-X", 'bad_tag: word 2 ("b"): the tag "E-X" cannot follow "S-X"; an entity begins with "B-X".'),
    ],
)
def test_conll_refusals(text, expected):
    bad, good = conll(f"{text}\n\nc O")
    assert isinstance(bad, Unreadable)
    assert f"{bad.problem.reason}: {bad.problem.detail}" == expected
    assert bad.source == Source("a.conll", 1)
    assert good.words == ("c",)


def test_other_tags_follow_freely():
    assert conll("a I-X\nb NN")[0].tags == ("I-X", "NN")  # not all are chunk tags
    assert conll("a B-X\nb I-X\nc E-X\nd S-Y")[0].tags == ("B-X", "I-X", "E-X", "S-Y")


def test_a_bad_line_costs_its_sentence():
    lines = [Line(1, "a O"), Line(2, "", Problem("line_too_long", "too long.")), Line(3, ""), Line(4, "b O")]
    bad, good = read_conll(lines, "a.conll")
    assert (bad.problem.reason, bad.text, good.words) == ("line_too_long", "a", ("b",))


def test_a_file_without_blank_lines_takes_no_memory():
    lines = itertools.chain((Line(n, f"word{n} O") for n in range(1, 20_000)), [Line(0, ""), Line(9, "b O")])
    tracemalloc.start()
    bad, good = read_conll(lines, "a.conll", max_words=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bad.problem == Problem(
        "sentence_too_long", "more than 1,000 words without a blank line. Part the sentences by blank lines."
    )
    assert good.words == ("b",)
    assert peak < 500_000  # bytes; 20,000 words would take more than a million


def test_conll_text():
    record = Tagged(("a", "b"), ("B-X", "I-X"), Source("x", 1, licence="MIT"))
    assert conll_text(record) == "# licence = MIT\na B-X\nb I-X\n\n"
    assert conll_text(Tagged(("New York",), ("B-X",), HERE)) == Problem(
        "white_space", 'word 1 ("New York" with "B-X") holds white space, which parts columns.'
    )


def test_rows_of_words_and_tags():
    row = {"tokens": ["a", "b"], "ner_tags": ["B-X", "O"]}
    assert read("conll", row) == [Tagged(("a", "b"), ("B-X", "O"), HERE)]
    assert refused("conll", {"tokens": ["a"], "ner_tags": [3]}) == (
        'wrong_type: "ner_tags" entry 1 is a number; it must be a text. Name the tags in their order: tag_names: [O, B-PER, ...].'
    )
    assert refused("conll", {"words": 5, "tags": []}) == 'wrong_type: "words" is a number; it must be a list of texts.'
    assert refused("conll", {"words": [], "tags": []}) == "empty_text: there are no words. Remove the row."


def test_tags_that_are_numbers_are_named_by_the_input(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"tokens": ["a", "b"], "ner_tags": [1, 0]}\n{"tokens": ["c"], "ner_tags": [3]}\n')
    first, second = read_input(Input(path=str(path), tag_names=["O", "B-X"]), LIMITS)
    assert (first.words, first.tags) == (("a", "b"), ("B-X", "O"))
    assert second.problem.detail == '"ner_tags" holds the number 3, but tag_names names 0 to 1. Name all of them.'
    named = Input(path=str(path), tag_names=["O", "A", "B", "C"], columns={"tags": "ner_tags", "words": "tokens"})
    assert [item.tags for item in read_input(named, LIMITS)] == [("A", "O"), ("C",)]
    path.write_text('{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}\n')
    with pytest.raises(DataError, match="tag_names names tags by number, but no row has tags as numbers"):
        list(read_input(Input(path=str(path), tag_names=["O"]), LIMITS))


# --- spans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [
        {"spans": [{"start": 3, "end": 6, "label": "X"}]},
        {
            "spans": [{"token_start": 1, "start": 3, "end": 6, "type": "X"}],
            "tokens": [{"text": "in"}],
            "answer": "accept",
        },
        {"entities": [{"id": 4, "start_offset": 3, "end_offset": 6, "label": "X"}], "relations": []},
        {"label": [[3, 6, "X"]]},
        {"entities": [[3, 6, "X"]]},
        {"spans": [{"entity_type": "X", "start_position": 3, "end_position": 6}]},
    ],
)
def test_spans_of_a_text_are_its_tags(columns):
    row = {"text": "in Rome.", **columns}
    assert detect([row]).name == "spans"
    assert read("spans", row) == [Tagged(("in", "Rom", "e", "."), ("O", "B-X", "O", "O"), HERE)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([{"start": 0, "end": 9, "label": "X"}], 'bad_span: the span "X" from 0 to 9 is not inside the text.'),
        ([{"start": "0", "end": 1, "label": "X"}], "bad_span: span 1 has no start and end in characters, or no label."),
        ([{"start": 0, "end": 1}], 'missing_field: no "label" or "type" or "entity" or "entity_type" or "entity_group" or "tag". Give the row one, or remove it.'),
        ([5], "bad_span: span 1 is a number; it must be an object with start, end and label."),
        ({"start": 0}, 'wrong_type: "spans" is an object; it must be a list.'),
    ],
)  # fmt: skip
def test_span_refusals(spans, expected):
    assert refused("spans", {"text": "in", "spans": spans}) == expected


# --- Label Studio --------------------------------------------------------------------------------------


def task(data, *results, **more):
    return {"id": 1, "data": data, "annotations": [{"result": list(results), "was_cancelled": False}], **more}


def choice(*labels, question="topic"):
    return {"type": "choices", "from_name": question, "to_name": "t", "value": {"choices": list(labels)}}


def span(start, end, *labels):
    return {"type": "labels", "value": {"start": start, "end": end, "text": "", "labels": list(labels)}}


def test_label_studio_choices():
    row = task({"body": "A bow.", "licence": "MIT"}, choice("BOW"), meta={"group": "g"}, created_at="2024-05-01")
    (record,) = read("label_studio", row)
    assert (record.text, record.label) == ("A bow.", "BOW")
    assert record.source == Source("export.json", 2, licence="MIT", group="g")  # the task's date is its import's


def test_label_studio_spans():
    text = "Antonio Stradivari's shop, Cremona."
    (record,) = read("label_studio", task({"text": text}, span(27, 34, "LOC"), span(0, 18, "PER")))
    assert record.words == ("Antonio", "Stradivari", "'", "s", "shop", ",", "Cremona", ".")
    assert record.tags == ("B-PER", "I-PER", "O", "O", "O", "O", "B-LOC", "O")


def test_a_span_cuts_a_word():
    (record,) = read("label_studio", task({"text": "superglue glue"}, span(5, 9, "GLUE"), span(10, 14, "GLUE")))
    assert record.words == ("super", "glue", "glue")
    assert record.tags == ("O", "B-GLUE", "B-GLUE")


def test_label_studio_pairwise():
    data = {"prompt": "a", "left_answer": "b", "right_answer": "c"}
    pair = {"type": "pairwise", "from_name": "pw", "to_name": "x,y", "value": {"selected": "right"}}
    assert read("label_studio", task(data, pair)) == [
        Preference((user("a"),), (assistant("c"),), (assistant("b"),), HERE)
    ]


def test_label_studio_counts_finished_annotations():
    def annotation(label, **more):
        return {"result": [choice(label)], **more}

    row = {
        "data": {"text": "a"},
        "annotations": [annotation("X", was_cancelled=True), annotation("Y"), annotation("Y")],
    }
    assert [record.label for record in read("label_studio", row)] == ["Y"]
    row["annotations"].append(annotation("Z"))
    assert refused("label_studio", row) == (
        'annotators_disagree: annotators disagree on "choices" ([{"question": "topic", "choices": ["Y"]}, '
        '[{"question": "topic", "choices": ["Z"]}). Settle it in the tool, or mark one as ground truth.'
    )
    row["annotations"].append(annotation("Z", ground_truth=True))
    assert [record.label for record in read("label_studio", row)] == ["Z"]


def test_label_studio_several_types():
    labelled, tagged = read("label_studio", task({"text": "a b"}, choice("X"), span(0, 1, "Y")))
    assert isinstance(labelled, Labelled)
    assert isinstance(tagged, Tagged)
    assert labelled.source.group == tagged.source.group == "export.json:2"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (task({"text": "a"}), "no_annotation: the task has no finished annotation. Label it, or export labelled tasks only."),
        (task({"text": "a"}, choice("X", "Y")), "several_labels: 2 choices were made; a labelled text has one label."),
        (task({"text": "a"}, choice("X"), choice("Y", question="tone")), "several_questions: the choices answer several questions (tone, topic); export one."),
        (task({"a": "a", "b": "b"}, choice("X")), 'missing_field: no "text", and not just one text field beside it (found: "a", "b").'),
        (task({"text": "abc"}, span(0, 2, "X"), span(1, 3, "Y")), 'spans_overlap: the spans "X" and "Y" overlap at character 1; a word has one tag.'),
        (task({"text": "abc"}, span(0, 9, "X")), 'bad_span: the span "X" from 0 to 9 is not inside the text.'),
        (task({"text": "abc"}, span(0, 1, "X", "Y")), "several_labels: the span from 0 to 1 has 2 labels; a word has one tag."),
        (task({"text": "abc"}, span("0", 1, "X")), "bad_span: a span has no start and end in characters."),
        (task({"text": "a"}, {"type": "rating", "value": {"rating": 4}}), 'unsupported_annotation: an annotation of type "rating" makes no training record. Read: choices, labels and pairwise.'),
        (task({"prompt": "a", "x": "b"}, {"type": "pairwise", "value": {"selected": "left"}}), 'missing_field: a pair needs two text fields beside the prompt (found: "x").'),
        (task({"prompt": "a", "x": "b", "y": "c"}, {"type": "pairwise", "value": {}}), "no_annotation: neither the left nor the right answer was selected (None)."),
    ],
)  # fmt: skip
def test_label_studio_refusals(row, expected):
    assert refused("label_studio", row) == expected


def test_tags_without_spans_have_no_place_in_label_studio():
    write = SHAPES["label_studio"].write
    assert write(Tagged(("a",), ("O",), HERE)) == Problem(
        "no_annotation", "no word has a tag but O, and a task without spans says nothing."
    )
    assert write(Tagged(("a",), ("NN",), HERE)) == Problem(
        "bad_tag", 'the tag "NN" is not BIO, so it marks no span. Write the record as "conll".'
    )


# --- Argilla -------------------------------------------------------------------------------------------


def record_of(fields, question, *values, **more):
    return {
        "id": "1",
        "fields": fields,
        "responses": {question: [{"value": v, "user_id": "u"} for v in values]},
        **more,
    }


PAIR = {"prompt": "a", "first": "b", "second": "c"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (record_of({"text": "a"}, "topic", "X", "X"), ("a", "X")),
        (record_of({"text": "a"}, "topic", ["X"]), ("a", "X")),
        ({"fields": {"text": "a"}, "responses": [{"values": {"topic": {"value": "X"}}, "status": "submitted", "user_id": "u"}, {"values": {"topic": {"value": "Y"}}, "status": "discarded"}], "suggestions": []}, ("a", "X")),
        ({"text": "a", "topic.responses": ["X", "Y"], "topic.responses.status": ["submitted", "draft"], "topic.suggestion": "Z"}, ("a", "X")),
    ],
)  # fmt: skip
def test_argilla_labels(row, expected):
    (record,) = read("argilla", row)
    assert (record.text, record.label) == expected
    assert record.source.synthetic is None


@pytest.mark.parametrize(
    "row",
    [
        {
            "fields": {"text": "a"},
            "responses": {},
            "suggestions": {"topic": {"value": "X", "score": 0.9, "agent": "model-x"}},
        },
        {
            "fields": {"text": "a"},
            "responses": [],
            "suggestions": [{"question_name": "topic", "value": "X", "agent": "model-x"}],
        },
        {"text": "a", "topic.responses": [], "topic.suggestion": "X", "topic.suggestion.agent": "model-x"},
    ],
)
def test_a_suggestion_is_marked_as_synthetic(row):
    (record,) = read("argilla", row)
    assert (record.label, record.source.synthetic) == ("X", "model-x")


def test_argilla_rankings():
    names = read("argilla", record_of(PAIR, "order", ["second", "first"]))
    assert names == [Ranking((user("a"),), ("c", "b"), HERE)]
    ranks = [{"rank": 2, "value": "first"}, {"rank": 1, "value": "second"}]
    assert read("argilla", record_of(PAIR, "order", ranks)) == names
    ties = [{"rank": 1, "value": "first"}, {"rank": 1, "value": "second"}]
    assert refused("argilla", record_of(PAIR, "order", ties)).startswith("only_ties:")


def test_argilla_other_questions():
    assert read("argilla", record_of(PAIR, "better", "second")) == [
        Preference((user("a"),), (assistant("c"),), (assistant("b"),), HERE)
    ]
    chat = [{"role": "user", "content": "a"}]
    assert read("argilla", record_of({"prompt": chat, "response": "b"}, "ok", "up")) == [
        Rating((user("a"),), "b", True, HERE)
    ]
    spans = [{"start": 0, "end": 1, "label": "X"}]
    assert read("argilla", record_of({"text": "a b"}, "names", spans)) == [Tagged(("a", "b"), ("B-X", "O"), HERE)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (record_of({"text": "a"}, "topic", "X", "Y"), 'annotators_disagree: annotators disagree on "topic" ("X", "Y"). Settle it in the tool, or mark one as ground truth.'),
        (record_of({"text": "a"}, "topic", ["X", "Y"]), 'several_labels: "topic" has 2 values; a labelled text has one label.'),
        (record_of({"text": "a"}, "stars", 4), 'rating_scale: "stars" is a number (4); stars are neither up nor down. Ask for a label or a ranking.'),
        (record_of({"text": "a"}, "order", [{"rank": 1, "value": "x"}]), 'missing_field: "order" ranks "x", but no field has that name.'),
        (record_of({"text": "a"}, "names", [{"start": "0", "end": 1, "label": "X"}]), "bad_span: a span has no start and end in characters."),
        ({"fields": {"text": "a"}, "responses": {}}, "no_annotation: nobody answered a question of this record. Label it, or leave it out."),
        ({"fields": "a", "responses": {}}, 'wrong_type: "fields" is a text; it must be an object.'),
    ],
)  # fmt: skip
def test_argilla_refusals(row, expected):
    assert refused("argilla", row) == expected


# --- runs ----------------------------------------------------------------------------------------------


def run(**more):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    outputs = {"choices": [{"message": {"role": "assistant", "content": "b"}}]}
    return {"id": "r", "run_type": "llm", "inputs": {"messages": messages}, "outputs": outputs, **more}


TALK = (Message("system", "s"), user("a"), assistant("b"))


def test_a_run_with_its_trace():
    row = run(trace_id="t", parent_run_id="p", start_time="2024-05-01T10:00:00", session_id="whole project")
    assert read("run_export", row) == [
        Conversation(TALK, Source("export.json", 2, group="t", date="2024-05-01T10:00:00"))
    ]
    threaded = run(trace_id="t", extra={"metadata": {"thread_id": "th", "licence": "MIT"}})
    assert read("run_export", threaded)[0].source == Source("export.json", 2, licence="MIT", group="th")
    assert read("run_export", run(parent_run_id="p"))[0].source.group == "p"


def langchain(name, content):
    return {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", name],
        "kwargs": {"content": content},
    }


@pytest.mark.parametrize(
    "outputs",
    [
        {"generations": [[{"text": "b", "message": langchain("AIMessage", "b")}]]},
        {"generations": [{"text": "b"}]},
        {"messages": [{"type": "human", "content": "a"}, {"type": "ai", "content": "b"}]},
        {"message": {"type": "ai", "data": {"content": "b"}}},
        {"role": "assistant", "content": "b"},
        {"output": "b"},
        {"output": {"role": "assistant", "content": "b"}},
        '{"content": "b"}',
    ],
)
def test_outputs_in_many_spellings(outputs):
    assert read("run_export", run(outputs=outputs))[0].messages == TALK


@pytest.mark.parametrize(
    "inputs",
    [
        {"messages": [[langchain("SystemMessage", "s"), langchain("HumanMessage", "a")]]},
        {
            "messages": [
                {"type": "system", "content": "s"},
                {"type": "human", "content": [{"type": "text", "text": "a"}]},
            ]
        },
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]}',
    ],
)
def test_inputs_in_many_spellings(inputs):
    assert read("run_export", run(inputs=inputs))[0].messages == TALK


def test_a_bare_text_is_the_users():
    assert read("run_export", run(inputs={"question": "a"}))[0].messages == TALK[1:]
    assert read("run_export", run(inputs={"prompts": ["a"]}))[0].messages == TALK[1:]


def test_feedback_becomes_a_rating():
    talk, up = read("run_export", run(feedback=[{"key": "thumb", "score": 1}, {"key": "note", "comment": "nice"}]))
    assert isinstance(talk, Conversation)
    assert up == Rating(TALK[:2], "b", True, talk.source)
    (down,) = read("run_export", run(feedback_stats={"thumb": {"n": 2, "avg": 0}}))
    assert down.good is False
    unclear = ([{"score": 0.5}], [{"score": 1}, {"score": 0}], "not json", {"a": 5})
    assert all(isinstance(read("run_export", run(feedback=given))[0], Conversation) for given in unclear)


def test_every_answer_of_a_run():
    choices = [{"message": {"role": "assistant", "content": text}} for text in "bc"]
    first, second = read("run_export", run(outputs={"choices": choices}))
    assert (first.messages[-1], second.messages[-1]) == (assistant("b"), assistant("c"))
    assert first.source.group == second.source.group == "r"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (run(run_type="chain"), 'not_a_model_run: a run of type "chain" is no call of a model. Its model calls are runs of their own.'),
        (run(error="timeout"), "failed_run: the run failed or has not ended: there is no answer to learn from."),
        (run(outputs=None), 'missing_field: no "outputs". The run may not have ended; leave it out.'),
        (run(outputs="{"), 'broken_json: "outputs" is a text that is not JSON.'),
        (run(outputs=[1]), 'wrong_type: "outputs" is a list; it must be an object.'),
        (run(outputs={"choices": []}), "no_answer: the run has no answer."),
        (run(outputs={"output": 5}), "wrong_type: the run's output is a number; it must be a text or a message."),
        (run(inputs={"input": 5}), "wrong_type: the run's input is a number; it must be a text or messages."),
        (run(outputs={"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [{}]}}]}), 'bad_call: "outputs.choices" turn 1: call 1 has no name of a function. Write {"name": ..., "arguments": ...}.'),
        (run(inputs={"messages": [langchain("RemoveMessage", "x")]}), 'unknown_role: "inputs.messages" turn 1 has the role "remove". Known: system, user (human), assistant (gpt), tool.'),
    ],
)  # fmt: skip
def test_run_refusals(row, expected):
    assert refused("run_export", row) == expected
