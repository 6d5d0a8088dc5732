"""Stages of training: rows of any kind in, one method after the other, held-out figures before and after each."""

from luthier.stages.run import train

__all__ = ["train"]
