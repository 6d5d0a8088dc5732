"""What is trained: one section a kind of adapter. No torch here.

A kind is a section here and a file in `luthier/adapters/`; `kind` names it in a recipe.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind, kind_or

Targets = list[str] | Literal["all-linear"]
Activation = Literal["relu", "gelu", "silu", "tanh"]


class AdapterKeys(Kind):
    """What every kind of adapter says of itself, beside its keys."""

    rate_factor: ClassVar[float] = 1.0  # the learning rate that suits it, over the one that suits lora
    folds: ClassVar[bool] = True  # its updates can be written into the weights
    starts_equal: ClassVar[bool] = True  # a fresh one leaves the model's answers as they are

    @property
    def told(self) -> str:
        """The kind and its size in a few words, for a report."""
        return str(self.kind)

    @property
    def virtual_tokens(self) -> int:
        """Places of the model's context that the adapter takes."""
        return 0

    @property
    def exact_weights(self) -> bool:
        """Whether it trains or changes the model's weights, so that they are kept in float32."""
        return False

    def stacks_on(self, below: Kind) -> bool:
        """Whether one adapter can hold exactly what `below` and this one over it do together."""
        return False


class LowRank(AdapterKeys):
    """The keys of low-rank updates."""

    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32.0, gt=0, description="Scale: the update counts alpha / rank.")
    scaling: Literal["plain", "rslora"] = Field(
        "plain",
        description="`rslora`: the update counts alpha / sqrt(rank) instead (Kalajdzievski 2023), which keeps large "
        "ranks learning; lower alpha with it.",
    )
    dora: bool = Field(
        False,
        description="Learn the length of each output's weights apart from their direction (DoRA, Liu et al. 2024). "
        "Often better at small ranks; a step takes about twice as long.",
    )
    lora_plus: float = Field(
        1.0,
        ge=1,
        strict=False,
        description="Learning rate of the B matrices over that of the A matrices (LoRA+, Hayou et al. 2024); 1: the "
        "same, 16 is the paper's.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update. A shared prefix shares its mask.")
    targets: Targets = Field(
        "all-linear", description="Module names that get an adapter, or all linear layers but the head."
    )
    last: int = Field(0, ge=0, description="Only the last so many layers get one; 0: all of them.")

    @property
    def exact_weights(self) -> bool:
        """DoRA measures them."""
        return self.dora

    @property
    def told(self) -> str:
        """Such as LoRA rank 16."""
        extra = ["DoRA"] if self.dora else []
        extra += ["rsLoRA"] if self.scaling == "rslora" else []
        return f"{'QLoRA' if self.kind == 'qlora' else 'LoRA'} rank {self.rank}" + "".join(f", {e}" for e in extra)


class Lora(LowRank):
    """Low-rank updates of linear layers (LoRA, Hu et al. 2021), saved in PEFT's format."""

    kind: Literal["lora"] = Field("lora", description="Low-rank updates of linear layers.")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = Field(
        "default",
        description="How A and B begin. `default`, `gaussian`: A by chance, B zero. `orthogonal`: both by chance, with "
        "a product of zero. `pissa` (Meng et al. 2024) and `olora` (Buyukakyuz 2024) begin with the largest "
        "directions of the weights, which are taken out of them; the saved adapter has twice the rank and fits the "
        "model as it was.",
    )

    @property
    def changes_base(self) -> bool:
        """Whether the weights under a fresh adapter are no longer the model's own."""
        return self.init in ("pissa", "olora")

    @property
    def exact_weights(self) -> bool:
        """A beginning out of the weights is taken out of them."""
        return self.changes_base or super().exact_weights

    def stacks_on(self, below: Kind) -> bool:
        """Low-rank updates add, unless DoRA divides by what they add up to."""
        return isinstance(below, Lora) and not (self.dora or below.dora)


