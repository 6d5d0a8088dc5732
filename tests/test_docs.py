"""The docs say what the code does: reference current and complete, links and command lines good."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import typer
from pydantic import BaseModel

from luthier.cli.main import app
from luthier.recipe import Recipe
from luthier.recipe.methods import METHODS
from luthier.recipe.stages import Stage, TrainRecipe

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *(ROOT / "examples").glob("*/*.md"),
    ]
    if page.is_file()
]
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(luthier [^`\n]+)`")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- the reference -------------------------------------------------------------------------------------


def test_reference_is_current():
    generator = load_generator()
    stale = "run `python docs/generate.py`"
    assert generator.stored(generator.REFERENCE / "recipe.md") == generator.recipe_page(), stale
    assert generator.stored(generator.REFERENCE / "stages.md") == generator.stages_page(), stale
    assert generator.stored(generator.REFERENCE / "commands.md") == generator.commands_page(), stale


def test_check_says_which_page_is_stale(tmp_path, monkeypatch, capsys):
    generator = load_generator()
    monkeypatch.setattr(generator, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr("sys.argv", ["generate.py"])
    generator.main()
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    generator.main()
    page = tmp_path / "reference" / "recipe.md"
    page.write_text(page.read_text().replace("tune.epochs", "tune.epoch"))
    with pytest.raises(SystemExit) as stopped:
        generator.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        "docs/reference/recipe.md: not what the code says. Run `python docs/generate.py`.\n"
    )


def recipe_keys(part: type[BaseModel] = Recipe, path: str = "") -> list[str]:
    """Dotted names of all keys, worked out apart from the generator."""
    keys = []
    for key, field in part.model_fields.items():
        keys.append(path + key)
        for inner in parts_in(field.annotation):
            keys += recipe_keys(inner, f"{path}{key}.")
    return keys


def parts_in(annotation: object) -> list[type[BaseModel]]:
    """The sections that an annotation names: one, or each kind of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [part for inner in get_args(annotation) for part in parts_in(inner)]


def test_every_recipe_key_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    keys = recipe_keys()
    assert {"seed", "tune.epochs", "tune.adapter.rank"} <= set(keys)
    assert [key for key in keys if f"`{key}`" not in page] == []


def test_every_key_and_method_of_the_stage_recipe_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "stages.md").read_text()
    keys = {"seed", "stages.start", "stages.data.train", "stages.tune.adapter.rank", "stages.keep.penalty"}
    assert [key for key in keys if f"`{key}`" not in page] == []
    parts = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(parts) == {method.model_fields["kind"].default for method in METHODS}
    for method in METHODS:
        text = parts[method.model_fields["kind"].default]
        for key, field in method.model_fields.items():
            assert key == "kind" or (f"| `{key}` |" in text and field.description)
        assert all(f"`{key}: {value:g}`" in text for key, value in method.tune.items())


def test_every_recipe_key_has_a_description():
    def undescribed(part: type[BaseModel], path: str):
        for key, field in part.model_fields.items():
            if not field.description and key != "kind":
                yield path + key
            for inner in parts_in(field.annotation):
                yield from undescribed(inner, f"{path}{key}.")

    assert [*undescribed(Recipe, ""), *undescribed(TrainRecipe, ""), *undescribed(Stage, "stages.")] == []


def leaves(command=None, words: tuple[str, ...] = ()):
    """(words, command) of every command that does something."""
    command = command or typer.main.get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(words, command)]
    return [leaf for word, one in inner.items() for leaf in leaves(one, (*words, word))]


