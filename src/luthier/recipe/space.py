"""A search space on a given recipe: which keys, which values, and the recipe that a trial is. No torch here.

Every value goes into the resolved recipe, which is then parsed again: a trial is held to the same rules as a recipe
that somebody wrote.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from luthier.errors import RecipeError, did_you_mean
from luthier.recipe.base import Part
from luthier.recipe.reading import RecipeSource, read_values, require_kind, source_name
from luthier.recipe.run import Recipe, parse_recipe
from luthier.recipe.stages import HEADS, TrainRecipe, parse_stages
from luthier.recipe.sweep import DEFAULT_TRIALS, Search, Space, Sweep
from luthier.recipe.training import Training

AnyRecipe = Recipe | TrainRecipe
Value = str | int | float | bool | None
RATE_FACTOR = 5.0  # a default space goes this far below and above a learning rate
# Keys that no trial may change, by their first words, and why.
ROWS = "would change the rows that trials are compared on"
UNREAD = "no trial reads it"
FIXED = (
    (re.compile(r"seed|(stages\.\d+\.(tasks\.[^.]+\.)?)?data|task\.(kind|labels|aliases)"), ROWS),
    (re.compile(r"name|arms|ask|judge|cost|sweep|tune\.refit|task\.(wordings|abstention)|stages\.\d+\.name"), UNREAD),
)
# Keys that change what the loss means, so that losses of two trials cannot be compared.
OTHER_LOSS = re.compile(
    r"model|prompt|task|tune\.(method|label_smoothing)"
    r"|stages\.\d+\.(tasks\.[^.]+\.)?(method|prompt|weight)|stages\.\d+\.keep"
)


def load_any(recipe: RecipeSource, overrides: Sequence[str] = ()) -> AnyRecipe:
    """A recipe of either kind, of a run or of stages: a file or plain values. RecipeError names every problem."""
    values, problems = read_values(recipe, overrides)
    require_kind(values, source_name(recipe), ("run", "stages"), problems)
    return parse_any(values, source_name(recipe), problems)


def parse_any(values: Mapping[str, Any], source: str = "recipe", problems: Sequence[str] = ()) -> AnyRecipe:
    """A recipe of either kind from plain values; one with `stages` is of stages."""
    if "stages" in values:
        return parse_stages(values, source, problems)
    return parse_recipe(values, source, problems)


def resolved_sweep(recipe: AnyRecipe) -> Sweep:
    """The recipe's sweep with the method's own space where it names none, and its number of trials.

    Raises:
        RecipeError: every key or value of the space that does not suit the recipe.
    """
    sweep = recipe.sweep or Sweep()
    space = sweep.space or default_space(recipe)
    problems = space_problems(recipe, space)
    if problems:
        raise RecipeError(f"sweep of {recipe.name}", problems)
    trials = sweep.trials or (len(combinations(space)) if sweep.sampler == "grid" else DEFAULT_TRIALS)
    return sweep.model_copy(update={"space": space, "trials": trials})


# --- the space a method brings along ----------------------------------------------------------------------------


def default_space(recipe: AnyRecipe) -> Space:
    """The rates, lengths and weights worth trying around the recipe's own values; of stages those of the last.

    Choices that the recipe refuses are left out (an adapter that is trained on keeps its rank).
    """
    space = whole_space(recipe)
    for path, search in list(space.items()):
        suited = [choice for choice in search.choices if not value_problems(recipe, path, choice)]
        if search.choices and len(suited) > 1:
            space[path] = search.model_copy(update={"choices": suited})
        elif search.choices:
            del space[path]
    return space


def whole_space(recipe: AnyRecipe) -> Space:
    """The default space as it is for most recipes."""
    if isinstance(recipe, Recipe):
        return tune_space(recipe.tune, "tune", headed=recipe.tune.method == "head")
    number = len(recipe.stages) - 1
    stage = recipe.stages[number]
    methods = {
        f"stages.{number}.tasks.{name}.method" if stage.tasks else f"stages.{number}.method": task.method
        for name, task in stage.each.items()
    }
    headed = any(isinstance(method, HEADS) for method in methods.values())
    space = tune_space(stage.tune, f"stages.{number}.tune", headed)
    for path, method in methods.items():
        space |= {f"{path}.{key}": Search.model_validate(values) for key, values in method.search.items()}
    return space


def tune_space(tune: Training, prefix: str, headed: bool) -> Space:
    """How weights learn: rates by their logarithm, sizes and lengths halved and doubled."""
    space: Space = {}
    probe = tune.adapter.kind == "none"
    if not probe:
        space[f"{prefix}.learning_rate"] = around(tune.learning_rate)
    if headed or probe:
        space[f"{prefix}.head_learning_rate"] = around(tune.head_learning_rate)
    rank = getattr(tune.adapter, "rank", None)
    if isinstance(rank, int):
        space[f"{prefix}.adapter.rank"] = halved_and_doubled(rank)
    space[f"{prefix}.batch_size"] = halved_and_doubled(tune.batch_size)
    space[f"{prefix}.epochs"] = Search(choices=[tune.epochs / 2, tune.epochs, 2 * tune.epochs])
    return space


def around(rate: float) -> Search:
    """A range about a rate."""
    return Search(low=float(f"{rate / RATE_FACTOR:.3g}"), high=float(f"{rate * RATE_FACTOR:.3g}"), log=True)


def halved_and_doubled(number: int) -> Search:
    """Half of a number, itself and twice it."""
    return Search(choices=sorted({max(1, number // 2), number, 2 * number}))


# --- whether a space suits a recipe -----------------------------------------------------------------------------


def space_problems(recipe: AnyRecipe, space: Space) -> list[str]:
    """Every key that is not the recipe's, may not change, or takes none of its values."""
    problems = []
    for path, search in space.items():
        problem = path_problem(recipe, path) or range_problem(recipe, path, search)
        if problem:
            problems.append(f"sweep.space.{path}: {problem}")
            continue
        for value in extremes(recipe, path, search):
            problems += [f"sweep.space.{path}, value {shown(value)}: {told}"
                         for told in value_problems(recipe, path, value)]  # fmt: skip
    nested = [(one, other) for one, other in itertools.permutations(space, 2) if other.startswith(f"{one}.")]
    problems += [f"sweep.space.{other}: lies inside {one}, which is searched as a whole." for one, other in nested]
    if last_tune(recipe).max_steps is not None or any(path.endswith("tune.max_steps") for path in space):
        problems.append(
            "tune.max_steps: trials are compared at shares of their epochs, and this ends them at a number of steps. "
            "Leave it out, and lower tune.epochs."
        )
    return problems


