"""What transformers' layers compute, in fewer passes over memory and with rounded factors, forward and backward."""

from luthier.kernels.products import (
    add_product,
    is_cast,
    linear,
    product,
    round_on,
    round_products,
    thin_type,
)
from luthier.kernels.quicken import is_gated, narrow, quicken

__all__ = [
    "add_product",
    "is_cast",
    "is_gated",
    "linear",
    "narrow",
    "product",
    "quicken",
    "round_on",
    "round_products",
    "thin_type",
]
