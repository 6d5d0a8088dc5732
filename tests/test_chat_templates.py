"""Chat templates of one's own and their arguments: in training, in what is stored, and in what others load."""

import json

import pytest
import transformers as hf

from luthier.errors import ModelError, RecipeError
from luthier.merging import merge
from luthier.pipeline import run
from luthier.predictor import load as load_predictor
from luthier.prompts import Dialogue, Layout, layout_of, template_left
from luthier.recipe import load_recipe
from luthier.recipe.stages import Asking, load_stages
from luthier.records import Message
from luthier.stages import load, train
from tiny import CHATML, TURN_END, tiny_folder, tiny_tokenizer

TALK = (Message("user", "Text"), Message("assistant", "Sports"), Message("user", "goal"), Message("assistant", "Arts"))
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% if enable_thinking is defined and not "
    "enable_thinking %}<think></think>{% endif %}{% endif %}"
)
OWN = CHATML.replace("<|im_end|>", " .<|im_end|>")


def rows(path, num=24):
    lines = [
        {"messages": [{"role": "user", "content": f"Text goal {n}"}, {"role": "assistant", "content": "Sports"}]}
        for n in range(num)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe(folder, model, prompt: str):
    rows(folder / "rows.jsonl")
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {model}\nstages:\n  - method: sft\n    data: {{train: rows.jsonl, test_share: 0.2}}\n"
        f"    prompt: {prompt}\n    tune: {{epochs: 1, batch_size: 8, adapter: {{rank: 2}}}}\n"
    )
    return path


@pytest.mark.parametrize("name", ["chatml", "alpaca"])
def test_named_templates_write_turns_that_end(name):
    prompt = Dialogue(layout_of(tiny_tokenizer(None), Asking(template=name)))
    prompt.tokenizer.eos_token = TURN_END
    ((tokens, found),) = prompt.encode([TALK])
    said = [prompt.tokenizer.decode(tokens[turn.start : turn.stop]) for turn in found]
    assert said == ["Sports<|im_end|>", "Arts<|im_end|>"]
    wanted = {"chatml": Dialogue(Layout(tiny_tokenizer(CHATML))), "alpaca": Dialogue(Layout(tiny_tokenizer()), "hash")}
    assert prompt.render(TALK, ask=False) == wanted[name].render(TALK, ask=False)


def test_a_template_whose_end_is_no_token_of_the_model_is_refused():
    prompt = Dialogue(layout_of(tiny_tokenizer(), Asking(template=CHATML.replace("<|im_end|>", "|end|"))))
    with pytest.raises(ModelError, match="nothing ends the assistant's turn"):
        prompt.encode([TALK[:2]])


def test_arguments_reach_the_template_and_change_its_key():
    with_, without = (
        Dialogue(layout_of(tiny_tokenizer(THINKS), Asking(template_arguments=arguments)))
        for arguments in ({"enable_thinking": False}, {})
    )
    assert with_.render(TALK[:1], ask=True) == without.render(TALK[:1], ask=True) + "<think></think>"
    assert with_.layout.template != without.layout.template
    with pytest.raises(ModelError) as error:
        layout_of(tiny_tokenizer(THINKS), Asking(template_arguments={"enable_thought": False}))
    assert str(error.value) == (
        "prompt.template_arguments: the chat template reads no enable_thought. Leave it out, or give a template that "
        "does."
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"template": "chatlm"}, "prompt.template: names no file with a template, and is none of chatml, llama3, alpaca (got 'chatlm')."),
        ({"template_arguments": {"tools": []}}, '"tools" cannot be given: it is no name in a template, or is set for each conversation.'),
        ({"template": "chatml", "layout": "hash"}, "template and template_arguments have no effect while layout is hash"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(tmp_path, settings, wanted):
    with pytest.raises(RecipeError) as error:
        load_stages(recipe(tmp_path, "x", json.dumps(settings)))
    assert wanted in str(error.value)


@pytest.mark.parametrize("system", ["", 'Say "so"\n%} {{ x }} \\ 🎻'])
@pytest.mark.parametrize(
    ("model", "asking"),
    [
        (CHATML, Asking()),
        (CHATML, Asking(template=OWN)),
        (THINKS, Asking(template_arguments={"enable_thinking": False})),
        (CHATML, Asking(layout="hash")),
        (CHATML, Asking(layout="plain")),
        (None, Asking()),
    ],
)
def test_the_template_that_is_left_asks_as_the_model_was_trained(model, asking, system):
    prompt = Dialogue(layout_of(tiny_tokenizer(model), asking), asking.layout, system)
    left = template_left(prompt)
    if left is None:
        assert asking == Asking() and model and not system
        return
    other = tiny_tokenizer(left)
    other.eos_token = prompt.tokenizer.eos_token
    for turns in (TALK[:1], TALK[:3], (Message("system", "Own."), *TALK[:1])):
        asked = other.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in turns], tokenize=False, add_generation_prompt=True
        )
        assert asked == prompt.render(prompt.with_system(turns), ask=True)


def test_a_run_keeps_its_template_and_merge_writes_it(tmp_path):
    model = tiny_folder(tmp_path / "model")
    (tmp_path / "own.jinja").write_text(OWN)
    path = recipe(tmp_path, model, "{template: own.jinja, system: Be kind.}")
    result = train(path, tmp_path / "run")
    (tmp_path / "own.jinja").unlink()
    adapter = tmp_path / "run" / "stages" / "01-sft" / "adapter"
    assert result["adapter"] == str(adapter)
    answerer = load(tmp_path / "run")
    (asked,) = answerer.prompts(["Text"])
    text = answerer.dialogue.tokenizer.decode(asked)
    assert (
        text == "<|im_start|>system\nBe kind. .<|im_end|>\n<|im_start|>user\nText .<|im_end|>\n<|im_start|>assistant\n"
    )
    merge(tmp_path / "run", tmp_path / "merged")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "merged")
    for other in (tokenizer.chat_template, (adapter / "chat_template.jinja").read_text()):
        turns = [{"role": "user", "content": "Text"}]
        given = {"chat_template": other, "tokenize": False, "add_generation_prompt": True}
        assert tokenizer.apply_chat_template(turns, **given) == text


def test_a_run_that_labels_keeps_its_template_too(tmp_path):
    model = tiny_folder(tmp_path / "model")
    lines = [json.dumps({"text": f"goal {n}", "label": "Sports" if n % 2 else "Politics"}) for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "own.jinja").write_text(OWN)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {model}\ntask: {{labels: [Sports, Politics]}}\ndata: {{train: rows.jsonl}}\narms: [majority, tuned]\n"
        "prompt: {template: own.jinja}\ntune: {epochs: 1, adapter: {rank: 2}}\n"
    )
    run(load_recipe(path), tmp_path / "run")
    predictor = load_predictor(tmp_path / "run")
    (asked,) = predictor.classifier.prompt.encode(["goal"])
    assert " .<|im_end|>" in predictor.classifier.prompt.layout.tokenizer.decode(asked)
    merge(tmp_path / "run", tmp_path / "merged")
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == OWN
