"""HH-RLHF transcripts: a conversation in one text, its turns marked by `Human:` and `Assistant:` after a blank line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.corpus.shapes.base import Row, RowShape, has, text_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import framed, parted, plain_answer
from luthier.records import Conversation, Message, Preference, Source

MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
SPEAKERS = {"user": "Human", "assistant": "Assistant"}


class HhRlhf(RowShape):
    """`chosen` and `rejected`: the longest beginning they share is the prompt. `transcript`: one conversation."""

    name = "hh_rlhf"
    kinds = (Preference, Conversation)
    columns = "chosen, rejected (transcripts)"

    def fits(self, row: Row) -> bool:
        """A transcript under one of the names, or a prompt that ends with the assistant's mark."""
        if any(is_transcript(row.get(name)) for name in ("chosen", "rejected", "transcript")):
            return True
        return is_transcript(row.get("prompt")) and has(row, "chosen", "rejected")

    def records(self, row: Row, source: Source) -> list[Preference | Conversation]:
        """The pair, or the conversation."""
        if has(row, "transcript"):
            return [Conversation(framed(row, read_transcript(row, "transcript")), source)]
        if not is_transcript(row.get("prompt")):
            prompt, chosen, rejected = parted(read_transcript(row, "chosen"), read_transcript(row, "rejected"))
            return [Preference(framed(row, prompt), chosen, rejected, source)]
        text = text_in(row, "prompt").rstrip().removesuffix("Assistant:").rstrip()
        prompt = framed(row, read_transcript({"prompt": text}, "prompt"))
        answers = [(Message("assistant", text_in(row, side).strip()),) for side in ("chosen", "rejected")]
        return [Preference(prompt, answers[0], answers[1], source)]

    def row(self, record: Preference | Conversation) -> dict[str, object]:
        """Whole transcripts."""
        if isinstance(record, Conversation):
            return {"transcript": transcript(record.messages)}
        prompt = record.prompt
        return {
            "chosen": transcript((*prompt, *record.chosen)),
            "rejected": transcript((*prompt, *record.rejected)),
        }


def is_transcript(value: object) -> bool:
    """Whether a text begins with a mark."""
    return isinstance(value, str) and MARK.match(value) is not None


def read_transcript(row: Row, name: str) -> tuple[Message, ...]:
    """The turns of a transcript."""
    text = text_in(row, name)
    pieces = MARK.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        detail = f'"{name}" does not begin with "Human:"; a transcript marks each turn by Human: or Assistant:.'
        raise Refused("no_turns", detail)
    return tuple(
        Message("user" if speaker == "Human" else "assistant", content)
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def transcript(turns: Sequence[Message]) -> str:
    """Turns as a transcript; Refused where a turn has no place in one."""
    for number, turn in enumerate(turns, start=1):
        if turn.role not in SPEAKERS:
            raise Refused(
                "unknown_role", f'turn {number} is of the role "{turn.role}"; transcripts know user and assistant.'
            )
        if turn.tools:
            raise Refused("tool_calls", "the conversation defines tools, which a transcript cannot hold.")
        if MARK.search(f"x{plain_answer([turn], 'hh_rlhf')}"):
            raise Refused("marks_in_text", f'turn {number} holds "Human:" or "Assistant:" after a blank line.')
        if turn.weight != 1 and turn.role == "assistant":
            raise Refused(
                "bad_weight", f"turn {number} has the weight {turn.weight:g}, which a transcript cannot hold."
            )
    return "".join(f"\n\n{SPEAKERS[turn.role]}: {turn.content}" for turn in turns)
