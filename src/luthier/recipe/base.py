"""What every section of a recipe is, and how its errors read. No torch here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from luthier.errors import did_you_mean

Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # the most that each library behind a run takes; scikit-learn's bound
UNSHOWN = "not_a_variable"  # pydantic's type of an error whose input is not shown


def named_variable(name: str) -> str:
    """The name of an environment variable, or an error that does not repeat what may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise PydanticCustomError(
            UNSHOWN,
            "is no name of an environment variable (letters, digits and _). Keys are not written into recipes: put the "
            "key into a variable, and the variable's name here.",
        )
    return name


Variable = Annotated[str, AfterValidator(named_variable)]


class Part(BaseModel):
    """Base of every section: frozen, closed to unknown keys, and its numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Kind(Part):
    """One of several sections that may stand under a key; its `kind` says which."""

    kind: str


def kind_or(default: str) -> Callable[[Any], Any]:
    """What lets one of several sections be given by its kind alone; without a kind it is the default one."""

    def with_kind(values: Any) -> Any:
        if isinstance(values, str):
            return {"kind": values}
        return {"kind": default, **values} if isinstance(values, dict) else values

    return with_kind


def explain(item: Any, root: type[BaseModel]) -> str:
    """One pydantic error as a sentence: field, what is wrong, what is allowed."""
    location = ".".join(written(root, item["loc"])) or root.__name__.lower()
    if item["type"] == "extra_forbidden":
        *parents, key = item["loc"]
        known = list(sections_at(root, parents)[0].model_fields)
        where = ".".join(written(root, parents))
        hint = did_you_mean(str(key), known) or f" Known keys{' of ' + where if where else ''}: {', '.join(known)}."
        return f"{location}: unknown key.{hint}"
    if item["type"] == "union_tag_invalid":
        given, allowed = str(item["ctx"]["tag"]), item["ctx"]["expected_tags"]
        hint = did_you_mean(given, allowed.split("'")[1::2])
        return f"{location}: there is no {given!r}; use {allowed}.{hint}"
    if item["type"] == "missing":
        return f"{location}: missing; it has no default."
    if item["type"] == "literal_error":
        given = str(item["input"])
        allowed = item["ctx"]["expected"]
        names = allowed.split("'")[1::2]
        hint = unquoted(item["input"], names) if isinstance(item["input"], bool) else did_you_mean(given, names)
        return f"{location}: {given!r} is not allowed; use {allowed}.{hint}"
    if item["type"] == UNSHOWN:  # what was given may be a key: it is not shown
        return f"{location}: {item['msg']}"
    if isinstance(item["input"], Mapping):  # a rule between its keys, which says what it is about
        return f"{location}: {item['msg'][0].lower()}{item['msg'][1:].rstrip('.')}."
    hint = unquoted(item["input"]) if item["type"] == "string_type" else ""
    return f"{location}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r}).{hint}"


def unquoted(value: Any, known: Sequence[str] = ()) -> str:
    """What YAML makes of a text without quotes, with a leading space; empty where that is not the cause."""
    if isinstance(value, bool):
        words = ("yes", "on", "true") if value else ("no", "off", "false")
        meant = next((word for word in words if word in known), words[0])
        return f' YAML reads {", ".join(words)} as {words[-1]}; put a word in quotes: "{meant}".'
    if isinstance(value, int | float | date):
        kind = "date" if isinstance(value, date) else "number"
        return f' YAML reads it as a {kind}; put a text in quotes: "{value}".'
    return ' YAML reads null and ~ as nothing; put a word in quotes: "null".' if value is None else ""


def sound_sections(part: type[Part], values: Mapping[str, Any], errors: Sequence[Any]) -> dict[str, Any]:
    """Of plain values with pydantic's `errors`: the sections that have none, for the rules that need no others."""
    if any(not item["loc"] for item in errors):
        return {}
    broken = {item["loc"][0] for item in errors}
    return {
        name: TypeAdapter(field.rebuild_annotation()).validate_python(values[name])
        if name in values
        else field.get_default(call_default_factory=True)
        for name, field in part.model_fields.items()
        if name not in broken
    }


def written(root: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """A path as a recipe spells it: pydantic names the kind of a section in it as well."""
    return [
        str(part)
        for number, part in enumerate(path)
        if not (isinstance(part, str) and kinds_named(sections_at(root, path[:number]), part))
    ]


def sections_at(root: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    """The sections a path leads to. An index or a name stands for one item in it, and a kind for one of several."""
    found = [root]
    for part in path:
        if isinstance(part, str):
            kinds = kinds_named(found, part)
            if kinds or part in found[0].model_fields:
                found = kinds or sections_of(found[0].model_fields[part].annotation) or found
    return found


def kinds_named(sections: Sequence[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    """Of several kinds of section, the one of that name."""
    return [part for part in sections if len(sections) > 1 and part.model_fields["kind"].default == name]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections in an annotation such as `Lora`, `list[Input]`, `Corpus | None` or `Clm | Sft`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in get_args(annotation) if inner is not type(None) for part in sections_of(inner)]
