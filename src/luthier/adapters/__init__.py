"""Kinds of adapters: what is trained, saved and loaded. The formats are PEFT's."""

from luthier.adapters.fused import fuse
from luthier.adapters.lora import add_lora, load_lora, name_base_model, restore_lora, save_lora
from luthier.adapters.stack import folded, joined_lora

__all__ = ["add_lora", "folded", "fuse", "joined_lora", "load_lora", "name_base_model", "restore_lora", "save_lora"]
