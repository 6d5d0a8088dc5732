"""Adapters: what is trained on top of a frozen model."""

from luthier.adapters.lora import add_lora, load_lora, name_base_model, restore_lora, save_lora

__all__ = ["add_lora", "load_lora", "name_base_model", "restore_lora", "save_lora"]
