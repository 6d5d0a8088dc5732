"""A chat template of one's own, and what is handed to a template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from luthier.recipe.base import Part

NAMED = ("chatml", "llama3", "alpaca")
OURS = ("conversation", "messages", "chat_template", "tools", "documents", "tokenize", "add_generation_prompt")


class ChatTemplate(Part):
    """The template that writes conversations as texts."""

    template: str = Field(
        "",
        description="Chat template (Jinja, sandboxed) in the place of the model's own: a file, the template itself, or "
        "`chatml`, `llama3`, `alpaca`. Its turns must end with a special token of the model.",
    )
    template_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Handed to the chat template, in training and whenever the model is asked: "
        "`{enable_thinking: false}`.",
    )

    @field_validator("template")
    @classmethod
    def known(cls, value: str) -> str:
        """A name, or a template's text; files are read with the recipe."""
        if value in ("", *NAMED) or is_source(value):
            return value
        message = "names no file with a template, and is none of {names}"
        raise PydanticCustomError("template", message, {"names": ", ".join(NAMED)})

    @field_validator("template_arguments")
    @classmethod
    def free(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Names that are not given by us."""
        taken = next((name for name in value if name in OURS or not name.isidentifier()), None)
        if taken is not None:
            message = '"{name}" cannot be given: it is no name in a template, or is set for each conversation'
            raise PydanticCustomError("argument", message, {"name": taken})
        return value


def is_source(text: str) -> bool:
    """Whether a text is a template rather than a name of one."""
    return "{%" in text or "{{" in text


def read_templates(values: Any, *folders: Path) -> None:
    """Put the text of each file that a `prompt.template` names in its place, from the first folder that has it."""
    if isinstance(values, list):
        for item in values:
            read_templates(item, *folders)
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if key == "prompt" and isinstance(value, dict) and isinstance(value.get("template"), str):
            value["template"] = text_of(value["template"], folders)
        else:
            read_templates(value, *folders)


def text_of(template: str, folders: tuple[Path, ...]) -> str:
    """A template's text, where it names a file that can be read; else as it is."""
    if template in ("", *NAMED) or is_source(template):
        return template
    for folder in folders:
        try:
            return (folder / Path(template).expanduser()).read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError):
            continue
    return template


def as_settings(stored: Mapping[str, Any] | None) -> ChatTemplate:
    """The settings that were stored with an adapter; none of an adapter that has none."""
    return ChatTemplate.model_validate(dict(stored or {}))
