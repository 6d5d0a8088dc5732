"""A finished run as an object that answers: the adapter, and the prompt it was trained with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.errors import DataError, RunError
from luthier.files import require_whole
from luthier.recipe import Recipe, Task
from luthier.recipe.methods import asked_by
from luthier.recipe.prior import ClassPrior, known_prior, prior_problems
from luthier.recipe.reading import read_yaml

if TYPE_CHECKING:
    from luthier.evaluation.arms import Classifier
    from luthier.evaluation.arms.base import Floats
    from luthier.prompts import ClassifyPrompt

PROMPT_FILE, PRIOR_FILE = "prompt.json", "prior.json"


@dataclass(frozen=True)
class Answer:
    """One text's label, its probability, and the probability of every label."""

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Predictor:
    """What `luthier.load(run)` returns. Labels are weighted as in the run, if they were (`data.class_prior`)."""

    classifier: Classifier
    labels: tuple[str, ...]
    train_shares: tuple[float, ...]
    log_weights: tuple[float, ...]

    def predict(self, texts: Sequence[str], class_prior: ClassPrior | None = None) -> list[Answer]:
        """Labels with calibrated probabilities, in the order of `texts`.

        `class_prior` (`train`, `uniform` or a share for each label) weighs the labels anew, so that over these texts
        they come in those shares; DataError where the texts are fewer than ten a label.
        """
        import numpy as np

        from luthier.evaluation.prior import weighted

        if isinstance(texts, str):
            raise TypeError('predict takes a list of texts: predict(["..."])')
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise TypeError(f"text {number} is {text!r}, and no text.")
        if class_prior is not None:
            class_prior = self.checked_prior(class_prior, len(texts))
        if not texts:
            return []
        logprobs_NL = self.classifier.logprobs(list(texts))
        weights_L = np.array(self.log_weights) if class_prior is None else self.fitted(logprobs_NL, class_prior)
        answers = []
        for text, row in zip(texts, np.exp(weighted(logprobs_NL, weights_L)), strict=True):
            best = int(row.argmax())
            shares = {label: float(p) for label, p in zip(self.labels, row, strict=True)}
            answers.append(Answer(text, self.labels[best], float(row[best]), shares))
        return answers

    def problems(self, texts: Sequence[str]) -> dict[int, str]:
        """What is wrong with each of the texts that `predict` would refuse, by its place from 0."""
        return self.classifier.problems(list(texts)) if texts else {}

    def checked_prior(self, class_prior: ClassPrior, num_texts: int) -> ClassPrior:
        """The setting, once it is known to fit the labels and the number of texts."""
        from luthier.evaluation.prior import check_enough

        prior: ClassPrior = known_prior(class_prior)
        if problems := prior_problems(prior, self.labels):
            raise DataError("\n".join(problems))
        check_enough(num_texts, len(self.labels), "texts")
        return prior

    def fitted(self, logprobs_NL: Floats, class_prior: ClassPrior) -> Floats:
        """Log weights of the labels [L] for these texts."""
        import numpy as np

        from luthier.evaluation.prior import prior_shares, prior_weights

        return prior_weights(logprobs_NL, prior_shares(class_prior, self.labels, np.array(self.train_shares)))


def describe_prompt(
    prompt: ClassifyPrompt, recipe: Recipe, model_sha256: str, temperature: float, train_shares: Floats
) -> dict[str, Any]:
    """What is stored beside an adapter so that it can only be asked as it was trained."""
    return {
        "format": 1,
        "task": prompt.task.model_dump(),
        "instruction": prompt.instruction,
        "lists_labels": prompt.lists_labels,
        "template": prompt.layout.template,
        "prompt": recipe.prompt.model_dump(),
        "prompt_key": prompt.key,
        "model": recipe.model,
        "precision": recipe.precision,
        "model_sha256": model_sha256,
        "method": recipe.tune.method,
        "temperature": temperature,
        "train_shares": train_shares.tolist(),
    }


def describe_prior(labels: Sequence[str], log_weights: Sequence[float], num_rows: int) -> dict[str, Any]:
    """What is stored beside an adapter whose answers are weighted: log weights, and the number of rows behind them."""
    return {"format": 1, "log_weights": dict(zip(labels, log_weights, strict=True)), "rows": num_rows}


