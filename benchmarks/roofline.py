"""How much of what this machine's matrix products reach does a training step on the token forest reach?

The floating-point operations a step cannot do without are counted as a list of matrix products (README.md
says which). The same list is then run as plain `torch.mm` and `torch.bmm` on buffers that are there already,
in turn with real training steps; the ratio of the two speeds is the step's share of the reachable.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --methods sft --profile
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import workload
from luthier.forest.output import output_head
from luthier.forest.parts import MASKED
from luthier.forest.plan import Block, plan_forest
from luthier.forest.tree import Forest
from luthier.methods import make_method
from luthier.methods.base import MAIN, Batch, Example, Objective
from luthier.models import load_model
from luthier.recipe import Tune
from luthier.runtime import keep_big_blocks, num_threads
from luthier.training.learner import Learner, label_head, new_learner
from luthier.training.loop import rows_of_step
from luthier.training.optimizers import make_optimizer
from luthier.training.step import one_step

PACKAGES = ("luthier", "torch", "transformers", "peft")
NUM_PROFILE_LINES = 20
# Self time of these operators, by what they are for; the rest of aten:: is elementwise work and reductions.
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention kernels": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "copies and gathers": (
        "aten::copy_", "aten::cat", "aten::index", "aten::index_select", "aten::gather", "aten::index_put_",
        "aten::_index_put_impl_", "aten::repeat_interleave", "aten::fill_", "aten::zero_",
    ),
    "optimizer": ("aten::_fused_adamw_", "aten::_foreach_norm", "aten::_foreach_mul_"),
}  # fmt: skip
ELEMENTWISE, FRAMEWORK = "elementwise and reductions", "autograd and Python"


@dataclass(frozen=True)
class Product:
    """left @ right into `out`: [m, k] and [k, n], or a batch of such; `part` names the work it stands for."""

    part: str
    left: Tensor
    right: Tensor
    out: Tensor

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.out.numel() * self.left.shape[-1]

    def run(self) -> None:
        """The plain product."""
        multiply = torch.mm if self.left.ndim == 2 else torch.bmm
        multiply(self.left, self.right, out=self.out)


AheadAndBack = tuple[list[Product], list[Product]]


@dataclass
class Buffers:
    """Dense tensors to multiply, one for each use and shape, so that timing allocates nothing."""

    kept: dict[tuple[str, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def get(self, use: str, *shape: int) -> Tensor:
        """The tensor for this use, made on first sight."""
        if (use, shape) not in self.kept:
            self.kept[use, shape] = torch.randn(shape)
        return self.kept[use, shape]


@dataclass(frozen=True)
class Call:
    """One linear layer's call in the step's forward pass."""

    name: str
    weight: Tensor  # [out, in]
    num_rows: int
    input_wants_gradient: bool


# --- what a step has to multiply -----------------------------------------------------------------------


def list_products(learner: Learner, batch: Batch) -> list[Product]:
    """The step's products in the order of the step: forward, then backward from the end."""
    buffers = Buffers()
    forward: list[Product] = []
    backward: list[Product] = []
    for call in linear_calls(learner, batch):
        ahead, back = linear_products(call, buffers)
        forward += ahead
        backward += back
    ahead, back = attention_products(learner.lm, batch.forest, buffers)
    forward += ahead
    backward += back
    if len(batch.row_M):
        ahead, back = vocabulary_products(learner.lm, batch.forest, buffers)
        forward += ahead
        backward += back
    return forward + backward[::-1]


def linear_calls(learner: Learner, batch: Batch) -> list[Call]:
    """Every linear layer of one real forward pass: the frozen ones, LoRA's pairs, the classification head."""
    calls: list[Call] = []

    def note(name: str, module: nn.Linear) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            num_rows = inputs[0].numel() // module.in_features
            calls.append(Call(name, module.weight, num_rows, inputs[0].requires_grad))

        hooks.append(module.register_forward_hook(hook))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in learner.named_modules():
        if isinstance(module, nn.Linear):
            note(name, module)
    # the fused LoRA layers call none of the layers inside them: for this one pass they run as PEFT has them
    fused = {module: module.__dict__.pop("forward") for module in learner.modules() if "forward" in module.__dict__}
    learner.train()
    learner(batch)
    for module, forward in fused.items():
        module.forward = forward
    for handle in hooks:
        handle.remove()
    assert calls, "a model with linear layers"
    return calls


