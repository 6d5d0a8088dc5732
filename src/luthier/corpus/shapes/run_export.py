"""Runs of a chat server as trace stores export them (LangSmith's layout): `inputs` and `outputs` of one model call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.corpus.shapes.base import Row, RowShape, name_in, type_name
from luthier.corpus.shapes.calls import TOOL_COLUMNS, tools_column
from luthier.corpus.shapes.checks import Refused
from luthier.corpus.shapes.turns import framed, read_turns, spoken_only, turns_as_rows
from luthier.records import Conversation, Message, Rating, Source

MODEL_RUNS = ("llm", "chat", "chat_model", "generation")
THREADS = ("thread_id", "session_id", "conversation_id")
TEXT_INPUTS = ("prompt", "prompts", "input", "question", "query")
TEXT_OUTPUTS = ("output", "answer", "content", "text", "response", "result")


class RunExport(RowShape):
    """A model call becomes a conversation; feedback of 1 adds a rating; feedback of 0 or -1 leaves only the rating.

    Runs of one thread (else of one trace) share a group. Runs of chains and tools repeat what model calls hold.
    """

    name = "run_export"
    kinds = (Conversation, Rating)
    columns = "inputs, outputs, run_type"

    def fits(self, row: Row) -> bool:
        """Inputs and outputs, with a run's own columns."""
        marks = ("run_type", "trace_id", "parent_run_id", "start_time", "dotted_order")
        has_both = row.get("inputs") is not None and "outputs" in row
        return has_both and (any(name in row for name in marks) or has_messages(row["inputs"]))

    def places(self, row: Row) -> list[Row]:
        """The thread (else the trace) as group, and the start as date; then what the metadata says."""
        metadata = metadata_of(row)
        group = next((metadata[name] for name in THREADS if metadata.get(name)), None)
        traced = (row.get("trace_id"), row.get("parent_run_id"), row.get("id"))
        group = group or next((value for value in traced if value), None)
        known = {name: row.get(name) for name in ("licence", "license", "url", "synthetic")}
        return [{"group": None if group is None else str(group), "date": row.get("start_time")}, metadata, known]

    def placed(self, row: dict[str, object], columns: dict[str, object]) -> dict[str, object]:
        """Group and date in a run's own columns, the rest in its metadata."""
        rest = {name: value for name, value in columns.items() if name not in ("group", "date")}
        if "group" in columns:
            row["trace_id"] = columns["group"]
        if "date" in columns:
            row["start_time"] = columns["date"]
        return {**row, "extra": {"metadata": rest}} if rest else row

    def records(self, row: Row, source: Source) -> list[Conversation | Rating]:
        """A record for each answer, and one for what people said of it."""
        run_type = row.get("run_type")
        if run_type is not None and run_type not in MODEL_RUNS:
            detail = f'a run of type "{run_type}" is no call of a model. Its model calls are runs of their own.'
            raise Refused("not_a_model_run", detail)
        if row.get("error") or row.get("status") in ("error", "pending"):
            raise Refused("failed_run", "the run failed or has not ended: there is no answer to learn from.")
        inputs = opened(row, "inputs")
        prompt = framed({**invocation_of(row), **inputs}, read_inputs(inputs))
        answers = read_outputs(opened(row, "outputs"))
        good = read_feedback(row)
        records: list[Conversation | Rating] = []
        for answer in answers:
            if good is not False:
                records.append(Conversation((*prompt, answer), source))
            if good is not None:
                records.append(Rating(prompt, spoken_only(answer, "the answer"), good, source))
        return records

    def row(self, record: Conversation | Rating) -> dict[str, object]:
        """A run of one model call."""
        if isinstance(record, Conversation):
            return run(record.messages[:-1], record.messages[-1])
        feedback = [{"key": "thumb", "score": 1 if record.good else 0}]
        return {**run(record.prompt, Message("assistant", record.answer)), "feedback": feedback}


def run(prompt: tuple[Message, ...], answer: Message) -> dict[str, object]:
    """A run with its turns."""
    choice = {"index": 0, "message": turns_as_rows([answer])[0]}
    inputs = {"messages": turns_as_rows(prompt), **tools_column(prompt)}
    return {"run_type": "llm", "inputs": inputs, "outputs": {"choices": [choice]}}


def has_messages(value: object) -> bool:
    """Whether inputs hold messages, as an object or as JSON text."""
    return "messages" in value if isinstance(value, Mapping | str) else False


