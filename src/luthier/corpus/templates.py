"""Records to training text: the layout with hash headings, and templates of the user's own, run in a sandbox.

A template comes with a recipe that somebody else may have written. So it reaches the record's fields and nothing
else of Python, and what it does is paid for from a budget of characters and steps: a template that runs away costs
its row, not the run. A value is paid for as if it were written out, so none can hide more than the budget (a list
that holds a list twice, which holds a list twice, ...).
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from typing import Any, NoReturn

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from luthier.corpus.lines import Problem
from luthier.errors import DataError
from luthier.records import (
    CONTEXT_HEADING,
    INSTRUCTION_HEADING,
    RESPONSE_HEADING,
    Completion,
    Record,
    Source,
)

MAX_CHARS = 1_000_000
MAX_TEMPLATE_CHARS = 100_000
MAX_NUMBER_BITS = 4096
MAX_SECONDS = 10.0  # of one render: far more than any honest row needs, so that rows do not hang on the machine's speed
MAX_COUNT = 10_000  # of any number given to a filter: a width, a number of columns
FILE_NAME = "<template>"

HASH_PROMPT = (
    f"{INSTRUCTION_HEADING}{{{{ instruction }}}}\n\n"
    f"{{% if context.strip() %}}{CONTEXT_HEADING}{{{{ context }}}}\n\n{{% endif %}}"
    f"{RESPONSE_HEADING}"
)
HASH_COMPLETION = "{{ response }}"

FILTERS = frozenset({
    "abs", "batch", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "indent", "int",
    "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "select", "selectattr", "slice", "sort", "string", "title", "trim", "truncate", "unique",
    "upper", "wordcount",
})  # fmt: skip
# these make a text of any length from a small one
UNSAFE_TEXT_METHODS = frozenset({
    "center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill", "maketrans",
})  # fmt: skip


class Template:
    """A prompt and a completion template, compiled once. One thread at a time may use it."""

    def __init__(self, prompt: str, completion: str = HASH_COMPLETION, max_chars: int = MAX_CHARS):
        """Compile both. Their variables are the record's fields by name.

        Raises:
            DataError: one does not compile, with the line.
        """
        self.environment = Environment(max_chars)
        self.prompt = compiled(self.environment, "prompt", prompt)
        self.completion = compiled(self.environment, "completion", completion)

    def render(self, record: Record) -> Completion | Problem:
        """The record as training text; the problem `template_failed` or `empty_text` where that fails."""
        values = asdict(record)
        del values["source"]
        return self.render_values(values, record.source)

    def render_values(self, values: Mapping[str, object], source: Source) -> Completion | Problem:
        """The same for named values, such as a table's columns."""
        texts = []
        for name, template in (("prompt", self.prompt), ("completion", self.completion)):
            text = self.run(name, template, values)
            if isinstance(text, Problem):
                return text
            texts.append(text)
        if not texts[1].strip():
            return Problem("empty_text", "the template's completion comes out empty. Fill the field, or drop the row.")
        return Completion(texts[0], texts[1], source)

    def run(self, name: str, template: Any, values: Mapping[str, object]) -> str | Problem:
        """One template on one row."""
        self.environment.refill()
        try:
            text: str = template.render(values)
            self.environment.check(len(text))
            text.encode("utf-8")
        except Exception as error:  # noqa: BLE001, a template can make Python raise anything
            return Problem("template_failed", f"the {name} template{line_of(error)}: {explain(error)}")
        return text


def hash_layout() -> Template:
    """The Instruction / Context / Response layout with hash headings; an empty context has no heading."""
    return Template(HASH_PROMPT, HASH_COMPLETION)


# --- compiling and errors ------------------------------------------------------------------------------


def compiled(environment: Environment, name: str, source: str) -> Any:
    """A template ready to run."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise DataError(f"the {name} template is longer than {MAX_TEMPLATE_CHARS:,} characters. Shorten it.")
    try:
        return environment.from_string(environment.priced(environment.parse(source)))
    except TemplateSyntaxError as error:
        hint = f" Filters: {', '.join(sorted(environment.filters.keys() - HIDDEN))}." if "filter" in str(error) else ""
        message = (error.message or "not valid").rstrip(".")
        raise DataError(f"the {name} template, line {error.lineno}: {message}.{hint} Mend the template.") from error
    except (RecursionError, SyntaxError, ValueError, MemoryError) as error:
        raise DataError(f"the {name} template is nested too deeply or not valid: {error}. Mend it.") from error


def line_of(error: Exception) -> str:
    """` line 3`, the innermost template line the error came from, or nothing."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE_NAME]
    return f", line {lines[-1]}" if lines else ""


