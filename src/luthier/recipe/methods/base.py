"""What the settings of every method share."""

from __future__ import annotations

from typing import Any, ClassVar

from luthier.recipe.base import Part


class MethodPart(Part):
    """Settings of one method. `tune` holds the rates and lengths that suit it, where they differ from the rest."""

    kind: str
    tune: ClassVar[dict[str, Any]] = {}