def linear_products(call: Call, buffers: Buffers) -> AheadAndBack:
    """Ahead y = x W^T; back dW = dy^T x where the weight wants a gradient, dx = dy W where the input does."""
    out_width, in_width = call.weight.shape
    weight = call.weight.detach()
    part = "LoRA" if "lora_" in call.name else "head" if call.name.startswith("heads.") else "frozen layers"
    x, y = buffers.get("x", call.num_rows, in_width), buffers.get("y", call.num_rows, out_width)
    dx, dy = buffers.get("dx", call.num_rows, in_width), buffers.get("dy", call.num_rows, out_width)
    ahead = [Product(f"{part}, forward", x, weight.t(), y)]
    back = []
    if call.weight.requires_grad:
        back.append(Product(f"{part}, backward", dy.t(), x, buffers.get("dw", out_width, in_width)))
    if call.input_wants_gradient:
        back.append(Product(f"{part}, backward", dy, weight, dx))
    return ahead, back


def attention_products(lm: nn.Module, forest: Forest, buffers: Buffers) -> AheadAndBack:
    """The parts of the plan in every layer: two products ahead, four back; recomputed scores do not count."""
    config: Any = lm.config
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    plan = plan_forest(forest)
    parts = [block_shape(block, heads) for block in plan.blocks]
    for cross in plan.crosses:
        queries = (cross.query_end - cross.query_start) * heads // key_heads
        parts.append((key_heads, queries, cross.key_end - cross.key_start))
    ahead: list[Product] = []
    back: list[Product] = []
    for count, queries, keys in parts * config.num_hidden_layers:
        q, k = buffers.get("q", count, queries, width), buffers.get("k", count, keys, width)
        dq, dk = buffers.get("dq", count, queries, width), buffers.get("dk", count, keys, width)
        weights = buffers.get("weights", count, queries, keys)
        scores = buffers.get("scores", count, queries, keys)
        ahead += [
            Product("attention, forward", q, k.transpose(1, 2), scores),
            Product("attention, forward", weights, k, dq),
        ]
        back += [
            Product("attention, backward", weights.transpose(1, 2), q, dk),  # dK = dS^T Q
            Product("attention, backward", weights, k, dq),  # dQ = dS K
            Product("attention, backward", q, k.transpose(1, 2), scores),  # dP = dO V^T
            Product("attention, backward", weights.transpose(1, 2), q, dk),  # dV = P^T dO
        ]
    return ahead, back


