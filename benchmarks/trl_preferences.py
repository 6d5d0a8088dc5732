"""TRL's preference trainers on luthier's own tokens, masks and references, so that both sides compute the same thing.

TRL tokenises texts itself; here every trainer gets the tokens that luthier's view made, and nothing else of it is
changed but one term: TRL's ORPO takes the supervised loss over prompt and answer, the paper (equation 2) over the
answer, as luthier does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence as ManyOf
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from luthier.methods.base import Example
from luthier.models import LoadedModel
from luthier.records import Sequence

COMMON = {
    "max_length": None,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


# --- rows ----------------------------------------------------------------------------------------------


def parted(sequence: Sequence) -> tuple[list[int], list[int]]:
    """Prompt and answer."""
    start = sequence.targets[0]
    return list(sequence.tokens[:start]), list(sequence.tokens[start:])


def dataset_of(kind: str, examples: ManyOf[Example]) -> Dataset:
    """luthier's examples as rows with TRL's column names."""
    if kind == "kto":
        return Dataset.from_list([row for example in examples for row in kto_rows(example)])
    if kind == "reward":
        return Dataset.from_list(
            [{"chosen_ids": list(a.tokens), "rejected_ids": list(b.tokens)} for a, b in (e.sequences for e in examples)]
        )
    return Dataset.from_list([pair_row(example) for example in examples])


def pair_row(example: Example) -> dict[str, Any]:
    """A pair; the texts are there because TRL looks at them before it tokenises."""
    (prompt, chosen), (_, rejected) = (parted(sequence) for sequence in example.sequences)
    row: dict[str, Any] = {"prompt": "x", "chosen": "y", "rejected": "z"}
    row |= {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
    if example.reference_S:
        row |= dict(zip(("ref_chosen_logps", "ref_rejected_logps"), example.reference_S, strict=True))
    return row


def kto_rows(example: Example) -> list[dict[str, Any]]:
    """Each rated answer of a row, with the mismatched answer that luthier chose."""
    rated = len(example.gold)
    rows = []
    for i, good in enumerate(example.gold):
        prompt, answer = parted(example.sequences[i])
        _, stranger = parted(example.sequences[rated + i])
        rows.append(
            {
                "prompt_ids": prompt,
                "completion_ids": answer,
                "KL_completion_ids": stranger,
                "label": bool(good),
                "ref_logps": example.reference_S[i],
                "ref_KL_logps": example.reference_S[rated + i],
            }
        )
    return rows


def padded_rows(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of TRL's older collator (ORPO, CPO)."""
    prompt = row["prompt_ids"]
    made: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side in ("chosen", "rejected"):
        answer = row[f"{side}_ids"]
        made[f"{side}_input_ids"] = prompt + answer
        made[f"{side}_attention_mask"] = [1] * (len(prompt) + len(answer))
        made[f"{side}_labels"] = [-100] * len(prompt) + answer
    return made


# --- trainers ------------------------------------------------------------------------------------------


class GivenTokens:
    """Rows come tokenised and with their references."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def tokenize_row(self, row: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        """A row for the older collator."""
        return padded_rows(row)


class Dpo(GivenTokens, DPOTrainer):
    """TRL's DPO."""


class Kto(GivenTokens, KTOTrainer):
    """TRL's KTO."""


class Reward(GivenTokens, RewardTrainer):
    """TRL's reward model."""


class SimPo(GivenTokens, CPOTrainer):
    """TRL's SimPO, a loss of its CPO."""


class Orpo(GivenTokens, ORPOTrainer):
    """TRL's ORPO with the paper's supervised loss: the mean over each chosen answer."""

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """(chosen, rejected log p, logits of both, supervised loss)."""
        found = super().concatenated_forward(model, batch)
        return (*found[:4], -found[0].mean())


def configured(kind: str, settings: Any, common: dict[str, Any]) -> tuple[type, Any]:
    """TRL's trainer and its arguments for luthier's settings of a method."""
    if kind == "dpo":
        assert settings.loss != "conservative", "TRL 1.16 has no such loss"
        own = {"beta": settings.beta, "label_smoothing": settings.label_smoothing, "loss_type": [settings.loss]}
        if settings.sft_weight:
            own |= {"loss_type": [settings.loss, "sft"], "loss_weights": [1.0, settings.sft_weight]}
        return Dpo, DPOConfig(**common, **own, precompute_ref_log_probs=True)
    if kind == "kto":
        sides = {"desirable_weight": settings.good_weight, "undesirable_weight": settings.bad_weight}
        own = {"beta": settings.beta, "train_sampling_strategy": "sequential", "precompute_ref_log_probs": True}
        return Kto, KTOConfig(**{**common, **own, **sides})
    if kind == "orpo":
        return Orpo, ORPOConfig(**common, beta=settings.weight)
    if kind == "simpo":
        gamma = settings.beta * settings.margin
        return SimPo, CPOConfig(**common, beta=settings.beta, simpo_gamma=gamma, loss_type="simpo", cpo_alpha=0.0)
    return Reward, RewardConfig(**common, center_rewards_coefficient=settings.centring or None)


def adapted(kind: str, loaded: LoadedModel, adapter: Path, scratch: Path) -> torch.nn.Module:
    """The model with luthier's adapter in PEFT; for a reward model with its head as the score layer."""
    if kind != "reward":
        return PeftModel.from_pretrained(loaded.model, adapter, is_trainable=True)
    model = AutoModelForSequenceClassification.from_pretrained(loaded.folder, num_labels=1, dtype=torch.float32)
    with_head = scratch / "adapter_over_classifier"
    shutil.copytree(adapter, with_head, dirs_exist_ok=True)
    config = json.loads((with_head / "adapter_config.json").read_text(encoding="utf-8"))
    (with_head / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}), encoding="utf-8")
    model.score.weight.data.copy_(load_file(str(adapter / "head.safetensors"))["main.weight"])
    made = PeftModel.from_pretrained(model, with_head, is_trainable=True)
    made.base_model.model.score.weight.requires_grad_(True)
    return made


def make_trainer(
    kind: str, settings: Any, model: torch.nn.Module, examples: ManyOf[Example], tokenizer: Any, more: dict[str, Any]
) -> Any:
    """TRL's trainer over luthier's examples; `more` are further training arguments."""
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    common = {**COMMON, **more}
    if kind in ("orpo", "simpo"):
        common["remove_unused_columns"] = False
        common["max_length"] = max(len(s.tokens) for e in examples for s in e.sequences) + 1
    if kind == "reward":
        common["pad_token"] = unused_special(tokenizer, examples)
    maker, arguments = configured(kind, settings, common)
    return maker(model=model, args=arguments, train_dataset=dataset_of(kind, examples), processing_class=tokenizer)


def unused_special(tokenizer: Any, examples: ManyOf[Example]) -> str:
    """A special token that no row ends with. TRL's reward model reads the last token that is no padding; where the
    padding is the end of turn, as in the starter model, that would be the one before it.
    """
    last = {sequence.tokens[-1] for example in examples for sequence in example.sequences}
    names = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return str(next(name for name, number in names if number not in last))