def stored_weights(folder: Path, labels: Sequence[str]) -> tuple[float, ...]:
    """The log weights beside an adapter; zeros where its answers stay as scored."""
    file = folder / PRIOR_FILE
    if not file.is_file():
        return (0.0,) * len(labels)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["log_weights"]
        return tuple(float(found[label]) for label in labels)
    except (OSError, ValueError, TypeError, KeyError):
        raise RunError(f"{file}: is damaged or from another version. Run the recipe again.") from None


def is_of_stages(run: str | Path) -> bool:
    """Whether a folder holds a finished run of `luthier train`; its heads are loaded by `luthier.stages.load_head`."""
    try:
        result = json.loads((Path(run) / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(result, dict) and isinstance(result.get("stages"), list)


def stage_loaders(run: Path) -> str:
    """The functions that load what the last stage of a finished run left."""
    last = json.loads((run / "result.json").read_text(encoding="utf-8"))["stages"][-1]
    methods = [one["method"] for one in (last.get("tasks") or {}).values()] or [last["method"]]
    names = {"predict": "load_head", "score": "load_reward", "answer": "load", "": "load"}
    return " or ".join(dict.fromkeys(f"luthier.stages.{names[asked_by(method)]}(run)" for method in methods))


def command_of(run: Path) -> str:
    """The command that goes on with a run folder, by the recipe in it."""
    try:
        values, _ = read_yaml((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        values = None
    return "train" if isinstance(values, dict) and "stages" in values else "run"


def load(run: str | Path, attention: str = "auto") -> Predictor:
    """The predictor of a finished run folder (or of its adapter folder).

    Raises RunError where the run has no finished adapter or is one of stages, or where the model or its chat template
    is no longer the one the adapter was trained on.
    """
    if is_of_stages(run):
        raise RunError(f"{run}: is a run of `luthier train`, of stages. Load it with {stage_loaders(Path(run))}.")
    folder = Path(run)
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    require_whole(folder)
    try:
        stored = json.loads((folder / PROMPT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"{run}: no finished adapter here (no {PROMPT_FILE}). Give the folder of a run with a tuned arm; "
            f"a run that was stopped goes on with `luthier {command_of(Path(run))}` and the same --out."
        ) from None
    needed = {
        "task", "instruction", "lists_labels", "prompt_key", "model", "model_sha256", "precision", "temperature",
        "train_shares",
    }  # fmt: skip
    if not isinstance(stored, dict) or needed - stored.keys():
        raise RunError(f"{folder / PROMPT_FILE}: is damaged or from another version. Run the recipe again.")
    from luthier.adapters import needs_exact_weights
    from luthier.evaluation.arms import Classifier
    from luthier.models import load_model
    from luthier.prompts import ClassifyPrompt, layout_of
    from luthier.recipe.template import as_settings
    from luthier.runtime import set_up_torch
    from luthier.training.learner import load_learner

    set_up_torch()
    model = load_model(stored["model"], precision=stored["precision"], exact=needs_exact_weights(folder))
    if model.sha256 != stored["model_sha256"]:
        raise RunError(
            f'{run}: the model "{stored["model"]}" found here is not the one the adapter was trained on '
            f"(sha256 {model.sha256[:12]}, trained on {stored['model_sha256'][:12]}). Fetch that model again."
        )
    task = Task.model_validate(stored["task"])
    layout = layout_of(model.tokenizer, as_settings(stored.get("prompt")))
    prompt = ClassifyPrompt(task, layout, stored["instruction"], (), stored["lists_labels"])
    if prompt.key != stored["prompt_key"]:
        raise RunError(
            f"{run}: the model's chat template is not the one the adapter was trained with. Fetch the model again, "
            "or run the recipe again."
        )
    learner = load_learner(model, folder, attention)
    return Predictor(
        Classifier(learner, prompt, temperature=stored["temperature"]),
        tuple(task.labels),
        tuple(stored["train_shares"]),
        stored_weights(folder, task.labels),
    )
