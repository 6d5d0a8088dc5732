"""luthier's preference losses and gradients against TRL's, on the same tiny model, tokens, masks and references.

    trl-env/bin/python benchmarks/parity_trl_preferences.py

Prints a line for each method and exits with 1 where a loss differs by more than 1e-5 or a gradient, as the norm of the
difference over its own norm, by more than 1e-4. TRL 1.16 has no conservative loss and no rankings; the tests hold
those to formulas.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import trl_preferences
from luthier.methods.base import Example, make_batch
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout
from luthier.recipe import Lora
from luthier.recipe.methods import Dpo, Kto, Orpo, Reward, SimPo
from luthier.records import Message, Preference, Rating, Source
from luthier.stages.reference import with_reference
from luthier.training.learner import Learner, new_learner
from luthier.training.step import annotated
from tiny import tiny_folder  # type: ignore[import-not-found]

LARGEST_LOSS, LARGEST_GRADIENT = 1e-5, 1e-4
CASES: dict[str, Any] = {
    "dpo sigmoid": Dpo(beta=0.3),
    "dpo ipo": Dpo(loss="ipo", beta=0.3),
    "dpo hinge": Dpo(loss="hinge", beta=0.3),
    "dpo robust": Dpo(loss="robust", label_smoothing=0.2, beta=0.3),
    "dpo sigmoid_norm": Dpo(loss="sigmoid_norm", beta=2.0),
    "dpo apo_zero": Dpo(loss="apo_zero", beta=0.3),
    "dpo apo_down": Dpo(loss="apo_down", beta=0.3),
    "dpo nca_pair": Dpo(loss="nca_pair", beta=0.3),
    "dpo with sft": Dpo(sft_weight=0.5, beta=0.3),
    "kto": Kto(good_weight=1.3, bad_weight=0.8, beta=0.3),
    "orpo": Orpo(weight=0.4),
    "simpo": SimPo(beta=2.5, margin=0.4),
    "reward": Reward(centring=0.05),
}
PAIRS = [
    ("the match of the team", "a goal won it", "one vote passed by the new law"),
    ("the senate", "a law in the senate passed", "song"),
    ("a painter by the museum in a song", "the new painter", "the goal of a team, the goal"),
    ("one text", "into categories: Sports", "Politics and Arts"),
    ("the vote", "passed", "won a match by one goal in the senate"),
    ("the song is new", "a museum is", "by a team"),
]


def main() -> int:
    """All cases."""
    warnings.simplefilter("ignore")
    worst = 0
    with tempfile.TemporaryDirectory() as name:
        model = tiny_folder(Path(name) / "tiny")
        for number, (title, settings) in enumerate(CASES.items()):
            scratch = Path(name) / str(number)
            loss, gradient, value, point = compare(settings, model, scratch)
            bad = not (loss <= LARGEST_LOSS and gradient <= LARGEST_GRADIENT)
            worst |= bad
            note = f", z {point:.3f}" if point is not None else ""
            shown = f"loss {value:9.6f}{note}: differs by {loss:.1e}, gradient by {gradient:.1e}"
            print(f"{title:14} {shown}{'  TOO MUCH' if bad else ''}")
    return int(worst)


def rows_for(settings: Any) -> list[Any]:
    """The pairs; for KTO one answer of each, good and bad in turn.

    With an sft term all chosen answers are of one length: TRL averages it over the tokens of the batch, luthier (as
    Pang et al. 2024) over each answer, then over pairs.
    """
    source = Source("pairs", 1)
    pairs = [(p, PAIRS[0][1], r) for p, _, r in PAIRS] if getattr(settings, "sft_weight", 0) else PAIRS
    if settings.kind == "kto":
        return [Rating((Message("user", p),), (c, r)[i % 2], not i % 2, source) for i, (p, c, r) in enumerate(pairs)]
    return [
        Preference((Message("user", p),), (Message("assistant", c),), (Message("assistant", r),), source)
        for p, c, r in pairs
    ]


def compare(settings: Any, model: Path, scratch: Path) -> tuple[float, float, float, float | None]:
    """(difference of the loss, of the gradient, the loss, KTO's reference point)."""
    loaded = load_model(str(model), precision="float32")
    method = make_stage_method(settings).fitted(rows_for(settings))
    heads = method.heads(loaded.hidden_size)
    learner = new_learner(loaded, Lora(rank=4, alpha=8.0), 1, "grouped", heads)
    examples = method.view(Dialogue(Layout(loaded.tokenizer)), rows_for(settings))
    if method.needs_reference:
        examples = with_reference(learner, examples, 4096, scratch / "reference")
    drift(learner)
    learner.save(scratch / "adapter")
    loss, ours, point = own_gradient(learner, method, examples)
    fresh = load_model(str(model), precision="float32")
    wrapped = trl_preferences.adapted(settings.kind, fresh, scratch / "adapter", scratch)
    arguments = {"output_dir": str(scratch / "trl"), "per_device_train_batch_size": len(examples)}
    trainer = trl_preferences.make_trainer(settings.kind, settings, wrapped, examples, loaded.tokenizer, arguments)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    theirs_loss = trainer.compute_loss(trainer.model, batch)
    theirs_loss.backward()
    theirs = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert len(theirs) == len(ours), f"{len(theirs)} gradients against {len(ours)}"
    differences = [float((grad - theirs[their_name(name)]).norm()) ** 2 for name, grad in ours.items()]
    size = sum(float(grad.norm()) ** 2 for grad in ours.values()) ** 0.5
    return abs(loss - float(theirs_loss)), sum(differences) ** 0.5 / size, loss, point


def drift(learner: Learner) -> None:
    """Move the adapter, so that the policy is not its own reference."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)


def own_gradient(
    learner: Learner, method: Any, examples: list[Example]
) -> tuple[float, dict[str, torch.Tensor], float | None]:
    """luthier's loss, the gradient of each trained parameter, and the reference point."""
    rows, _ = annotated(learner, method, [replace(example) for example in examples], 4096)
    batch = make_batch(rows)
    out = method.loss(learner(batch), batch)
    names, parameters = zip(*learner.trained().items(), strict=True)
    gradients = torch.autograd.grad(out.total / out.weight, parameters)
    return float(out.total) / out.weight, dict(zip(names, gradients, strict=True)), rows[0].annotation


def their_name(name: str) -> str:
    """PEFT's name of a parameter of luthier's learner."""
    if name == "heads.main.weight":
        return "base_model.model.score.weight"
    return name.removeprefix("wrapper.")


if __name__ == "__main__":
    sys.exit(main())
