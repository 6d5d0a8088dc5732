"""How weights learn, whatever the method: steps, rates, schedule, adapter. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from luthier.recipe.adapter_rules import adapter_problems, suited_rate
from luthier.recipe.adapters import Adapter, Lora, Probe
from luthier.recipe.averaging import Averaging, NoAverage, Stop
from luthier.recipe.base import Part
from luthier.recipe.checkpoints import Checkpoints
from luthier.recipe.memory import DEFAULT_MICRO_BATCH_TOKENS, Memory, MicroBatchTokens, memory_problems
from luthier.recipe.optimizers import AdamW, Optimizer, Sgd
from luthier.recipe.schedules import Cosine, LearningRateSchedule, Plateau
from luthier.recipe.unfreezing import NoThaw, Unfreezing, layer_problems

LEARNING_RATE = 5e-4  # of lora
# a training goes on with other values of these
NOT_OF_RESULTS = frozenset(["micro_batch_tokens", "memory", "checkpoints", "parallel", "cache_gigabytes"])


class Training(Part):
    """How weights learn."""

    epochs: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Passes over the training rows; a share of one too.", strict=False
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description="Most optimizer steps: where `epochs` would take more, the training is planned for these, its "
        "schedule too.",
    )
    batch_size: int = Field(16, ge=1, description="Rows of one optimizer step; the last step has those that are left.")
    micro_batch_tokens: MicroBatchTokens = Field(
        DEFAULT_MICRO_BATCH_TOKENS,
        description="Most distinct tokens of one forward pass; more are split, exactly. `auto`: as many as fit into "
        "memory, found before the training and halved whenever memory runs out.",
    )
    memory: Memory = Field(default_factory=Memory, description="How the training fits into memory.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        LEARNING_RATE,
        description="Peak learning rate of the adapter. Left out, it is the one that suits its kind: this one for "
        "lora, a tenth of it for full, ten times it for ia3 and prefix, twenty times for prompt.",
        strict=False,
    )
    head_learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-3, description="Peak learning rate of a head, where the method has one.", strict=False
    )
    warmup_share: float = Field(0.06, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    warmup_steps: int | None = Field(
        None, ge=0, description="Number of steps with rising learning rate, in the place of `warmup_share`."
    )
    schedule: LearningRateSchedule = Field(
        default_factory=Cosine, description="The rate after warm-up: a kind (`cosine`), or its keys."
    )
    optimizer: Optimizer = Field(
        default_factory=AdamW, description="How an update is made from a gradient: a kind (`adamw`), or its keys."
    )
    weight_decay: float = Field(
        0.01, ge=0, strict=False, description="Weight decay of matrices (not of vectors, norms and embeddings)."
    )
    clip_norm: float = Field(1.0, ge=0, description="Largest gradient norm; 0 turns clipping off.")
    metric: str = Field(
        "loss",
        min_length=1,
        description="What a validation is judged by: `loss`, or any figure that is validated (`accuracy`, "
        "`bits_per_byte`). It chooses the best step; `stop` and the schedule `plateau` look at it.",
    )
    stop: Stop | None = Field(None, description="End early, once validation has stopped getting better.")
    average: Averaging = Field(
        default_factory=NoAverage,
        description="Validate and save an average of the weights over the steps: a kind (`ema`), or its keys.",
    )
    neftune_alpha: float = Field(
        0.0,
        ge=0,
        strict=False,
        description="Noise on the embeddings of trained rows (NEFTune, Jain et al. 2023), uniform and at most this "
        "over the root of tokens times width; 5 to 15 where it helps. A shared prefix shares its noise. 0: off.",
    )
    layer_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the layers that a step skips, others each time (LayerDrop, Fan et al. 2020). 0: off.",
    )
    unfreeze: Unfreezing = Field(
        default_factory=NoThaw,
        description="What is trained thaws from the head downwards (gradual unfreezing, Howard and Ruder 2018): a kind "
        "(`share`), or its keys. Layers that have not thawed cost no backward pass.",
    )
    layer_rate_factor: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Learning rate of a layer over that of the layer above it; the top layer has `learning_rate`. "
        "0.385 is 1 / 2.6, the rule of Howard and Ruder 2018 for three layers; for 12 to 30 take 0.8 to 0.95.",
    )
    cache_below: bool = Field(
        False,
        description="Compute what the frozen layers below the lowest trained one say once, keep it on disk, and train "
        "the layers above on that: the same result, and every pass skips those layers. With `adapter.last`.",
    )
    cache_gigabytes: Annotated[float, Field(gt=0)] = Field(
        16.0,
        strict=False,
        description="Most disk that kept states may take (`cache_below`, and features of a linear probe).",
    )
    evaluate_every: int = Field(
        0, ge=0, description="Steps between validations; 0: four times an epoch, or a shorter training."
    )
    checkpoints: Checkpoints = Field(
        default_factory=Checkpoints, description="When training is saved, and how much of it is kept."
    )
    parallel: Literal["auto", "replicate", "shard"] = Field(
        "auto",
        description="How several processes (torchrun) hold the model. `replicate`: each has all of it, and the "
        "gradients of what is trained are added up; `shard`: each has a part of every layer (FSDP2). `auto`: shards "
        "where the model's own weights learn (adapter.kind: full), replicas else. One process needs neither.",
    )
    adapter: Adapter = Field(default_factory=Lora, description="What is trained: a kind (`lora`), or its keys.")

    @model_validator(mode="before")
    @classmethod
    def with_suited_rate(cls, values: Any) -> Any:
        """The learning rate of the kind of adapter, where none is set."""
        return suited_rate(values, LEARNING_RATE)

    @property
    def pass_tokens(self) -> int:
        """Most distinct tokens of a pass: the number that is set, or the default where `auto` has not found one yet."""
        found = self.micro_batch_tokens
        return found if isinstance(found, int) else DEFAULT_MICRO_BATCH_TOKENS

    @property
    def exact_weights(self) -> bool:
        """Whether the model's weights are kept in float32; the parts of a shard are all of one type."""
        return self.adapter.exact_weights or self.parallel == "shard"


def tune_problems(tune: Training, where: str, validated: bool) -> list[str]:
    """Rules of a training that need more than one field. `validated`: whether there are validation rows."""
    problems = memory_problems(tune, where) + adapter_problems(tune.adapter, f"{where}.adapter")
    problems += layer_problems(tune, where, validated)
    if isinstance(tune.optimizer, Sgd) and tune.optimizer.nesterov and not tune.optimizer.momentum:
        problems.append(f"{where}.optimizer.nesterov: looks ahead along the momentum, and there is none. Set momentum.")
    looking = {
        "metric": tune.metric != "loss",
        "stop": tune.stop is not None,
        "schedule": isinstance(tune.schedule, Plateau),
    }
    problems += [
        f"{where}.{key}: looks at validation rows, and none are held out. Set data.validation_share, or leave it out."
        for key, looks in looking.items()
        if looks and not validated
    ]
    if isinstance(tune.adapter, Probe):
        problems += [
            f"{where}.{key}: adapter.kind: none trains a head on features that are computed once, which this would "
            "change at each step. Leave it out, or take another adapter."
            for key in ("neftune_alpha", "layer_drop")
            if getattr(tune, key)
        ]
    return problems
