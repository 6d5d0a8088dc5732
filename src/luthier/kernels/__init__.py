"""Elementwise work of transformers' layers in fewer passes over memory, forward and backward."""

from luthier.kernels.quicken import quicken

__all__ = ["quicken"]
