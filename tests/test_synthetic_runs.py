"""Synthetic data: whole runs with their ledger and journal, the local generator, the command."""

import json
import re
from pathlib import Path

import pytest

from luthier.cli.synthetic import synthesize_command
from luthier.corpus.fold import row_key
from luthier.corpus.wire import from_json
from luthier.errors import DataError, ModelError
from luthier.generation.sampling import Sampling
from luthier.models import load_model
from luthier.records import (
    Labelled,
    Source,
)
from luthier.stopped import Stopped
from luthier.synthetic.base import Asking, Reply, Request, user
from luthier.synthetic.journal import Journal
from luthier.synthetic.local import LocalGenerator
from luthier.synthetic.run import Tools, synthesize
from luthier.synthetic.seeds import Seeds
from luthier.synthetic.settings import parse_synthetic

WARM = Sampling(temperature=0.8, seed=4)
ASKING = Asking(WARM, 60)
EXAMPLE = Path(__file__).parent.parent / "examples" / "synthetic"
WARM = Sampling(temperature=0.8, seed=4)


def row(text: str, label: str, line: int = 1, **known) -> Labelled:
    return Labelled(text, label, Source("rows.jsonl", line, **known), row_key(text, label))


class Script:
    """A generator that answers by a function of the prompt; counts what it is asked."""

    name = "script"

    def __init__(self, answer, batch_rows: int = 4, identity: str = "script 1"):
        self.answer, self.batch_rows, self.identity = answer, batch_rows, identity
        self.asked: list[Request] = []

    def generate(self, requests):
        self.asked += requests
        found = [self.answer(request) for request in requests]
        return [reply if isinstance(reply, Reply) else Reply(reply) for reply in found]


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_prints_what_became_of_each_kind(tmp_path, tiny_path, capsys):
    """The tiny model writes noise: what counts is that all of it is accounted for."""
    out = tmp_path / "o.jsonl"
    overrides = [f"data.synthetic.writer.model={tiny_path}", "data.synthetic.draws.max_new_tokens=3",
                 "data.synthetic.questions=null", "data.synthetic.preferences=null"]  # fmt: skip
    synthesize_command(EXAMPLE / "recipe.yaml", out, overrides)
    printed = capsys.readouterr().out
    assert re.search(r"^paraphrases: 9 asked for, \d kept", printed, re.MULTILINE)
    assert re.search(r"^\d+ records in .*o\.jsonl, marked as written by tiny$", printed, re.MULTILINE)
    synthesize_command(EXAMPLE / "recipe.yaml", out, overrides, as_json=True)
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["requested"] == 9 + 6 + 4
    assert len(out.read_text().splitlines()) == ledger["kept"]


# --- whole runs ----------------------------------------------------------------------------------------


def settings_of(**values):
    steps = {"language": {"minimum_chars": 10_000}, "personal": {"action": "mask"}}
    return parse_synthetic({"inputs": [{"path": "unused.jsonl"}], "steps": steps, **values})


PARAPHRASES = {
    "The courier came on Monday.": "On Monday the courier was there.",
    "The parcel is lost.": "As an AI, I cannot say.",
    "The bill is wrong.": "The bill is wrong!",
    "The lamp hums.": "A hum comes from the lamp, says jo@example.com.",
    "The shoes are too small.": "",
    "My order was late.": "On Monday the courier was there.",
    "The box was wet.": "Rewrite the text in other words and keep its meaning.",
    "The van did not stop.": Reply("", "error", "HTTP 500: no"),
}


def paraphrase(request: Request):
    text = request.messages[-1].content.partition("Text: ")[2]
    return PARAPHRASES[text]


def paraphrase_seeds() -> Seeds:
    return Seeds([row(text, "A", i, licence="MIT") for i, text in enumerate(PARAPHRASES, start=1)])