def path_problem(recipe: AnyRecipe, path: str) -> str:
    """What is wrong with a key: unknown, or not to be changed."""
    try:
        value_at(recipe, path)
    except KeyError as error:
        return str(error.args[0])
    for pattern, why in FIXED:
        if is_at(pattern, path):
            return f"cannot be searched: {why}. Leave it out."
    return ""


def value_at(recipe: AnyRecipe, path: str) -> Any:
    """What stands at a dotted path of a recipe: a section, a list or a value.

    Raises:
        KeyError: a sentence that says which word of the path is unknown, and what is known there.
    """
    here: Any = recipe
    words = path.split(".")
    for number, word in enumerate(words):
        where = ".".join(words[:number])
        known = keys_of(here)
        if word not in known:
            raise KeyError(unknown_key(recipe, word, where, known))
        here = below(here, word)
    return here


def below(section: Any, word: str) -> Any:
    """What stands under a word of a section, a list or a mapping."""
    if isinstance(section, Part):
        return getattr(section, word)
    return section[int(word)] if isinstance(section, list) else section[word]


def unknown_key(recipe: AnyRecipe, word: str, where: str, known: Sequence[str]) -> str:
    """The sentence for a word of a path that is not there."""
    if not known:
        return f"{where} has no keys of its own in this recipe. Give its whole values as choices."
    hint = did_you_mean(word, known)
    if not where and isinstance(recipe, TrainRecipe) and word in Training.model_fields.keys() | {"tune", "method"}:
        hint = f' Keys of a stage begin with its place: "stages.0.{word}".'
    return f'there is no key "{word}"{" in " + where if where else ""}.' + (hint or f" Known: {', '.join(known)}.")


def keys_of(section: Any) -> list[str]:
    """The words that may follow in a path."""
    if isinstance(section, Part):
        return list(type(section).model_fields)
    if isinstance(section, dict):
        return [str(key) for key in section]
    return [str(number) for number in range(len(section))] if isinstance(section, list) else []


def range_problem(recipe: AnyRecipe, path: str, search: Search) -> str:
    """A range must be of numbers, whole ones where the key takes these; choices must differ."""
    value = value_at(recipe, path)
    if search.choices:
        names = [shown(choice) for choice in search.choices]
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        return f"the choice {twice[0]} stands twice." if twice else ""
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
        return f"is no number ({shown(value)}), so it has no range. Give choices."
    if is_whole(recipe, path):
        odd = [number for number in (search.low, search.high, search.step) if number is not None and number % 1]
        return f"takes whole numbers (got {odd[0]:g})." if odd else ""
    return ""


def is_whole(recipe: AnyRecipe, path: str) -> bool:
    """Whether a key takes whole numbers, by the value it has."""
    value = value_at(recipe, path)
    return isinstance(value, int) and not isinstance(value, bool)


def extremes(recipe: AnyRecipe, path: str, search: Search) -> list[Any]:
    """The values that are tried on the recipe before anything is computed: both ends, or every choice."""
    if search.choices:
        return search.choices
    return [int(end) if is_whole(recipe, path) else end for end in (search.low, search.high) if end is not None]


