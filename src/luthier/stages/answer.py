"""A finished run of stages as an object that answers, asked with the layout it was trained with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luthier.adapters import needs_exact_weights
from luthier.errors import DataError, RunError, did_you_mean
from luthier.generation.engine import generate
from luthier.generation.sampling import Draw, Sampling
from luthier.methods.documents import encode_text, end_of_text
from luthier.models import LoadedModel, load_model
from luthier.prompts import Dialogue, layout_of, opening_tokens
from luthier.recipe.methods import SILENT
from luthier.recipe.stages import Asking
from luthier.records import Message
from luthier.runtime import set_up_torch
from luthier.training.learner import Learner, load_learner

BATCH_ROWS = 16
DIALOGUE_FILE = "dialogue.json"
CONTINUES = ("clm",)  # learnt from plain documents: a text is gone on with

Asked = str | ManyOf[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """What the model wrote. `finished` is false where `max_tokens` or the model's context cut it off."""

    text: str
    finished: bool


@dataclass(frozen=True)
class Answerer:
    """What `luthier.stages.load(run)` returns."""

    learner: Learner
    dialogue: Dialogue
    continues: bool
    context_tokens: int

    def answer(self, asked: ManyOf[Asked], max_tokens: int = 256, sampling: Sampling | None = None) -> list[Reply]:
        """The reply to each text, or to each conversation of {"role", "content"} turns that ends with the user's.

        Without `sampling` each token is the most likely one. A stage of plain documents (clm) goes on with a text.
        """
        if isinstance(asked, str):
            raise TypeError('answer takes a list of texts: answer(["..."])')
        prompts = self.prompts(asked)
        draws = [Draw(sampling or Sampling(), number) for number in range(len(prompts))]
        replies: list[Reply] = []
        for start in range(0, len(prompts), BATCH_ROWS):
            some = slice(start, start + BATCH_ROWS)
            room = min(max_tokens, self.context_tokens - max(map(len, prompts[some])))
            for tokens in generate(self.learner.lm, prompts[some], room, self.stop, self.learner.backend, draws[some]):
                text = self.dialogue.layout.decode(tokens)
                replies.append(Reply(text if self.continues else text.strip(), len(tokens) < room))
        return replies

    def prompts(self, asked: ManyOf[Asked]) -> list[tuple[int, ...]]:
        """Tokens up to where each reply begins; DataError where one cannot be asked."""
        tokens = self.encoded(asked)
        for place, problem in self.refused(tokens).items():
            raise DataError(f"text {place + 1}: {problem}")
        return tokens

    def problems(self, asked: ManyOf[Asked]) -> dict[int, str]:
        """What is wrong with each of the texts that `answer` would refuse, by its place from 0."""
        return self.refused(self.encoded(asked))

    def encoded(self, asked: ManyOf[Asked]) -> list[tuple[int, ...]]:
        """Tokens up to where each reply begins, of any number; DataError where turns are none to answer."""
        tokenizer = self.dialogue.tokenizer
        if self.continues:
            opening = opening_tokens(tokenizer)
            return [(*opening, *encode_text(tokenizer, text_to_continue(one))[0]) for one in asked]
        return self.dialogue.encode_prompts([turns_of(one, number) for number, one in enumerate(asked, start=1)])

    def refused(self, prompts: ManyOf[tuple[int, ...]]) -> dict[int, str]:
        """What is wrong with prompts that leave the model nothing to read, or no room for an answer."""
        return {
            place: f"it has {len(prompt):,} tokens with its prompt; the model reads 1 to "
            f"{self.context_tokens - 1:,} before an answer. Give another text."
            for place, prompt in enumerate(prompts)
            if not 0 < len(prompt) < self.context_tokens
        }

    @property
    def stop(self) -> set[int]:
        """Tokens that end a reply: the end of a text, and what ends the assistant's turn in this layout."""
        tokenizer = self.dialogue.tokenizer
        stops = {end_of_text(tokenizer)}
        if self.continues:
            return stops
        tokens, turns = self.dialogue.encode([[Message("user", "x"), Message("assistant", "x")]])[0]
        ending = tokens[turns[-1].stop - 1]
        return stops | ({ending} if self.dialogue.layout.is_special(ending) else set())


def text_to_continue(asked: Asked) -> str:
    """The text itself; DataError for turns."""
    if isinstance(asked, str):
        return asked
    raise DataError("this stage learnt plain documents (clm): give a text for it to go on with, not turns.")


def turns_of(asked: Asked, number: int) -> tuple[Message, ...]:
    """A text as the user's turn, or the turns of a conversation."""
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    roles = ("system", "user", "assistant")
    for turn in turns:
        if set(turn) != {"role", "content"} or turn["role"] not in roles or not str(turn["content"]).strip():
            raise DataError(
                f"text {number}: a turn is {{'role': {' or '.join(roles)}, 'content': some text}}; got {dict(turn)!r}."
            )
    if not turns or turns[-1]["role"] != "user":
        raise DataError(f"text {number}: the last turn has to be the user's; there is nothing to answer.")
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]


