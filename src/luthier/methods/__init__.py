"""Methods: one small file each, found here by name."""

from collections.abc import Callable

from luthier.methods.base import Method
from luthier.methods.candidates import Candidates
from luthier.methods.head import HeadMethod
from luthier.methods.sft import Sft
from luthier.recipe import Task, Tune


def make_method(tune: Tune, task: Task) -> Method:
    """The method a recipe names."""
    makers: dict[str, Callable[[], Method]] = {
        "sft": Sft,
        "candidates": lambda: Candidates(len(task.labels), tune.label_smoothing),
        "head": lambda: HeadMethod(tune.label_smoothing),
    }
    return makers[tune.method]()
