"""Methods: one small file each, found here by name."""

from collections.abc import Callable

from luthier.methods.base import Method
from luthier.methods.candidates import Candidates
from luthier.methods.head import HeadMethod
from luthier.methods.sft import LabelSft
from luthier.prompts import ClassifyPrompt
from luthier.recipe import Task, Tune
from luthier.records import Labelled

ClassifyMethod = Method[ClassifyPrompt, Labelled]


def make_method(tune: Tune, task: Task) -> ClassifyMethod:
    """The method a recipe names."""
    makers: dict[str, Callable[[], ClassifyMethod]] = {
        "sft": LabelSft,
        "candidates": lambda: Candidates(len(task.labels), tune.label_smoothing),
        "head": lambda: HeadMethod(tune.label_smoothing),
    }
    return makers[tune.method]()
