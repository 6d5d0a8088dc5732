"""How a conversation becomes one text: the model's own chat template, or a plain layout where it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import ModelError

Message = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """A tokenizer with its chat template, or with one of ours. Templates run in transformers' sandbox."""

    tokenizer: Any
    own: str = ""  # a template in the place of the model's
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def has_template(self) -> bool:
        """Whether the model brought a chat template; without one a plain layout is used, and said."""
        return bool(self.own or self.tokenizer.chat_template)

    @property
    def source(self) -> str:
        """The text of the template, empty without one."""
        return str(self.own or self.tokenizer.chat_template or "")

    @property
    def template(self) -> str:
        """The template's source with its arguments, part of every content hash."""
        arguments = json.dumps(dict(self.arguments), sort_keys=True) if self.arguments else ""
        return (self.source or f"plain: {self.opening}{{content}} blank line {{answer}} end-of-text") + arguments

    @property
    def opening(self) -> str:
        """What opens every text in the plain layout, for tokenizers that put a token before it."""
        return str(self.tokenizer.bos_token) if opening_tokens(self.tokenizer) else ""

    def render(self, messages: Sequence[Message], ask: bool, tools: Sequence[Any] | None = None) -> str:
        """The whole conversation as text; with `ask` it ends where the model's answer begins. `tools`: definitions."""
        if not self.has_template:
            return self._plain(messages, ask)
        try:
            given = {**self.arguments, **({"tools": list(tools)} if tools else {})}
            given |= {"chat_template": self.own} if self.own else {}
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask, **given)
            )
        except Exception as error:
            raise ModelError(f"the model's chat template failed on this conversation: {error}") from error

    def _plain(self, messages: Sequence[Message], ask: bool) -> str:
        """Turns as paragraphs; the answer follows on the line that asks for it, then the end-of-text token."""
        end = self.tokenizer.eos_token or ""
        turns = [
            f" {message['content']}{end if last and not ask else ''}" if message["role"] == "assistant"
            else ("\n\n" if index else "") + message["content"]
            for index, (message, last) in enumerate(zip(messages, [*[False] * (len(messages) - 1), True], strict=True))
        ]  # fmt: skip
        return self.opening + "".join(turns)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """(token ids, character spans) of each rendered text; nothing is added, the template said it all."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))

    def is_special(self, token: int) -> bool:
        """Whether a token ends turns or texts rather than being text."""
        added = self.tokenizer.added_tokens_decoder.get(token)
        return token in self.tokenizer.all_special_ids or bool(added is not None and added.special)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def opening_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The token that opens every text, for tokenizers that add one."""
    added = tokenizer("")["input_ids"]
    return tuple(added[:1]) if added and added[0] == tokenizer.bos_token_id else ()
