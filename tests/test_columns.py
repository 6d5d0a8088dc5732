"""Columns of a file under luthier's names: in inputs, in runs, and what is said where they are not found."""

import json

import pytest

from luthier.corpus.documents.base import Unreadable
from luthier.corpus.prepare import prepare
from luthier.corpus.rows import LIMITS, read_input
from luthier.errors import DataError, RecipeError
from luthier.recipe import corpus_of, parse_recipe
from luthier.recipe.corpus import Input
from luthier.recipe.stages import load_stages
from luthier.records import Completion, Conversation, Instruction, Labelled, Message, Preference, Rating


def file_of(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder, row, **settings):
    (item,) = read_input(Input(path=file_of(folder, row), **settings), LIMITS)
    return item


def refusal(folder, *rows, **settings):
    path = file_of(folder, *rows)
    with pytest.raises(DataError) as raised:
        list(read_input(Input(path=path, **settings), LIMITS))
    return str(raised.value).removeprefix(f"{path}: ")


def turns(*texts):
    return tuple(Message(role, text) for role, text in zip(("user", "assistant"), texts, strict=False))


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"en": "a", "fr": "b"}, {"prompt": "en", "response": "fr"}, ("a", "", "b")),
        ({"en": "a", "fr": "b", "score": 3}, {"prompt": "en", "response": "fr"}, ("a", "", "b")),
        ({"question": "a", "final": "yes", "long_answer": "b", "answer": "no"}, {"response": "long_answer"}, ("a", "", "b")),
        ({"question": "a", "notes": ["c", "d"], "long": "b"}, {"prompt": "question", "context": "notes", "response": "long"}, ("a", "c\n\nd", "b")),
        ({"n": 2, "q": "a", "out": 4}, {"prompt": ["n", "q"], "response": "out"}, ("2\n\na", "", "4")),
        ({"text": "x", "task": "a", "extra": "c", "done": "b"}, {"instruction": "task", "input": "extra", "output": "done"}, ("a", "c", "b")),
    ],
)  # fmt: skip
def test_named_columns_make_instructions(tmp_path, row, columns, expected):
    record = read(tmp_path, row, columns=columns)
    assert isinstance(record, Instruction)
    assert (record.instruction, record.context, record.response) == expected


@pytest.mark.parametrize(
    ("row", "columns", "kind", "expected"),
    [
        ({"en": "a", "fr": "b"}, {"prompt": "en", "completion": "fr"}, Completion, {"prompt": "a", "completion": "b"}),
        ({"log": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, {"messages": "log"}, Conversation, {"messages": turns("a", "b")}),
        ({"h": "a", "d": None, "e": "b", "y": 3}, {"text": ["h", "d", "e"], "label": "y"}, Labelled, {"text": "a\n\nb", "label": "3"}),
        ({"ask": "a", "good": "b", "bad": "c"}, {"prompt": "ask", "chosen": "good", "rejected": "bad"}, Preference, {"prompt": turns("a")}),
        ({"heading": "a", "chosen": "b c", "rejected": "b d"}, {"prompt": "heading"}, Preference, {"prompt": turns("a")}),
        ({"ask": "a", "reply": "b", "liked": 0}, {"prompt": "ask", "completion": "reply", "label": "liked"}, Rating, {"good": False}),
    ],
)  # fmt: skip
def test_named_columns_make_records_of_every_kind(tmp_path, row, columns, kind, expected):
    record = read(tmp_path, row, columns=columns)
    assert isinstance(record, kind)
    assert {name: getattr(record, name) for name in expected} == expected


def test_what_stands_between_columns_and_other_settings(tmp_path):
    row = {"s1": "a", "s2": "b", "same": 1, "author": "Ann"}
    settings = {"columns": {"text": ["s1", "s2"], "label": "same"}, "join": " [SEP] ", "group": "author"}
    record = read(tmp_path, row, **settings)
    assert (record.text, record.label, record.source.group) == ("a [SEP] b", "1", "Ann")
    assert read(tmp_path, row, columns={"text": "author"}, group="author").source.group == "Ann"
    path = file_of(tmp_path, {"s1": {"a": 1}, "s2": "b"}, row)
    bad, good = read_input(Input(path=path, columns={"text": ["s1", "s2"]}), LIMITS)
    assert isinstance(bad, Unreadable)
    detail = '"s1" is an object; what is put together must be texts, numbers or lists of texts.'
    assert (bad.problem.detail, good.text) == (detail, "a\n\nb")
    assert refusal(tmp_path, {"s1": {}, "s2": "b"}, columns={"text": ["s1", "s2"]}).endswith(
        f"The first says: {detail}"
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": "eng", "response": "fr"}, 'no column "eng". Columns found: "en", "fr", "text". Did you mean "en"? Set columns.prompt to the right one.'),
        ({"text": "en"}, 'columns gives "text" the column "en", but the file has a column "text" of its own. Take "text" out of columns to read that one, or rename it in the file.'),
        ({"chosen": "en"}, 'columns names "chosen", and no format reads that alone. They belong to alpaca'),
        ({"chosen": "en", "label": "fr"}, 'columns names "chosen", "label", and no format reads that alone. They belong to sharegpt'),
        ({"chosen": "en", "words": "fr"}, 'columns names "chosen", "words", and no format reads that alone. Name what is missing too.'),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_taken(tmp_path, columns, expected):
    assert refusal(tmp_path, {"en": "a", "fr": "b", "text": "c"}, columns=columns).startswith(expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"columns": {"promt": "en"}}, '"promt" is not a name that luthier reads. Did you mean "prompt"? Known: text,'),
        ({"columns": {"prompt": "en", "response": ["fr", "en"]}}, 'the column "en" stands under "prompt" and under "response"; keep one'),
        ({"columns": {"prompt": ""}}, '"prompt" names no column'),
        ({"columns": {"label": "en"}, "label": "fr"}, "label and columns.label both name a column; leave one of them out"),
    ],
)  # fmt: skip
def test_a_recipe_says_what_is_wrong_with_columns(settings, expected):
    with pytest.raises(ValueError, match="value_error") as raised:
        Input(path="x", **settings)
    assert expected in str(raised.value)


