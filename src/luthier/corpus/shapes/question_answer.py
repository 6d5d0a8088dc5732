"""A question and its answer under the names people give them, with `context` and `system` where there are."""

from __future__ import annotations

from luthier.corpus.shapes.base import Row, RowShape, has, refuse_extras, text_in
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import asked, framed
from luthier.records import Conversation, Instruction, Message, Source

ASKING = ("question", "prompt", "query", "problem", "input")
ANSWERING = ("answer", "response", "output", "completion", "solution")
# beside these, question and answer are not all there is: what was shown with the question, or what was thought of it
MORE = (
    "instruction", "choices", "options", "article", "passage", "paragraph", "story", "document", "dialogue", "contexts",
    "answers", "thumb", "thumbs", "rating", "feedback", "vote", "label", "score", "reward",
)  # fmt: skip


class QuestionAnswer(RowShape):
    """One column asks and one answers. Where several could, nobody can tell which: the input names them."""

    name = "question_answer"
    kinds = (Instruction,)
    columns = "question, answer"

    def fits(self, row: Row) -> bool:
        """One text that asks, one that answers, and nothing that changes what they mean."""
        asking, answering = (named(row, names) for names in (ASKING, ANSWERING))
        alone = len(asking) == len(answering) == 1 and not any(has(row, name) for name in MORE)
        context = row.get("context")
        return (
            alone and all(isinstance(row[name], str) for name in asking + answering) and isinstance(context or "", str)
        )

    def records(self, row: Row, source: Source) -> list[Instruction | Conversation]:
        """An instruction; with a system message or tools, a conversation."""
        refuse_extras(row)
        question, answer = (text_in(row, only(row, names)) for names in (ASKING, ANSWERING))
        context = text_in(row, "context") if has(row, "context") else ""
        turns = (Message("user", asked(question, context)), Message("assistant", answer))
        whole = framed(row, turns)
        if whole != turns:
            return [Conversation(whole, source)]
        return [Instruction(question, context, answer, source)]

    def row(self, record: Instruction) -> dict[str, object]:
        """Question and answer; the context where there is one."""
        context = {"context": record.context} if record.context else {}
        return {"question": record.instruction, **context, "answer": record.response}


def named(row: Row, names: tuple[str, ...]) -> list[str]:
    """Which of some names have a value."""
    return [name for name in names if has(row, name)]


def only(row: Row, names: tuple[str, ...]) -> str:
    """The one of some names that has a value."""
    found = named(row, names)
    if len(found) == 1:
        return found[0]
    if not found:
        spellings = " or ".join(f'"{name}"' for name in names)
        raise Refused("missing_field", f"no {spellings}. Give the row one, or remove it.")
    both = " and ".join(f'"{name}"' for name in found)
    raise Refused(
        "ambiguous", f"{both} could both be meant. Name the columns: columns: {{prompt: ..., response: ...}}."
    )