def test_a_run_accounts_for_every_record(tmp_path):
    out = tmp_path / "new.jsonl"
    script = Script(paraphrase)
    settings = settings_of(paraphrases={}, filters={"leak_words": 6})
    ledger = synthesize(settings, out, tools=Tools(paraphrase_seeds(), script))
    rows = [from_json(json.loads(line)) for line in out.read_text().splitlines()]
    assert [r.text for r in rows] == ["On Monday the courier was there.", "A hum comes from the lamp, says <EMAIL>."]
    assert rows[0].source == Source(
        "rows.jsonl", 1, licence="MIT", group="rows.jsonl:1", synthetic="script/paraphrases"
    )
    assert rows[1].key == row_key(rows[1].text, "A")
    reasons = {entry["reason"]: entry["count"] for entry in ledger["dropped"]}
    assert reasons == {
        "refusal": 1, "too_similar_to_seed": 1, "empty_reply": 1, "duplicate": 1, "prompt_leak": 1, "backend_error": 1,
    }  # fmt: skip
    assert ledger["requested"] == 8 == ledger["kept"] + sum(reasons.values())
    assert ledger["kinds"]["paraphrases"] == {"requested": 8, "kept": 2, "dropped": reasons}
    assert ledger["synthetic"] == {"script/paraphrases": 2}
    assert ledger["licences"] == {"MIT": 2}
    assert json.loads((tmp_path / "new.jsonl.ledger.json").read_text()) == ledger
    assert "jo@example.com" not in json.dumps(ledger)


def test_a_second_run_asks_only_for_what_failed(tmp_path):
    out, settings = tmp_path / "new.jsonl", settings_of(paraphrases={})
    first = Script(paraphrase)
    ledger = synthesize(settings, out, tools=Tools(paraphrase_seeds(), first))
    written = out.read_bytes()
    again = Script(paraphrase)
    assert synthesize(settings, out, tools=Tools(paraphrase_seeds(), again)) == ledger
    assert [request.messages[-1].content.partition("Text: ")[2] for request in again.asked] == ["The van did not stop."]
    assert out.read_bytes() == written
    other = Script(paraphrase, identity="another model")
    synthesize(settings, out, tools=Tools(paraphrase_seeds(), other))
    assert len(other.asked) == 8


def test_a_stopped_run_goes_on(tmp_path):
    """SIGTERM in the second batch: it is finished and kept, and the next call asks for the rest."""
    import os
    import signal

    out, settings = tmp_path / "new.jsonl", settings_of(paraphrases={})

    def answer(request):
        if "lamp" in request.messages[-1].content:
            os.kill(os.getpid(), signal.SIGTERM)
        return paraphrase(request)

    with pytest.raises(Stopped, match=r"4 replies are kept in new\.jsonl\.replies\.jsonl\. Run the same command again"):
        synthesize(settings, out, tools=Tools(paraphrase_seeds(), Script(answer, batch_rows=2)))
    assert not out.exists()
    rest = Script(paraphrase, batch_rows=2)
    synthesize(settings, out, tools=Tools(paraphrase_seeds(), rest))
    assert len(rest.asked) == 4
    whole = tmp_path / "whole.jsonl"
    synthesize(settings, whole, tools=Tools(paraphrase_seeds(), Script(paraphrase)))
    assert out.read_bytes() == whole.read_bytes()


