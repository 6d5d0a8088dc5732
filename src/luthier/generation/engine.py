"""Decoding over the token forest: shared beginnings are computed once, all sequences decode together.

A prompt that is handed in several times, each with its own `Draw`, is computed once: that is how one prompt is
sampled many times, at one temperature or at several.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as ManyOf
from typing import Any

import torch
from torch import Tensor, nn

from luthier.forest.even import filled_up
from luthier.forest.forward import backbone, run_plan
from luthier.forest.head import cap
from luthier.forest.output import Head, output_head
from luthier.forest.plan import Past, Plan, plan_forest
from luthier.forest.tree import build_forest
from luthier.forest.virtual import first_cache, first_past, virtual_of
from luthier.generation.sampling import Chooser, Draw
from luthier.records import Sequence


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: ManyOf[tuple[int, ...]],
    max_tokens: int,
    stop: Collection[int],
    backend: str,
    draws: ManyOf[Draw] | None = None,
) -> list[list[int]]:
    """The next tokens of each prompt, up to `max_tokens` or the first token of `stop` (not returned).

    `draws` says for each prompt how its tokens are chosen; without it each is the most likely one. A reply of
    `max_tokens` tokens was cut off. The model has been through `set_backend(model, backend)`. With the padded
    backend the family's own attention decodes, one prompt after the other.
    """
    assert draws is None or len(draws) == len(prompts), "one draw for each prompt"
    chooser = Chooser(draws) if draws is not None else None
    if backend == "padded":
        return [
            generate_plain(model, prompt, max_tokens, stop)
            if virtual_of(model) is None and (chooser is None or chooser.greedy([i]))
            else sample_plain(model, prompt, max_tokens, stop, chooser, i)
            for i, prompt in enumerate(prompts)
        ]
    if not prompts:
        return []
    device = next(model.parameters()).device
    forest = filled_up(model, build_forest([Sequence(tuple(prompt)) for prompt in prompts]))
    past = first_past(model, backbone(model))
    before = len(past.positions_P)
    plan = plan_forest(forest, "grouped", device, past=past)
    hidden_ND = run_plan(model, torch.from_numpy(forest.tokens_N).to(device), plan)
    past.positions_P = torch.cat([past.positions_P, plan.positions_N])
    visible_SP = torch.zeros(len(prompts), before + forest.num_tokens, dtype=torch.bool, device=device)
    visible_SP[:, :before] = True
    for s in range(len(prompts)):
        visible_SP[s, torch.from_numpy(forest.rows_of(s) + before).to(device)] = True
    hidden_SD = hidden_ND[torch.from_numpy(forest.last_row_S).to(device)]
    replies: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts), device=device)
    lengths_S = torch.tensor([before + len(prompt) for prompt in prompts], device=device)
    head = output_head(model)
    for count in range(max_tokens):
        chosen = next_tokens(head, hidden_SD, chooser, active.tolist())
        keep = [i for i, token in enumerate(chosen.tolist()) if token not in stop]
        for i in keep:
            replies[int(active[i])].append(int(chosen[i]))
        if not keep or count + 1 == max_tokens:
            break
        active, chosen, visible_SP = active[keep], chosen[keep], visible_SP[keep]
        hidden_SD = decode_step(model, chosen, lengths_S[active] + count, past, visible_SP)
        visible_SP = torch.cat([visible_SP, torch.eye(len(active), dtype=torch.bool, device=device)], dim=1)
    return replies


def decode_step(model: nn.Module, tokens_S: Tensor, positions_S: Tensor, past: Past, visible_SP: Tensor) -> Tensor:
    """One new token for each sequence, each seeing its own path only; extends `past`. Returns hidden [S, D]."""
    past.visible_NP = visible_SP
    own = torch.eye(len(tokens_S), dtype=torch.bool, device=tokens_S.device)
    hidden_SD = run_plan(model, tokens_S, Plan(positions_S, (), (), own, past))
    past.positions_P = torch.cat([past.positions_P, positions_S])
    return hidden_SD


def next_tokens(head: Head, hidden_SD: Tensor, chooser: Chooser | None, rows: list[int]) -> Tensor:
    """The next token of each row [S]: the one of the largest logit, or what the chooser draws for prompt rows[s]."""
    logits = head.read(hidden_SD) @ head.weight_VD.T * head.scale
    if head.bias_V is not None:
        logits = logits + head.bias_V * head.scale
    logits = cap(logits, head.softcap)
    return logits.argmax(-1) if chooser is None else chooser.choose(logits, rows)


def end_tokens(model: nn.Module) -> set[int]:
    """Tokens that end a text by the model's own generation settings: none, one or several."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def generate_plain(model: nn.Module, prompt: tuple[int, ...], max_tokens: int, stop: Collection[int]) -> list[int]:
    """One prompt through transformers' own decoding."""
    lm: Any = model
    tokens = torch.tensor([prompt], device=next(model.parameters()).device)
    out = lm.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=sorted(stop),
        pad_token_id=min(stop),
    )
    reply = out[0, len(prompt) :].tolist()
    return reply[: next((i for i, token in enumerate(reply) if token in stop), len(reply))]


def sample_plain(
    model: nn.Module, prompt: tuple[int, ...], max_tokens: int, stop: Collection[int], chooser: Chooser | None, row: int
) -> list[int]:
    """One prompt token by token with transformers' own cache; the chooser draws, or the likeliest token it is."""
    lm: Any = model
    tokens = torch.tensor([prompt], device=next(model.parameters()).device)
    past = first_cache(model)
    reply: list[int] = []
    while len(reply) < max_tokens:
        out = lm(input_ids=tokens, past_key_values=past, use_cache=True)
        past = out.past_key_values
        logits = out.logits[:, -1]
        tokens = (logits.argmax(-1) if chooser is None else chooser.choose(logits, [row]))[None]
        if int(tokens) in stop:
            break
        reply.append(int(tokens))
    return reply
