"""IA3 through PEFT (Liu et al. 2022): factors on keys, values and inner neurons, which merge into the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from peft import IA3Config, PeftModel
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.adapters.base import CONFIG, WEIGHTS
from luthier.adapters.peft_files import has_transposed, load_peft, put_in, restore_peft, save_peft, task_type
from luthier.errors import ModelError
from luthier.files import write_json
from luthier.recipe.adapters import Ia3

# Where PEFT names no modules for a family: those that stand for the same in it. Targets, and which of them are inputs.
FAMILIES = {
    "olmo2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "smollm3": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "phi3": (["qkv_proj", "down_proj"], ["down_proj"]),
}


class Ia3Kind:
    """IA3 as a kind of adapter; see AdapterKind."""

    peft_type: ClassVar[str] = "IA3"

    def add(self, model: nn.Module, settings: Ia3, seed: int, base_folder: Path) -> PeftModel:
        """Factors of one."""
        targets, feedforward = modules_of(model, settings)
        config = IA3Config(
            target_modules=targets,
            feedforward_modules=feedforward,
            fan_in_fan_out=has_transposed(model),
            task_type=task_type(model),
            base_model_name_or_path=str(base_folder),
        )
        return put_in(model, config, seed)

    def load(self, model: nn.Module, folder: Path, trainable: bool) -> PeftModel:
        """A saved one."""
        return load_peft(model, folder, trainable)

    def save(self, wrapper: Any, folder: Path) -> None:
        """In PEFT's format."""
        save_peft(wrapper, folder)

    def restore(self, wrapper: Any, folder: Path) -> None:
        """Back from PEFT's format."""
        restore_peft(wrapper, folder)

    def fold(self, model: nn.Module, folder: Path) -> None:
        """Rows and columns of the weights, multiplied."""
        wrapper: Any = load_peft(model, folder)
        wrapper.merge_and_unload()

    def remove(self, wrapper: Any) -> None:
        """The plain layers again."""
        wrapper.unload()

    def join(self, lower: Path, upper: Path, target: Path) -> None:
        """Factors over factors at the same places are their product."""
        below, above = (json.loads((folder / CONFIG).read_text(encoding="utf-8")) for folder in (lower, upper))
        factors, more = (load_file(str(folder / WEIGHTS)) for folder in (lower, upper))
        same = all(set(below[key]) == set(above[key]) for key in ("target_modules", "feedforward_modules"))
        if not same or factors.keys() != more.keys():
            raise ModelError(
                f"{upper}: its factors stand at other places than those of {lower}, so both together are not one "
                "adapter. Set start: merge for the next stage."
            )
        product = {name: (factors[name] * more[name]).contiguous() for name in factors}
        save_file(product, str(target / WEIGHTS), {"format": "pt"})
        write_json(target / CONFIG, above)


def modules_of(model: nn.Module, settings: Ia3) -> tuple[list[str], list[str]]:
    """Which modules get factors, and which of them on their input. ModelError where a family's are not known."""
    if settings.targets != "auto" and settings.feedforward != "auto":
        return settings.targets, settings.feedforward
    config: Any = model.config
    family = str(config.model_type)
    if family in FAMILIES:
        return FAMILIES[family]
    if family in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING:
        targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[family]
        return targets, TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[family]
    raise ModelError(
        f'tune.adapter: it is not known which modules of the family "{family}" suit ia3. Name them: targets (keys, '
        "values, and the second layer of the MLP), and feedforward (that second layer)."
    )