def value_problems(recipe: AnyRecipe, path: str, value: Any) -> list[str]:
    """What the recipe says to a value in the place of its own."""
    try:
        changed_recipe(recipe, {path: value})
    except RecipeError as error:
        return error.problems
    return []


# --- trials -----------------------------------------------------------------------------------------------------


def changed_recipe(recipe: AnyRecipe, values: Mapping[str, Any]) -> AnyRecipe:
    """The recipe with other values at some paths, without its sweep. RecipeError where they do not go together."""
    plain = recipe.model_dump(exclude={"sweep"})
    for path, value in values.items():
        here: Any = plain
        *parents, last = path.split(".")
        for word in parents:
            here = here[int(word)] if isinstance(here, list) else here[word]
        here[int(last) if isinstance(here, list) else last] = copy.deepcopy(value)
    return parse_any(plain, ", ".join(f"{path}={shown(value)}" for path, value in values.items()) or recipe.name)


def combinations(space: Space) -> list[dict[str, Value]]:
    """All combinations of a grid, the last key changing fastest; values as `shown` keeps them."""
    every = [grid_values(search) for search in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*every)]


def grid_values(search: Search) -> list[Value]:
    """The values of one key in a grid."""
    if search.choices:
        return [shown(choice) for choice in search.choices]
    assert search.low is not None and search.high is not None and search.step is not None, "checked by Sweep.read"
    count = int((search.high - search.low) / search.step + 1e-9) + 1
    return [search.low + number * search.step for number in range(count)]


def shown(value: Any) -> Value:
    """A value that a table or a data base can hold: numbers and words as they are, sections as one line of YAML."""
    if isinstance(value, Part):
        value = value.model_dump()
    if isinstance(value, dict | list):
        return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()
    return cast("Value", value)


def meant(search: Search, value: Value, whole: bool) -> Any:
    """What a value from the data base stands for: one of the choices, or a number of the range."""
    if search.choices:
        return next(choice for choice in search.choices if same(shown(choice), value))
    assert isinstance(value, int | float)
    return round(value) if whole else float(value)


def same(one: Value, other: Value) -> bool:
    """Whether two values are one: 1 and True are not."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def own_values(recipe: AnyRecipe, space: Space) -> dict[str, Value] | None:
    """The recipe's own values of a space's keys; None where one of them lies outside the space."""
    found: dict[str, Value] = {}
    for path, search in space.items():
        value = shown(value_at(recipe, path))
        if search.choices:
            matching = [choice for choice in search.choices if same(shown(choice), value)]
            matching = matching or [choice for choice in search.choices if changes_nothing(recipe, path, choice)]
            if not matching:
                return None
            found[path] = shown(matching[0])
        else:
            assert search.low is not None and search.high is not None
            if not isinstance(value, int | float) or not search.low <= value <= search.high or off_step(search, value):
                return None
            found[path] = value
    return found


def changes_nothing(recipe: AnyRecipe, path: str, choice: Any) -> bool:
    """Whether a choice in the place of the recipe's own section leaves the recipe as it is: a kind by its name."""
    if not isinstance(value_at(recipe, path), Part) or value_problems(recipe, path, choice):
        return False
    changed = changed_recipe(recipe, {path: choice})
    return changed.model_dump(exclude={"sweep"}) == recipe.model_dump(exclude={"sweep"})


def off_step(search: Search, value: float) -> bool:
    """Whether a value lies between the steps of a range."""
    assert search.low is not None
    return search.step is not None and abs((value - search.low) / search.step % 1 - 0.5) < 0.5 - 1e-9


def changes_loss(space: Space) -> bool:
    """Whether a space changes what the loss means, so that it cannot compare trials."""
    return any(is_at(OTHER_LOSS, path) for path in space)


def is_at(pattern: re.Pattern[str], path: str) -> bool:
    """Whether a path is one of a pattern's, or lies inside it: `data.max_rows` does in `data`, `database` does not."""
    found = pattern.match(path)
    return found is not None and (found.end() == len(path) or path[found.end()] == ".")


def first_stage(space: Space) -> int:
    """The first stage that a space changes: those before it are the same in all trials."""
    numbers = [int(path.split(".")[1]) if path.startswith("stages.") else 0 for path in space]
    return min(numbers, default=0)


def last_tune(recipe: AnyRecipe) -> Training:
    """The training that trials are compared by: of stages that of the last."""
    return recipe.tune if isinstance(recipe, Recipe) else recipe.stages[-1].tune


def longest_epochs(recipe: AnyRecipe, space: Space) -> float:
    """Most epochs of the training that trials are compared by."""
    prefix = "" if isinstance(recipe, Recipe) else f"stages.{len(recipe.stages) - 1}."
    search = space.get(f"{prefix}tune.epochs")
    if search is None:
        return last_tune(recipe).epochs
    return float(search.high) if search.high is not None else max(float(choice) for choice in search.choices)
