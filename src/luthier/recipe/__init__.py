"""The recipe: one strict YAML file that says everything about a run. No torch here."""

from luthier.recipe.adapters import Lora, Probe
from luthier.recipe.base import Part, Share
from luthier.recipe.corpus import Corpus
from luthier.recipe.reading import absolute
from luthier.recipe.run import (
    ALL_ARMS,
    ArmName,
    Ask,
    Cost,
    Data,
    Judge,
    Recipe,
    Task,
    Tune,
    corpus_of,
    dump_recipe,
    fold_label,
    load_corpus,
    load_recipe,
    parse_corpus,
    parse_recipe,
)
from luthier.recipe.training import Training

__all__ = [
    "ALL_ARMS",
    "ArmName",
    "Ask",
    "Corpus",
    "Cost",
    "Data",
    "Judge",
    "Lora",
    "Part",
    "Probe",
    "Recipe",
    "Share",
    "Task",
    "Training",
    "Tune",
    "absolute",
    "corpus_of",
    "dump_recipe",
    "fold_label",
    "load_corpus",
    "load_recipe",
    "parse_corpus",
    "parse_recipe",
]
