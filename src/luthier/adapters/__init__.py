"""Kinds of adapters: what is trained, saved and loaded. The formats are PEFT's wherever PEFT has the kind."""

from luthier.adapters.base import CONFIG, WEIGHTS, AdapterKind, Plain
from luthier.adapters.fused import fuse
from luthier.adapters.registry import (
    add_adapter,
    folded,
    joined,
    kind_of,
    load_adapter,
    name_base_model,
    needs_exact_weights,
)

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "AdapterKind",
    "Plain",
    "add_adapter",
    "folded",
    "fuse",
    "joined",
    "kind_of",
    "load_adapter",
    "name_base_model",
    "needs_exact_weights",
]
