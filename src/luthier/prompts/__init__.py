"""Prompts: from records to tokens, with the trained tokens known. One object in training, evaluation and serving."""

from luthier.prompts.classify import ClassifyPrompt, Encoded, Shot
from luthier.prompts.dialogue import Dialogue, Turn
from luthier.prompts.layout import Layout, opening_tokens
from luthier.prompts.spelling import PromptError
from luthier.prompts.templates import layout_of, template_left

__all__ = [
    "ClassifyPrompt",
    "Dialogue",
    "Encoded",
    "Layout",
    "PromptError",
    "Shot",
    "Turn",
    "layout_of",
    "opening_tokens",
    "template_left",
]
