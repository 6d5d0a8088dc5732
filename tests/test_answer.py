"""A run of stages that answers: asked as it was trained, from the right weights, and refused where it cannot be."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier import stages
from luthier.adapters import load_adapter
from luthier.errors import DataError, RunError
from luthier.files import write_checksums
from luthier.generation.sampling import Sampling
from luthier.records import Message
from luthier.stages.answer import Answerer, load

RECIPE = """
name: talk
model: {model}
precision: float32
stages:
  - name: read
    method: {{kind: clm, window_tokens: 32}}
    data: {{train: documents.jsonl, test_share: 0.4, validation_share: 0.0}}
    tune: &tune {{epochs: 1, batch_size: 4, learning_rate: 0.01, adapter: {{rank: 2, alpha: 8.0}}}}
  - name: talk
    method: sft
    data: {{train: chats.jsonl, test_share: 0.4, validation_share: 0.0}}
    prompt: {{system: the team, layout: {layout}}}
    start: {start}
    tune: *tune
  - name: stars
    method: regress
    data: {{train: stars.jsonl, test_share: 0.4, validation_share: 0.0}}
    tune: *tune
"""
THINGS = ("goal", "vote", "law", "song", "match", "museum")


def write_rows(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder, model, start="stack", layout="chat"):
    """Three stages on a tiny model; the run folder."""
    write_rows(folder, "documents.jsonl", [{"text": f"the {thing} won the {thing} of the team"} for thing in THINGS])
    write_rows(
        folder,
        "chats.jsonl",
        [
            {"messages": [{"role": "user", "content": f"the {t}"}, {"role": "assistant", "content": f"a {t}"}]}
            for t in THINGS
        ],
    )
    write_rows(folder, "stars.jsonl", [{"text": f"the {t}", "label": str(i)} for i, t in enumerate(THINGS)])
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, start=start, layout=layout))
    stages.train(folder / "recipe.yaml", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_path):
    return train(tmp_path_factory.mktemp("talk"), tiny_path)


def plain_reply(model, tokens, most, stop):
    """The likeliest tokens, one whole forward each, with nothing of the engine."""
    reply = []
    while len(reply) < most:
        with torch.no_grad():
            token = int(model(torch.tensor([[*tokens, *reply]])).logits[0, -1].argmax())
        if token in stop:
            break
        reply.append(token)
    return reply


def whole_model(path, adapter):
    """The model with a saved adapter, through transformers and PEFT alone."""
    return load_adapter(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), adapter).eval()


def test_the_prompt_of_an_answer_is_the_beginning_of_the_trained_row(run):
    """Token for token, system message included; what follows is what was trained."""
    answerer = load(run, "talk")
    asked = answerer.prompts(["the goal"])[0]
    turns = (Message("system", "the team"), Message("user", "the goal"), Message("assistant", "a goal"))
    tokens, found = answerer.dialogue.encode([turns])[0]
    assert tokens[: found[0].start] == asked
    assert tokens[-1] in answerer.stop and answerer.dialogue.layout.decode(tokens[found[0].start :]) == "a goal"


@pytest.mark.parametrize("stage", ["read", "talk"])
def test_answers_are_those_of_the_saved_adapter(stage, run, tiny_path):
    """Greedy replies equal plain decoding with PEFT's model; a stacked adapter holds the stage below it."""
    answerer = load(run, stage)
    number = {"read": "01", "talk": "02"}[stage]
    model = whole_model(tiny_path, run / "stages" / f"{number}-{stage}" / "adapter")
    texts = ["the goal", "the museum won"]
    wanted = [plain_reply(model, tokens, 6, answerer.stop) for tokens in answerer.prompts(texts)]
    replies = answerer.answer(texts, max_tokens=6)
    decoded = [answerer.dialogue.layout.decode(tokens) for tokens in wanted]
    assert [reply.text for reply in replies] == [one if stage == "read" else one.strip() for one in decoded]
    assert [reply.finished for reply in replies] == [len(tokens) < 6 for tokens in wanted]


