"""The recipe: strict, complete in its complaints, and quick to read."""

import datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import luthier
from luthier.errors import RecipeError
from luthier.recipe import ALL_ARMS, Recipe, dump_recipe, fold_label, load_recipe, parse_corpus, parse_recipe
from luthier.recipe.base import sections_of
from luthier.recipe.reading import read_values
from luthier.recipe.stages import load_stages
from luthier.synthetic.settings import parse_synthetic

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


def test_rules_across_fields_are_said_beside_problems_of_single_fields():
    """Of every section that has no problem of its own."""
    found = problems(with_(sed=1, task={"labels": ["A", "a"]}, arms=["tfidf", "tfidf"], tune={"epochs": 0}))
    assert found == [
        "tune.epochs: input should be greater than 0 (got 0).",
        'sed: unknown key. Did you mean "seed"?',
        'task.labels: "a" and "A" are the same label once spelling is folded.',
        "arms: a name stands twice.",
    ]
    assert len(problems({"task": {"labels": ["A"]}, "data": {}, "seed": -1})) == 3, "labels, seed, and no rows"
    broken = {"inputs": [{"path": "a.txt"}], "seed": -1, "template": {"layout": "own"}}
    with pytest.raises(RecipeError) as caught:
        parse_corpus(broken, "corpus")
    assert caught.value.problems == [
        "seed: input should be greater than or equal to 0 (got -1).",
        "template.prompt: layout own needs a template.",
    ]


def test_rules_of_sound_stages_are_said_beside_problems_of_others():
    from luthier.recipe.stages import parse_stages

    rows = {"train": "a.jsonl"}
    stages = [
        {"method": "sft", "data": rows, "start": "merge"},
        {"method": "dpoo", "data": rows},
        {"name": "sft", "method": "sft", "data": rows},
    ]
    with pytest.raises(RecipeError) as caught:
        parse_stages({"sed": 1, "stages": stages})
    method, key, twice, start = caught.value.problems
    assert method.startswith("stages.1.method: there is no 'dpoo'") and key.startswith("sed: unknown key.")
    assert twice == 'stages: the name "sft" stands twice. Give each stage a name of its own.'
    assert start == "stages.0.start: the first stage has nothing to merge; leave it at stack."
    with pytest.raises(RecipeError) as caught:
        parse_stages({"sed": 1})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (True, '(got True). YAML reads yes, on, true as true; put a word in quotes: "yes".'),
        (False, '(got False). YAML reads no, off, false as false; put a word in quotes: "no".'),
        (1, '(got 1). YAML reads it as a number; put a text in quotes: "1".'),
        (datetime.date(2024, 5, 1), 'YAML reads it as a date; put a text in quotes: "2024-05-01".'),
        (None, '(got None). YAML reads null and ~ as nothing; put a word in quotes: "null".'),
    ],
)
def test_labels_that_yaml_reads_as_something_else_are_explained(label, problem):
    (found,) = problems(with_(task={"labels": [label, "OTHER"]}))
    assert found.startswith("task.labels.0: input should be a valid string ") and found.endswith(problem)


def test_words_without_quotes_are_explained_where_they_are_chosen_from_a_list():
    with pytest.raises(RecipeError) as caught:
        parse_corpus({"inputs": [{"path": "a.txt"}], "steps": {"personal": {"action": False}}}, "corpus")
    assert caught.value.problems == [
        "steps.personal.action: 'False' is not allowed; use 'off', 'report', 'mask', 'pseudonym' or 'drop'. "
        'YAML reads no, off, false as false; put a word in quotes: "off".'
    ]
    (found,) = problems(with_(data={"class_prior": {True: 0.5, "POLITICS": 0.5}}))
    assert found == "data.class_prior: a label is a text; put words such as yes, no and null in quotes."


@pytest.mark.parametrize(
    ("path", "value"),
    [("cost.machine_per_hour", ".inf"), ("tune.epochs", ".inf"), ("tune.learning_rate", ".nan"),
     ("tune.clip_norm", ".inf"), ("tune.adapter.alpha", "-.inf"), ("judge.minimum_gain", ".nan"),
     ("tune.weight_decay", "inf")],
)  # fmt: skip
def test_numbers_are_finite(path, value, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, GOOD), [f"{path}={value}"])
    (found,) = caught.value.problems
    assert found.startswith(f"{path}: input should be ")
    assert "finite number" in found or "greater than" in found or "less than" in found


