"""Hidden states and log-probabilities of a forest: the one place where a batch meets a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.forest.attention import IMPLEMENTATION, register
from luthier.forest.encoders import encoder_hidden_states
from luthier.forest.even import even_length, filled_up
from luthier.forest.head import target_logprobs
from luthier.forest.output import Head, output_head
from luthier.forest.plan import Past, Plan, plan_forest
from luthier.forest.tree import Forest
from luthier.forest.virtual import padded_inputs, virtual_hidden_states, virtual_of

# Families whose forest equals their padded batch, loss and gradient: tests/test_parity.py proves each of them.
PROVEN_FAMILIES = frozenset(
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt2",
        "gpt_neox",
        "olmo2",
        "smollm3",
    ]
)


def choose_backend(model: nn.Module, wanted: str = "auto") -> tuple[str, str | None]:
    """(backend, reason): `padded` with a reason where the family is not proven, ModelError where it was insisted on."""
    config = model.config
    family = str(config.model_type)  # type: ignore[union-attr]
    problem = None
    if family not in PROVEN_FAMILIES:
        problem = (
            f'the family "{family}" is not proven on the token forest (proven: {", ".join(sorted(PROVEN_FAMILIES))})'
        )
    elif getattr(config, "attention_dropout", 0.0) or getattr(config, "attn_pdrop", 0.0):
        problem = "the model's configuration has attention dropout, which shared prefixes cannot have"
    if wanted == "auto":
        return ("grouped", None) if problem is None else ("padded", f"{problem}; it runs padded, which is slower")
    if wanted != "padded" and problem is not None:
        raise ModelError(f"attention: {wanted} cannot be used: {problem}. Set attention: auto or padded.")
    return wanted, None


def set_backend(model: nn.Module, backend: str) -> None:
    """Switch a transformers model's attention to the forest, or back to the family's own for the padded path.

    SDPA knows no soft cap, so a capped family runs eager there. Families of encoders with attention of their own kind
    (relative positions) keep it.
    """
    own_kind = not getattr(model, "_supports_sdpa", True)
    if backend == "padded" and own_kind and model.config._attn_implementation != IMPLEMENTATION:  # type: ignore[union-attr]
        return
    register()
    switch = getattr(model, "set_attn_implementation", None)
    assert switch is not None, "a transformers model"
    capped = getattr(model.config, "attn_logit_softcapping", None)
    plain = "eager" if capped or own_kind else "sdpa"
    switch(plain if backend == "padded" else IMPLEMENTATION)


def hidden_states(model: nn.Module, forest: Forest, backend: str, past: Past | None = None) -> Tensor:
    """The last hidden states [N, D] of a forest's distinct tokens. The model has been through `set_backend`."""
    device = next(model.parameters()).device
    refuse_lacking(model, forest)
    if backend == "padded":
        return padded_hidden_states(model, forest, device)
    whole, virtual = filled_up(model, forest), virtual_of(model)
    if virtual is not None and past is None:  # a past begins with them
        hidden_ND = virtual_hidden_states(model, backbone(model), whole, backend, device, virtual)
    else:
        plan = plan_forest(whole, backend, device, past=past)
        hidden_ND = run_plan(model, torch.from_numpy(whole.tokens_N).to(device), plan)
    return hidden_ND[: forest.num_tokens]


def run_plan(model: nn.Module, tokens_N: Tensor, plan: Plan) -> Tensor:
    """One pass of the model's body over flat tokens under a plan: [N, D]."""
    body: Any = backbone(model)
    out = body(
        input_ids=tokens_N[None],
        position_ids=plan.positions_N[None],
        attention_mask=None,
        use_cache=False,
        forest=plan,
    )
    return out.last_hidden_state[0]


def padded_hidden_states(model: nn.Module, forest: Forest, device: torch.device) -> Tensor:
    """The same [N, D] through the family's own padded attention: slower, and right for every family.

    No decoder's token sees the padding behind it, so nothing is masked: behind a sliding window a masked row would see
    nothing at all, which is not a number.
    """
    body: Any = backbone(model)
    if not forest.causal:
        return encoder_hidden_states(model, body, forest, device)
    tokens_ST = torch.from_numpy(forest.padded(even_length(model, forest.longest))[0]).to(device)
    inputs, before = padded_inputs(model, tokens_ST)
    out = body(**inputs, use_cache=False)
    owner, time = torch.from_numpy(forest.first_N), torch.from_numpy(forest.positions_N) + before
    return out.last_hidden_state[owner.to(device), time.to(device)]


