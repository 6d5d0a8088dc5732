"""How rows of training data look, in and out: one small file for each shape."""

from luthier.corpus.shapes.base import RowShape, Shape
from luthier.corpus.shapes.conll import conll_text, read_conll
from luthier.corpus.shapes.convert import convert, write_as
from luthier.corpus.shapes.registry import SHAPES, detect, read_shape, shape_for

__all__ = [
    "SHAPES",
    "RowShape",
    "Shape",
    "conll_text",
    "convert",
    "detect",
    "read_conll",
    "read_shape",
    "shape_for",
    "write_as",
]
