"""The space of a sweep on a recipe: which keys and values it takes, the trials that follow from it. No torch."""

import json

import pytest
import yaml
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.recipe import parse_recipe
from luthier.recipe.methods import METHODS
from luthier.recipe.space import (
    changed_recipe,
    changes_loss,
    combinations,
    default_space,
    first_stage,
    grid_values,
    longest_epochs,
    meant,
    own_values,
    resolved_sweep,
    shown,
    space_problems,
)
from luthier.recipe.stages import parse_stages
from luthier.recipe.sweep import Search, Sweep

RUN = {"name": "small", "task": {"labels": ["a", "b"]}, "data": {"train": "rows.jsonl"}}
NEEDED = {"distil": {"teacher": "some-model"}, "ordinal": {"labels": ["low", "high"]}}


def run_recipe(space: dict | None = None, **changes):
    values = {**RUN, **changes}
    return parse_recipe(values | ({"sweep": {"space": space}} if space is not None else {}))


def stages_recipe(*methods, **sweep):
    stages = [{"name": f"s{i}", "method": method, "data": {"train": "rows.jsonl"}} for i, method in enumerate(methods)]
    return parse_stages({"name": "chain", "stages": stages} | ({"sweep": sweep} if sweep else {}))


def problem(space: dict, recipe=None) -> str:
    """The only problem of a space."""
    found = space_problems(recipe or run_recipe(), Sweep.model_validate({"space": space}).space)
    assert len(found) == 1, found
    return found[0]


# --- what a space may name --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"tune.lerning_rate": [1e-3]}, 'there is no key "lerning_rate" in tune. Did you mean "learning_rate"?'),
        ({"tuune.epochs": [1.0]}, 'there is no key "tuune". Did you mean "tune"?'),
        ({"tune.epochs.most": [1.0]}, "tune.epochs has no keys of its own in this recipe. Give its whole values"),
        ({"data.max_tokens": [64]}, "would change the rows that trials are compared on. Leave it out."),
        ({"seed": [0, 1]}, "would change the rows that trials are compared on. Leave it out."),
        ({"tune.refit": [True, False]}, "cannot be searched: no trial reads it"),
        ({"arms": [["tuned"]]}, "cannot be searched: no trial reads it"),
        ({"tune.batch_size": {"low": 4, "high": 8.5}}, "takes whole numbers (got 8.5)."),
        ({"tune.method": {"low": 1, "high": 2}}, "is no number (head), so it has no range. Give choices."),
        ({"tune.batch_size": [8, 8]}, "the choice 8 stands twice."),
        ({"tune.batch_size": [8, 0]}, "tune.batch_size, value 0: tune.batch_size: input should be greater than or"),
        ({"tune.method": ["head", "hed"]}, "value hed: tune.method: 'hed' is not allowed; use"),
        ({"tune.warmup_share": {"low": 0.1, "high": 1.5}}, "value 1.5: tune.warmup_share: input should be less than 1"),
        ({"tune.max_steps": [8, 16]}, "tune.max_steps: trials are compared at shares of their epochs, and this ends"),
        ({"tune.adapter": ["lora", {"kind": "lora", "rankk": 2}]}, 'unknown key. Did you mean "rank"?'),
    ],
)
def test_what_does_not_suit_the_recipe_is_said(space, told):
    assert told in problem(space)


def test_paths_of_stages():
    recipe = stages_recipe("sft", "dpo")
    assert problem({"tune.epochs": [1.0]}, recipe).endswith('Keys of a stage begin with its place: "stages.0.tune".')
    assert "Known: 0, 1." in problem({"stages.2.tune.epochs": [1.0]}, recipe)
    assert "rows that trials are compared on" in problem({"stages.0.data.max_rows": [10]}, recipe)
    assert "no trial reads it" in problem({"stages.1.name": ["x"]}, recipe)
    assert not space_problems(recipe, {"stages.1.method.beta": Search(low=0.1, high=0.5)})


def test_a_key_inside_another_that_is_searched_as_a_whole():
    space = {"tune.adapter": [{"kind": "lora", "rank": 2}, "lora"], "tune.adapter.rank": [2, 4]}
    assert problem(space) == "sweep.space.tune.adapter.rank: lies inside tune.adapter, which is searched as a whole."