# --- from the run folder --------------------------------------------------------------------------------------------


def load(run: str | Path, stage: str | None = None, task: str | None = None, attention: str = "auto") -> Answerer:
    """The model that a stage of a finished run left (by default the last one), ready to be asked.

    `task` names one of a stage that learnt several. Raises RunError where the run is not finished, the stage learnt no
    text to write, or the model is another one now.
    """
    folder, result = Path(run), read_result(Path(run))
    stages = result["stages"]
    number = stage_number(run, stages, stage)
    method, task = writing_task(run, stages, number, task)
    left = stage_folder(folder, stages, number) / "adapter"
    asking = read_asking(left / DIALOGUE_FILE, task)
    model = model_below(folder, result, number)
    dialogue = Dialogue(layout_of(model.tokenizer, asking), asking.layout, asking.system)
    learner = load_learner(model, left, attention)
    return Answerer(learner, dialogue, method in CONTINUES, model.context_tokens - learner.virtual_tokens)


def read_asking(file: Path, task: str | None) -> Asking:
    """How the rows of a stage, or of one of its tasks, became texts."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Asking.model_validate(values if task is None else values[task])
    except (OSError, ValueError, LookupError):
        raise RunError(f"{file}: not there, or not as a run leaves it. Run the recipe again.") from None


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run of stages."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(
            f"{folder}: no finished run here (no result.json). A run that was stopped goes on with `luthier train` "
            "and the same --out."
        ) from None
    if not isinstance(result, dict) or not isinstance(result.get("stages"), list):
        raise RunError(f"{folder}: a run of `luthier run` labels texts; ask it with `luthier predict`.")
    return result


def stage_number(run: str | Path, stages: list[dict[str, Any]], name: str | None) -> int:
    """Index of the stage to ask; RunError where there is none of that name."""
    names = [stage["name"] for stage in stages]
    if name is not None and name not in names:
        raise RunError(f'{run}: no stage "{name}"; there is {", ".join(names)}.{did_you_mean(name, names)}')
    return len(stages) - 1 if name is None else names.index(name)


def writing_task(
    run: str | Path, stages: list[dict[str, Any]], number: int, task: str | None
) -> tuple[str, str | None]:
    """(method, name of the task, None for a stage of one method) of what is to be asked; RunError if it is silent."""
    stage = stages[number]
    tasks = {name: one["method"] for name, one in (stage.get("tasks") or {}).items()}
    writing = [name for name, method in tasks.items() if method not in SILENT]
    if task is not None and task not in tasks:
        there = f"its tasks: {', '.join(tasks)}" if tasks else "it has no tasks; leave --task out"
        raise RunError(f'{run}: stage "{stage["name"]}" has no task "{task}" ({there}).')
    if tasks and task is None and len(writing) > 1:
        raise RunError(
            f'{run}: stage "{stage["name"]}" has several tasks. Say which, with --task: {", ".join(writing)}.'
        )
    name = task if task is not None else writing[0] if writing else None
    method = tasks[name] if name is not None else stage["method"]
    if method in SILENT or (tasks and name is None):
        others = [one["name"] for one in stages if writes(one) and one is not stage]
        instead = " Heads are asked with `luthier predict`."
        instead += f" Another stage that writes, with --stage: {', '.join(others)}." if others else ""
        raise RunError(f'{run}: stage "{stage["name"]}" ({method}) learnt no text to write.{instead}')
    return method, name


def writes(stage: dict[str, Any]) -> bool:
    """Whether a stage, or one of its tasks, learnt to write."""
    methods = [one["method"] for one in (stage.get("tasks") or {}).values()] or [stage["method"]]
    return any(method not in SILENT for method in methods)


def stage_folder(run: Path, stages: list[dict[str, Any]], number: int) -> Path:
    """Where a stage keeps what it made, wherever the run folder lies now."""
    return run / "stages" / f"{number + 1:02d}-{stages[number]['name']}"


def model_below(run: Path, result: dict[str, Any], number: int) -> LoadedModel:
    """The model below a stage's adapter; RunError where it is another one now."""
    recipe = yaml.safe_load(result["recipe"])
    set_up_torch()
    merged = merged_below(run, result["stages"], number)
    exact = needs_exact_weights(stage_folder(run, result["stages"], number) / "adapter")
    model = load_model(str(merged or recipe["model"]), precision=recipe["precision"], encoders=True, exact=exact)
    if merged is None and model.sha256 != result["model"]["sha256"]:
        raise RunError(
            f'{run}: the model "{recipe["model"]}" found here is not the one the run was trained on '
            f"(sha256 {model.sha256[:12]}, trained on {result['model']['sha256'][:12]}). Fetch that model again."
        )
    return model


def merged_below(run: Path, stages: list[dict[str, Any]], number: int) -> Path | None:
    """The model that the last merge up to this stage wrote; its adapter belongs to it."""
    merges = [index for index in range(1, number + 1) if stages[index]["start"] == "merge"]
    return stage_folder(run, stages, merges[-1]) / "model" if merges else None
