"""A recipe file as plain values: YAML read, paths made absolute, keys overridden. No torch here."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import RecipeError
from luthier.recipe.template import read_templates

PATH_KEYS = ("data.train", "data.test")
MOST_VALUES = 100_000  # of a recipe, its aliases written out: nine lines of aliases can stand for a billion
# what a recipe is of, and the command that reads it, by the kind that its sections tell
KINDS = {
    "stages": ("of stages", "train"),
    "run": ("with a task", "run"),
    "prepare": ("that prepares rows", "data prepare"),
    "synthesize": ("that writes rows", "data synthesize"),
}
ALIAS_IN_ITSELF = "an alias (*name) stands inside what it names (&name). Write it out."


RecipeSource = str | Path | Mapping[str, Any]  # a recipe's file, or its plain values


def source_name(recipe: RecipeSource) -> str:
    """What errors call a recipe."""
    return "recipe" if isinstance(recipe, Mapping) else str(recipe)


def read_values(recipe: RecipeSource, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The plain values of a recipe with its paths made absolute, and the problems of the overrides.

    Paths are relative to the recipe's file, or to the current folder where it comes as values.
    """
    if isinstance(recipe, Mapping):
        values, twice, folder = copy.deepcopy(dict(recipe)), list[str](), Path.cwd()
    elif isinstance(recipe, str | Path):
        path = Path(recipe)
        values, twice = read_file(path)
        folder = path.parent.resolve()
    else:
        given = type(recipe).__name__
        raise RecipeError("recipe", [f"is {given}. Give the path of a recipe (YAML), or its values as a dict."])
    anchor_paths(values, folder)
    if isinstance(values.get("model"), str):
        values["model"] = anchored_model(values["model"], folder, Path.cwd())
    problems = twice + apply_overrides(values, overrides)
    read_templates(values, folder, Path.cwd())
    return values, problems


def read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The mapping that a recipe file spells, and the keys that stand twice in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(str(path), ["no such file. Give the path of a recipe (YAML)."]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"cannot be read: {error}"]) from error
    try:
        values, twice = read_yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(str(path), [f"is not valid YAML: {error}"]) from error
    except RecursionError:
        raise RecipeError(str(path), [ALIAS_IN_ITSELF]) from None
    if not isinstance(values, dict):
        raise RecipeError(str(path), [*twice, "must be a mapping with the keys model, task, data, ..."])
    return values, twice


def require_kind(values: Mapping[str, Any], source: str, wanted: Collection[str], problems: Sequence[str]) -> None:
    """RecipeError where a recipe is of another kind than those wanted (keys of `KINDS`).

    Beside that it names the problems of its reading, and none of the keys that only another kind knows.
    """
    data = values.get("data")
    parts = data if isinstance(data, dict) else {}
    marks = {"stages": "stages" in values, "run": "task" in values, "prepare": isinstance(parts.get("corpus"), dict),
             "synthesize": isinstance(parts.get("synthetic"), dict)}  # fmt: skip
    found = [kind for kind, given in marks.items() if given]
    if found and not set(found) & set(wanted):
        what, command = KINDS[found[0]]
        raise RecipeError(source, [*problems, f"this is a recipe {what}; run it with `luthier {command}`."])


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which notes the keys that stand twice in a mapping: it keeps the last alone."""

    def __init__(self, text: str):
        super().__init__(text)
        self.twice: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before merge keys (`<<`) bring others into it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[Hashable, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key), key.start_mark.line + 1
            if not isinstance(name, Hashable):
                continue
            if name in lines:
                where = f"twice on line {line}" if lines[name] == line else f"on line {lines[name]} and on line {line}"
                self.twice.append(f'the key "{key.value}" stands {where}, and one of them would be lost. Keep one.')
            lines[name] = line
        return node


def read_yaml(text: str) -> tuple[Any, list[str]]:
    """The value that a text spells, and the keys that stand twice in it.

    Raises:
        yaml.YAMLError, ValueError: it is not YAML, or its aliases write out to more than any recipe holds.
        RecursionError: an alias stands inside what it names.
    """
    loader = Loader(text)
    try:
        return without_aliases(loader.get_single_data(), itertools.count(1)), loader.twice
    finally:
        loader.dispose()


def without_aliases(value: Any, counter: Iterator[int]) -> Any:
    """The same values with every section a copy of its own; `counter` counts them.

    YAML's `&name` and `*name` make two places one section: to change one would be to change both.
    """
    if next(counter) > MOST_VALUES:
        raise ValueError(f"its aliases (*name) write out to more than {MOST_VALUES:,} values. Write it without them")
    if isinstance(value, dict):
        return {key: without_aliases(inner, counter) for key, inner in value.items()}
    return [without_aliases(inner, counter) for inner in value] if isinstance(value, list) else value


def anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the data paths absolute, relative ones under `folder`."""
    stages = values.get("stages")
    for stage in stages if isinstance(stages, list) else []:
        anchor_stage(stage, folder)
    data = values.get("data")
    if not isinstance(data, dict):
        return
    for dotted in PATH_KEYS:
        anchor(data, dotted.removeprefix("data."), folder)
    corpus = data.get("corpus")
    if not isinstance(corpus, dict):
        return
    inputs = corpus.get("inputs")
    for source in inputs if isinstance(inputs, list) else []:
        anchor(source, "path", folder)
    anchor(corpus.get("split"), "frozen", folder)
    anchor(corpus.get("mixing"), "replay", folder)
    contamination = corpus.get("contamination")
    if isinstance(contamination, dict) and isinstance(contamination.get("against"), list):
        contamination["against"] = [str(folder / expanded(str(path))) for path in contamination["against"]]