class Qlora(LowRank):
    """LoRA over a base whose linear layers are kept in 4 bits (QLoRA, Dettmers et al. 2023)."""

    kind: Literal["qlora"] = Field("qlora", description="lora over weights that are kept in 4 bits (NF4).")
    double: bool = Field(True, description="Keep the scales of the 4-bit blocks in 8 bits as well.")
    init: Literal["default", "gaussian"] = Field("default", description="How A begins; B is zero.")

    @property
    def exact_weights(self) -> bool:
        """They are packed as they are in the file."""
        return True


class Full(AdapterKeys):
    """The model's own weights, all of them or some."""

    rate_factor: ClassVar[float] = 0.1
    kind: Literal["full"] = Field("full", description="The model's own weights learn, all of them or some.")
    last: int = Field(0, ge=0, description="Only the last so many layers and what stands above them; 0: all layers.")
    pattern: str = Field(
        "",
        description="Only parameters in whose name this regular expression is found (`mlp`, `layers\\.2[0-9]\\.`); "
        "transformers' names, such as `model.layers.29.mlp.up_proj.weight`.",
    )
    norms: bool = Field(True, description="Whether the weights of norms learn too.")
    embeddings: bool | None = Field(
        None,
        description="Whether the token embeddings and the output head learn too; by default where `last` is 0. Tied "
        "ones are one matrix, and so learn from both sides.",
    )

    @property
    def told(self) -> str:
        """Such as the last 2 layers."""
        where = f"the weights of the last {self.last} layers" if self.last else "the model's own weights"
        return where + (f" that match {self.pattern}" if self.pattern else "")

    @property
    def with_embeddings(self) -> bool:
        """Whether embeddings and output head learn."""
        return self.last == 0 if self.embeddings is None else self.embeddings

    @property
    def exact_weights(self) -> bool:
        """They learn."""
        return True

    def stacks_on(self, below: Kind) -> bool:
        """Weights over weights are weights."""
        return isinstance(below, Full)


class Ia3(AdapterKeys):
    """Learned factors on keys, values and the inner width of the MLP (IA3, Liu et al. 2022), in PEFT's format."""

    rate_factor: ClassVar[float] = 10.0
    kind: Literal["ia3"] = Field("ia3", description="One learned factor for each key, value and inner neuron.")
    targets: list[str] | Literal["auto"] = Field(
        "auto", description="Module names that get factors; `auto`: those that suit the family."
    )
    feedforward: list[str] | Literal["auto"] = Field(
        "auto", description="Those of the targets whose input is scaled, not their output."
    )

    def stacks_on(self, below: Kind) -> bool:
        """Factors multiply, where they stand at the same places."""
        places = ("targets", "feedforward")
        return isinstance(below, Ia3) and all(getattr(self, key) == getattr(below, key) for key in places)


class VirtualTokens(AdapterKeys):
    """The keys of kinds that put learned rows before every text."""

    folds: ClassVar[bool] = False
    starts_equal: ClassVar[bool] = False
    tokens: int = Field(16, ge=1, description="Number of learned rows; each takes a place of the model's context.")
    text: str = Field(
        "", description="They begin as the tokens of this text, repeated where it is short; without it, as random ones."
    )

    @property
    def told(self) -> str:
        """Such as prompt of 16 rows."""
        return f"{self.kind} of {self.tokens} learned rows"

    @property
    def virtual_tokens(self) -> int:
        """All of them."""
        return self.tokens


class Prompt(VirtualTokens):
    """Learned embeddings before every text (prompt tuning, Lester et al. 2021), in PEFT's format."""

    rate_factor: ClassVar[float] = 20.0
    kind: Literal["prompt"] = Field("prompt", description="Learned embeddings before every text.")


class Prefix(VirtualTokens):
    """Learned keys and values of every layer before every text (prefix tuning, Li and Liang 2021), in PEFT's format."""

    rate_factor: ClassVar[float] = 10.0
    kind: Literal["prefix"] = Field("prefix", description="Learned keys and values of every layer before every text.")


