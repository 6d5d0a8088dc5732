"""The recipe: strict, complete in its complaints, and quick to read."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe import ALL_ARMS, Recipe, dump_recipe, fold_label, load_recipe, parse_recipe

GOOD = {"task": {"labels": ["SPORTS", "POLITICS"]}, "data": {"train": "rows.jsonl"}}


def with_(**sections) -> dict:
    return {
        key: {**GOOD.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in (GOOD | sections).items()
    }


def problems(values: dict) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(values)
    return caught.value.problems


def written(tmp_path, values) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_the_least_recipe_has_every_default():
    recipe = parse_recipe(GOOD)
    assert recipe.model == "smollm2-135m-instruct" and recipe.arms == list(ALL_ARMS)
    assert recipe.tune.adapter.rank == 16 and recipe.ask.shots == [8, 16]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (with_(tune={"learning_rat": 1}), 'tune.learning_rat: unknown key. Did you mean "learning_rate"?'),
        (with_(modle="x"), 'modle: unknown key. Did you mean "model"?'),
        (with_(tune={"adapter": {"rnk": 1}}), 'tune.adapter.rnk: unknown key. Did you mean "rank"?'),
        (
            with_(cost={"zzz": 1}),
            "cost.zzz: unknown key. Known keys of cost: machine_per_hour, currency.",
        ),
        ({"data": GOOD["data"]}, "task: missing; it has no default."),
        (with_(tune={"method": "hed"}), 'tune.method: \'hed\' is not allowed; use \'head\', \'candidates\' or \'sft\'. Did you mean "head"?'),
        (with_(arms=["majorty"]), 'Did you mean "majority"?'),
        (with_(tune={"epochs": 0}), "tune.epochs: input should be greater than 0 (got 0)."),
        (with_(tune={"batch_size": "16"}), "tune.batch_size: input should be a valid integer (got '16')."),
        (with_(tune={"batch_size": True}), "tune.batch_size: input should be a valid integer (got True)."),
        (with_(data={"test_share": 1.0}), "data.test_share: input should be less than 1 (got 1.0)."),
        (with_(name="../x"), "name: string should match pattern"),
        (with_(task={"labels": ["ONE"]}), "task.labels: list should have at least 2 items"),
    ],
)  # fmt: skip
def test_a_problem_is_said_with_its_field(values, problem):
    (found,) = problems(values)
    assert problem in found


def test_all_problems_are_said_at_once():
    with pytest.raises(RecipeError) as caught:
        parse_recipe(with_(tune={"method": "hed", "epochs": -1, "rank": 3}, sede=1, model=7), "my.yaml")
    assert len(caught.value.problems) == 5
    assert str(caught.value).startswith("my.yaml: 5 problems\n  - ")
    for field in ("tune.method", "tune.epochs", "tune.rank", "sede", "model"):
        assert f"\n  - {field}: " in str(caught.value)


CROSS_FIELD = [
    ({"labels": ["SPORTS", "Sports"]}, 'task.labels: "Sports" and "SPORTS" are the same label once spelling is folded.'),
    ({"labels": ["ARTS & CULTURE", "arts_and_culture"]}, "are the same label once spelling is folded."),
    ({"labels": ["SPORTS", "--"]}, "task.labels: '--' has no letters or digits."),
    ({"aliases": {"football": "SPORT"}}, 'task.aliases: "football" stands for "SPORT", which is not in task.labels. Did you mean "SPORTS"?'),
    ({"aliases": {"politics": "SPORTS"}}, 'task.aliases: "politics" stands for "SPORTS", but its folded spelling is that of "POLITICS".'),
    ({"aliases": {"law": "SPORTS", "Law": "POLITICS"}}, 'task.aliases: "Law" stands for "POLITICS", but its folded spelling is that of "SPORTS".'),
    ({"aliases": {"?": "SPORTS"}}, "task.aliases: '?' has no letters or digits."),
    ({"abstention": "sports"}, 'task.abstention: "sports" is also a label or an alias.'),
]  # fmt: skip


@pytest.mark.parametrize(("task", "problem"), CROSS_FIELD)
def test_rules_across_fields(task, problem):
    (found,) = problems(with_(task=task))
    assert problem in found


def test_all_rules_across_fields_are_said_at_once():
    found = problems(
        with_(task={"labels": ["A", "a"], "aliases": {"b": "C"}, "abstention": "A"}, arms=["majority"] * 2)
    )
    assert len(found) == 4 and "arms: a name stands twice." in found


def test_paths_are_relative_to_the_recipe(tmp_path):
    recipe = load_recipe(written(tmp_path, with_(data={"test": "held/out.csv"})))
    assert recipe.data.train == str(tmp_path / "rows.jsonl") and recipe.data.test == str(tmp_path / "held" / "out.csv")
    absolute = load_recipe(written(tmp_path, with_(data={"train": "/data/rows.csv"})))
    assert absolute.data.train == "/data/rows.csv"


def test_overrides_speak_yaml_and_their_paths_are_relative_to_here(tmp_path, monkeypatch):
    path = written(tmp_path, GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    overrides = [
        "tune.epochs=1",
        "tune.adapter.rank=4",
        "arms=[majority, tuned]",
        "data.train=own.csv",
        "name=a=b",
    ]
    with pytest.raises(RecipeError, match="name: string should match pattern"):
        load_recipe(path, overrides)
    recipe = load_recipe(path, overrides[:-1])
    assert recipe.tune.epochs == 1.0 and recipe.tune.adapter.rank == 4 and recipe.arms == ["majority", "tuned"]
    assert recipe.data.train == str(elsewhere / "own.csv")
    assert load_recipe(path, ["data.test=null"]).data.test is None


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("tune.epochs", '--set "tune.epochs" is not of the form path.to.key=value.'),
        ("=3", '--set "=3" is not of the form path.to.key=value.'),
        ("model.name=3", '--set model.name: "model" is not a section.'),
        ("tune.epoch=3", 'tune.epoch: unknown key. Did you mean "epochs"?'),
        ("tune.batch_size=many", "tune.batch_size: input should be a valid integer (got 'many')."),
    ],
)
def test_overrides_that_fit_nowhere_are_refused(override, problem, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, GOOD | {"model": "x"}), [override])
    assert caught.value.problems == [problem]


def test_problems_of_overrides_and_recipe_are_said_together(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, with_(sede=1)), ["x", "tune.epochs=0"])
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1", "is not valid YAML: "),
        ("- a\n- b\n", "must be a mapping with the keys model, task, data, ..."),
        ("", "must be a mapping with the keys model, task, data, ..."),
    ],
)
def test_what_is_no_recipe_is_said(text, problem, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, text))
    assert problem in str(caught.value) and str(tmp_path / "recipe.yaml") in str(caught.value)


def test_a_missing_or_unreadable_file_is_said(tmp_path):
    with pytest.raises(RecipeError, match="no such file. Give the path of a recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read: "):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("model: Übung".encode("latin-1"))
    with pytest.raises(RecipeError, match="cannot be read: 'utf-8'"):
        load_recipe(tmp_path / "latin.yaml")


def test_what_is_dumped_loads_to_the_same(tmp_path):
    recipe = parse_recipe(
        with_(task={"labels": ["Künste & Kultur", "POLITICS"], "aliases": {"law": "POLITICS"}}, tune={"epochs": 2},
              data={"train": str(tmp_path / "rows.csv"), "separator": "\t"}, seed=7)
    )  # fmt: skip
    text = dump_recipe(recipe)
    assert "Künste & Kultur" in text
    again = load_recipe(written(tmp_path, text))
    assert again == recipe and dump_recipe(again) == text


def test_every_field_says_what_it_is():
    def missing(part, path="") -> list[str]:
        found = []
        for name, field in part.model_fields.items():
            if not field.description:
                found.append(path + name)
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                found += missing(field.annotation, f"{path}{name}.")
        return found

    assert missing(Recipe) == []


def test_folding_by_hand():
    same = ["Arts & Culture", "ARTS_AND_CULTURE", "arts and culture", " Arts-and/Culture. ", "ARTS&CULTURE"]
    assert {fold_label(label) for label in same} == {"arts and culture"}
    assert fold_label("Straße") == fold_label("STRASSE")
    assert len({fold_label(label) for label in ("C", "C++", "C#")}) == 3


@given(st.text(max_size=12))
def test_folding_twice_changes_nothing(label):
    assert fold_label(fold_label(label)) == fold_label(label)


def test_paths_of_stages_are_anchored_and_overridden_ones_are_the_callers(tmp_path, monkeypatch):
    from luthier.recipe.stages import load_stages

    folder = tmp_path / "recipes"
    folder.mkdir()
    path = folder / "train.yaml"
    path.write_text("stages:\n- method: clm\n  data: {train: [a.txt, {path: b/*.txt}], test: hub:some/set}\n")
    monkeypatch.chdir(tmp_path)
    rows = load_stages(path).stages[0].data
    assert [source.path for source in rows.train] == [str(folder / "a.txt"), str(folder / "b/*.txt")]
    assert rows.test[0].path == "hub:some/set"
    changed = load_stages(path, ["stages.0.data.train=c.txt", "stages.0.tune.epochs=3"]).stages[0]
    assert [source.path for source in changed.data.train] == [str(tmp_path / "c.txt")]
    assert changed.tune.epochs == 3.0


def test_a_stage_is_checked_as_strictly_as_the_rest():
    from luthier.recipe.stages import parse_stages

    values = {
        "stages": [
            {"method": "clmx", "data": {"trai": "a.txt"}},
            {"method": {"kind": "dpo", "bet": 0.2}, "data": {"train": ["b.jsonl"]}, "tune": {"epoch": 3}},
        ]
    }
    with pytest.raises(RecipeError) as error:
        parse_stages(values)
    text = str(error.value)
    for part in (
        "stages.0.method: there is no 'clmx'; use 'clm',", 'Did you mean "clm"?',
        "stages.0.data.train: missing; it has no default.", 'stages.0.data.trai: unknown key. Did you mean "train"?',
        'stages.1.method.bet: unknown key. Did you mean "beta"?',
        'stages.1.tune.epoch: unknown key. Did you mean "epochs"?',
    ):  # fmt: skip
        assert part in text, text
    same = [
        {"method": "sft", "data": {"train": "a.jsonl", "test_share": 0.0}, "start": "merge"},
        {"method": "sft", "data": {"train": "a.jsonl"}},
    ]
    with pytest.raises(RecipeError) as error:
        parse_stages({"stages": same})
    assert 'the name "sft" stands twice' in str(error.value)
    assert "stages.0.data: no rows are held out. Give test, or a test_share above 0." in str(error.value)
    assert "stages.0.start: the first stage has nothing to merge; leave it at stack." in str(error.value)


def test_sections_that_yaml_makes_one_are_overridden_apart(tmp_path):
    from luthier.recipe.stages import load_stages

    path = tmp_path / "train.yaml"
    path.write_text(
        "stages:\n"
        "- {name: one, method: sft, data: &rows {train: [a.jsonl]}, tune: &tune {epochs: 2, adapter: {rank: 4}}}\n"
        "- {name: two, method: sft, data: *rows, tune: *tune}\n"
        "- {name: three, method: sft, data: *rows, tune: {<<: *tune, batch_size: 4}}\n"
    )
    overrides = ["stages.1.tune.epochs=5", "stages.2.tune.adapter.rank=8", "stages.1.data.max_rows=9"]
    stages = load_stages(path, overrides).stages
    assert [stage.tune.epochs for stage in stages] == [2.0, 5.0, 2.0]
    assert [stage.tune.adapter.rank for stage in stages] == [4, 4, 8]
    assert [stage.data.max_rows for stage in stages] == [0, 9, 0]
    assert {stage.data.train[0].path for stage in stages} == {str(tmp_path / "a.jsonl")}


def test_an_alias_inside_itself_is_refused(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, "task: &task {labels: [A, B], again: *task}"))
    assert caught.value.problems == ["an alias (*name) stands inside what it names (&name). Write it out."]
