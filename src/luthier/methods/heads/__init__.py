"""Heads: labels, grades and numbers of a text, tags of its words, read off hidden states by a linear layer."""

from luthier.methods.heads.classify import ClassifyHead
from luthier.methods.heads.multilabel import MultiLabelHead
from luthier.methods.heads.ordinal import OrdinalHead
from luthier.methods.heads.regress import RegressHead
from luthier.methods.heads.tag import TagHead

__all__ = ["ClassifyHead", "MultiLabelHead", "OrdinalHead", "RegressHead", "TagHead"]
