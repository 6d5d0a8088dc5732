"""The teacher of a distillation, here and behind an address, and whole stages on tiny models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch.nn.functional import log_softmax

from luthier.corpus.lines import Problem
from luthier.errors import DataError, ModelError, RecipeError
from luthier.methods.base import Example
from luthier.methods.distillation import make_distillation
from luthier.models import load_model
from luthier.recipe.methods import Distil
from luthier.recipe.stages import parse_stages
from luthier.records import (
    Conversation,
    Document,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Sequence,
    Source,
)
from luthier.stages import train
from luthier.stages.teacher import (
    KEPT_TOGETHER,
    local_teacher,
    refuse_other_tokenizer,
    vocabulary_problem,
    with_teacher,
)
from luthier.stages.teacher_endpoint import EndpointTeacher
from luthier.stages.teaching import make_teacher
from teachers import plain_logits, plain_model, settings_of, some_examples, taught, wide_folder
from test_endpoint import serving
from tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    """Its output has five rows more than its tokenizer has tokens, as padded embeddings have."""
    return wide_folder(tmp_path_factory.mktemp("teachers") / "wide", len(tiny_tokenizer()) + 5)


# --- the teacher --------------------------------------------------------------------------------------------------


class Counting:
    """A teacher that says how many rows it was asked for, and may stop."""

    def __init__(self, teacher, fails_after: int = 10**9):
        self.teacher, self.asked, self.fails_after = teacher, 0, fails_after
        self.identity = teacher.identity

    def candidates(self, examples):
        if self.asked >= self.fails_after:
            raise KeyboardInterrupt
        self.asked += len(examples)
        return self.teacher.candidates(examples)


def test_candidates_are_kept_by_content(tiny_path, teacher_path, tmp_path):
    """A stop loses one file's rows at most; nothing is asked twice; other rows and settings are asked for."""
    student = load_model(str(tiny_path))
    settings = settings_of(teacher_path, temperature=2.0)
    teacher = local_teacher(settings, student, "auto", 4096)
    rows = [replace(e, key=str(i)) for i, e in enumerate(some_examples(KEPT_TOGETHER + 20))]
    distinct = len({row.sequences[0].tokens for row in rows})
    assert distinct > KEPT_TOGETHER
    stopped = Counting(teacher, fails_after=1)
    with pytest.raises(KeyboardInterrupt):
        with_teacher(stopped, rows, tmp_path)
    again = Counting(teacher)
    filled = with_teacher(again, rows, tmp_path)
    assert (stopped.asked, again.asked) == (KEPT_TOGETHER, distinct - KEPT_TOGETHER)
    after = Counting(teacher)
    kept = with_teacher(after, rows[::-1], tmp_path)[::-1]
    assert after.asked == 0
    for one, other, fresh in zip(filled, kept, teacher.candidates(rows), strict=True):
        assert one.teacher.temperature == other.teacher.temperature == 2.0
        assert np.array_equal(one.teacher.tokens_QK, other.teacher.tokens_QK)
        assert np.array_equal(one.teacher.logprobs_QK, other.teacher.logprobs_QK)
        np.testing.assert_allclose(one.teacher.logprobs_QK, fresh.logprobs_QK, atol=1e-5)
    cooler = Counting(local_teacher(settings_of(teacher_path), student, "auto", 4096))
    with_teacher(cooler, rows[:2], tmp_path)
    assert cooler.asked == 2
    arrays = load_file(next(tmp_path.glob("*.safetensors")))
    assert {name.rpartition(".")[2] for name in arrays} == {"tokens", "logprobs", "temperature"}


def test_a_teacher_whose_candidates_are_all_kept_is_not_loaded(tiny_path, tmp_path):
    """Its folder is gone after the first went through; the second is asked for a new row only, and then says so."""
    folder = wide_folder(tmp_path / "teacher", 400)
    student = load_model(str(tiny_path))
    settings = settings_of(folder, temperature=2.0)
    first, again = (make_teacher(settings, student, "auto", 4096) for _ in range(2))
    assert first.identity == again.identity == local_teacher(settings, student, "auto", 4096).identity
    *rows, new = some_examples(6)
    filled = with_teacher(first, rows, tmp_path / "kept")
    shutil.rmtree(folder)
    kept = with_teacher(again, rows, tmp_path / "kept")
    for one, other in zip(filled, kept, strict=True):
        assert np.array_equal(one.teacher.tokens_QK, other.teacher.tokens_QK)
        assert np.array_equal(one.teacher.logprobs_QK, other.teacher.logprobs_QK)
    new = replace(new, sequences=(replace(new.sequences[0], tokens=(*new.sequences[0].tokens, 9)),))
    with pytest.raises(ModelError, match="is neither a starter .* nor a folder or GGUF file that exists here"):
        with_teacher(again, [*rows, new], tmp_path / "kept")


