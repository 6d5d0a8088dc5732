"""GGUF files to safetensors, de-quantised once through transformers' own loader."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from luthier.errors import ModelError
from luthier.files import new_folder
from luthier.models.load import first_line, refuse_incomplete


def convert_gguf(path: Path, target: Path) -> None:
    """Write model and tokenizer of a GGUF file as a transformers folder of float32 safetensors.

    Raises ModelError for a file that is no GGUF or whose family transformers does not know.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file (its first four bytes are not GGUF).")
    try:
        hf_logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model, found = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise ModelError(
            f"{path}: transformers cannot read this GGUF file ({first_line(error)}). "
            "Its family may be unknown to it; give the original model's folder or hub id instead."
        ) from error
    refuse_incomplete(str(path), found)
    # the weights are plain float32 now; transformers refuses to save while it believes them quantised
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    with new_folder(target) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