def block_shape(block: Block, heads: int) -> tuple[int, int, int]:
    """(products, queries, keys) with as many multiply-adds as the block has visible pairs of real tokens."""
    num_blocks, size = block.index_GT.shape
    lengths = block.valid_GT.sum(1)
    if block.mask_G1TJ is None:
        pairs = int((lengths * (lengths + 1) // 2).sum())
    else:
        pairs = int(((block.mask_G1TJ[:, 0] > MASKED / 2) & block.valid_GT[:, :, None]).sum())
    return num_blocks * heads, size, max(1, round(pairs / (num_blocks * size)))


def vocabulary_products(lm: nn.Module, forest: Forest, buffers: Buffers) -> AheadAndBack:
    """The frozen output head, for the rows that targets read: their logits, and their gradient from these."""
    weight = output_head(lm).weight_VD.detach()
    num_rows = len(np.unique(forest.row_M))
    rows, drows = (buffers.get(use, num_rows, weight.shape[1]) for use in ("rows", "drows"))
    logits = buffers.get("logits", num_rows, weight.shape[0])
    ahead = [Product("head, forward", rows, weight.t(), logits)]
    return ahead, [Product("head, backward", logits, weight, drows)]


# --- timing --------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """One method's learner, the batch it steps on again and again, and the products of such a step."""

    learner: Learner
    objective: Objective
    tune: Tune
    examples: list[Example]
    products: list[Product] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batch = self.learner.batch(self.examples)
        self.optimizer = make_optimizer(self.learner, self.tune)
        self.products = list_products(self.learner, self.batch)

    def step(self) -> None:
        """A whole training step: forest, forward, backward, clipping, update."""
        one_step(self.learner, self.objective, self.examples, self.optimizer, 1.0, self.tune, 0)

    def step_seconds(self) -> float:
        """How long one takes."""
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started

    @torch.no_grad()
    def product_seconds(self) -> dict[str, float]:
        """How long the plain products take, by part."""
        seconds: dict[str, float] = defaultdict(float)
        for product in self.products:
            started = time.perf_counter()
            product.run()
            seconds[product.part] += time.perf_counter() - started
        return seconds


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Steps and products in turn after one warm-up of each; medians."""
    bench.step()
    bench.product_seconds()
    steps: list[float] = []
    passes: list[dict[str, float]] = []
    for _ in range(repeats):
        steps.append(bench.step_seconds())
        passes.append(bench.product_seconds())
    flops: Counter[str] = Counter()
    for product in bench.products:
        flops[product.part] += product.flops
    step_seconds = statistics.median(steps)
    products_seconds = statistics.median(sum(one.values()) for one in passes)
    return {
        "flops_ratio": products_seconds / step_seconds,
        "step_seconds": step_seconds,
        "products_seconds": products_seconds,
        "flops_per_step": flops.total(),
        "achieved_flops_per_second": flops.total() / step_seconds,
        "reachable_flops_per_second": flops.total() / products_seconds,
        "computed_tokens": bench.batch.forest.num_tokens,
        "padded_tokens": bench.batch.forest.num_padded_tokens,
        "parts": {
            part: {"flops": count, "seconds": statistics.median(one[part] for one in passes)}
            for part, count in flops.items()
        },
        "all_step_seconds": steps,
        "all_products_seconds": [sum(one.values()) for one in passes],
    }


# --- the command ---------------------------------------------------------------------------------------


def main() -> None:
    """Measure each method, print."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_big_blocks()
    measured: dict[str, dict[str, Any]] = {}
    for name in arguments.methods:
        bench = make_bench(name, arguments)
        measured[name] = measure(bench, arguments.repeats)
        if not arguments.json:
            print(table(name, measured[name]))
        if arguments.profile:
            print(profile_table(bench))
    if arguments.json:
        found = {
            "flops_ratio": min(figures["flops_ratio"] for figures in measured.values()),
            "methods": measured,
            "settings": {
                "model": workload.MODEL,
                "rows": str(arguments.rows),
                "batch_size": arguments.batch_size,
                "repeats": arguments.repeats,
                "threads": arguments.threads,
            },
            "versions": workload.versions(*PACKAGES),
            "machine": workload.machine(),
        }
        print(json.dumps(found))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="A training step's share of what plain products reach.")
    add = parser.add_argument
    add("--methods", nargs="+", choices=("sft", "head"), default=["sft", "head"], help="default: both")
    add("--rows", type=Path, default=workload.NEWSROOM, help=".jsonl or .csv, or .txt of text|LABEL lines")
    add("--batch-size", type=int, default=16, help="rows of a step (default 16)")
    add("--repeats", type=int, default=7, help="timed steps, each followed by its products (default 7)")
    add("--threads", type=int, default=num_threads(), help="OpenMP threads")
    add("--profile", action="store_true", help="also where one step's time goes, by operator")
    add("--json", action="store_true", help="one line of JSON instead of the tables")
    arguments = parser.parse_args()
    if arguments.profile and arguments.json:
        parser.error("--profile prints a table; leave out --json")
    return arguments


def make_bench(name: str, arguments: argparse.Namespace) -> Bench:
    """A fresh learner of a fresh model, and the first batch of its first epoch."""
    model = load_model(workload.MODEL)
    rows = workload.read_labelled(arguments.rows)
    prompt = workload.make_prompt(rows, model.tokenizer, lists_labels=True)
    tune = Tune.model_validate({"method": name, "batch_size": arguments.batch_size})
    method = make_method(tune, prompt.task)
    chosen = [rows[i] for i in rows_of_step(0, tune.batch_size, len(rows), seed=0)]
    heads = {MAIN: label_head(model, prompt)} if name == "head" else {}
    learner = new_learner(model, tune.adapter, seed=0, backend="grouped", heads=heads)
    return Bench(learner, method, tune, method.view(prompt, chosen))


def table(name: str, found: dict[str, Any]) -> str:
    """One method's figures for a terminal."""

    def line(what: str, seconds: float, flops: float) -> str:
        giga = flops / 1e9
        return f"  {what:28}{seconds * 1e3:9.1f} ms{giga:10.2f} GFLOP{giga / seconds:9.1f} GFLOP/s"

    lines = [
        f"{name}: {found['computed_tokens']} distinct tokens; "
        f"the step reaches {found['flops_ratio']:.0%} of what its products reach alone",
        line("training step", found["step_seconds"], found["flops_per_step"]),
        line("plain products", found["products_seconds"], found["flops_per_step"]),
    ]
    lines += [line(f"  {part}", one["seconds"], one["flops"]) for part, one in found["parts"].items()]
    return "\n".join(lines)


def profile_table(bench: Bench) -> str:
    """Self time of one step by kind of work, then the largest operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        bench.step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    kinds: Counter[str] = Counter()
    for event in events:
        kinds[kind_of(event.key)] += event.self_cpu_time_total
    lines = [f"  profile of one step: {kinds.total() / 1e3:.1f} ms"]
    lines += [f"    {kind:30}{time_us / 1e3:9.1f} ms" for kind, time_us in kinds.most_common()]
    lines.append("  largest operators, self time:")
    lines += [
        f"    {event.key[:60]:62}{event.self_cpu_time_total / 1e3:9.1f} ms {event.count:7} calls"
        for event in events[:NUM_PROFILE_LINES]
    ]
    return "\n".join(lines)


def kind_of(operator: str) -> str:
    """What an operator's own time is spent on."""
    for kind, names in KINDS.items():
        if operator in names:
            return kind
    return ELEMENTWISE if operator.startswith("aten::") else FRAMEWORK


if __name__ == "__main__":
    main()