def explain(error: Exception) -> str:
    """What went wrong, and what to do."""
    found = str(error).rstrip(".")[:300]
    if isinstance(error, UndefinedError):
        return f"{found}. Use a field the record has, or test it with `is defined`."
    if isinstance(error, SecurityError):
        return f"{found}. Templates reach the record's fields only."
    if isinstance(error, OverflowError):
        return f"{found}. Shorten what it writes, or its loops."
    return f"{type(error).__name__}: {found}. Mend the template, or the row."


# --- the sandbox ---------------------------------------------------------------------------------------


class Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with every loop, call, text and number held to a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, max_chars: int):
        # unoptimised: otherwise filters of constants would run while compiling, before any budget
        super().__init__(
            undefined=StrictUndefined,
            optimized=False,
            autoescape=False,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=self.printed,
        )
        self.max_chars = max_chars
        self.refill()
        self.macro_chars = 0
        self.filters = {name: self.guarded(name, self.filters[name]) for name in FILTERS}
        self.filters |= {"tojson": self.json_text, LOOP: self.priced_loop, CONCAT: self.concatenated, BUILT: self.paid}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}

    def refill(self) -> None:
        """A new budget, for the next render."""
        self.left = self.max_chars
        self.deadline = time.monotonic() + MAX_SECONDS

    def charge(self, cost: int) -> None:
        """Pay from the budget of this render."""
        self.left -= cost
        if time.monotonic() > self.deadline:
            raise OverflowError(f"it takes more than {MAX_SECONDS:g} seconds")
        if self.left < 0:
            raise OverflowError(f"it takes more than {self.max_chars:,} characters and steps")

    def check(self, size: int) -> None:
        """Refuse a value before it is made."""
        if size > self.max_chars:
            raise OverflowError(f"it makes a value of more than {self.max_chars:,} characters")

    def priced(self, tree: nodes.Template) -> nodes.Template:
        """The template with prices on its loops and joins; what reaches other files is refused."""
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            refuse(node, "a template cannot read other templates")
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                refuse(loop, "recursive loops are not allowed")
        self.macro_chars += sum(plain_chars(macro) for macro in tree.find_all((nodes.Macro, nodes.CallBlock)))
        priced: nodes.Template = Pricing().visit(tree)
        return priced

    def printed(self, value: Any) -> Any:
        """What `{{ ... }}` writes: text and numbers. A list or None in a training text is a mistake."""
        if isinstance(value, StrictUndefined):
            return str(value)  # raises
        if not isinstance(value, str | int | float):
            name = type(value).__name__
            raise TypeError(f"it writes a value of type {name}; write its parts, or use |tojson or |default('', true)")
        if isinstance(value, int):
            self.bounded_number(value)
        self.charge(len(value) if isinstance(value, str) else 1)
        return value

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call from a template: paid for, and refused where it would make too long a text."""
        self.charge(1 + (self.macro_chars if isinstance(obj, Macro) else 0))
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            if name == "replace" and len(args) > 1:
                self.check_replace(owner, *args[:2])
            if name == "join" and args:
                args = (self.check_join(owner, args[0]), *args[1:])
        result = super().call(context, obj, *args, **kwargs)
        return self.paid(result)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Operators that can make something large of something small."""
        if operator == "**":
            bits = left.bit_length() * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
            if bits > MAX_NUMBER_BITS:
                raise OverflowError("it makes too large a number")
        elif operator == "%" and isinstance(left, str | bytes):
            raise SecurityError("texts have no % in templates; use ~ to join")
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple | bytes) and isinstance(times, int):
                    self.check(len(sized) * times)
        elif isinstance(left, str | list | tuple | bytes) and isinstance(right, str | list | tuple | bytes):
            self.check(len(left) + len(right))
        return self.paid(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Jinja's own rules, and no methods that make texts of any length."""
        return not (isinstance(obj, str) and attr in UNSAFE_TEXT_METHODS) and super().is_safe_attribute(
            obj, attr, value
        )

    def wrap_str_format(self, value: Any) -> None:
        """No exception for `format`: as an attribute of a text it is refused."""
        return

    def paid(self, value: Any) -> Any:
        """A new value, paid for by its size."""
        if isinstance(value, int):
            return self.bounded_number(value)
        self.charge(self.size_of(value))
        return value

    def size_of(self, value: Any) -> int:
        """About the characters a value would take written out, counted no further than the budget."""
        size, left = 0, [value]
        while left and size <= self.left:
            item = left.pop()
            size += 1 + (len(item) if isinstance(item, str | bytes) else 0)
            if isinstance(item, dict):
                left += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                left += item
        return size

    def bounded_number(self, value: int) -> int:
        """A number that is cheap to write."""
        if value.bit_length() > MAX_NUMBER_BITS:
            raise OverflowError("it makes too large a number")
        return value

    # --- filters ---

    def guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter of Jinja's with its numbers bounded and its result paid for."""

        @wraps(function)  # keeps the mark that says whether it takes the environment first
        def run(*args: Any, **kwargs: Any) -> Any:
            offset = 1 if hasattr(function, "jinja_pass_arg") else 0
            given = list(args)
            options = [*given[offset + 1 :], *kwargs.values()]
            if any(isinstance(option, int) and abs(option) > MAX_COUNT for option in options):
                raise OverflowError(f"the filter {name} takes numbers up to {MAX_COUNT:,}")
            if name == "replace":
                self.check_replace(given[offset], *texts(options)[:2])
            elif name == "join":
                given[offset] = self.check_join(str(options[0]) if options else "", given[offset])
            elif name == "indent":
                width = max(
                    [len(text) for text in texts(options)] + [num for num in options if type(num) is int], default=4
                )
                self.check(len(given[offset]) + str(given[offset]).count("\n") * width)
            return self.paid(function(*given, **kwargs))

        return run

    def check_replace(self, text: Any, old: Any = "", new: Any = "") -> None:
        """Refuse a replacement that would make too long a text."""
        times = str(text).count(str(old))
        self.check(len(str(text)) + times * len(str(new)))

    def check_join(self, separator: str, items: Any) -> list[Any]:
        """The items to join, as a list; refused where they would make too long a text."""
        held = list(items)
        self.charge(len(held) * (len(separator) + 1) + self.size_of(held))
        return held

    def json_text(self, value: Any, indent: int | None = None) -> str:
        """The filter `tojson`: plain JSON, letters as they are, written piece by piece within the budget."""
        if indent is not None and not 0 <= indent <= 16:
            raise OverflowError("tojson takes an indent from 0 to 16")
        parts = []
        for part in json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=indent).iterencode(value):
            self.charge(len(part) + 4)  # many parts are a single bracket
            parts.append(part)
        return "".join(parts)

    def priced_loop(self, items: Any, price: int) -> Any:
        """What a loop runs over, each round paid for."""
        for item in items:
            self.charge(price)
            yield item

    def concatenated(self, items: list[Any]) -> str:
        """The operator `~`."""
        return "".join(str(self.printed(item)) for item in items)