def test_rows_that_pad_the_teachers_output_are_no_tokens(tiny_path, teacher_path):
    """All tokens of the tokenizer are candidates, their probabilities sum to 1, and none is beyond."""
    size = len(tiny_tokenizer())
    student = load_model(str(tiny_path))
    (example,) = taught(settings_of(teacher_path, top_k=size + 100), student, some_examples(1))
    assert example.teacher.tokens_QK.shape == (len(example.sequences[0].targets), size)
    assert sorted(example.teacher.tokens_QK[0].tolist()) == list(range(size))
    np.testing.assert_allclose(np.exp(example.teacher.logprobs_QK).sum(1), 1.0, atol=1e-5)


def other_tokenizer(folder: Path) -> Path:
    """The tiny tokenizer with another text for token 3, in a folder that may hold a model."""
    tiny_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"] = {"uber" if text == "user" else text: n for text, n in values["model"]["vocab"].items()}
    path.write_text(json.dumps(values))
    return folder


def test_another_tokenizer_is_refused(tiny_path, tmp_path):
    """Before any weights are read: the teacher's folder has none."""
    folder = other_tokenizer(tmp_path / "other")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as caught:
        refuse_other_tokenizer(Distil(teacher=str(folder)), tiny_tokenizer())
    assert str(caught.value) == (
        f"method.teacher: {folder} has another tokenizer than the student: 1 of {len(tiny_tokenizer())} tokens differ, "
        'first: number 3 is "user" here, "uber" there. Its probabilities say nothing about the student\'s tokens. Take '
        "a teacher of the student's family, or set what: answers."
    )
    refuse_other_tokenizer(Distil(teacher=str(folder), what="answers"), tiny_tokenizer())


def test_vocabularies_by_content():
    """The teacher may have more; the student may not."""
    assert vocabulary_problem({"a": 0, "b": 1}, {"b": 1, "a": 0, "c": 2}) is None
    assert vocabulary_problem({"a": 0, "b": 1}, {"a": 0}) == (
        '1 of 2 tokens differ, first: number 1 is "b" here, nothing there'
    )
    assert "2 of 2 tokens differ" in vocabulary_problem({"a": 0, "b": 1}, {"a": 1, "b": 0})


def test_a_row_longer_than_the_teacher_reads(tiny_path, teacher_path):
    teacher = local_teacher(settings_of(teacher_path), load_model(str(tiny_path)), "auto", 4096)
    long = Example((Sequence((3,) * 129, (1,), (1.0,)),))
    with pytest.raises(
        ModelError, match=r"reads 128 tokens at most, and the longest row has 129\. Set data.max_tokens"
    ):
        teacher.candidates([long])


# --- the teacher behind an address --------------------------------------------------------------------------------


def completions(path: Path, numbered: bool):
    """What a server answers that repeats a prompt with the likeliest tokens of the model in `path` at each place."""
    tokenizer, size = tiny_tokenizer(), len(tiny_tokenizer())
    plain_model(path)  # loading is not for threads

    def text(token: int) -> str:
        return f"token_id:{token}" if numbered else tokenizer.decode([token])

    def answer(body, _):
        assert body["echo"] and body["model"] == "big"
        tokens, count = body["prompt"], body["logprobs"]
        logprobs_TV = log_softmax(plain_logits(path, tuple(tokens))[:, :size], 1)
        tops = [None]
        for values in logprobs_TV:
            best = values.topk(count)
            tops.append({text(t): v for t, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)})
        named = {"tokens": [*map(text, tokens), "x"], "top_logprobs": tops}
        return 200, {}, json.dumps({"choices": [{"text": "", "logprobs": named}]}).encode()

    return answer


@pytest.mark.parametrize("numbered", [True, False])
def test_a_teacher_behind_an_address_says_what_it_says_here(numbered, tiny_path, teacher_path):
    """The same log-probabilities to 1e-4. By their texts some tokens cannot be told apart; these join the rest."""
    student, examples = load_model(str(tiny_path)), some_examples(3)
    here = local_teacher(settings_of(teacher_path, top_k=6), student, "auto", 4096).candidates(examples)
    with serving(completions(teacher_path, numbered)) as (url, seen):
        settings = Distil(teacher=f"{url}#big", top_k=6)
        there = EndpointTeacher(settings, student.tokenizer).candidates(examples)
    assert [path for path, _, _ in seen] == ["/v1/completions"] * 3
    assert sorted(body["prompt"] for _, _, body in seen) == sorted(list(e.sequences[0].tokens) for e in examples)
    shared = 0
    for one, other in zip(here, there, strict=True):
        for tokens, values, known, said in zip(
            one.tokens_QK, one.logprobs_QK, other.tokens_QK, other.logprobs_QK, strict=True
        ):
            wanted, found = dict(zip(tokens, values, strict=True)), dict(zip(known, said, strict=True))
            found = {token: value for token, value in found.items() if np.isfinite(value)}
            assert found.keys() == wanted.keys() if numbered else found.keys() <= wanted.keys()
            assert all(value == pytest.approx(wanted[token], abs=1e-4) for token, value in found.items())
            shared += len(found)
    assert shared > 0.5 * sum(one.tokens_QK.size for one in here)