def num_embeddings(model: nn.Module) -> int:
    """How many tokens a model has embeddings of."""
    module: Any = model.get_input_embeddings()  # type: ignore[operator]
    return int(module.weight.shape[0])


def refuse_lacking(model: nn.Module, forest: Forest) -> None:
    """ModelError where a forest has a token that the model has no embedding of."""
    number, rows = int(forest.tokens_N.max(initial=0)), num_embeddings(model)
    if number >= rows:
        raise ModelError(lacking(number, rows))


def lacking(number: int, rows: int, token: str = "") -> str:
    """What is said of a token without an embedding."""
    named = f'the token "{token}" has' if token else "a token of a text has"
    return (
        f"{named} number {number}, and the model has embeddings of {rows} tokens only. Give the model the tokenizer "
        "that belongs to it, or the missing rows (transformers: model.resize_token_embeddings(len(tokenizer)), "
        "both saved)."
    )


def readout(forest: Forest, hidden_ND: Tensor) -> Tensor:
    """What a head reads, [P, D]: the mean hidden state over each span of each sequence, in order."""
    rows: list[Tensor] = []
    sizes: list[int] = []
    for s, sequence in enumerate(forest.sequences):
        path = forest.rows_of(s) if sequence.reads else None
        for start, stop in sequence.reads:
            assert path is not None and stop <= len(path), "a span's tokens are computed"
            rows.append(torch.from_numpy(path[start:stop]))
            sizes.append(stop - start)
    device = hidden_ND.device
    sizes_P = torch.tensor(sizes, device=device)
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes_P)
    sums_PD = hidden_ND.new_zeros(len(sizes), hidden_ND.shape[1])
    read = hidden_ND.index_select(0, torch.cat(rows).to(device))  # rows repeat: target_logprobs says why not [...]
    return sums_PD.index_add(0, owner, read) / sizes_P[:, None]


def logprobs(model: nn.Module, forest: Forest, hidden_ND: Tensor) -> Tensor:
    """log p of each target, [M], at its temperature; only the rows that targets read go through the head."""
    head = output_head(model)
    temperature_M = np.concatenate([s.temperatures or np.ones(len(s.targets)) for s in forest.sequences])
    parts, places = [], []
    for temperature in np.unique(temperature_M):
        (chosen,) = np.nonzero(temperature_M == temperature)
        places.append(chosen)
        parts.append(chosen_logprobs(cooled(head, float(temperature)), forest, hidden_ND, chosen))
    if len(parts) == 1:
        return parts[0]
    back = torch.from_numpy(np.argsort(np.concatenate(places))).to(hidden_ND.device)
    return torch.cat(parts).index_select(0, back)


def chosen_logprobs(head: Head, forest: Forest, hidden_ND: Tensor, chosen: NDArray[np.int64]) -> Tensor:
    """log p of the targets `chosen`, in their order."""
    rows, reader = np.unique(forest.row_M[chosen], return_inverse=True)
    device = hidden_ND.device
    rows_RD = hidden_ND.index_select(0, torch.from_numpy(rows).to(device))
    return target_logprobs(
        head.read(rows_RD),
        head.weight_VD,
        head.bias_V,
        torch.from_numpy(reader.reshape(-1)).to(device),
        torch.from_numpy(forest.token_M[chosen]).to(device),
        head.softcap,
        head.scale,
    )


def cooled(head: Head, temperature: float) -> Head:
    """The head with its logits divided by a temperature: cap(z) / T = cap'(z / T) with the cap divided by T too."""
    softcap = None if head.softcap is None else head.softcap / temperature
    return replace(head, softcap=softcap, scale=head.scale / temperature)


def backbone(model: nn.Module) -> nn.Module:
    """The body below the output head."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    body = getattr(model, prefix, getattr(model, "model", None))  # Llama 4's prefix is not what its body is called
    if not isinstance(body, nn.Module):
        raise ModelError(
            f"{type(model).__name__} has no body below its head; use a transformers causal language model."
        )
    return body