def test_no_number_of_any_section_may_be_infinite():
    """Sections of a recipe of both kinds, and all that lies in them."""
    from luthier.recipe.stages import TrainRecipe

    seen, waiting = set(), [Recipe, TrainRecipe]
    while waiting:
        part = waiting.pop()
        if part in seen:
            continue
        seen.add(part)
        assert part.model_config["allow_inf_nan"] is False, part
        waiting += [inner for field in part.model_fields.values() for inner in sections_of(field.annotation)]
    assert len(seen) > 50


def test_choices_of_a_sweep_are_finite():
    (found,) = problems(with_(sweep={"space": {"tune.epochs": [1.0, float("inf")]}}))
    assert "sweep.space.tune.epochs: value error, choices must be finite numbers" in found


@pytest.mark.parametrize("seed", [2**32, 10**28, -1])
def test_a_seed_is_one_that_every_library_takes(seed):
    from luthier.recipe.stages import parse_stages

    said = "seed: input should be " + ("greater than or equal to 0" if seed < 0 else "less than or equal to 4294967295")
    assert problems(with_(seed=seed)) == [f"{said} (got {seed})."]
    inputs = [{"path": "a.txt"}]
    (found,) = problems(with_(data={"synthetic": {"seed": seed}}))
    assert found == f"data.synthetic.{said} (got {seed})."
    for parse, values in (
        (parse_corpus, {"inputs": inputs}),
        (parse_stages, {"stages": [{"method": "sft", "data": {"train": "a"}}]}),
    ):
        with pytest.raises(RecipeError) as caught:
            parse({**values, "seed": seed}, "recipe")
        assert caught.value.problems == [f"{said} (got {seed})."]
    assert parse_recipe(with_(seed=2**32 - 1)).seed == 2**32 - 1


def test_paths_are_relative_to_the_recipe(tmp_path):
    recipe = load_recipe(written(tmp_path, with_(data={"test": "held/out.csv"})))
    assert recipe.data.train == str(tmp_path / "rows.jsonl") and recipe.data.test == str(tmp_path / "held" / "out.csv")
    absolute = load_recipe(written(tmp_path, with_(data={"train": "/data/rows.csv"})))
    assert absolute.data.train == "/data/rows.csv"


def test_a_models_folder_is_found_beside_the_recipe_first(tmp_path, monkeypatch):
    (tmp_path / "there" / "tuned").mkdir(parents=True)
    (tmp_path / "there" / "tuned" / "config.json").write_text("{}")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "small.gguf").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    for name, found in (
        ("tuned", str(tmp_path / "there" / "tuned")),
        ("small.gguf", str(tmp_path / "here" / "small.gguf")),
        ("owner/name", "owner/name"),
        ("x" * 300, "x" * 300),
    ):
        path = tmp_path / "there" / "recipe.yaml"
        path.write_text(yaml.safe_dump({"model": name}))
        assert read_values(path, [])[0]["model"] == found
        assert read_values(path, ["model=small.gguf"])[0]["model"] == str(tmp_path / "here" / "small.gguf")


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


def test_a_recipe_may_come_as_plain_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"task": {"labels": ["A", "B"]}, "data": {"train": "rows.csv"}}
    made = load_recipe(values, ["seed=3"])
    assert (made.data.train, made.seed) == (str(tmp_path / "rows.csv"), 3)
    assert values["data"] == {"train": "rows.csv"}, "what was given stays as it is"
    stages = load_stages({"stages": [{"method": "clm", "data": {"train": "texts.jsonl"}}]})
    assert stages.stages[0].data.train[0].path == str(tmp_path / "texts.jsonl")
    assert isinstance(luthier.load_recipe(values), luthier.Recipe)


def test_what_is_no_recipe_is_refused():
    for wrong in (5, None, ["a"]):
        with pytest.raises(luthier.RecipeError, match=rf"is {type(wrong).__name__}. Give the path of a recipe"):
            luthier.run(wrong)


def test_public_names_are_listed_and_there():
    assert set(luthier.__all__) < set(dir(luthier))
    assert all(getattr(luthier, name) is not None for name in luthier.__all__)
    assert issubclass(luthier.Stopped, luthier.LuthierError)


@pytest.mark.parametrize("where", ["synthetic", "distil"])
def test_a_key_in_the_place_of_a_variables_name_is_not_shown(where):
    key = "sk-1234-5678"
    with pytest.raises(RecipeError) as caught:
        if where == "synthetic":
            parse_synthetic({"questions": {}, "inputs": [{"path": "a.jsonl"}],
                             "writer": {"engine": "endpoint", "base_url": "http://x/v1", "key_variable": key}})  # fmt: skip
        else:
            method = {"kind": "distil", "teacher": "http://x/v1#m", "key_variable": key}
            load_stages({"stages": [{"method": method, "data": {"train": "a.jsonl"}}]})
    assert "is no name of an environment variable" in str(caught.value)
    assert key not in str(caught.value)