def anchor_stage(section: object, folder: Path) -> None:
    """The same for the rows of a stage, or of its tasks: a path, several, or inputs with their own keys."""
    if not isinstance(section, dict):
        return
    for key, value in section.items():
        if key in ("train", "test"):
            items = value if isinstance(value, list) else [value]
            section[key] = [anchored(item, folder) for item in items if item is not None]
        elif key == "tasks" and isinstance(value, dict):  # a task may be called `train`
            for task in value.values():
                anchor_stage(task, folder)
        elif isinstance(value, dict):
            anchor_stage(value, folder)


def anchored(item: Any, folder: Path) -> Any:
    """A path, or an input's path, made absolute."""
    if isinstance(item, str):
        return item if item.startswith("hub:") else str(folder / expanded(item))
    anchor(item, "path", folder)
    return item


def anchored_model(name: str, *folders: Path) -> str:
    """A model's folder or file as a path from the root, where there is one under a folder; else the name as it is."""
    for folder in folders:
        path = folder / expanded(name)
        try:
            if path.is_file() or (path / "config.json").is_file():
                return str(path)
        except OSError:
            return name  # no name of a file: the model's own check says so
    return name


def anchor(section: object, key: str, folder: Path) -> None:
    """Make one path of a section absolute, where it is there."""
    if isinstance(section, dict) and isinstance(section.get(key), str) and not section[key].startswith("hub:"):
        section[key] = str(folder / expanded(section[key]))


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set `path.to.key=value` in place; returns the problems."""
    problems = []
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted:
            problems.append(f'--set "{override}" is not of the form path.to.key=value.')
            continue
        target: Any = values
        *parents, last = dotted.split(".")
        for above, parent in zip(["", *parents], parents, strict=False):
            if isinstance(target, list) and above in ("train", "test"):  # a path, to be given keys of its own
                target[:] = [{"path": item} if isinstance(item, str) else item for item in target]
            target = below(target, parent)
        if not isinstance(target, dict):
            problems.append(f'--set {dotted}: "{".".join(parents)}" is not a section.')
            continue
        try:
            value, twice = read_yaml(text)
        except (yaml.YAMLError, ValueError):
            value, twice = text, []
        except RecursionError:
            value, twice = None, [ALIAS_IN_ITSELF]
        problems += [f"--set {dotted}: {problem}" for problem in twice]
        if dotted == "model" and isinstance(value, str):
            value = anchored_model(value, Path.cwd())
        if is_path(dotted) and isinstance(value, str | list):
            value = [absolute(item) for item in value] if isinstance(value, list) else absolute(text)
        target[last] = value
    return problems


def below(section: Any, key: str) -> Any:
    """What stands under a key of a section, or at a place of a list; None where neither is."""
    if isinstance(section, dict):
        return section.setdefault(key, {})
    if isinstance(section, list) and key.isdecimal() and int(key) < len(section):
        return section[int(key)]
    return None


def is_path(dotted: str) -> bool:
    """Whether a key names files of rows."""
    return dotted in PATH_KEYS or (dotted.startswith("stages.") and dotted.endswith((".data.train", ".data.test")))


def absolute(file: str) -> str:
    """A path from the command line, from the root; a data set of the hub as it is."""
    return file if file.startswith("hub:") else str(expanded(file).absolute())


def expanded(file: str) -> Path:
    """A path with the home of `~` or `~user` spelled out; where there is no such user, `~user` is a plain name."""
    try:
        return Path(file).expanduser()
    except RuntimeError:
        return Path(file)