def opened(row: Row, name: str) -> Row:
    """An object, also where a table holds it as JSON text."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise Refused("broken_json", f'"{name}" is a text that is not JSON.') from None
    if value is None:
        raise Refused("missing_field", f'no "{name}". The run may not have ended; leave it out.')
    if not isinstance(value, Mapping):
        raise Refused("wrong_type", f'"{name}" is {type_name(value)}; it must be an object.')
    return value


def metadata_of(row: Row) -> Row:
    """A run's metadata, wherever the export put it."""
    extra: Any = row.get("extra")
    if isinstance(extra, str):
        try:
            extra = json.loads(extra)
        except ValueError:
            extra = None
    found = extra.get("metadata") if isinstance(extra, Mapping) else row.get("metadata")
    return found if isinstance(found, Mapping) else {}


def invocation_of(row: Row) -> Row:
    """The parameters of a model call, where the export has them: the tools are among them."""
    extra: Any = row.get("extra")
    found = extra.get("invocation_params") if isinstance(extra, Mapping) else None
    return {name: found[name] for name in TOOL_COLUMNS if name in found} if isinstance(found, Mapping) else {}


# --- what went in, what came out -----------------------------------------------------------------------


def read_inputs(inputs: Row) -> tuple[Message, ...]:
    """The turns that were sent; a batch of one is opened, a bare text is the user's turn."""
    messages: Any = inputs.get("messages")
    if messages is not None:
        batched = isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], list)
        messages = messages[0] if batched else messages
        plain = [unwrapped(message) for message in messages] if isinstance(messages, list) else messages
        return read_turns(plain, "inputs.messages")
    value: Any = inputs[name_in(inputs, TEXT_INPUTS)]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise Refused("wrong_type", f"the run's input is {type_name(value)}; it must be a text or messages.")
    return (Message("user", value),)


def read_outputs(outputs: Row) -> list[Message]:
    """The answers, one or more."""
    if isinstance(outputs.get("choices"), list):
        return [read_output(choice, "outputs.choices") for choice in answers_in(outputs["choices"])]
    if isinstance(outputs.get("generations"), list):
        return [read_output(item, "outputs.generations") for item in answers_in(outputs["generations"])]
    turns = outputs.get("messages")
    if isinstance(turns, list) and turns:
        return [read_output({"message": turns[-1]}, "outputs.messages")]
    if outputs.get("message") is not None:
        return [read_output(outputs, "outputs")]
    if outputs.get("role") is not None:
        return [read_output({"message": outputs}, "outputs")]
    value = outputs[name_in(outputs, ("choices", "generations", "messages", *TEXT_OUTPUTS))]
    if isinstance(value, Mapping):
        return [read_output({"message": value}, "outputs")]
    if not isinstance(value, str):
        raise Refused("wrong_type", f"the run's output is {type_name(value)}; it must be a text or a message.")
    return [Message("assistant", value)]


def answers_in(items: Any) -> list[Any]:
    """The answers of a call, from a batch of one where it is batched; Refused where there is none."""
    found = [inner for item in items for inner in (item if isinstance(item, list) else [item])]
    if not found:
        raise Refused("no_answer", "the run has no answer.")
    return found


def read_output(item: Any, name: str) -> Message:
    """The assistant's turn of a choice or a generation."""
    message = item.get("message") if isinstance(item, Mapping) else None
    if message is None:
        text = item.get("text") if isinstance(item, Mapping) else item
        message = {"role": "assistant", "content": text}
    return read_turns([unwrapped(message)], name)[0]


def unwrapped(message: Any) -> Any:
    """A message as role and content, from the ways in which LangChain writes its message objects."""
    if not isinstance(message, Mapping) or message.get("role") is not None:
        return message
    inner = message.get("kwargs") or message.get("data")
    body = inner if isinstance(inner, Mapping) else message
    path = message.get("id")
    name = str(path[-1]) if isinstance(path, list) and path else str(body.get("type") or message.get("type"))
    calls = body.get("tool_calls") or (body.get("additional_kwargs") or {}).get("tool_calls")
    role = name.removesuffix("Chunk").removesuffix("Message").lower()
    known = {name: body.get(name) for name in ("name", "tool_call_id")}
    return {"role": role, "content": body.get("content"), "tool_calls": calls, **known}


# --- feedback ------------------------------------------------------------------------------------------


def read_feedback(row: Row) -> bool | None:
    """What was said of the run: 1 is good, 0 and -1 are bad; None where nothing clear was, or opinions differ."""
    given: Any = row.get("feedback") if row.get("feedback") is not None else row.get("feedback_stats")
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    items = list(given.values()) if isinstance(given, Mapping) else given if isinstance(given, list) else []
    verdicts = {score_verdict(item) for item in items if isinstance(item, Mapping)} - {None}
    return verdicts.pop() if len(verdicts) == 1 else None


def score_verdict(item: Mapping[str, Any]) -> bool | None:
    """A score (or the mean of several) that is a clear yes or no."""
    score = item.get("score") if item.get("score") is not None else item.get("avg")
    if isinstance(score, bool):
        return score
    return {1.0: True, 0.0: False, -1.0: False}.get(score) if isinstance(score, int | float) else None