class Bottleneck(AdapterKeys):
    """Two small layers with a bend between them behind the parts of each layer (Houlsby et al. 2019)."""

    folds: ClassVar[bool] = False
    kind: Literal["bottleneck"] = Field(
        "bottleneck", description="Two small layers with an activation between them, behind the parts of each layer."
    )
    style: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby",
        description="`houlsby`: behind the attention and behind the MLP (Houlsby et al. 2019). `pfeiffer`: behind the "
        "MLP alone (Pfeiffer et al. 2020), half as many parameters.",
    )
    size: int = Field(64, ge=1, description="Width of the bottleneck, in neurons.")
    activation: Activation = Field("gelu", description="The function between the two layers.")
    scale: float = Field(1.0, gt=0, strict=False, description="What the adapter's output counts.")

    @property
    def told(self) -> str:
        """Such as bottleneck (houlsby) of 64 neurons."""
        return f"bottleneck ({self.style}) of {self.size} neurons"


class Sparse(AdapterKeys):
    """A wide block beside each MLP, of which a token uses a few neurons (MEFT, Hao et al. 2024)."""

    folds: ClassVar[bool] = False
    kind: Literal["sparse"] = Field(
        "sparse", description="A wide block beside each MLP; of its neurons each token computes and changes a few."
    )
    width: int = Field(4096, ge=1, description="Neurons beside each MLP.")
    top: int = Field(64, ge=1, description="Neurons that a token uses: those with the highest scores.")
    groups: int = Field(
        64,
        ge=1,
        description="Groups of neurons (key experts). A learned router chooses a token's groups first, and only their "
        "neurons are scored. The square root of width is a good number; 1: all are scored.",
    )
    active_groups: int = Field(8, ge=1, description="Groups that a token looks into.")
    activation: Activation = Field("relu", description="The function of a neuron's score.")
    scale: float = Field(1.0, gt=0, strict=False, description="What the adapter's output counts.")
    held: Literal["cpu", "device"] = Field(
        "cpu",
        description="Where the neurons are kept, with their gradients and the optimizer's state: in the memory of the "
        "CPU, from which the rows that a step needs are moved, or on the model's device. On a CPU it is one.",
    )

    @property
    def told(self) -> str:
        """Such as sparse, 64 of 4096 neurons."""
        return f"sparse, {self.top} of {self.width} neurons"

    @property
    def scored(self) -> int:
        """Neurons of the groups that a token looks into."""
        return self.active_groups * self.width // self.groups

    @property
    def problems(self) -> list[str]:
        """Groups of one size, and enough neurons in those that a token looks into."""
        if self.width % self.groups:
            return [f"groups: {self.width} neurons do not make {self.groups} groups of one size."]
        if self.active_groups > self.groups:
            return [f"active_groups: a token cannot look into {self.active_groups} groups, there are {self.groups}."]
        if self.top > self.scored:
            within = f"{self.active_groups} of the groups have {self.scored} neurons"
            return [f"top: {within}, so a token cannot use {self.top}. Lower it, or raise active_groups."]
        return []


class Probe(AdapterKeys):
    """No adapter: a head learns on the frozen model."""

    kind: Literal["none"] = Field(
        "none",
        description="A head alone learns, on the frozen model (a linear probe): what it reads is computed once and "
        "kept, and epochs cost seconds. For stages with a head.",
    )

    @property
    def told(self) -> str:
        """What learns."""
        return "a head on the frozen model"


KINDS: tuple[type[AdapterKeys], ...] = (Lora, Qlora, Full, Ia3, Prompt, Prefix, Bottleneck, Sparse, Probe)


with_kind = kind_or("lora")
AdapterSettings = Annotated[
    Lora | Qlora | Full | Ia3 | Prompt | Prefix | Bottleneck | Sparse | Probe, Field(discriminator="kind")
]
Adapter = Annotated[AdapterSettings, BeforeValidator(with_kind)]
