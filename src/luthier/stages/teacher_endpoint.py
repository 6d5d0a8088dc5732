"""A teacher behind an address: a server of the OpenAI protocol that gives log-probabilities of a prompt's tokens.

The completions path is asked to repeat the row's tokens (`echo`) with the likeliest tokens at each. Tokens are sent by
number and come back as text, so each is checked against the student's own: what reads differently is another
tokenizer. A candidate whose text is that of several tokens (parts of a character) joins the bucket of all others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence as ManyOf
from functools import cached_property
from typing import Any

import numpy as np

from luthier.errors import ModelError
from luthier.files import content_hash
from luthier.methods.base import Candidates, Example
from luthier.recipe.methods import Distil
from luthier.recipe.synthetic import Writer
from luthier.records import Sequence
from luthier.synthetic.endpoint import Answer, Endpoint, Fields, key_of

FIELDS = Fields("method.key_variable", "method.teacher", "the name behind # in method.teacher", "data.max_tokens")
NUMBERED = re.compile(r"token_id:(\d+)")  # how some servers write every token, when they are told to
BROKEN = "\ufffd"  # stands for bytes that are no whole character
MOST_REPLY_BYTES = 256_000_000


def writer_of(settings: Distil) -> Writer:
    """The teacher's address in the words of the client."""
    assert settings.address is not None
    address, name = settings.address
    return Writer(
        engine="endpoint",
        base_url=address,
        model=name,
        key_variable=settings.key_variable,
        max_reply_bytes=MOST_REPLY_BYTES,
    )


class EndpointTeacher:
    """Candidates from a server; `tokenizer` is the student's."""

    def __init__(self, settings: Distil, tokenizer: Any):
        writer = writer_of(settings)
        self.settings = settings
        self.tokenizer = tokenizer
        self.endpoint = Endpoint(writer, key_of(writer, FIELDS), path="/completions", fields=FIELDS)

    @property
    def identity(self) -> str:
        """Address, model, and what is asked for."""
        return content_hash(self.endpoint.identity, self.settings.top_k)

    @cached_property
    def texts(self) -> list[str]:
        """How each of the student's tokens reads."""
        size = max(self.tokenizer.get_vocab().values()) + 1
        return [str(text) for text in self.tokenizer.batch_decode([[token] for token in range(size)])]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The token of each text that only one token has."""
        found: dict[str, int] = {}
        for token, text in enumerate(self.texts):
            found[text] = -1 if text in found else token
        return {text: token for text, token in found.items() if token >= 0 and text and BROKEN not in text}

    def candidates(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Those of each example, by one request each.

        Raises:
            ModelError: the server fails, gives no log-probabilities of a prompt, or has another tokenizer.
        """
        sequences = [example.sequences[0] for example in examples]
        answers = self.endpoint.ask_each([(body, content_hash(body)) for body in map(self.body, sequences)])
        return [self.read(answer, sequence) for answer, sequence in zip(answers, sequences, strict=True)]

    def body(self, sequence: Sequence) -> dict[str, Any]:
        """Repeat the row's tokens. One more is written, which some servers insist on; it is not read."""
        return {
            "model": self.endpoint.settings.model,
            "prompt": list(sequence.tokens),
            "echo": True,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self.settings.top_k,
        }

    def read(self, answer: Answer | str, sequence: Sequence) -> Candidates:
        """The candidates of one row's targets, likeliest first."""
        if isinstance(answer, str):
            raise ModelError(
                f"{self.endpoint.url}: a row could not be asked for: {answer}. Run the same command again: rows that "
                "were answered are kept."
            )
        tokens, tops = self.logprobs(answer, sequence)
        self.refuse_other_tokens(tokens, sequence)
        count = self.settings.top_k
        tokens_QK = np.zeros((len(sequence.targets), count), np.int32)
        logprobs_QK = np.full((len(sequence.targets), count), -np.inf, np.float32)
        for place, index in enumerate(sequence.targets):
            best = sorted(tops[index].items(), key=lambda item: -item[1])[:count]
            kept = [(token, value) for text, value in best if (token := self.number(text)) is not None]
            for k, (token, value) in enumerate(kept):
                tokens_QK[place, k], logprobs_QK[place, k] = token, value
        return Candidates(tokens_QK, logprobs_QK)

    def logprobs(self, answer: Answer, sequence: Sequence) -> tuple[list[str], list[dict[str, float]]]:
        """Text and likeliest tokens at each place of the row."""
        size = len(sequence.tokens)
        try:
            value = json.loads(answer.body)["choices"][0]["logprobs"]
            tokens = [str(token) for token in value["tokens"]]
            tops = [{str(text): float(number) for text, number in (top or {}).items()} for top in value["top_logprobs"]]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            tokens, tops = [], []
        missing = [index for index in sequence.targets if index >= len(tops) or not tops[index]]
        if len(tokens) < size or missing:
            raise ModelError(
                f"{self.endpoint.url}: the answer holds no log-probabilities of the prompt's own tokens "
                f"(choices[0].logprobs with tokens and top_logprobs for {size} of them): "
                f"{self.endpoint.shown(answer.body)}. Distillation needs a server that answers echo with logprobs; "
                "else set what: answers."
            )
        return tokens, tops

    def refuse_other_tokens(self, tokens: ManyOf[str], sequence: Sequence) -> None:
        """The server's tokens must read as the student's do."""
        for place, (text, token) in enumerate(zip(tokens, sequence.tokens, strict=False)):
            own = self.texts[token]
            numbered = NUMBERED.fullmatch(text)
            agrees = int(numbered[1]) == token if numbered else text == own or BROKEN in own
            if not agrees:
                raise ModelError(
                    f"{self.endpoint.url}: the teacher has another tokenizer than the student: token {place} of a row "
                    f'(number {token}) is "{own}" here and "{text}" there. Its probabilities say nothing about the '
                    "student's tokens. Take a teacher of the student's family, or set what: answers."
                )

    def number(self, text: str) -> int | None:
        """The student's token of a candidate's text; None where the text does not say which."""
        numbered = NUMBERED.fullmatch(text)
        if numbered is None:
            return self.numbers.get(text)
        return int(numbered[1]) if int(numbered[1]) < len(self.texts) else None