def test_a_merged_stage_is_asked_on_its_own_model(tmp_path, tiny_path):
    """The adapter over the merged model, which is not the recipe's; the folder may have been moved."""
    run = train(tmp_path, tiny_path, start="merge")
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    answerer = load(moved, "talk")
    folder = moved / "stages" / "02-talk"
    tokens = answerer.prompts(["the vote"])[0]
    wanted = plain_reply(whole_model(folder / "model", folder / "adapter"), tokens, 5, answerer.stop)
    assert answerer.answer(["the vote"], 5)[0].text == answerer.dialogue.layout.decode(wanted).strip()


def test_documents_are_gone_on_with_as_they_were_read(run):
    """clm trained plain text: no template, no stop but the end of the text."""
    answerer = load(run, "read")
    encode = answerer.dialogue.tokenizer.encode
    assert answerer.prompts(["the goal"]) == [tuple(encode("the goal", add_special_tokens=False))]
    assert answerer.stop == {0}
    with pytest.raises(DataError, match="learnt plain documents .clm.: give a text for it to go on with, not turns"):
        answerer.answer([[{"role": "user", "content": "x"}]])


def test_a_conversation_is_asked_with_all_its_turns(run):
    answerer = load(run, "talk")
    turns = [{"role": "user", "content": "the goal"}, {"role": "assistant", "content": "a goal"},
             {"role": "user", "content": "the law"}]  # fmt: skip
    text = answerer.dialogue.tokenizer.decode(answerer.prompts([turns])[0])
    assert text == (
        "<|im_start|>system\nthe team<|im_end|>\n<|im_start|>user\nthe goal<|im_end|>\n<|im_start|>assistant\n"
        "a goal<|im_end|>\n<|im_start|>user\nthe law<|im_end|>\n<|im_start|>assistant\n"
    )


