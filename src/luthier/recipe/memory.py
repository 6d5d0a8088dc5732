"""How a training fits into memory: what is kept, what is worked out again, and the most it may take. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from luthier.recipe.base import Part

if TYPE_CHECKING:
    from luthier.recipe.training import Training

DEFAULT_MICRO_BATCH_TOKENS = 2048
WAYS = ("off", "selective", "all")


def known_way(value: Any) -> Any:
    """A way of checkpointing as it is meant: YAML reads `off` as false."""
    if value is False:
        return "off"
    if value in WAYS or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("checkpointing", "must be off, selective, all, or n >= 1 for every n-th layer")


def tokens_or_auto(value: Any) -> Any:
    """A number of tokens, or `auto`."""
    if value == "auto" or (type(value) is int and value >= 16):
        return value
    raise PydanticCustomError("tokens", "must be auto, or a whole number of at least 16")


MicroBatchTokens = Annotated[int | Literal["auto"], BeforeValidator(tokens_or_auto)]
Checkpointing = Annotated[Literal["off", "selective", "all"] | int, BeforeValidator(known_way)]


class Memory(Part):
    """How a training fits into memory. Nothing here changes what is learnt."""

    checkpointing: Checkpointing = Field(
        "off",
        description="Activations that are worked out again in the backward pass instead of being kept. `selective`: "
        "those of norms and gates, a third of all, for next to no time; `all`: every layer keeps its input only, "
        "for about a third more time; a whole number n: every n-th layer does.",
    )
    optimizer_in_backward: bool = Field(
        False,
        description="Update each parameter as soon as its gradient is there, and free the gradient. Needs "
        "`clip_norm: 0` (the norm of all gradients is known too late) and steps of one micro-batch.",
    )
    offload_optimizer: bool = Field(
        False, description="Keep the optimizer's state in the computer's memory and bring it to the GPU piece by piece."
    )
    offload_activations: bool = Field(
        False, description="Keep large activations in the computer's memory between the forward and backward pass."
    )
    limit_bytes: int | None = Field(
        None,
        ge=1,
        description="Most memory that `micro_batch_tokens: auto` may take: of the whole process on a CPU, of the GPU "
        "else. Left out: nine tenths of what is free when the training starts.",
    )
    predict: bool = Field(
        True,
        description="Measure two small steps on the run's own rows before the training and say what memory it will "
        "take. The weights are put back bit for bit.",
    )


def memory_problems(training: Training, where: str) -> list[str]:
    """Rules of `tune.memory` that need more than one field; `where` is the section of the training."""
    memory, problems = training.memory, []
    automatic = training.micro_batch_tokens == "auto"
    if memory.offload_activations and memory.checkpointing == "selective":
        problems.append(
            f"{where}.memory.checkpointing: selective leaves out what is cheap to make again, and offload_activations "
            "takes them all away. Set checkpointing to off or all."
        )
    if memory.optimizer_in_backward and training.clip_norm:
        problems.append(
            f"{where}.memory.optimizer_in_backward: updates are made before the norm of all gradients is known, so "
            f"they cannot be clipped by it (clip_norm: {training.clip_norm:g}). Set {where}.clip_norm: 0."
        )
    if memory.optimizer_in_backward and automatic:
        problems.append(
            f"{where}.memory.optimizer_in_backward: a step must be one micro-batch, and micro_batch_tokens: auto may "
            f"cut it. Set {where}.micro_batch_tokens to a number."
        )
    if memory.limit_bytes is not None and not automatic:
        problems.append(
            f"{where}.memory.limit_bytes: only {where}.micro_batch_tokens: auto reads it. Set that, or leave it out."
        )
    if automatic and not memory.predict:
        problems.append(f"{where}.memory.predict: micro_batch_tokens: auto goes by the prediction. Leave it true.")
    if training.adapter.kind == "none":
        unread = sorted({"checkpointing", "optimizer_in_backward", "offload_activations"} & changed(memory))
        problems += [
            f"{where}.memory.{key}: a linear probe (adapter.kind: none) computes nothing below its head in a step, "
            "so there is nothing to save. Leave it out."
            for key in unread
        ]
    return problems


def changed(memory: Memory) -> set[str]:
    """Keys that are not at their default."""
    return {name for name, field in Memory.model_fields.items() if getattr(memory, name) != field.default}