def test_every_command_and_option_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "commands.md").read_text()
    parts = dict(re.findall(r"^## (luthier .*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(parts) == {" ".join(["luthier", *words]) for words, _ in leaves()}
    for words, command in leaves():
        text = parts[" ".join(["luthier", *words])]
        assert command.help
        assert " ".join(command.help.split()) in text
        for parameter in command.params:
            assert parameter.help
            assert parameter.help.replace("|", "\\|") in text
            if parameter.param_type_name == "option":
                assert all(f"`{option}" in text for option in parameter.opts)


# --- links ---------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links():
    for page in PAGES:
        for target in LINK.findall(FENCE.sub("", page.read_text())):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(
    ("page", "target"), [pytest.param(*item, id=f"{shown(item[0])}:{item[1]}") for item in links()]
)
def test_relative_link_leads_somewhere(page, target):
    path, _, anchor = target.partition("#")
    file = (page.parent / path) if path else page
    assert file.exists(), f"{shown(page)} links to {target}"
    if anchor:
        assert anchor in anchors(file), f"{shown(page)} links to {target}; headings: {sorted(anchors(file))}"


# --- command lines -------------------------------------------------------------------------------------


def block_lines(text: str) -> list[str]:
    """`luthier ...` command lines in the fenced blocks of a page, continued lines joined, pipes parted."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            parts = re.split(r"(?<!\S)[|](?!\S)|&&", line.strip().removeprefix("$ "))
            found += [part.strip() for part in parts if re.match(r"\s*(\S*/)?luthier\s", part)]
    return found


def parse(line: str) -> list[str]:
    """Have the command tree read a line without running it; returns the command's words."""
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command, taken = typer.main.get_command(app), []
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f'{line}: no command "{words[0]}"'
        taken.append(words.pop(0))
        command = command.commands[taken[-1]]
    if words not in (["--help"], []) or not hasattr(command, "commands"):
        command.make_context("luthier", [word for word in words if word != "--help"])
    return taken


def command_lines():
    for page in PAGES:
        for line in block_lines(page.read_text()):
            if not line.endswith("[OPTIONS]"):  # the reference's own usage lines
                yield page, line


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(*item, id=f"{shown(item[0])}:{item[1]}") for item in command_lines()]
)
def test_command_line_in_a_block_parses(page, line):
    parse(line)


def test_command_named_in_a_sentence_exists():
    """A sentence may leave the arguments out, but not invent a command or an option."""
    for page in PAGES:
        for line in INLINE.findall(FENCE.sub("", page.read_text())):
            words = shlex.split(line)[1:]
            named = [(leaf, command) for leaf, command in leaves() if tuple(words[: len(leaf)]) == leaf]
            assert len(named) == 1, f"{shown(page)}: `{line}` is no command"
            options = {option for parameter in named[0][1].params for option in parameter.opts}
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert asked <= options | {"--help"}, f"{shown(page)}: `{line}`"


def test_messages_to_look_up_are_those_of_the_code():
    """The troubleshooting table quotes real messages; `…` stands for what is filled in."""
    page = (ROOT / "docs" / "getting-started.md").read_text()
    quoted = re.findall(r"^\| `(.+?)` \|", page.partition("## Troubleshooting")[2], re.MULTILINE)
    texts = [
        node.value
        for module in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    pieces = [piece for message in quoted for piece in message.split("…") if piece.strip()]
    assert len(quoted) > 15
    assert [piece for piece in pieces if not any(piece in text for text in texts)] == []


def test_parse_refuses_what_the_command_line_refuses():
    assert parse("luthier data peek recipe.yaml --rows 5 --set seed=1") == ["data", "peek"]
    assert parse(".venv/bin/luthier models list > models.txt") == ["models", "list"]
    assert parse("luthier --help") == []
    with pytest.raises(AssertionError, match='no command "serve"'):
        parse("luthier serve runs/x")
    for line in (
        "luthier run",
        "luthier run recipe.yaml --fast",
        "luthier data peek recipe.yaml --rows many",
    ):
        with pytest.raises(Exception, match=r"Missing parameter|No such option|be a valid integer"):
            parse(line)


def test_blocks_are_taken_apart():
    block = "$ cat a.txt | luthier predict runs/a --file -\nluthier run \\\n  a.yaml\necho luthier\n"
    text = f"```bash\n{block}```\nluthier x\n"
    assert [line.split() for line in block_lines(text)] == [
        ["luthier", "predict", "runs/a", "--file", "-"],
        ["luthier", "run", "a.yaml"],
    ]
