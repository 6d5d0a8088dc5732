"""luthier: adapt a language model to your domain, prove it was worth it, use the result.

`run` a recipe, `train` one of stages, `sweep` one over values, `load` a finished run, `merge` its adapter into the
model, `find_rate` for a recipe, `load_recipe` or `load_stages` without running it. A run of stages answers through
`luthier.stages`: `load`, `load_head`, `load_reward`. Errors that a user can mend are `LuthierError`; a stop on
request is `Stopped`. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.errors import DataError, LuthierError, ModelError, RecipeError, RunError, TrainingError
    from luthier.merging import merge
    from luthier.pipeline import run
    from luthier.predictor import load
    from luthier.rate_search import find_rate
    from luthier.recipe import Recipe, load_recipe
    from luthier.recipe.stages import TrainRecipe, load_stages
    from luthier.stages import train
    from luthier.stopped import Stopped
    from luthier.sweeps import sweep

__all__ = [
    "DataError",
    "LuthierError",
    "ModelError",
    "Recipe",
    "RecipeError",
    "RunError",
    "Stopped",
    "TrainRecipe",
    "TrainingError",
    "find_rate",
    "load",
    "load_recipe",
    "load_stages",
    "merge",
    "run",
    "sweep",
    "train",
]
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
    "TrainRecipe": "recipe.stages",
    "load_stages": "recipe.stages",
    "Stopped": "stopped",
    **dict.fromkeys(("DataError", "LuthierError", "ModelError", "RecipeError", "RunError", "TrainingError"), "errors"),
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"luthier.{_HOMES[name]}"), name)
