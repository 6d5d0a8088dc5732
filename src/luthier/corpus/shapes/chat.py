"""OpenAI chat rows: `messages`; and its preference rows: `input`, `preferred_output`, `non_preferred_output`."""

from __future__ import annotations

from luthier.corpus.shapes.base import Row, RowShape, has, object_in, refuse_extras
from luthier.corpus.shapes.calls import tools_column
from luthier.corpus.shapes.turns import framed, has_turns, read_turns, turns_as_rows
from luthier.records import Conversation, Preference, Source


class Chat(RowShape):
    """Content is a text or a list of text parts; `weight` 0 keeps a turn from being trained on. `tools` are kept."""

    name = "chat"
    kinds = (Conversation, Preference)
    columns = "messages"

    def fits(self, row: Row) -> bool:
        """`messages` without judged answers, or a preference row."""
        judged = has(row, "chosen") or has(row, "rejected")
        return (has_turns(row, "messages") and not judged) or has(row, "input", "preferred_output")

    def records(self, row: Row, source: Source) -> list[Conversation | Preference]:
        """The conversation, or the pair."""
        refuse_extras(row)
        if has(row, "preferred_output") or has(row, "non_preferred_output"):
            asked = object_in(row, "input")
            refuse_extras(asked)
            prompt = framed(row, framed(asked, read_turns(asked.get("messages"), "input.messages")))
            chosen = read_turns(row.get("preferred_output"), "preferred_output")
            rejected = read_turns(row.get("non_preferred_output"), "non_preferred_output")
            return [Preference(prompt, chosen, rejected, source)]
        return [Conversation(framed(row, read_turns(row.get("messages"), "messages")), source)]

    def row(self, record: Conversation | Preference) -> dict[str, object]:
        """A row as that service takes it."""
        if isinstance(record, Conversation):
            return {"messages": turns_as_rows(record.messages), **tools_column(record.messages)}
        return {
            "input": {"messages": turns_as_rows(record.prompt), **tools_column(record.prompt)},
            "preferred_output": turns_as_rows(record.chosen),
            "non_preferred_output": turns_as_rows(record.rejected),
        }