def test_all_problems_are_told_at_once():
    recipe = run_recipe({"tune.epoks": [1.0], "seed": [1], "tune.batch_size": [0, 4]})
    with pytest.raises(RecipeError, match="sweep of small: 3 problems") as caught:
        resolved_sweep(recipe)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({}, "give low and high, or choices"),
        ({"low": 1}, "give low and high, or choices"),
        ({"low": 2, "high": 2}, r"low \(2\) must be below high \(2\)"),
        ({"low": 0, "high": 1, "log": True}, "log needs a low above 0"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, "log has no step"),
        ({"low": 1, "high": 2, "step": 3}, r"step \(3\) is wider than the range"),
        ({"choices": [1], "low": 1}, "give a range or choices"),
    ],
)
def test_a_search_that_means_nothing(search, told):
    with pytest.raises(ValidationError, match=told):
        Search.model_validate(search)


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ({"reduction": 4}, "reduction is read by pruner: asha alone"),
        ({"startup_trials": 2, "sampler": "random", "pruner": "none"}, "startup_trials is read by"),
        ({"sampler": "grid"}, "a grid needs choices or a step for every key; space has neither"),
        (
            {"sampler": "grid", "space": {"tune.epochs": {"low": 1, "high": 2}}},
            "a grid needs choices or a step for every key; space.tune.epochs has neither",
        ),
    ],
)
def test_nothing_is_set_without_effect(sweep, told):
    with pytest.raises(ValidationError, match=told):
        Sweep.model_validate(sweep)


def test_a_wrong_sweep_is_an_error_of_the_recipe():
    with pytest.raises(RecipeError, match=r'sweep.triels: unknown key. Did you mean "trials"\?'):
        parse_recipe(RUN | {"sweep": {"triels": 3}})


# --- the space a method brings along ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [method.model_fields["kind"].default for method in METHODS])
def test_every_method_has_a_space_that_its_recipe_takes(kind):
    recipe = stages_recipe({"kind": kind, **NEEDED.get(kind, {})})
    space = resolved_sweep(recipe).space
    assert {"stages.0.tune.batch_size", "stages.0.tune.epochs", "stages.0.tune.learning_rate"} <= space.keys()
    headed = kind in ("classify", "multilabel", "ordinal", "regress", "tag", "reward")
    assert ("stages.0.tune.head_learning_rate" in space) == headed
    assert ("stages.0.method.beta" in space) == (kind in ("dpo", "kto", "simpo"))
    assert own_values(recipe, space) is not None, "the recipe as it stands is one of the trials"


def test_the_space_of_a_run_lies_around_its_own_values():
    recipe = run_recipe(tune={"learning_rate": 1e-3, "batch_size": 8, "epochs": 3, "adapter": {"rank": 4}})
    space = resolved_sweep(recipe).space
    assert space["tune.learning_rate"] == Search(low=2e-4, high=5e-3, log=True)
    assert space["tune.batch_size"].choices == [4, 8, 16] and space["tune.adapter.rank"].choices == [2, 4, 8]
    assert space["tune.epochs"].choices == [1.5, 3.0, 6.0] and "tune.head_learning_rate" in space
    assert "tune.head_learning_rate" not in default_space(run_recipe(tune={"method": "sft"}))


def test_of_stages_the_last_is_searched():
    assert {path.split(".")[1] for path in resolved_sweep(stages_recipe("sft", "dpo")).space} == {"1"}


def test_a_linear_probe_has_no_rank():
    stage = {"method": "classify", "data": {"train": "x.jsonl"}, "tune": {"adapter": "none"}}
    space = default_space(parse_stages({"stages": [stage]}))
    assert set(space) == {f"stages.0.tune.{key}" for key in ("head_learning_rate", "batch_size", "epochs")}


def test_an_adapter_that_is_trained_on_keeps_its_rank():
    """Choices that the recipe refuses are no part of its own space; what remains is a space that it takes."""
    recipe = stages_recipe("sft", "dpo")
    values = recipe.model_dump(exclude={"sweep"})
    values["stages"][1]["start"] = "continue"
    space = resolved_sweep(parse_stages(values)).space
    assert "stages.1.tune.adapter.rank" in resolved_sweep(recipe).space
    assert "stages.1.tune.adapter.rank" not in space and "stages.1.tune.learning_rate" in space
    odd = run_recipe(tune={"adapter": {"rank": 2, "init": "orthogonal"}})
    assert resolved_sweep(odd).space["tune.adapter.rank"].choices == [2, 4], "an odd rank cannot be orthogonal"


# --- trials -----------------------------------------------------------------------------------------------------


