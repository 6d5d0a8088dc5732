"""Templates: what they write, and what they cannot do."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.corpus.lines import Problem
from luthier.corpus.templates import Template, hash_layout
from luthier.errors import DataError
from luthier.records import Completion, Instruction, Labelled, Message, Preference, Source

SOURCE = Source("a.jsonl", 3)
ROW = Instruction("Add the numbers.", "2 and 3", "5", SOURCE)


def failure(prompt: str, **options: int) -> str:
    result = Template(prompt, **options).render(ROW)
    assert isinstance(result, Problem)
    assert result.reason == "template_failed"
    return result.detail


def refusal(prompt: str) -> str:
    with pytest.raises(DataError) as caught:
        Template(prompt)
    return str(caught.value)


def written(prompt: str) -> str:
    result = Template(prompt).render(ROW)
    assert isinstance(result, Completion), result
    return result.prompt


def test_the_layout_with_hash_headings() -> None:
    assert hash_layout().render(ROW) == Completion(
        "### Instruction:\nAdd the numbers.\n\n### Context:\n2 and 3\n\n### Response:\n", "5", SOURCE
    )


def test_an_empty_context_has_no_heading() -> None:
    for empty in ("", " \n"):
        result = hash_layout().render(replace(ROW, context=empty))
        assert result == Completion("### Instruction:\nAdd the numbers.\n\n### Response:\n", "5", SOURCE)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_what_a_field_says_is_written_as_it_is(instruction: str, context: str) -> None:
    result = hash_layout().render(Instruction(instruction, context, "yes {{ no }}", SOURCE))
    assert isinstance(result, Completion)
    assert result.completion == "yes {{ no }}"
    assert result.prompt.startswith(f"### Instruction:\n{instruction}\n\n###")
    assert (context in result.prompt) or not context.strip()


def test_an_empty_completion_is_a_problem() -> None:
    assert hash_layout().render(replace(ROW, response=" ")) == Problem(
        "empty_text", "the template's completion comes out empty. Fill the field, or drop the row."
    )


def test_own_templates_see_every_field_of_any_record() -> None:
    labelled = Labelled("A cup final", "SPORTS", SOURCE, "key")
    result = Template("{{ text|upper }} ->", " {{ label }}").render(labelled)
    assert result == Completion("A CUP FINAL ->", " SPORTS", SOURCE)
    turns = (Message("user", "Hi"), Message("assistant", "Hello"))
    pair = Preference(turns[:1], turns[1:], turns[1:], SOURCE)
    prompt = "{% for turn in prompt %}\n{{ loop.index }}. {{ turn.role }}: {{ turn.content }}\n{% endfor %}\n"
    assert Template(prompt, "{{ chosen[0].content }}").render(pair) == Completion("1. user: Hi\n", "Hello", SOURCE)
    values = {"question": "Why?", "answers": ["a", "b"]}
    joined = Template("{{ question }}", "{{ answers|join(', ') }}").render_values(values, SOURCE)
    assert joined == Completion("Why?", "a, b", SOURCE)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{{ instruction.replace('numbers', 'words').split()|length }}", "3"),
        ("{% set parts = ['a', 'b'] + ['c'] %}{{ parts|map('upper')|join('-') }}", "A-B-C"),
        ("{{ 'a' ~ 1 ~ 'b' }}{{ 'x' * 3 }}{{ 2 ** 10 }}{{ 7 % 4 }}", "a1bxxx10243"),
        ("{% macro bold(x) %}**{{ x }}**{% endmacro %}{{ bold(context) }}", "**2 and 3**"),
        ("{{ {'a': [1, 'é']}|tojson }}", '{"a": [1, "é"]}'),
        ("{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "6"),
        ("{% for i in range(3) if i %}{{ i }}{{ ';' if not loop.last else '' }}{% else %}none{% endfor %}", "1;2"),
        ("{{ missing is defined }}", "False"),
        ("{{ 'one\ntwo'|indent(2) }}", "one\n  two"),
        ("{{ ', '.join(['a', 'b']) }}", "a, b"),
    ],
)
def test_what_a_template_may_do(prompt: str, text: str) -> None:
    assert written(prompt) == text


# --- what fails costs its row --------------------------------------------------------------------------


def test_a_field_that_is_not_there_names_the_line() -> None:
    assert failure("{{ instruction }}\n{{ contxt }}") == (
        "the prompt template, line 2: 'contxt' is undefined. Use a field the record has, or test it with `is defined`."
    )
    assert Template("x", "{{ answer }}").render(ROW) == Problem(
        "template_failed",
        "the completion template, line 1: 'answer' is undefined. Use a field the record has, or test it with "
        "`is defined`.",
    )


def test_other_errors_are_told_by_name() -> None:
    assert failure("{{ 1 / 0 }}") == (
        "the prompt template, line 1: ZeroDivisionError: division by zero. Mend the template, or the row."
    )


@pytest.mark.parametrize("prompt", ["{{ none }}", "{{ ['a'] }}", "{{ 'a' ~ none }}", "{{ self }}", "{{ range }}"])
def test_only_texts_and_numbers_are_written(prompt: str) -> None:
    assert "write its parts, or use |tojson or |default('', true)" in failure(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ range.__init__ }}",
        "{{ (instruction|map('list')).gi_frame }}",
        "{{ [1]|map(attribute='__class__')|first }}",
        "{{ [1, 2]|sort(attribute='__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '{0.__class__}'.format_map({}) }}",
        "{{ {}.update({'a': 1}) }}",
        "{{ '%1000000000d' % 1 }}",
    ],
)
def test_python_internals_are_out_of_reach(prompt: str) -> None:
    detail = failure(prompt)
    assert detail.endswith("Templates reach the record's fields only.")
    assert "class '" not in detail


DOUBLING = (
    "{%% set ns = namespace(x=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% endfor %%}{{ ns.x|length }}"
)


@pytest.mark.parametrize(
    "prompt",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if i < 0 %}{% endfor %}" * 11,
        "{% set x %}{% for i in range(99999) %}a long line of text{% endfor %}{% endset %}",
        "{% macro f(n) %}{{ f(n - 1) if n else '' }}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}" + "x" * 5000 + "{% endmacro %}{% for i in range(999) %}{% set x = f() %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * [1] }}",
        "{{ 10**(10**10) }}",
        "{{ 'ab'.replace('', 'x' * 90000).replace('x', 'y' * 90000) }}",
        "{{ 'ab'|replace('', 'x' * 90000)|replace('x', 'y' * 90000) }}",
        "{{ ('x' * 90000).join(range(99)|map('string')) }}",
        "{{ range(99)|join('x' * 90000) }}",
        "{{ ('a\n' * 99999)|indent('x' * 99999) }}",
        "{{ 'a'|indent(10**9) }}",
        "{{ [1]|batch(10**9, 'x')|list }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ ('9' * 4000)|int }}",
        "{% set x = [range(99999)] * 9999 %}{{ x|map('list')|map('length')|join }}",
        DOUBLING % ("'ab'", "ns.x ~ ns.x"),
        DOUBLING % ("'ab'", "ns.x + ns.x"),
        DOUBLING % ("[1]", "ns.x + ns.x"),
        DOUBLING % ("[1]", "[ns.x, ns.x]"),
        DOUBLING % ("[1]", "(ns.x, ns.x)"),
        DOUBLING % ("[1]", "{1: ns.x, 2: ns.x}"),
    ],
)
def test_a_template_that_runs_away_ends_soon(prompt: str) -> None:
    start = perf_counter()
    detail = failure(prompt, max_chars=200_000)
    assert detail.endswith("Shorten what it writes, or its loops.")
    assert perf_counter() - start < 5


def test_the_output_is_bounded() -> None:
    assert isinstance(Template("{{ instruction }}" + "x" * 80, max_chars=96).render(ROW), Completion)
    assert failure("{{ instruction }}" + "x" * 81, max_chars=96) == (
        "the prompt template: it makes a value of more than 96 characters. Shorten what it writes, or its loops."
    )


def test_a_row_that_fails_leaves_the_budget_of_the_next_alone() -> None:
    template = Template("{{ instruction }}", max_chars=100)
    long = replace(ROW, instruction="x" * 101)
    assert [type(template.render(row)) for row in (long, ROW, long, ROW)] == [Problem, Completion] * 2


def test_half_a_character_is_a_problem() -> None:
    result = hash_layout().render(replace(ROW, instruction="\ud83d"))
    assert isinstance(result, Problem)
    assert "surrogates not allowed" in result.detail


# --- templates that do not compile ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a\n{% if x %}", "line 2: Unexpected end of template."),
        ("a\nb {{ x", "line 2: unexpected end of template, expected 'end of print statement'. Mend the template."),
        ("\n{{ x|upcase }}", "line 2: No filter named 'upcase'. Filters: abs, batch,"),
        ("{{ x|attr('y') }}", "line 1: No filter named 'attr'. Filters: abs, batch,"),
        ("{% include 'x' %}", "line 1: a template cannot read other templates. Mend the template."),
        ("{% import 'x' as y %}", "line 1: a template cannot read other templates. Mend the template."),
        ("{% extends 'x' %}", "line 1: a template cannot read other templates. Mend the template."),
        ("{% for a in b recursive %}{% endfor %}", "line 1: recursive loops are not allowed. Mend the template."),
    ],
)
def test_compile_errors_name_the_line(prompt: str, text: str) -> None:
    assert refusal(prompt).startswith(f"the prompt template, {text}")


def test_the_list_of_filters_holds_none_that_cannot_be_named() -> None:
    assert "priced" not in refusal("{{ x|nope }}")


def test_templates_too_long_or_too_deep() -> None:
    assert refusal("x" * 100_001) == "the prompt template is longer than 100,000 characters. Shorten it."
    assert "nested too deeply or not valid" in refusal("{{ " + "(" * 20_000 + " }}")
