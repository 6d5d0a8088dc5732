"""What transformers' layers compute, in fewer passes over memory and with rounded factors, forward and backward."""

from luthier.kernels.products import add_product, linear, product, round_on, rounded_linear
from luthier.kernels.quicken import quicken

__all__ = ["add_product", "linear", "product", "quicken", "round_on", "rounded_linear"]
