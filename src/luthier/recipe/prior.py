"""How often each label is expected among the rows to be sorted. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from luthier.errors import did_you_mean

NAMED = ("train", "uniform")
ROUNDED = 0.01  # how far shares may miss 1 together


def known_prior(value: Any) -> Any:
    """A name, or a share of each label, as floats."""
    if isinstance(value, Mapping):
        wrong = [f"{label}: {share!r}" for label, share in value.items() if not is_share(share)]
        if wrong:
            raise PydanticCustomError(
                "share", "a share is a number between 0 and 1 ({wrong})", {"wrong": ", ".join(wrong)}
            )
        if any(label is None or isinstance(label, bool) for label in value):
            raise PydanticCustomError("label", "a label is a text; put words such as yes, no and null in quotes")
        return {str(label): float(share) for label, share in value.items()}
    if value not in NAMED:
        message = "use train (the shares of the training rows), uniform, or LABEL: SHARE for every label"
        raise PydanticCustomError("prior", message)
    return value


def is_share(value: Any) -> bool:
    """Whether this is a number between 0 and 1, ends not counted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


ClassPrior = Annotated[Literal["train", "uniform"] | dict[str, float], BeforeValidator(known_prior)]


def prior_problems(prior: ClassPrior | None, labels: Sequence[str]) -> list[str]:
    """What is wrong with the shares of a recipe whose labels are these."""
    if not isinstance(prior, dict):
        return []
    problems = [
        f'data.class_prior: "{label}" is not in task.labels.{did_you_mean(label, labels)}'
        for label in prior
        if label not in labels
    ]
    missing = [label for label in labels if label not in prior]
    if missing:
        problems.append(f"data.class_prior: no share for {', '.join(missing)}. Every label needs one.")
    elif not problems and abs(sum(prior.values()) - 1) > ROUNDED:
        problems.append(f"data.class_prior: the shares add up to {sum(prior.values()):g}, not to 1.")
    return problems
