"""Stages of training: rows of any kind in, one method after the other, held-out figures before and after each."""

from luthier.stages.answer import load
from luthier.stages.predict import load_head
from luthier.stages.run import train
from luthier.stages.score import load_reward

__all__ = ["load", "load_head", "load_reward", "train"]