def test_round_trips_and_surplus(tmp_path):
    """Label B lacks two rows and gets four tries; the first is not given its label back, the fourth is spare."""
    seeds = Seeds([row(f"text number {i} about nothing", "A", i) for i in range(3)] + [row("a goal fell", "B", 9)])
    new = ["Green tea is warm.", "The keeper slept.", "Rain stopped the match.", "Nobody scored on Sunday."]

    def answer(request):
        text = request.messages[-1].content
        if text.startswith("Which category"):
            return "A" if "tea" in text else "B"
        return new[request.sample]

    settings = settings_of(examples={"target": 3, "attempts": 2, "round_trip": True})
    ledger = synthesize(settings, tmp_path / "o.jsonl", tools=Tools(seeds, Script(answer)))
    assert ledger["kinds"]["examples"]["dropped"] == {"label_not_confirmed": 1, "surplus": 1}
    texts = [json.loads(line)["text"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert texts == new[1:3]
    settings = settings_of(examples={"target": 3, "attempts": 2, "round_trip": True}, labels_by="classifier")
    tools = Tools(seeds, Script(answer), classify=lambda texts: ["A" for _ in texts])
    assert synthesize(settings, tmp_path / "p.jsonl", tools=tools)["kept"] == 0


def test_what_cannot_be_done_is_said(tmp_path):
    out = tmp_path / "o.jsonl"
    with pytest.raises(DataError, match=r"data\.synthetic\.questions: none of the seeds fits"):
        synthesize(settings_of(questions={}), out, tools=Tools(paraphrase_seeds(), Script(paraphrase)))
    with pytest.raises(DataError, match="labels_by: classifier, but none was given"):
        synthesize(settings_of(paraphrases={}, labels_by="classifier"), out, tools=Tools(paraphrase_seeds()))
    tools = Tools(paraphrase_seeds(), Script(paraphrase), classify=list)
    with pytest.raises(DataError, match="but the recipe does not ask it"):
        synthesize(settings_of(paraphrases={}), out, tools=tools)
    dead = Script(lambda request: Reply("", "error", "HTTP 500: no"))
    with pytest.raises(ModelError, match=r"none of 8 requests got a reply\. The first says: HTTP 500: no\."):
        synthesize(settings_of(paraphrases={}), out, tools=Tools(paraphrase_seeds(), dead))
    assert not out.exists()


def test_a_torn_journal_loses_one_reply(tmp_path):
    path = tmp_path / "j.jsonl"
    requests = [Request(user(text), WARM, 9) for text in "abc"]
    journal = Journal(path, "m")
    journal.add([(requests[0], Reply("one")), (requests[1], Reply("two", "length"))])
    journal.add([(requests[2], Reply("", "error", "HTTP 500"))])
    path.write_bytes(path.read_bytes()[:-9])
    torn = Journal(path, "m")
    assert [torn.get(request) for request in requests] == [Reply("one"), None, None]
    torn.add([(requests[1], Reply("two again"))])
    assert Journal(path, "m").get(requests[1]) == Reply("two again")
    assert Journal(path, "n").get(requests[0]) is None


# --- the local generator -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return load_model(str(tiny_path))


def requests_of(*texts: str, tokens: int = 6) -> list[Request]:
    return [Request(user(text), WARM, tokens) for text in texts]


def test_local_replies_do_not_depend_on_their_batch(tiny):
    local = LocalGenerator(tiny)
    asked = [*requests_of("goal", "senate"), Request(user("goal"), WARM, 6, sample=1), *requests_of("law", tokens=3)]
    together = local.generate(asked)
    assert [local.generate([request])[0] for request in asked] == together
    assert local.generate(asked[::-1]) == together[::-1]
    assert together[0] != together[2]
    assert {reply.finish_reason for reply in together} <= {"stop", "length"}


def test_local_prompt_that_leaves_no_room_is_an_error_of_its_own(tiny):
    long, short = LocalGenerator(tiny).generate(requests_of("law " * 600, "law"))
    assert re.fullmatch(r"the prompt has \d+ tokens, 506 fit before the reply", long.error)
    assert short.error is None


def test_local_names_the_model_not_its_folder(tiny, tiny_path):
    local = LocalGenerator(tiny)
    assert local.name == tiny_path.name
    assert local.identity == f"local {tiny.sha256}"
    assert local.stop == {2}  # the tiny template's end of turn, which is its end of text too


def test_local_replies_end_where_the_models_own_settings_say_too(tiny, monkeypatch):
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [2, 7])
    assert LocalGenerator(tiny).stop == {2, 7}
