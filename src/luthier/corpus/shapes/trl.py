"""TRL rows, standard (texts) and conversational (turns), by their columns:

| columns | record |
|---|---|
| prompt | Prompt |
| prompt, completion | Completion (texts), Conversation (turns) |
| prompt, chosen, rejected | Preference |
| chosen, rejected | Preference: what both begin with is the prompt, where no other column can be it |
| prompt, completion, label | Rating |
| messages | Conversation |
"""

from __future__ import annotations

import re
from dataclasses import replace

from luthier.corpus.shapes.base import Row, RowShape, has, refuse_extras, text_in
from luthier.corpus.shapes.calls import tools_column
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.provenance import NAMES as PROVENANCE
from luthier.corpus.shapes.thumbs import read_boolean
from luthier.corpus.shapes.turns import (
    asked,
    completion,
    framed,
    has_turns,
    parted,
    plain_answer,
    plain_prompt,
    read_answer,
    read_prompt,
    read_turns,
    turns_as_rows,
    untrained,
)
from luthier.records import Completion, Conversation, Message, Preference, Prompt, Rating, Record, Source

# names of a pair's prompt, and of its two answers, in the order in which they count
PROMPTS = ("prompt", "question", "query", "problem", "instruction", "input")
PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_answer", "rejected_answer"))
# texts of a row that are no prompt: what it is called, and where it comes from
LABELS = {"id", "source", "dataset", "subset", "split", "category", "topic", "type", "task", "language", "lang",
          "model", "system", "system_prompt", *(name for names in PROVENANCE.values() for name in names)}  # fmt: skip
NO_PROMPT = re.compile(r".*_(id|uid|source|model|score|rating|type|category)")
ANSWER_LIKE = re.compile("answer|response|completion|output|solution|chosen|rejected|preferred")
INSTEAD = ' Write it as "trl_conversational".'


class Trl(RowShape):
    """Reads both layouts, writes the standard one: texts."""

    name = "trl"
    kinds: tuple[type, ...] = (Completion, Preference, Rating, Prompt)
    columns = "prompt, completion | chosen, rejected | prompt, completion, label"

    def fits(self, row: Row) -> bool:
        """A prompt with no other answer than TRL's, a pair, or messages."""
        if has(with_pair(row), "chosen", "rejected") or has_turns(row, "messages"):
            return True
        return isinstance(row.get("prompt"), str | list) and not any(is_other(row, str(name)) for name in row)

    def records(self, row: Row, source: Source) -> list[Record]:
        """What the row's columns make of it."""
        refuse_extras(row)
        row = with_pair(row)
        if has(row, "chosen") or has(row, "rejected"):
            pair = read_pair(row, source)
            return [replace(pair, prompt=framed(row, pair.prompt))]
        if has(row, "messages"):
            return [Conversation(framed(row, read_turns(row["messages"], "messages")), source)]
        prompt = framed(row, read_prompt(row.get("prompt"), "prompt"))
        if not has(row, "completion"):
            return [Prompt(prompt, source)]
        if has(row, "label"):
            good = read_boolean(row, "label")
            return [Rating(prompt, read_answer(row["completion"], "completion"), good, source)]
        if isinstance(row["prompt"], str):
            return [completion(row, prompt, source)]
        return [Conversation((*untrained(prompt), *read_turns(row["completion"], "completion")), source)]

    def row(self, record: Record) -> dict[str, object]:
        """Texts; Refused where a prompt or an answer is more than one turn."""
        if isinstance(record, Completion):
            return {"prompt": record.prompt, "completion": record.completion}
        if isinstance(record, Prompt):
            return {"prompt": plain_prompt(record.messages, self.name, INSTEAD)}
        assert isinstance(record, Preference | Rating), "one of kinds"
        prompt = plain_prompt(record.prompt, self.name, INSTEAD)
        if isinstance(record, Rating):
            return {"prompt": prompt, "completion": record.answer, "label": record.good}
        chosen = plain_answer(record.chosen, self.name, INSTEAD)
        return {"prompt": prompt, "chosen": chosen, "rejected": plain_answer(record.rejected, self.name, INSTEAD)}


class TrlConversational(Trl):
    """Reads both layouts, writes the conversational one: turns."""

    name = "trl_conversational"
    kinds = (Conversation, Preference, Rating, Prompt)

    def row(self, record: Record) -> dict[str, object]:
        """Turns. A conversation of which only the last turn is trained on becomes prompt and completion."""
        if isinstance(record, Prompt):
            return {"prompt": turns_as_rows(record.messages), **tools_column(record.messages)}
        if isinstance(record, Conversation):
            before, last = record.messages[:-1], record.messages[-1:]
            if all(turn.weight == 0 for turn in before if turn.role == "assistant"):
                return {"prompt": weightless(before), "completion": turns_as_rows(last), **tools_column(before)}
            return {"messages": turns_as_rows(record.messages), **tools_column(record.messages)}
        assert isinstance(record, Preference | Rating), "one of kinds"
        prompt = turns_as_rows(record.prompt)
        if isinstance(record, Rating):
            return {
                "prompt": prompt,
                "completion": [{"role": "assistant", "content": record.answer}],
                "label": record.good,
                **tools_column(record.prompt),
            }
        answers = {"chosen": turns_as_rows(record.chosen), "rejected": turns_as_rows(record.rejected)}
        return {"prompt": prompt, **answers, **tools_column(record.prompt)}


