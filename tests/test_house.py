"""The house stands: imports run downward, the light modules stay light, there is one training loop."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "luthier"

# Lowest first. A package may import itself and lower floors; imports inside functions and for type checkers
# count. The modules of the ground floor may import each other.
FLOORS = (
    (
        "errors",
        "files",
        "locks",
        "processes",
        "progress",
        "recipe",
        "records",
        "run_folder",
        "runtime",
        "signals",
        "stopped",
    ),
    ("corpus", "forest", "kernels", "prompts", "report"),
    ("adapters", "methods", "models", "generation"),
    ("training", "peek"),
    ("evaluation", "synthetic"),
    ("fitting", "predictor", "result", "stages"),
    ("merging", "pipeline"),
    ("rate_search", "sweeps"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
# Said apart from the floors, so that moving a package up does not lift it in silence.
KNOWS_NOTHING_OF = {
    "kernels": {"models", "methods", "training", "evaluation", "prompts", "corpus", "files", "recipe"},
    "forest": {"models", "methods", "training", "evaluation", "prompts", "corpus"},
    "models": {"methods", "training", "evaluation", "prompts", "corpus"},
    "prompts": {"models", "methods", "training", "evaluation", "forest", "corpus"},
    "corpus": {"models", "methods", "training", "evaluation", "forest", "prompts"},
    "adapters": {"methods", "training", "models", "prompts"},
    "methods": {"training", "evaluation", "models", "adapters", "files"},
    "training": {"evaluation", "pipeline", "cli", "report", "corpus"},
    "generation": {"methods", "training", "evaluation"},
    "report": {"evaluation", "training", "pipeline", "recipe", "result"},
    "synthetic": {"methods", "training", "evaluation", "pipeline", "cli", "report"},
    "evaluation": {"pipeline", "cli", "report", "corpus", "run_folder"},
}
LIGHT = ("errors", "files", "locks", "progress", "recipe", "records", "run_folder", "signals", "stopped")
HEAVY = {"torch", "transformers", "peft", "sklearn"}


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, dotted name) of every import, inside functions too; `from luthier import x` names luthier.x."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import; write the whole name"
            if node.module == "luthier":
                found += [(node.lineno, f"luthier.{alias.name}") for alias in node.names]
            else:
                found.append((node.lineno, node.module))
    return found


def package_of(module: Path) -> str:
    """The part of the house a file belongs to."""
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def floor_of(package: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if package in names)


def offences(package: str, source: str) -> list[str]:
    """Imports of the house that the tables forbid."""
    found = []
    for line, name in imported(ast.parse(source)):
        if name.partition(".")[0] != "luthier":
            continue
        other = name.split(".")[1] if "." in name else "__init__"
        if other == package:
            continue
        below = floor_of(other) < floor_of(package) or floor_of(other) == floor_of(package) == 0
        if not below or other in KNOWS_NOTHING_OF.get(package, ()):
            found.append(f"line {line}: {package} imports {name}")
    return found


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_every_package_has_one_floor():
    names = [name for floor in FLOORS for name in floor]
    assert len(names) == len(set(names))
    assert set(names) == {package_of(module) for module in modules()}
    assert KNOWS_NOTHING_OF.keys() | set().union(*KNOWS_NOTHING_OF.values()) | set(LIGHT) <= set(names)


@pytest.mark.parametrize("module", modules(), ids=lambda module: str(module.relative_to(SOURCE)))
def test_imports_run_downward(module):
    assert offences(package_of(module), module.read_text()) == []


def test_offences_are_seen():
    assert offences("forest", "from luthier.records import Sequence\nimport luthier.forest.tree") == []
    assert offences("forest", "def f():\n    from luthier.training.loop import train") == [
        "line 2: forest imports luthier.training.loop"
    ]
    assert offences("methods", "from luthier import training") == ["line 1: methods imports luthier.training"]
    assert offences("corpus", "import luthier.prompts") == ["line 1: corpus imports luthier.prompts"]
    assert offences("training", "import luthier") == ["line 1: training imports luthier"]
    assert offences("evaluation", "from luthier.corpus.prepare import prepare") != []  # lower, but named
    with pytest.raises(AssertionError, match="relative import"):
        offences("cli", "from . import main")


def at_module_level(tree: ast.AST) -> list[str]:
    """Top packages imported when the module is; not those inside functions."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "").partition(".")[0])
        left += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("name", [*LIGHT, "runtime", "predictor"])
def test_light_module_imports_nothing_heavy(name):
    files = sorted((SOURCE / name).rglob("*.py")) or [SOURCE / f"{name}.py"]
    for file in files:
        assert HEAVY.isdisjoint(at_module_level(ast.parse(file.read_text()))), file


def test_module_level_includes_blocks_but_no_functions():
    source = "if x:\n import torch.nn\ntry:\n from peft import y\nfinally:\n pass\ndef f():\n import sklearn"
    assert sorted(at_module_level(ast.parse(source))) == ["peft", "torch"]


def test_command_line_starts_without_torch():
    """Also through what these import in turn: in a fresh process, so that no other test has loaded it."""
    names = ["luthier", "luthier.cli.main", "luthier.predictor", *(f"luthier.{name}" for name in LIGHT)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = sorted({HEAVY!r} & sys.modules.keys())\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("call", [".backward(", "optimizer.step("])
def test_one_training_step(call):
    files = [str(module.relative_to(SOURCE)) for module in modules() if call in module.read_text()]
    assert files == ["training/step.py"]