def refusal(answer, **changes) -> str:
    with serving(answer) as (url, _):
        teacher = EndpointTeacher(Distil(teacher=f"{url}#big", **changes), tiny_tokenizer())
        with pytest.raises(ModelError) as caught:
            teacher.candidates(some_examples(1))
    return str(caught.value).replace(url, "URL")


def test_a_server_that_is_no_teacher_is_refused():
    chat = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()
    assert refusal(lambda *_: (200, {}, chat)) == (
        "URL/completions: the answer holds no log-probabilities of the prompt's own tokens (choices[0].logprobs with "
        'tokens and top_logprobs for 7 of them): {"choices": [{"message": {"content": "hello"}}]}. Distillation needs '
        "a server that answers echo with logprobs; else set what: answers."
    )

    def other(body, _):
        named = {"tokens": ["?"] * 8, "top_logprobs": [{"?": -0.1}] * 8}
        return 200, {}, json.dumps({"choices": [{"logprobs": named}]}).encode()

    assert refusal(other) == (
        "URL/completions: the teacher has another tokenizer than the student: token 0 of a row (number 1) is "
        '"<|im_start|>" here and "?" there. Its probabilities say nothing about the student\'s tokens. Take a teacher '
        "of the student's family, or set what: answers."
    )
    assert refusal(lambda *_: (404, {}, b"no such path")) == (
        "URL/completions answers HTTP 404: no such path. Check method.teacher and the name behind # in method.teacher "
        '("big").'
    )
    assert refusal(lambda *_: (400, {}, b"too long")) == (
        "URL/completions: a row could not be asked for: HTTP 400: too long. Run the same command again: rows that were "
        "answered are kept."
    )


