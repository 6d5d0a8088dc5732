"""Writes docs/reference/ from the recipe's models and the command tree.

python docs/generate.py          writes recipe.md, stages.md and commands.md
python docs/generate.py --check  exits 1 where a page is not what would be written
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier.cli.main import app
from luthier.recipe import Recipe
from luthier.recipe.base import Kind
from luthier.recipe.methods import METHODS
from luthier.recipe.methods.base import MethodPart
from luthier.recipe.stages import TrainRecipe

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code. Do not edit; run `python docs/generate.py`. -->"
SIMPLE = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "any value"}
BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def main() -> None:
    """Write the pages, or with --check compare them."""
    pages = {"recipe.md": recipe_page(), "stages.md": stages_page(), "commands.md": commands_page()}
    if "--check" not in sys.argv[1:]:
        REFERENCE.mkdir(exist_ok=True)
        for name, text in pages.items():
            (REFERENCE / name).write_text(text, encoding="utf-8")
        return
    stale = [name for name, text in pages.items() if stored(REFERENCE / name) != text]
    if stale:
        names = ", ".join(f"docs/reference/{name}" for name in stale)
        print(f"{names}: not what the code says. Run `python docs/generate.py`.", file=sys.stderr)
        sys.exit(1)


def stored(path: Path) -> str:
    """A page as it stands, or nothing."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


# --- the recipe ----------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key, section by section."""
    lines = [
        NOTE,
        "# Recipe reference",
        "",
        "A recipe is one YAML file. Unknown keys are errors. Paths in it are relative to its folder. Every",
        "key can be set on the command line: `--set tune.epochs=2`. `luthier run recipe.yaml --dry-run`",
        "prints the recipe with all defaults. Keys without a default have to be given.",
    ]
    for path, part in sections(Recipe):
        lines += section_lines(section_title(path, part), part, path)
    return "\n".join(lines) + "\n"


def stages_page() -> str:
    """Every key of a recipe of stages, and every method with its own keys."""
    lines = [
        NOTE,
        "# Reference of the stage recipe",
        "",
        "What `luthier train` reads; [stages.md](../stages.md) explains it. Unknown keys are errors. Paths in it are",
        "relative to its folder. Every key can be set on the command line: `--set stages.0.tune.epochs=2`.",
        "`luthier train recipe.yaml --dry-run` prints the recipe with all defaults. Keys without a default have to be",
        "given; a section that may be left out says `nothing`.",
    ]
    first: dict[type[BaseModel], str] = {}
    for path, part in sections(TrainRecipe):
        first.setdefault(part, path)
    for path, part in sections(TrainRecipe):
        if first[part] == path:
            lines += section_lines(section_title(path, part), part, path, first=first)
    lines += [
        "",
        "## Methods",
        "",
        "What stands under `method` beside its `kind`. A method without keys of its own, or",
    ]
    lines += ["with its defaults, may be given by its name alone: `method: dpo`."]
    for method in METHODS:
        kind = str(method.model_fields["kind"].default)
        lines += section_lines(f"`{kind}`", method, "", hidden=("kind",), level="###")
        lines += tune_lines(method)
    return "\n".join(lines) + "\n"


def section_title(path: str, part: type[BaseModel]) -> str:
    """What stands over a section: its path, and its kind where the path may lead to several."""
    if not path:
        return "Top level"
    return f"`{path}` of kind `{part.model_fields['kind'].default}`" if issubclass(part, Kind) else f"`{path}`"


def section_lines(
    title: str,
    part: type[BaseModel],
    path: str,
    hidden: tuple[str, ...] = (),
    level: str = "##",
    first: dict[type[BaseModel], str] | None = None,
) -> list[str]:
    """Heading, meaning and keys of a section. `first` knows where a section of the same keys stands already."""
    lines = ["", f"{level} {title}", "", " ".join((part.__doc__ or "").split())]
    fields = {key: field for key, field in part.model_fields.items() if key not in hidden}
    if fields:
        lines += ["", "| key | type | default | what it is |", "|---|---|---|---|"]
        lines += [key_row(path, key, field, first or {}) for key, field in fields.items()]
    return lines


def tune_lines(method: type[MethodPart]) -> list[str]:
    """The defaults of `tune` that suit a method better than the general ones."""
    if not method.tune:
        return []
    return ["", f"`tune` defaults: {', '.join(f'`{key}: {value:g}`' for key, value in method.tune.items())}."]


