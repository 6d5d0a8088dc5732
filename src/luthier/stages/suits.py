"""Whether a recipe's model can learn what its stages teach: asked before anything is computed."""

from __future__ import annotations

from typing import Any

from luthier.adapters.parts import last_layers
from luthier.adapters.qlora import refuse_missing
from luthier.adapters.virtual import refuse_encoder
from luthier.errors import ModelError, RecipeError, TrainingError
from luthier.forest.encoders import HEADS, PERMUTED
from luthier.forest.forward import lacking, num_embeddings
from luthier.methods.base import Example
from luthier.models import LoadedModel
from luthier.recipe.adapters import Qlora
from luthier.recipe.stages import TrainRecipe
from luthier.recipe.training import Training
from luthier.training.optimizers import refuse_missing as refuse_missing_optimizer

MASKED_FAMILIES = ", ".join(sorted(set(HEADS) - {PERMUTED}))


def refuse_unsuited(recipe: TrainRecipe, model: LoadedModel) -> None:
    """RecipeError that names every method the model cannot learn, and every adapter that it cannot have."""
    problems = []
    for number, stage in enumerate(recipe.stages):
        for name, task in stage.each.items():
            where = f"stages.{number}.tasks.{name}.method" if stage.tasks else f"stages.{number}.method"
            problems += [f"{where}: {problem}" for problem in method_problems(task.method, model)]
        problems += [f"stages.{number}.{problem}" for problem in tune_problems(stage.tune, model)]
    if problems:
        raise RecipeError(f"recipe {recipe.name}", problems)


def refuse_unsuited_tuning(source: str, tune: Training, model: LoadedModel) -> None:
    """RecipeError where the tuned arm of a run cannot have its adapter or its optimizer."""
    if problems := tune_problems(tune, model):
        raise RecipeError(source, problems)


def tune_problems(tune: Training, model: LoadedModel) -> list[str]:
    """What speaks against a kind of adapter or an optimizer on this model, or on this machine."""
    adapter: Any = tune.adapter
    try:
        refuse_missing_optimizer(tune.optimizer)
        if isinstance(adapter, Qlora):
            refuse_missing()
        if getattr(adapter, "last", 0):
            last_layers(model.model, adapter.last)
        if adapter.virtual_tokens:
            refuse_encoder(model.model, adapter.kind)
    except (ModelError, TrainingError) as error:
        return [str(error)]
    return []


def method_problems(method: Any, model: LoadedModel) -> list[str]:
    """What speaks against one method on this model."""
    wrong = kind_problem(method, model)
    if wrong is not None:
        return [wrong]
    if method.model == "masked" and model.tokenizer.mask_token_id is None:
        return [
            f'the tokenizer of "{model.name}" has no mask token, which {method.kind} puts in the place of words. '
            "Give the folder of a model that was trained with one."
        ]
    return []


def kind_problem(method: Any, model: LoadedModel) -> str | None:
    """A method that needs another kind of model."""
    kind = "decoder" if model.causal else "permuted" if model.family == PERMUTED else "masked"
    if method.model in ("any", kind):
        return None
    what = f'"{model.name}" is {"a decoder" if model.causal else "an encoder"} ({model.family})'
    instead = {"decoder": "clm", "masked": "mlm", "permuted": "plm"}[kind]
    if method.model == "masked":
        return f"{method.kind} needs an encoder that guesses masked tokens ({MASKED_FAMILIES}); {what}. Use {instead}."
    if method.model == "permuted":
        return f"{method.kind} needs a model with two-stream attention ({PERMUTED}); {what}. Use {instead}."
    return (
        f"{method.kind} needs a decoder, which writes text from left to right; {what}. Use {instead} or a head "
        "(classify, tag, ...), or give a decoder as model."
    )


def refuse_unread(examples: list[Example], model: LoadedModel) -> None:
    """ModelError for a token of an example that the model has no embedding of."""
    rows = num_embeddings(model.model)
    number = max((token for example in examples for sequence in example.sequences for token in sequence.tokens),
                 default=0)  # fmt: skip
    if number >= rows:
        raise ModelError(f"model {model.name}: {lacking(number, rows, model.tokenizer.convert_ids_to_tokens(number))}")