def test_columns_are_for_tables(tmp_path):
    (tmp_path / "a.txt").write_text("a text\n")
    with pytest.raises(DataError, match="is read as document, which has no columns to name"):
        list(read_input(Input(path=str(tmp_path / "a.txt"), columns={"text": "a"}), LIMITS))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"en": f"a {n}", "fr": f"b {n}"} for n in range(4)], "for example columns: {prompt: en, response: fr}."),
        ([{"review": f"a {n}", "stars": n % 2} for n in range(4)], "for example columns: {text: review, label: stars}."),
        ([{"article": f"a {n}", "question": f"b {n}?", "answer": f"c {n}", "options": ["x"]} for n in range(4)], "for example columns: {prompt: question, response: answer}."),
        ([{"log: all": [{"role": "user"}]}] * 4, 'for example columns: {messages: "log: all"}.'),
    ],
)  # fmt: skip
def test_rows_of_no_format_are_told_what_to_write(tmp_path, rows, expected):
    assert f"Say what they are in columns, {expected}" in refusal(tmp_path, *rows)


@pytest.mark.parametrize("setting", ["label", "group", "date", "licence_column"])
def test_a_column_that_no_row_has_is_told_once(tmp_path, setting):
    rows = [{"text": "a", "category": "b"}] * 3
    text = 'no column "categry". Columns found: "text", "category". Did you mean "category"? Set '
    assert refusal(tmp_path, *rows, **{setting: "categry"}) == f"{text}{setting} to the right one."
    assert refusal(tmp_path, *rows, text="body", label="category").startswith('no column "body". Columns found:')


def test_semicolons_part_columns(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes('\ufeffText;Kategorie\r\n"läuft nicht; Fehler 12";Technik\r\n'.encode())
    for settings in ({"text": "Text", "label": "Kategorie"}, {"columns": {"text": "Text", "label": "Kategorie"}}):
        (record,) = read_input(Input(path=str(path), **settings), LIMITS)
        assert (record.text, record.label) == ("läuft nicht; Fehler 12", "Technik")


# --- recipes -------------------------------------------------------------------------------------------

TASK = {"labels": ["A", "B"]}


def rows_of_a_run():
    return [{"head": f"word{n}", "body": f"more{n}", "desk": "AB"[n % 2]} for n in range(40)]


def test_a_run_reads_named_columns(tmp_path):
    data = {"train": file_of(tmp_path, *rows_of_a_run()), "columns": {"text": ["head", "body"], "label": "desk"}}
    recipe = parse_recipe({"task": TASK, "data": {**data, "join": ": "}})
    prepared = prepare(recipe.task, recipe.data, 0, lambda texts: [1] * len(texts))
    assert {row.text for row in prepared.test} <= {f"word{n}: more{n}" for n in range(40)}
    wrong = parse_recipe({"task": TASK, "data": {**data, "columns": {"text": ["head", "bdy"], "label": "desk"}}})
    with pytest.raises(
        DataError, match='no column "bdy".*Did you mean "body"[?] Set data.columns.text to the right one'
    ):
        prepare(wrong.task, wrong.data, 0, lambda texts: [1] * len(texts))


def test_lines_of_a_run_have_no_columns(tmp_path):
    (tmp_path / "a.txt").write_text("a text|A\n")
    recipe = parse_recipe({"task": TASK, "data": {"train": str(tmp_path / "a.txt"), "columns": {"text": "head"}}})
    with pytest.raises(DataError, match="lines have no columns to name. Leave data.columns out."):
        prepare(recipe.task, recipe.data, 0, lambda texts: [1] * len(texts))


def test_a_run_refuses_columns_that_it_does_not_read():
    columns = {"prompt": "a", "text": "b", "label": ["c", "d"]}
    with pytest.raises(RecipeError) as raised:
        parse_recipe({"task": TASK, "data": {"train": "x.csv", "text": "e", "columns": columns}})
    assert raised.value.problems == [
        "data.columns.prompt: a run reads a text and its label; leave it out, or train by `luthier train`.",
        "data.columns.label: name one column.",
        "data.text: data.columns.text names a column too; leave one of them out.",
    ]


def test_columns_can_be_set_on_the_command_line(tmp_path):
    path = file_of(tmp_path, {"en": "a", "fr": "b"})
    corpus = corpus_of([path], ["inputs.0.columns={prompt: en, response: fr}"])
    assert corpus.inputs[0].columns == {"prompt": "en", "response": "fr"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"stages:\n  - method: sft\n    data: {{train: {path}}}\n")
    for override in ("stages.0.data.train.0.columns.prompt=en", "stages.0.data.train.0.columns={prompt: en}"):
        stages = load_stages(recipe, [override]).stages
        assert stages[0].data.train[0].columns == {"prompt": "en"}
