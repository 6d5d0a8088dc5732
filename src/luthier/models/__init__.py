"""Models: found, fetched, loaded, described."""

from luthier.models.load import LoadedModel, load_model, load_outline, save_model, token_counter
from luthier.models.store import STARTERS, find_model, list_models, public_name, pull_model

__all__ = [
    "STARTERS",
    "LoadedModel",
    "find_model",
    "list_models",
    "load_model",
    "load_outline",
    "public_name",
    "pull_model",
    "save_model",
    "token_counter",
]
