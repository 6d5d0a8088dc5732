"""The generator on this machine: any model luthier can load, its own chat template, the token forest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from luthier.forest.forward import choose_backend, set_backend
from luthier.generation.engine import end_tokens, generate
from luthier.generation.sampling import Draw
from luthier.models import LoadedModel, load_model
from luthier.prompts import Layout
from luthier.runtime import set_up_torch
from luthier.synthetic.base import Reply, Request, as_dicts, failed


class LocalGenerator:
    """Answers requests with a loaded model. Requests that begin alike are computed together, once."""

    def __init__(self, model: LoadedModel, batch_rows: int = 16):
        self.loaded = model
        self.batch_rows = batch_rows
        self.layout = Layout(model.tokenizer)
        self.backend, self.note = choose_backend(model.model)
        set_backend(model.model, self.backend)
        self.stop = end_tokens(model.model) | stop_tokens(self.layout)

    @classmethod
    def load(cls, name: str, batch_rows: int = 16) -> LocalGenerator:
        """By starter name, hub id, folder or GGUF file."""
        set_up_torch()
        return cls(load_model(name), batch_rows)

    @property
    def name(self) -> str:
        """The model's name; a folder or file by its last part."""
        return self.loaded.name.rstrip("/").rpartition("/")[2] or self.loaded.name

    @property
    def identity(self) -> str:
        """Weights, tokenizer and chat template."""
        return f"local {self.loaded.sha256}"

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply each. Prompts that leave no room for the reply are errors of their own."""
        replies: dict[int, Reply] = {}
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            by_length[request.max_new_tokens].append(i)
        for max_new_tokens, group in by_length.items():
            prompts = self.encode([requests[i] for i in group])
            room = self.loaded.context_tokens - max_new_tokens
            for i, prompt in zip(group, prompts, strict=True):
                if len(prompt) > room:
                    replies[i] = failed(f"the prompt has {len(prompt)} tokens, {room} fit before the reply")
            fitting = [(i, prompt) for i, prompt in zip(group, prompts, strict=True) if i not in replies]
            found = generate(
                self.loaded.model,
                [prompt for _, prompt in fitting],
                max_new_tokens,
                self.stop,
                self.backend,
                [draw_of(requests[i]) for i, _ in fitting],
            )
            for (i, _), tokens in zip(fitting, found, strict=True):
                cut_off = len(tokens) == max_new_tokens
                replies[i] = Reply(self.layout.decode(tokens), "length" if cut_off else "stop")
        return [replies[i] for i in range(len(requests))]

    def encode(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """Tokens of each request's prompt."""
        rendered = [self.layout.render(as_dicts(request.messages), ask=True) for request in requests]
        return [tuple(tokens) for tokens, _ in self.layout.encode(rendered)]


def draw_of(request: Request) -> Draw:
    """The request's random numbers: named by its prompt's words, so neither order nor batch matters."""
    return Draw(request.sampling, int(request.prompt_key[:15], 16), request.sample)


def stop_tokens(layout: Layout) -> set[int]:
    """Tokens that end an answer: the tokenizer's end-of-text, and what follows an answer in its own chat template."""
    end = layout.tokenizer.eos_token_id
    stops = {int(end)} if end is not None else set()
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    asked, answered = layout.render(turns[:1], ask=True), layout.render(turns, ask=False)
    (prompt, _), (whole, _) = layout.encode([asked, answered])
    return stops | set([token for token in whole[len(prompt) :] if layout.is_special(token)][:1])