# filters that templates cannot name: the parser makes no such names
LOOP, CONCAT, BUILT = "priced loop", "priced concat", "priced value"
HIDDEN = frozenset({LOOP, CONCAT, BUILT})


class Pricing(NodeTransformer):
    """Sends what loops run over, new containers and the operator `~` through our filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A round costs a step and the plain text in the loop."""
        self.generic_visit(node)
        price = nodes.Const(1 + plain_chars(node))
        node.iter = nodes.Filter(node.iter, LOOP, [price], [], None, None, lineno=node.lineno)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """A list that is made here is paid for."""
        return self.built(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """So is a tuple; the names a loop sets are written as one too, and cost nothing."""
        return self.built(node) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """And a dictionary."""
        return self.built(node)

    def built(self, node: nodes.Expr) -> nodes.Node:
        """The expression, paid for."""
        self.generic_visit(node)
        return nodes.Filter(node, BUILT, [], [], None, None, lineno=node.lineno)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b` as a filter of both."""
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, CONCAT, [], [], None, None, lineno=node.lineno)


def plain_chars(node: nodes.Node) -> int:
    """Characters of plain text within a block."""
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def texts(options: list[Any]) -> list[str]:
    """The texts among some options."""
    return [option for option in options if isinstance(option, str)]


def refuse(node: nodes.Node, message: str) -> NoReturn:
    """A compile error at a node."""
    raise TemplateSyntaxError(message, node.lineno)
