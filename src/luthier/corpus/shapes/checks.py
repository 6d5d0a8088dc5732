"""What every record must keep to, whatever rows it came from."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise

from luthier.corpus.formats import json_type
from luthier.corpus.lines import Problem
from luthier.errors import did_you_mean
from luthier.records import (
    Completion,
    Conversation,
    Document,
    Instruction,
    Labelled,
    Message,
    Preference,
    Prompt,
    Ranking,
    Rating,
    Record,
    Tagged,
)

ROLES = ("system", "user", "assistant", "tool")
POSSESSIVE = {"system": "the system's", "user": "the user's", "assistant": "the assistant's", "tool": "a tool's"}
CHUNK_TAG = re.compile(r"O|[BIESLU]-.+", re.DOTALL)


class Refused(Exception):
    """A row or record that cannot be used. Shapes raise it; their `read` and `write` hand out its problem."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def check_record(record: Record) -> None:
    """Raise Refused where a record breaks a rule of its kind."""
    match record:
        case Document():
            check_text("the text", record.text)
        case Labelled():
            check_text("the text", record.text)
            check_text("the label", record.label)
        case Completion():
            check_text("the prompt", record.prompt)
            check_text("the completion", record.completion)
        case Instruction():
            check_text("the instruction", record.instruction)
            check_type("the context", record.context)
            check_text("the response", record.response)
        case Conversation():
            check_conversation(record.messages)
        case Prompt():
            check_prompt(record.messages)
        case Preference():
            check_preference(record)
        case Ranking():
            check_ranking(record)
        case Rating():
            check_rating(record)
        case Tagged():
            check_tags(record.words, record.tags)


# --- texts ---------------------------------------------------------------------------------------------


def check_type(what: str, value: object) -> None:
    """Raise Refused where a value is no whole text."""
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{what} is {json_type(value)}; it must be a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("encoding", f"{what} holds half a character (a lone \\ud... escape).") from None


def check_text(what: str, value: object) -> None:
    """Raise Refused where a value is no text, or an empty one."""
    check_type(what, value)
    if not str(value).strip():
        raise Refused("empty_text", f"{what} is empty. Write one, or remove the row.")


# --- turns ---------------------------------------------------------------------------------------------


def check_turns(turns: Sequence[Message], where: str = "") -> None:
    """Raise Refused where turns are empty, of unknown roles, or in an order that no conversation has."""
    for number, turn in enumerate(turns, start=1):
        if turn.role not in ROLES:
            hint = did_you_mean(str(turn.role), ROLES)
            raise Refused(
                "unknown_role", f'{where}turn {number} has the role "{turn.role}". Known: {", ".join(ROLES)}.{hint}'
            )
        may_be_empty = turn.calls or turn.role == "tool"
        (check_type if may_be_empty else check_text)(f"{where}turn {number} ({turn.role})", turn.content)
        check_weight(f"{where}turn {number}", turn.weight)
        check_parts(turn, f"{where}turn {number}")
        if turn.tools and number > 1:
            raise Refused("bad_tools", f"{where}turn {number} defines tools; only the first may.")
    if turns and turns[0].role == "tool":
        raise Refused("turn_order", f"{where}turn 1 is a tool's, but nobody called one.")
    for number, (before, turn) in enumerate(pairwise(turns), start=2):
        check_order(before, turn, number, where)


def check_parts(turn: Message, what: str) -> None:
    """Raise Refused where a turn has what only a turn of another role may have, or calls and tools are misspelt."""
    if turn.role != "assistant" and (turn.calls or turn.reasoning):
        kind, reason = ("calls a tool", "bad_call") if turn.calls else ("has a reasoning", "bad_reasoning")
        raise Refused(reason, f"{what} {kind}, but it is {POSSESSIVE[turn.role]}. Only the assistant's turns may.")
    check_type(f"{what}: its reasoning", turn.reasoning)
    for name, text in (("name", turn.name), ("call_id", turn.call_id), ("tools", turn.tools)):
        check_type(f"{what}: its {name}", text)
    if turn.tools and not isinstance(parsed(turn.tools), list):
        raise Refused("bad_tools", f"{what}: its tools are no text of a JSON list.")
    for call in turn.calls:
        check_text(f"{what}: the name of a call", call.name)
        check_type(f"{what}: the arguments of a call", call.arguments)
        if not isinstance(parsed(call.arguments), dict):
            detail = f'{what}: the arguments of "{call.name}" are no JSON object: {call.arguments[:60]!r}.'
            raise Refused("bad_call", f"{detail} Mend them, or remove the row.")


def parsed(text: str) -> object:
    """The value of a JSON text; None where it is none, or holds half a character."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return value


def check_order(before: Message, turn: Message, number: int, where: str) -> None:
    """Raise Refused where a turn cannot follow the one before it."""
    if before.role == turn.role and turn.role in ("user", "assistant"):
        both = f"{where}turns {number - 1} and {number} are both {POSSESSIVE[turn.role]}"
        raise Refused("turn_order", f"{both}. Join them, or remove one.")
    if turn.role == "system" and before.role != "system":
        raise Refused("turn_order", f"{where}turn {number} is the system's, which may only stand at the start.")
    if turn.role == "tool" and before.role not in ("assistant", "tool"):
        raise Refused("turn_order", f"{where}turn {number} is a tool's, but the turn before it did not call one.")


def check_weight(what: str, weight: object) -> None:
    """Raise Refused where a turn's weight is no number from 0 on."""
    good = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight) and weight >= 0
    if not good:
        raise Refused("bad_weight", f"{what} has the weight {weight!r}; it must be 0 (not trained on) or more.")


