"""A finished run's adapter written into its model: an ordinary model folder, for whatever loads transformers models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from luthier.adapters import WEIGHTS, folded
from luthier.errors import RunError
from luthier.files import new_folder
from luthier.models import load_model, save_model
from luthier.predictor import PROMPT_FILE, is_of_stages
from luthier.prompts.templates import FILE as TEMPLATE_FILE
from luthier.runtime import set_up_torch
from luthier.stages.answer import merged_below, read_result, stage_folder, stage_number
from luthier.training.learner import HEAD_FILE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge(run: str | Path, out: str | Path, stage: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    """Write the model of a finished run, its adapter folded into the weights, to the folder `out`.

    `run` is the folder of `luthier run` or `luthier train`; of the latter, `stage` names which (by default the last).
    `dtype`: float32 is exact; bfloat16 and float16 halve the files and round the weights. A head is copied beside the
    weights; the model folder itself answers as a language model. The chat template that the stage was trained with
    takes the place of the model's own.

    Returns what was done, as plain values. Raises RunError where the run has no adapter, another model lies where its
    model was, or `out` holds something; ModelError where an adapter of its kind cannot be folded.
    """
    folder, target = Path(run), Path(out)
    if dtype not in DTYPES:
        raise RunError(f"--dtype {dtype}: use {', '.join(DTYPES)}.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(f"{target}: is there already, and is not written over. Give a new folder as --out.")
    name, adapter, wanted = parts_of_stages(folder, stage) if is_of_stages(folder) else parts_of_run(folder, stage)
    if not (adapter / WEIGHTS).is_file():
        raise RunError(f"{adapter}: holds no adapter, a head alone was trained. The model is {name}, as it was.")
    set_up_torch()
    model = load_model(name, device="cpu", encoders=True)
    if wanted is not None and model.sha256 != wanted:
        raise RunError(
            f'{run}: the model "{name}" found here is not the one the adapter was trained on (sha256 '
            f"{model.sha256[:12]}, trained on {wanted[:12]}). Fetch that model again."
        )
    folded(model.model, adapter)
    with new_folder(target) as aside:
        save_model(model, aside, DTYPES[dtype])
        if (adapter / TEMPLATE_FILE).is_file():
            shutil.copy2(adapter / TEMPLATE_FILE, aside / TEMPLATE_FILE)
        if (adapter / HEAD_FILE).is_file():
            shutil.copy2(adapter / HEAD_FILE, aside / HEAD_FILE)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return {
        "folder": str(target),
        "model": name,
        "adapter": str(adapter),
        "dtype": dtype,
        "parameters": model.num_parameters,
        "weights_bytes": size,
        "head": (target / HEAD_FILE).is_file(),
    }


def parts_of_run(folder: Path, stage: str | None) -> tuple[str, Path, str | None]:
    """Model, adapter folder and the model's hash, of a run of `luthier run` (or of its adapter folder)."""
    adapter = folder / "adapter" if (folder / "adapter" / PROMPT_FILE).is_file() else folder
    try:
        stored = json.loads((adapter / PROMPT_FILE).read_text(encoding="utf-8"))
        found = str(stored["model"]), adapter, str(stored["model_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(
            f"{folder}: no finished run with an adapter here (no {PROMPT_FILE}, and no result.json of stages). Give "
            "the folder of a finished `luthier run` or `luthier train`."
        ) from None
    if stage is not None:
        raise RunError(f"{folder}: a run of `luthier run` has no stages; leave --stage out.")
    return found


def parts_of_stages(folder: Path, stage: str | None) -> tuple[str, Path, str | None]:
    """Model, adapter folder and the model's hash (none of a model that the run itself merged), of a stage."""
    result = read_result(folder)
    stages = result["stages"]
    number = stage_number(folder, stages, stage)
    merged = merged_below(folder, stages, number)
    name = str(merged or yaml.safe_load(result["recipe"])["model"])
    adapter = stage_folder(folder, stages, number) / "adapter"
    return name, adapter, None if merged else str(result["model"]["sha256"])