def test_number_of_trials():
    space = {"tune.batch_size": [4, 8, 16], "tune.epochs": {"low": 1, "high": 2, "step": 0.5}}
    assert resolved_sweep(run_recipe(space)).trials == 20
    values = {**RUN, "sweep": {"space": space, "sampler": "grid"}}
    assert resolved_sweep(parse_recipe(values)).trials == 9
    values["sweep"]["trials"] = 4
    assert resolved_sweep(parse_recipe(values)).trials == 4


def test_combinations_go_through_the_last_key_first():
    space = Sweep.model_validate({"space": {"a": [1, 2], "b": {"low": 0, "high": 1, "step": 0.5}}}).space
    assert combinations(space) == [{"a": a, "b": b} for a in (1, 2) for b in (0.0, 0.5, 1.0)]
    assert grid_values(Search(low=0.1, high=0.35, step=0.1)) == pytest.approx([0.1, 0.2, 0.3])


def test_a_trial_is_a_recipe_with_other_values():
    recipe = run_recipe({"tune.epochs": [1.0]})
    changed = changed_recipe(recipe, {"tune.epochs": 3.5, "tune.adapter": {"kind": "lora", "rank": 3}})
    assert (changed.tune.epochs, changed.tune.adapter.rank, changed.sweep) == (3.5, 3, None)
    before, after = (json.loads(one.model_dump_json(exclude={"sweep", "tune"})) for one in (recipe, changed))
    assert before == after
    stages = stages_recipe("sft", "dpo")
    assert changed_recipe(stages, {"stages.1.method.beta": 0.3}).stages[1].method.beta == 0.3
    assert stages.stages[1].method.beta == 0.1


def test_values_that_do_not_go_together_are_refused_with_the_recipes_own_words():
    recipe = stages_recipe({"kind": "dpo", "loss": "robust"})
    with pytest.raises(RecipeError, match="the loss sigmoid takes none"):
        changed_recipe(recipe, {"stages.0.method.loss": "sigmoid", "stages.0.method.label_smoothing": 0.1})


def test_sections_as_choices_survive_a_data_base():
    search = Search(choices=["lora", {"kind": "lora", "rank": 2}])
    texts = [shown(choice) for choice in search.choices]
    assert texts == ["lora", "{kind: lora, rank: 2}"] and yaml.safe_load(texts[1]) == search.choices[1]
    assert [meant(search, text, whole=False) for text in texts] == search.choices
    assert (
        meant(Search(choices=[True, 1]), 1, whole=False) == 1 and meant(Search(choices=[1, True]), True, False) is True
    )
    assert meant(Search(low=1, high=9), 4.0, whole=True) == 4


def test_own_values_of_the_recipe():
    recipe = run_recipe(tune={"epochs": 2, "adapter": {"rank": 16}})
    read = {key: Sweep.model_validate({"space": {key: value}}).space for key, value in {
        "tune.epochs": {"low": 1, "high": 4, "step": 0.5}, "tune.adapter": [{"rank": 4}, "lora"], "tune.method": ["sft"],
    }.items()}  # fmt: skip
    assert own_values(recipe, read["tune.epochs"] | read["tune.adapter"]) == {
        "tune.epochs": 2.0,
        "tune.adapter": "lora",
    }
    assert own_values(recipe, read["tune.method"]) is None
    assert own_values(recipe, {"tune.epochs": Search(low=1, high=4, step=0.3)}) is None  # between two steps
    assert own_values(recipe, {"tune.epochs": Search(low=3, high=4)}) is None


def test_what_changes_the_loss_itself():
    for path in ("tune.method", "tune.label_smoothing", "model", "stages.0.method.beta", "stages.1.tasks.x.weight"):
        assert changes_loss({path: Search(choices=[1])}), path
    for path in ("tune.learning_rate", "stages.0.tune.method_of_mine", "stages.0.tune.epochs", "tune.adapter.rank"):
        assert not changes_loss({path: Search(choices=[1])}), path


def test_the_first_stage_that_differs_and_the_longest_training():
    recipe = stages_recipe("sft", "dpo")
    space = {"stages.1.tune.epochs": Search(choices=[0.5, 3]), "stages.1.tune.batch_size": Search(choices=[4])}
    assert (first_stage(space), longest_epochs(recipe, space)) == (1, 3.0)
    assert first_stage({**space, "model": Search(choices=["x"])}) == 0
    assert longest_epochs(recipe, {"stages.0.tune.epochs": Search(low=1, high=9)}) == recipe.stages[1].tune.epochs
