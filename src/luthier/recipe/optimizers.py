"""How an update is made from a gradient: one section a kind of optimizer. No torch here.

A kind is a section here and a line in `luthier/training/optimizers.py`. All of them take `tune.learning_rate` as their
rate and `tune.weight_decay` as their decay.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from luthier.recipe.base import Kind, kind_or

Beta = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, strict=False)]  # YAML reads 1e-8 as a text


class AdamW(Kind):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: Literal["adamw"] = Field("adamw", description="Right for nearly everything.")
    beta1: Beta = Field(0.9, description="Share of the mean gradient that is kept at each step.")
    beta2: Beta = Field(0.999, description="Share of the mean squared gradient that is kept at each step.")
    eps: Small = Field(1e-8, description="Added to the root of the mean squared gradient.")


class Adam(Kind):
    """Adam (Kingma and Ba 2015); weight decay is added to the gradient, and so divided by its size as well."""

    kind: Literal["adam"] = Field("adam", description="To repeat older work; adamw is the better default.")
    beta1: Beta = Field(0.9, description="Share of the mean gradient that is kept at each step.")
    beta2: Beta = Field(0.999, description="Share of the mean squared gradient that is kept at each step.")
    eps: Small = Field(1e-8, description="Added to the root of the mean squared gradient.")


class Adam8bit(Kind):
    """AdamW whose moments are kept in 8 bits, in blocks with a scale each (Dettmers et al. 2022)."""

    kind: Literal["adam8bit"] = Field(
        "adam8bit",
        description="A quarter of AdamW's memory for moments, where whole weights are trained. Needs luthier[qlora]; "
        "slow on a CPU.",
    )
    beta1: Beta = Field(0.9, description="Share of the mean gradient that is kept at each step.")
    beta2: Beta = Field(0.999, description="Share of the mean squared gradient that is kept at each step.")
    eps: Small = Field(1e-8, description="Added to the root of the mean squared gradient.")


class Sgd(Kind):
    """Stochastic gradient descent with momentum. Needs a rate some hundred times that of adamw."""

    kind: Literal["sgd"] = Field("sgd", description="Least memory; slow on transformers.")
    momentum: Beta = Field(0.9, description="Share of the last update that is kept; 0 is plain descent.")
    nesterov: bool = Field(False, description="Look ahead along the momentum (Nesterov); needs one.")


class RmsProp(Kind):
    """Gradients over the root of their mean square (Hinton 2012)."""

    kind: Literal["rmsprop"] = Field("rmsprop", description="Adam without its mean gradient and its correction.")
    alpha: Beta = Field(0.99, description="Share of the mean squared gradient that is kept at each step.")
    momentum: Beta = Field(0.0, description="Share of the last update that is kept.")
    eps: Small = Field(1e-8, description="Added to the root of the mean squared gradient.")


class Adafactor(Kind):
    """Adam without mean gradient, its mean squares kept as a row and a column (Shazeer and Stern 2018)."""

    kind: Literal["adafactor"] = Field("adafactor", description="Next to no memory for moments.")
    beta2_decay: float = Field(
        -0.8, lt=0, description="At step t the mean squared gradient takes t ** this from the new one."
    )
    clip: float = Field(1.0, ge=1, description="Largest root mean square of an update.")
    smallest_scale: float = Field(
        1.0,
        gt=0,
        strict=False,
        description="An update is the rate times the parameter's root mean square, at least this. With 1 the rate "
        "counts as it is, which adapters need (they start at zero); 0.001 is the paper's rule, for whole weights.",
    )


class Lion(Kind):
    """The sign of a mean gradient (Chen et al. 2023). Takes a third to a tenth of adamw's rate."""

    kind: Literal["lion"] = Field("lion", description="Half of AdamW's memory for moments.")
    beta1: Beta = Field(0.9, description="Share of the kept mean in the update's sign.")
    beta2: Beta = Field(0.99, description="Share of the mean gradient that is kept at each step.")


class Muon(Kind):
    """Matrices move along the orthogonal part of their momentum (Jordan et al. 2024); all else by AdamW.

    Embeddings, heads and vectors are no matrices of that kind. The update has the size of AdamW's (Liu et al. 2025), so
    adamw's rates hold.
    """

    kind: Literal["muon"] = Field("muon", description="Whole matrices in fewer steps, each a little dearer.")
    momentum: Beta = Field(0.95, description="Share of the mean gradient that is kept at each step.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")
    iterations: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations towards the orthogonal part.")


class GaLore(Kind):
    """AdamW in a low-rank part of the gradient's space, found anew now and then (Zhao et al. 2024).

    Vectors, embeddings and heads, and matrices no larger than the rank, go by AdamW.
    """

    kind: Literal["galore"] = Field("galore", description="Whole weights with the moments of a low rank.")
    rank: int = Field(64, ge=1, description="Rank of the space that moments are kept in.")
    refresh_every: int = Field(200, ge=1, description="Steps between two singular value decompositions.")
    scale: float = Field(0.25, gt=0, description="What the update is multiplied by when it is put back.")
    beta1: Beta = Field(0.9, description="Share of the mean gradient that is kept at each step.")
    beta2: Beta = Field(0.999, description="Share of the mean squared gradient that is kept at each step.")
    eps: Small = Field(1e-8, description="Added to the root of the mean squared gradient.")


OptimizerSettings = Annotated[
    AdamW | Adam | Adam8bit | Sgd | RmsProp | Adafactor | Lion | Muon | GaLore, Field(discriminator="kind")
]
Optimizer = Annotated[OptimizerSettings, BeforeValidator(kind_or("adamw"))]