def weightless(turns: tuple[Message, ...]) -> list[dict[str, object]]:
    """Turns without their weights."""
    return turns_as_rows([replace(turn, weight=1.0) for turn in turns])


def is_other(row: Row, name: str) -> bool:
    """Whether a column holds an answer, or a text, that is not TRL's."""
    answer = name == "text" or (name != "completion" and ANSWER_LIKE.search(name) and not NO_PROMPT.fullmatch(name))
    return bool(answer) and isinstance(row.get(name), str | list)


def with_pair(row: Row) -> Row:
    """The row with its two answers under `chosen` and `rejected`, whatever pair of names they have."""
    names = next((names for names in PAIRS if any(has(row, name) for name in names)), PAIRS[0])
    if names == PAIRS[0]:
        return row
    return {**row, **{ours: row.get(name) for ours, name in zip(PAIRS[0], names, strict=True)}}


def read_pair(row: Row, source: Source) -> Preference:
    """A preference, its prompt in a column of its own or at the beginning of both answers."""
    for side in ("chosen", "rejected"):
        if not has(row, side):
            raise Refused("missing_field", f'no "{side}". Give the row one, or remove it.')
    if has_turns(row, "chosen") or has_turns(row, "rejected"):
        return turn_pair(row, source)
    chosen, rejected = text_in(row, "chosen"), text_in(row, "rejected")
    prompt = pair_prompt(row)
    if prompt is None:
        refuse_unread(row)
        text, chosen, rejected = shared_beginning(chosen, rejected)
        prompt = (Message("user", text),)
    return Preference(prompt, (Message("assistant", chosen),), (Message("assistant", rejected),), source)


def pair_prompt(row: Row) -> tuple[Message, ...] | None:
    """The prompt of a pair in a column of its own, an instruction with its input; None where there is none."""
    name = next((name for name in PROMPTS if has(row, name)), None)
    if name == "instruction" and isinstance(row.get("input"), str):
        return (Message("user", asked(text_in(row, name), text_in(row, "input"))),)
    return None if name is None else read_prompt(row[name], name)


def refuse_unread(row: Row) -> None:
    """Raise Refused where a text stands beside two answers without a prompt: it may be the prompt."""
    answers = {name for names in PAIRS for name in names}
    found = [name for name, value in row.items() if isinstance(value, str) and value.strip() and name not in answers]
    found = [name for name in found if name not in LABELS and not NO_PROMPT.fullmatch(name)]
    if found:
        names = ", ".join(f'"{name}"' for name in found)
        raise Refused(
            "no_prompt",
            f"which column is the prompt of chosen and rejected? Name it (columns: {{prompt: {found[0]}}}), or call it "
            f"prompt. Texts beside them: {names}.",
        )


def turn_pair(row: Row, source: Source) -> Preference:
    """A preference whose answers are turns. They may repeat the prompt; then it must be the one of its column."""
    chosen, rejected = read_turns(row["chosen"], "chosen"), read_turns(row["rejected"], "rejected")
    if chosen[:1] and rejected[:1] and (chosen[0].role, rejected[0].role) == ("assistant", "assistant"):
        given = pair_prompt(row)
        if given is None:
            raise Refused("no_prompt", "chosen and rejected begin with the assistant, and there is no prompt column.")
        return Preference(given, chosen, rejected, source)
    prompt, chosen, rejected = parted(chosen, rejected)
    if has(row, "prompt") and not agrees(row["prompt"], prompt):
        raise Refused("prompt_differs", "the prompt column is not what chosen and rejected begin with.")
    return Preference(prompt, chosen, rejected, source)


def agrees(value: object, prompt: tuple[Message, ...]) -> bool:
    """Whether a prompt column says what the turns say; a text may be any one of the user's turns."""
    if isinstance(value, str):
        return any(value.strip() == turn.content.strip() for turn in prompt if turn.role == "user")
    return read_prompt(value, "prompt") == prompt


def shared_beginning(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The whole words that two texts begin with, and what is left of each."""
    if chosen == rejected:
        raise Refused("same_answers", "chosen and rejected are the same. Remove the row.")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(chosen), len(rejected)))
    while end > 0 and not chosen[end - 1].isspace():
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise Refused(
            "no_prompt", "chosen and rejected share no beginning, so there is no prompt. Add a prompt column."
        )
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
