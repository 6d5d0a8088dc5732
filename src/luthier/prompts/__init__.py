"""Prompts: from records to tokens, with the trained tokens known. One object in training, evaluation and serving."""

from luthier.prompts.classify import ClassifyPrompt, Encoded, Shot
from luthier.prompts.dialogue import Dialogue, PromptError, Turn
from luthier.prompts.layout import Layout, opening_tokens

__all__ = ["ClassifyPrompt", "Dialogue", "Encoded", "Layout", "PromptError", "Shot", "Turn", "opening_tokens"]