def test_sampling_is_the_seeds(run):
    answerer = load(run, "talk")
    ask = ["the goal"] * 3
    drawn = [answerer.answer(ask, 8, Sampling(3.0, seed=seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({reply.text for reply in drawn[0]}) > 1, "one text asked thrice is drawn thrice"
    assert answerer.answer(["the goal"], 8, Sampling(0.0)) == answerer.answer(["the goal"], 8)


def test_the_reply_ends_where_the_context_does(run):
    answerer = load(run, "talk")
    short = Answerer(answerer.learner, answerer.dialogue, False, len(answerer.prompts(["the goal"])[0]) + 2)
    assert short.answer(["the goal"], 50) == answerer.answer(["the goal"], 2) != answerer.answer(["the goal"], 50)
    with pytest.raises(DataError, match=r"text 2: it has [\d,]+ tokens with its prompt; the model reads 1 to "):
        short.answer(["the goal", "the goal won the match in the museum"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "text 1: the last turn has to be the user's"),
        ([], "text 1: the last turn has to be the user's"),
        ([{"role": "boss", "content": "x"}], "text 1: a turn is {'role': system or user or assistant, 'content': some text}; got"),
        ("  ", "text 1: a turn is"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(asked, message, run):
    with pytest.raises(DataError) as error:
        load(run, "talk").answer([asked])
    assert message in str(error.value)


def test_one_text_is_not_a_list(run):
    with pytest.raises(TypeError, match=r"answer takes a list of texts: answer\(\["):
        load(run, "talk").answer("the goal")
    assert load(run, "talk").answer([]) == []


# --- what cannot be loaded ------------------------------------------------------------------------------------------


def test_a_head_writes_nothing(run):
    with pytest.raises(RunError) as error:
        load(run)
    assert (
        'stage "stars" (regress) learnt no text to write. Heads are asked with `luthier predict`. Another stage'
        in str(error.value)
    )


def test_names_that_are_not_there(run, tmp_path):
    with pytest.raises(RunError, match=r'no stage "tolk"; there is read, talk, stars. Did you mean "talk"\?'):
        load(run, "tolk")
    with pytest.raises(RunError, match=r'stage "talk" has no task "x" \(it has no tasks; leave --task out\)'):
        load(run, "talk", "x")
    with pytest.raises(RunError, match="no finished run here .no result.json.. A run that was stopped goes on with"):
        load(tmp_path)
    (tmp_path / "result.json").write_text('{"arms": {}}')
    with pytest.raises(RunError, match="a run of `luthier run` labels texts; ask it with `luthier predict`"):
        load(tmp_path)


def test_tasks_of_one_stage(run, tmp_path):
    """The task that writes is asked; where several do, one has to be named."""
    result = json.loads((run / "result.json").read_text())
    stage = result["stages"][1]
    stage["tasks"] = {"stars": {"method": "regress"}, "talk": {"method": "sft"}}
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "result.json").write_text(json.dumps(result))
    dialogue = copy / "stages" / "02-talk" / "adapter" / "dialogue.json"
    dialogue.write_text(json.dumps({"stars": {}, "talk": {"layout": "plain", "system": ""}}))
    write_checksums(dialogue.parent)
    assert load(copy, "talk").dialogue.style == "plain"
    with pytest.raises(RunError, match=r'stage "talk" has no task "tolk" \(its tasks: stars, talk\)'):
        load(copy, "talk", "tolk")
    with pytest.raises(
        RunError, match=r'stage "talk" \(regress\) learnt no text to write. Heads .* with --stage: read'
    ):
        load(copy, "talk", "stars")
    stage["tasks"]["more"] = {"method": "dpo"}
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match="has several tasks. Say which, with --task: talk, more"):
        load(copy, "talk")
    dialogue.write_text("{")
    with pytest.raises(RunError, match="not there, or not as a run leaves it. Run the recipe again"):
        load(copy, "talk", "talk")


def test_another_model_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    result = json.loads((copy / "result.json").read_text())
    result["model"]["sha256"] = "0" * 64
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        RunError, match="is not the one the run was trained on .sha256 .*trained on 000000000000.. Fetch"
    ):
        load(copy, "talk")


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_what_python_returns(run, luthier, tmp_path):
    texts = ["the goal", "the law"]
    wanted = load(run, "talk").answer(texts, 5)
    (tmp_path / "texts.txt").write_text("the law\n")
    ask = ("answer", run, "--stage", "talk", "--text", "the goal", "--file", tmp_path / "texts.txt", "--max-tokens", 5)
    code, out, _ = luthier(*ask, "--json")
    told = [{"text": text, "answer": r.text, "finished": r.finished} for text, r in zip(texts, wanted, strict=True)]
    assert code == 0 and [{name: one[name] for name in told[0]} for one in json.loads(out)] == told
    code, out, _ = luthier(*ask)
    replies = [r.text + ("" if r.finished else " [...]") for r in wanted]
    assert out == f"> the goal\n{replies[0]}\n\n> the law\n{replies[1]}\n"
    code, out, err = luthier(*ask, "--text", "a " * 600, "--skip-bad", "--json")
    assert code == 3 and [one["answer"] for one in json.loads(out)] == [wanted[0].text, None, wanted[1].text]
    assert "--text, number 2: it has " in err and "before an answer. Give another text." in err


def test_the_command_says_what_to_mend(run, luthier):
    code, out, err = luthier("answer", run, "--stage", "talk")
    assert (code, out, err) == (1, "", "Error: nothing to answer: give --text, or --file with one text a line.\n")


def test_the_run_says_where_its_page_is_and_how_to_ask(run):
    html = (run / "report.html").read_text()
    assert "luthier answer RUN_FOLDER --stage talk" in html and "talk: supervised fine-tuning" in html
    result = json.loads((run / "result.json").read_text())
    assert result["writes"] == ["read", "talk"] and result["environment"]["precision"] == "float32"
    runs = result["stages"][1]["shown"][0]["sequences"][0]
    assert "".join(part["text"] for part in runs if part["trained"]).startswith("a ")
    assert runs[-1]["text"].endswith("<|im_end|>") and runs[-1]["trained"] and not runs[0]["trained"]