def test_a_key_that_is_not_there(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(ModelError, match=r"^method\.key_variable: TEACHER_KEY is not set\."):
        EndpointTeacher(Distil(teacher="http://localhost:1/v1#x", key_variable="TEACHER_KEY"), tiny_tokenizer())


# --- whole stages -------------------------------------------------------------------------------------------------


def write_rows(path: Path, count: int = 40) -> Path:
    """Conversations of known words."""
    draw = np.random.default_rng(0)
    words = [" goal", " team", " vote", " law", " match", " song", " new", " painter"]
    rows = []
    for number in range(count):
        said = "".join(draw.choice(words, 3)), "".join(draw.choice(words, 5))
        turns = [{"role": "user", "content": f"{number}:{said[0]}"}, {"role": "assistant", "content": said[1].strip()}]
        rows.append({"messages": turns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(tmp_path: Path, student: Path, method: dict, **tune):
    stage = {
        "method": {"kind": "distil", **method},
        "data": {"train": [str(write_rows(tmp_path / "rows.jsonl"))], "test_share": 0.25, "max_tokens": 100,
                 "max_dropped_share": 0.8},
        "tune": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "adapter": {"rank": 8}, **tune},
    }  # fmt: skip
    return parse_stages({"model": str(student), "stages": [stage], "judge": {"resamples": 1000}})


def test_a_stage_brings_the_student_nearer_to_its_teacher(tiny_path, teacher_path, tmp_path):
    """Held-out divergence falls, offline and online alike; the candidates are there once, and the run is resumed."""
    runs = {}
    for online in (False, True):
        recipe = recipe_of(tmp_path, tiny_path, {"teacher": str(teacher_path), "top_k": 8, "online": online})
        runs[online] = train(recipe, tmp_path / f"run-{online}")["stages"][0]
    kl = runs[False]["figures"]["kl"]
    assert kl["after"]["value"] < 0.9 * kl["before"]["value"] and kl["change"]["high"] < 0
    assert runs[False]["primary_metric"] == "kl" and runs[False]["verdict"].startswith("better: kl ")
    curves = [[point["loss"] for point in run["training"]["curve"]["train"]] for run in runs.values()]
    assert len(curves[0]) > 5 and curves[0][:3] == pytest.approx(curves[1][:3], rel=1e-4)
    assert curves[0] == pytest.approx(curves[1], rel=5e-3)  # rounding grows from step to step
    assert runs[True]["figures"]["kl"]["after"]["value"] == pytest.approx(kl["after"]["value"], rel=5e-3)
    assert len(list((tmp_path / "run-False" / "stages" / "01-distil" / "teacher").glob("*.safetensors"))) == 1
    assert not (tmp_path / "run-True" / "stages" / "01-distil" / "teacher").exists()


def test_another_tokenizer_stops_a_run_before_its_first_stage(tiny_path, tmp_path):
    folder = other_tokenizer(wide_folder(tmp_path / "other", 400))
    recipe = recipe_of(tmp_path, tiny_path, {"teacher": str(folder)})
    with pytest.raises(ModelError, match="has another tokenizer than the student: 1 of "):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()
    recipe = recipe_of(tmp_path, tiny_path, {"teacher": str(tiny_path), "adapter": str(tmp_path)})
    with pytest.raises(ModelError, match=r"holds no adapter_config\.json; give an adapter's folder\."):
        train(recipe, tmp_path / "run")


def test_a_student_learns_its_teachers_answers(tiny_path, teacher_path, tmp_path):
    """The rows' own answers are gone; what was cut off is in the ledger; a second run asks for nothing."""
    method = {"teacher": str(teacher_path), "what": "answers", "max_answer_tokens": 20, "answer_temperature": 0.7}
    recipe = recipe_of(tmp_path, tiny_path, method)
    out = tmp_path / "run"
    stage = train(recipe, out)["stages"][0]
    bits = stage["figures"]["bits_per_byte"]
    assert stage["primary_metric"] == "bits_per_byte" and bits["after"]["value"] < bits["before"]["value"]
    lines = (out / "stages" / "01-distil" / "teacher" / "answers.jsonl").read_text().splitlines()
    cut = sum(json.loads(line)["finish_reason"] == "length" for line in lines)
    assert len(lines) == 40 and 0 < cut < 30
    dropped = sum(reasons.get("answer_cut_off", 0) for reasons in stage["ledger"]["reasons"].values())
    assert dropped == cut and sum(stage["ledger"]["kept"].values()) <= 40 - cut


def test_a_teacher_that_never_finishes(tiny_path, teacher_path, tmp_path):
    method = {"teacher": str(teacher_path), "what": "answers", "max_answer_tokens": 1}
    with pytest.raises(DataError, match=r"answered none of the \d+ train rows \(first: .*over 1 tokens\.\)\. Raise"):
        train(recipe_of(tmp_path, tiny_path, method), tmp_path / "run")


def test_which_rows_a_teacher_can_answer():
    """Whatever has a prompt; probabilities need an answer as well."""
    source, asked, said = Source("rows.jsonl", 1), (Message("user", "q"),), (Message("assistant", "a"),)
    answers = make_distillation(Distil(teacher="m", what="answers"))
    talk, prompt = Conversation(asked + said, source), Prompt(asked, source)
    assert answers.accept(talk) == [talk]
    pair = Preference(asked, said, (Message("assistant", "b"),), source)
    for record in (prompt, pair, Rating(asked, "a", False, source), Ranking(asked, ("a", "b"), source)):
        assert answers.accept(record) == [prompt]
    assert answers.accept(Document("text", source)) == Problem(
        "wrong_kind",
        "a document has no prompt that a teacher could answer. distil takes conversations, instructions and prompts.",
    )
    assert make_distillation(Distil(teacher="m")).accept(prompt).reason == "wrong_kind"


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"teacher": "http://x/v1"}, 'needs the name of its model: "http://HOST:PORT/v1#NAME"'),
        ({"teacher": "http://x/v1#m", "adapter": "a"}, "adapter: a server wears its own"),
        ({"teacher": "http://x/v1#m", "top_k": 21}, "top_k is 21, but a server gives at most 20 candidates"),
        ({"teacher": "http://x/v1#m", "temperature": 2}, "a server gives probabilities at temperature 1 only"),
        ({"teacher": "http://x/v1#m", "online": True}, "online needs a teacher on this machine"),
        ({"teacher": "m", "key_variable": "K"}, "key_variable belongs to a teacher behind an address"),
        ({"teacher": "m", "what": "answers", "hard_weight": 0.5, "top_k": 3}, "leave hard_weight, top_k out"),
        ({"teacher": "m", "answer_temperature": 1}, "answer_temperature: only what: answers has answers written"),
    ],
)
def test_settings_without_effect_are_refused(method, says, tmp_path):
    with pytest.raises(RecipeError) as caught:
        recipe_of(tmp_path, tmp_path, method)
    assert says in str(caught.value)
