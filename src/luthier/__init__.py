"""luthier: adapt a language model to your domain, prove it was worth it, use the result.

`run` a recipe, `train` one of stages, `load` a finished run, `merge` its adapter into the model, `find_rate` for a
recipe, `load_recipe` without running it. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.merging import merge
    from luthier.pipeline import run
    from luthier.predictor import load
    from luthier.rate_search import find_rate
    from luthier.recipe import Recipe, load_recipe
    from luthier.stages import train
    from luthier.sweeps import sweep

__all__ = ["Recipe", "find_rate", "load", "load_recipe", "merge", "run", "sweep", "train"]
__version__ = "0.1.0"

_HOMES = {
    "run": "pipeline",
    "load": "predictor",
    "merge": "merging",
    "find_rate": "rate_search",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "sweep": "sweeps",
    "train": "stages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"luthier.{_HOMES[name]}"), name)