def check_conversation(turns: Sequence[Message]) -> None:
    """Raise Refused where turns are no conversation to learn from."""
    if not turns:
        raise Refused("no_turns", "the conversation has no turns.")
    check_turns(turns)
    if not any(turn.role == "user" for turn in turns):
        raise Refused("no_user_turn", "the conversation has no turn of the user's.")
    if turns[-1].role != "assistant":
        last = f"the conversation ends with {POSSESSIVE[turns[-1].role]} turn (turn {len(turns)})"
        raise Refused("no_answer", f"{last}; the last must be the assistant's. Remove that turn, or add an answer.")
    if not any(turn.role == "assistant" and turn.weight > 0 for turn in turns):
        raise Refused("nothing_trained", "every assistant's turn has weight 0: there is nothing to learn.")


def check_prompt(turns: Sequence[Message]) -> None:
    """Raise Refused where turns do not wait for an answer."""
    if not turns:
        raise Refused("no_prompt", "there is no prompt. Give the row one, or remove it.")
    check_turns(turns, "prompt: ")
    if not any(turn.role == "user" for turn in turns):
        raise Refused("no_user_turn", "the prompt has no turn of the user's.")
    if turns[-1].role not in ("user", "tool"):
        last = f"the prompt ends with {POSSESSIVE[turns[-1].role]} turn (turn {len(turns)})"
        raise Refused("ends_with_answer", f"{last}; the last must be the user's.")


# --- judged answers ------------------------------------------------------------------------------------


def check_preference(record: Preference) -> None:
    """Raise Refused where a pair is no choice between two answers to one prompt."""
    check_prompt(record.prompt)
    for name, answer in (("chosen", record.chosen), ("rejected", record.rejected)):
        if not answer:
            raise Refused("missing_field", f'no "{name}". Give the row one, or remove it.')
        check_turns((*record.prompt, *answer), f"prompt and {name}: ")
        if answer[0].role != "assistant" or answer[-1].role != "assistant":
            raise Refused("no_answer", f'"{name}" must begin and end with the assistant\'s turn.')
        if not any(turn.role == "assistant" and turn.weight > 0 for turn in answer):
            detail = f'every turn of the assistant\'s in "{name}" has weight 0, so nothing of it is compared.'
            raise Refused("nothing_trained", f"{detail} Leave the weights out, or the row.")
    if said_until_learnt(record.chosen) == said_until_learnt(record.rejected):
        raise Refused("same_answers", "chosen and rejected are the same. Remove the row.")
    if record.scores is not None:
        check_scores(record.scores, 2)


def said_until_learnt(turns: Sequence[Message]) -> list[tuple[str, ...]]:
    """What an answer says up to its last turn of the assistant's with a weight: what comes later is not compared."""
    last = max((n for n, turn in enumerate(turns) if turn.role == "assistant" and turn.weight > 0), default=-1)
    return [turn.said for turn in turns[: last + 1]]


def check_ranking(record: Ranking) -> None:
    """Raise Refused where answers are not in an order."""
    check_prompt(record.prompt)
    if len(record.answers) < 2:
        raise Refused("too_few_answers", f"{len(record.answers)} answer; a ranking needs two or more.")
    for number, answer in enumerate(record.answers, start=1):
        check_text(f"answer {number}", answer)
    if len({answer.strip() for answer in record.answers}) == 1:
        raise Refused("same_answers", "all answers are the same: there is no order to learn. Remove the row.")
    if record.scores is None:
        return
    check_scores(record.scores, len(record.answers))
    if any(before < after for before, after in pairwise(record.scores)):
        raise Refused("bad_order", "the answers are not in the order of their scores, best first.")
    if record.scores[0] == record.scores[-1]:
        raise Refused("only_ties", "all answers are tied: there is no order to learn. Remove the row.")


def check_scores(scores: Sequence[object], num_answers: int) -> None:
    """Raise Refused where there is not one finite score for each answer."""
    if len(scores) != num_answers:
        raise Refused("unequal_lengths", f"{num_answers} answers, but {len(scores)} scores.")
    for number, score in enumerate(scores, start=1):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise Refused("wrong_type", f"score {number} is {score!r}; it must be a number.")


def check_rating(record: Rating) -> None:
    """Raise Refused where there is no answer, or no verdict."""
    check_prompt(record.prompt)
    check_text("the answer", record.answer)
    if not isinstance(record.good, bool):
        raise Refused("not_a_boolean", f"the verdict is {json_type(record.good)}; it must be true or false.")


# --- tags ----------------------------------------------------------------------------------------------


def check_tags(words: Sequence[str], tags: Sequence[str]) -> None:
    """Raise Refused where words and tags do not match, or a tag of BIOES or BILOU cannot follow the one before it.

    Tags are taken for such where each is O or has such a prefix; other tags follow each other freely. So do B and I
    alone: in IOB1 an I begins an entity where no other of its type stands before it.
    """
    if not words:
        raise Refused("empty_text", "there are no words. Remove the row.")
    if len(words) != len(tags):
        raise Refused("unequal_lengths", f"{len(words)} words, but {len(tags)} tags. Give each word one tag.")
    for number, (word, tag) in enumerate(zip(words, tags, strict=True), start=1):
        check_text(f"word {number}", word)
        check_text(f"tag {number}", tag)
    if not all(CHUNK_TAG.fullmatch(tag) for tag in tags) or all(tag[0] in "BIO" for tag in tags):
        return
    for number, (before, tag) in enumerate(pairwise(("O", *tags)), start=1):
        inside = tag[0] in "IEL" and tag != "O"
        if inside and not (before[0] in "BI" and before[1:] == tag[1:]):
            follows = f'follow "{before}"' if number > 1 else "come first"
            raise Refused(
                "bad_tag",
                f'word {number} ("{words[number - 1]}"): the tag "{tag}" cannot {follows}; '
                f'an entity begins with "B{tag[1:]}".',
            )
