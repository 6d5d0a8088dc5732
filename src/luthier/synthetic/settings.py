"""The synthetic part of a recipe file. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.recipe.base import explain
from luthier.recipe.reading import anchor, read_values, require_kind
from luthier.recipe.synthetic import Synthetic, synthetic_problems

PREFIX = "data.synthetic."


def load_synthetic(path: str | Path, overrides: Sequence[str] = ()) -> Synthetic:
    """The section `data.synthetic` of a recipe file; what else the recipe says need not be there yet.

    Raises:
        RecipeError: with every problem found.
    """
    path = Path(path)
    values, problems = read_values(path, overrides)
    require_kind(values, str(path), ("synthesize",), problems)
    data = values.get("data")
    section = data.get("synthetic") if isinstance(data, dict) else None
    if not isinstance(section, dict):
        raise RecipeError(str(path), [*problems, "has no section data.synthetic with the key inputs."])
    folder = path.parent.resolve()
    inputs = section.get("inputs")
    for source in inputs if isinstance(inputs, list) else []:
        anchor(source, "path", folder)
    anchor(section.get("columns"), "path", folder)
    return parse_synthetic(section, str(path), problems)


def parse_synthetic(values: dict[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> Synthetic:
    """Synthetic settings from plain values; RecipeError lists all problems at once."""
    try:
        settings = Synthetic.model_validate(values)
    except ValidationError as error:
        raise RecipeError(
            source, [*problems, *(PREFIX + explain(item, Synthetic) for item in error.errors())]
        ) from None
    if found := [*problems, *(PREFIX + problem for problem in synthetic_problems(settings))]:
        raise RecipeError(source, found)
    return settings
