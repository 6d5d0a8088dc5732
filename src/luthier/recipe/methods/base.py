"""What the settings of every method share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from luthier.recipe.base import Kind

ModelKind = Literal["decoder", "masked", "permuted", "any"]


class MethodPart(Kind):
    """Settings of one method. `tune` holds the rates and lengths that suit it, where they differ from the rest.

    `search` holds what a sweep without a space of its own tries of the method's keys, beside rates and lengths.

    `model` says which models can learn it: those that write from left to right (`decoder`), that guess masked tokens
    (`masked`), with XLNet's two streams (`permuted`), or `any`.
    """

    model: ClassVar[ModelKind] = "decoder"
    tune: ClassVar[dict[str, Any]] = {}
    search: ClassVar[dict[str, Any]] = {}