@pytest.mark.parametrize("address", ["http://x/v1?api_key=SECRET", "http://me:SECRET@x/v1"])
def test_a_key_in_an_address_is_refused_and_not_shown(address):
    with pytest.raises(RecipeError) as caught:
        parse_synthetic({"questions": {}, "inputs": [{"path": "a.jsonl"}],
                         "writer": {"engine": "endpoint", "base_url": address}})  # fmt: skip
    assert "SECRET" not in str(caught.value)
    method = {"kind": "distil", "teacher": f"{address}#m"}
    with pytest.raises(RecipeError) as caught:
        load_stages({"stages": [{"method": method, "data": {"train": "a.jsonl"}}]})
    assert "an environment variable" in str(caught.value) and "SECRET" not in str(caught.value)


def test_aliases_that_write_out_to_a_billion_values_are_refused(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(RecipeError, match="aliases .* write out to more than 100,000 values"):
        load_recipe(written(tmp_path, "\n".join(lines)))


TWICE = """\
task: {labels: [A, B]}
data:
  train: rows.txt
tune:
  epochs: 1
seed: 1
tune:
  batch_size: 4
  "batch_size": 8
"""
SAID_TWICE = [
    'the key "batch_size" stands on line 8 and on line 9, and one of them would be lost. Keep one.',
    'the key "tune" stands on line 4 and on line 7, and one of them would be lost. Keep one.',
]


def loaders():
    """Everything that reads a recipe file."""
    from luthier.recipe import load_corpus
    from luthier.recipe.space import load_any
    from luthier.recipe.stages import load_stages
    from luthier.synthetic.settings import load_synthetic

    return [load_recipe, load_corpus, load_any, load_stages, load_synthetic]


@pytest.mark.parametrize("load", loaders(), ids=lambda load: load.__name__)
def test_a_key_that_stands_twice_is_refused_wherever_recipes_are_read(load, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(written(tmp_path, TWICE))
    assert caught.value.problems[:2] == SAID_TWICE


def test_keys_that_stand_twice_are_said_with_all_other_problems(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            written(tmp_path, TWICE + "sed: 2\nyes: 1\ntrue: 2\n"), ["task.aliases={a: A, a: B}", "tune.epochs=0"]
        )
    assert [problem for problem in caught.value.problems if "would be lost" in problem] == [
        *SAID_TWICE,
        'the key "true" stands on line 11 and on line 12, and one of them would be lost. Keep one.',
        '--set task.aliases: the key "a" stands twice on line 1, and one of them would be lost. Keep one.',
    ]
    assert any(problem.startswith("sed: unknown key") for problem in caught.value.problems)
    assert any(problem.startswith("tune.epochs: ") for problem in caught.value.problems)


def test_merged_keys_may_be_overridden(tmp_path):
    from luthier.recipe.stages import load_stages

    path = written(
        tmp_path,
        "stages:\n"
        "- {name: one, method: sft, data: &rows {train: a.jsonl, max_rows: 3}, tune: &tune {epochs: 2, batch_size: 8}}\n"
        "- {name: two, method: sft, data: *rows, tune: &more {<<: *tune, epochs: 3}}\n"
        "- {name: three, method: sft, data: {<<: *rows, max_rows: 5}, tune: {<<: [*more, *tune], batch_size: 4}}\n",
    )
    stages = load_stages(path).stages
    assert [(stage.tune.epochs, stage.tune.batch_size) for stage in stages] == [(2.0, 8), (3.0, 8), (3.0, 4)]
    assert [stage.rows.max_rows for stage in stages] == [3, 3, 5]


def test_values_that_are_not_what_they_look_like_are_refused(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, "name: 2024-13-45"))
    assert caught.value.problems == ["is not valid YAML: month must be in 1..12"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, GOOD), ["task=&task [*task]"])
    assert caught.value.problems[0] == (
        "--set task: an alias (*name) stands inside what it names (&name). Write it out."
    )


def test_a_path_of_an_unknown_user_is_a_plain_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = written(folder, with_(data={"train": "~no-such-user/rows.txt"}))
    assert load_recipe(path).data.train == str(folder / "~no-such-user" / "rows.txt")
    assert load_recipe(path, ["data.train=~no-such-user/a.txt"]).data.train == str(tmp_path / "~no-such-user/a.txt")