def sections(part: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those inside it, with their dotted paths."""
    yield path, part
    for key, field in part.model_fields.items():
        for inner in sections_in(field.annotation):
            yield from sections(inner, joined(path, key))


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections behind a key: alone, in a list, where it may be left out, or one of several kinds.

    Methods have sections of their own.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, MethodPart) else [annotation]
    return [part for inner in get_args(annotation) if inner is not type(None) for part in sections_in(inner)]


def joined(path: str, key: str) -> str:
    """`tune` and `epochs` as `tune.epochs`."""
    return f"{path}.{key}" if path else key


def key_row(path: str, key: str, field: FieldInfo, first: dict[type[BaseModel], str]) -> str:
    """The table row of one key; a section's leads to where its keys stand."""
    name = joined(path, key)
    if found := sections_in(field.annotation):
        many = {list: "list of sections", dict: "sections by name"}.get(get_origin(field.annotation), "section")
        default = "**required**" if field.is_required() else "nothing" if field.default is None else ""
        title = section_title(first.get(found[0], name), found[0])
        anchor = "".join(char for char in title.replace(" ", "-") if char.isalnum() or char in "-_")
        if len(found) > 1:
            many = "one of " + ", ".join(f"`{part.model_fields['kind'].default}`" for part in found)
            default = f"`{field.get_default(call_default_factory=True).kind}`"
        cells = [f"[`{name}`](#{anchor})", many, default]
    else:
        cells = [f"`{name}`", type_words(field.annotation, field.metadata), default_words(field)]
    return row([*cells, field.description or ""])


def type_words(annotation: Any, metadata: Any = ()) -> str:
    """A type with what is allowed: `number, more than 0`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *extra = arguments
        return type_words(inner, [limit for item in extra for limit in getattr(item, "metadata", [item])])
    if is_method(annotation):
        return "[a method](#methods)" + (" or nothing" if type(None) in arguments else "")
    if origin is Literal:
        words = " or ".join(f"`{value}`" for value in arguments)
    elif origin in (Union, types.UnionType):
        words = " or ".join("nothing" if one is type(None) else type_words(one) for one in arguments)
    elif origin is list:
        words = f"list of {type_words(arguments[0])}"
    elif origin is dict:
        words = f"mapping of {type_words(arguments[0])} to {type_words(arguments[1])}"
    else:
        words = SIMPLE[annotation]
    return ", ".join([words, *limits(metadata, origin is list, annotation is str)])


def is_method(annotation: Any) -> bool:
    """Whether a key names a method with its keys."""
    if isinstance(annotation, type):
        return issubclass(annotation, MethodPart)
    return any(is_method(inner) for inner in get_args(annotation) if isinstance(inner, type) or get_args(inner))


def limits(metadata: Any, is_list: bool, is_text: bool) -> Iterator[str]:
    """The bounds in pydantic's metadata, in words."""
    for item in metadata:
        for name, words in BOUNDS.items():
            if getattr(item, name, None) is not None:
                bound = getattr(item, name)
                yield words.format(f"{bound:g}" if isinstance(bound, float) else bound)
        if (least := getattr(item, "min_length", None)) is not None:
            yield f"at least {least} of them" if is_list else "not empty" if is_text else f"at least {least}"
        if getattr(item, "pattern", None):
            yield f"matching `{item.pattern}`"


def default_words(field: FieldInfo) -> str:
    """The default as YAML writes it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if value is None:
        return "nothing"
    if isinstance(value, str) and not value.isprintable():
        return f"`{json.dumps(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# --- the commands --------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    lines = [
        NOTE,
        "# Command reference",
        "",
        "`--help` (or `-h`) works behind every command. Without a command, `--version` says which version this is, and",
        "`--install-completion` lets the shell complete commands and options.",
        "",
        "| exit code | what it means |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | something to mend, said on standard error |",
        "| 2 | the command line cannot be understood |",
        "| 3 | done, and there is something to look at: rows left out by `--skip-bad`, texts that `data audit` found |",
        "| 130 | stopped on request by Ctrl-C; the same command goes on |",
        "| 143 | the same by SIGTERM |",
    ]
    for name, command in commands(typer.main.get_command(app)):
        lines += ["", f"## {name}", "", " ".join((command.help or "").split()), "", *usage(name, command), ""]
        lines += ["| argument or option | default | what it is |", "|---|---|---|"]
        lines += [parameter_row(parameter) for parameter in command.params]
    return "\n".join(lines) + "\n"


def commands(command: Any, name: str = "luthier") -> Iterator[tuple[str, Any]]:
    """The commands that do something, with their full names."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, one in inner.items():
        yield from commands(one, f"{name} {word}")


def usage(name: str, command: Any) -> list[str]:
    """The usage line as a code block."""
    arguments = [shown_name(one) for one in command.params if one.param_type_name == "argument"]
    return ["```", " ".join([name, *arguments, "[OPTIONS]"]), "```"]


def parameter_row(parameter: Any) -> str:
    """The table row of one argument or option."""
    if parameter.required:
        default = "**required**"
    elif parameter.default is None or parameter.default is False:
        default = ""
    else:
        default = f"`{parameter.default}`"
    return row([f"`{shown_name(parameter)}`", default, parameter.help or ""])


def shown_name(parameter: Any) -> str:
    """`RECIPE`, `--json`, `--out OUT`."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    option = max(parameter.opts, key=len)
    value = parameter.metavar or option.removeprefix("--").upper()
    return option if parameter.is_flag else f"{option} {value}"


def row(cells: list[str]) -> str:
    """A Markdown table row."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
