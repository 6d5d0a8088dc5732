"""A model with its adapter and, where the method has one, a classification head: batch in, outputs out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as ManyOf
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.adapters import WEIGHTS, Plain, add_adapter, fuse, kind_of, load_adapter
from luthier.errors import ModelError
from luthier.files import require_whole
from luthier.forest.encoders import is_encoder
from luthier.forest.forward import choose_backend, hidden_states, logprobs, readout, set_backend
from luthier.forest.output import output_head
from luthier.forest.tree import Forest
from luthier.forest.virtual import virtual_of
from luthier.methods.base import MAIN, Batch, Example, Outputs, make_batch, split_by_tokens
from luthier.methods.heads.ordinal import Thresholds
from luthier.models import LoadedModel
from luthier.prompts import ClassifyPrompt
from luthier.recipe.adapters import AdapterKeys

ADAPTER_FILE, HEAD_FILE = WEIGHTS, "head.safetensors"
CALIBRATION_ROWS = 64  # training rows on which a fresh head is centred


class Learner(nn.Module):
    """`wrapper` is the model with its adapter, `lm` the model inside it, `heads` a linear layer [L, D] by task."""

    def __init__(self, wrapper: nn.Module, heads: Mapping[str, nn.Module], backend: str):
        super().__init__()
        self.wrapper = wrapper
        self.heads = nn.ModuleDict(heads).to(next(wrapper.parameters()).device)
        self.backend = backend
        self.held: frozenset[str] = frozenset()
        set_backend(self.lm, backend)

    @property
    def lm(self) -> nn.Module:
        """The transformers model, adapter layers in place."""
        return self.wrapper.base_model.model  # type: ignore[union-attr, return-value]

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return not is_encoder(self.lm.config)

    def batch(self, examples: ManyOf[Example]) -> Batch:
        """The forest of some examples, as this model reads it."""
        return make_batch(examples, self.device, causal=self.causal)

    def forward(self, batch: Batch) -> Outputs:
        """Log-probabilities where the batch has targets; what the task's head says where it has spans to read."""
        forest = batch.forest
        hidden_ND = self.hidden(forest)
        return Outputs(
            logprobs_M=logprobs(self.lm, forest, hidden_ND) if len(forest.row_M) else None,
            logits_PL=self.heads[batch.task](readout(forest, hidden_ND).float()) if len(batch.row_P) else None,
        )

    def hidden(self, forest: Forest) -> Tensor:
        """The last hidden states [N, D] of a forest's tokens."""
        return hidden_states(self.lm, forest, self.backend)

    def prepare(self, examples: ManyOf[Example], max_tokens: int) -> None:
        """Told of all examples before the first step; most learners have nothing to prepare."""

    @property
    def has_adapter(self) -> bool:
        """Whether there is more than the model as it is and its heads."""
        return type(self.wrapper) is not Plain

    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name, those that are held for now included."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad or name in self.held}

    def hold(self, names: Iterable[str]) -> None:
        """Keep just these of the trained parameters as they are: no gradient is computed for them, nor through them."""
        trained, wanted = self.trained(), frozenset(names)
        assert wanted <= trained.keys(), "only what is trained can be held"
        if wanted == self.held:
            return
        for name, parameter in trained.items():
            parameter.requires_grad_(name not in wanted)
            if name in wanted:
                parameter.grad = None
        self.held = wanted

    @property
    def virtual_tokens(self) -> int:
        """Places of the model's context that learned rows before every text take."""
        virtual = virtual_of(self.lm)
        return 0 if virtual is None else virtual.num_tokens

    def sizes(self) -> tuple[int, int]:
        """How many numbers learn, and how many there are with adapter and heads."""
        return sum(map(num_numbers, self.trained().values())), sum(map(num_numbers, self.parameters()))

    def told(self) -> str:
        """What learns, and how much of all that is: a sentence for the user."""
        learnt, whole = self.sizes()
        of_heads = sum(num_numbers(found) for name, found in self.trained().items() if name.startswith("heads."))
        heads = f", {of_heads:,} of them in {'the head' if len(self.heads) == 1 else 'heads'}" if of_heads else ""
        left_out: str = getattr(self.wrapper, "left_out", "")
        return f"{learnt:,} of {whole:,} parameters learn ({learnt / whole:.2%}{heads}).{left_out}"

    def save(self, folder: Path) -> None:
        """The adapter in its own format, where there is one, and the heads as safetensors beside it."""
        if self.has_adapter:
            kind_of(self.wrapper).save(self.wrapper, folder)
        if self.heads:
            state = {name: tensor.contiguous() for name, tensor in self.heads.state_dict().items()}
            save_file(state, str(folder / HEAD_FILE))

    def load(self, folder: Path) -> None:
        """Put back in place what `save` wrote."""
        if self.has_adapter:
            kind_of(self.wrapper).restore(self.wrapper, folder)
        if self.heads:
            self.heads.load_state_dict(load_file(str(folder / HEAD_FILE)))


def num_numbers(parameter: nn.Parameter) -> int:
    """How many numbers a parameter stands for; 4-bit ones are packed."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(packed.shape.numel())


def new_learner(
    model: LoadedModel, adapter: AdapterKeys, seed: int, backend: str, heads: Mapping[str, nn.Module] | None = None
) -> Learner:
    """A fresh adapter over a frozen model, and the heads it is to be trained with."""
    chosen, _ = choose_backend(model.model, backend)
    wrapper = add_adapter(model.model, adapter, seed, model.folder)
    fuse(wrapper, model.precision)
    return Learner(wrapper, heads or {}, chosen)


def continued_learner(
    model: LoadedModel, folder: Path, backend: str, heads: Mapping[str, nn.Module] | None = None
) -> Learner:
    """A saved adapter to be trained on, with fresh heads, or with the saved ones where they are of the same tasks."""
    chosen, _ = choose_backend(model.model, backend)
    wrapper = load_adapter(model.model, folder, trainable=True)
    fuse(wrapper, model.precision)
    return Learner(wrapper, {**(heads or {}), **kept_heads(folder, heads or {})}, chosen)


def kept_heads(folder: Path, heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The saved heads of the same task and size."""
    saved = read_heads(folder)
    shapes = {name: [p.shape for p in head.parameters()] for name, head in heads.items()}
    return {name: head for name, head in saved.items() if [p.shape for p in head.parameters()] == shapes.get(name)}


@torch.no_grad()
def calibrate_head(learner: Learner, examples: ManyOf[Example], max_tokens: int) -> None:
    """Centre and scale a fresh head's logits on some training rows, labels unseen.

    The label tokens' rows of the output head favour some labels whatever the text (Zhao et al. 2021), and their
    logits differ by far more than one; started so, the first steps only undo that, and bend the features with it
    (Kumar et al. 2022). Afterwards each label's mean logit is 0 and the spread within a row is 1.
    """
    if not learner.heads:
        return
    learner.eval()
    head = learner.heads[MAIN]
    assert isinstance(head, nn.Linear)
    chosen = examples[:: max(1, len(examples) // CALIBRATION_ROWS)][:CALIBRATION_ROWS]
    outputs = [learner(learner.batch(micro)).logits_PL for micro in split_by_tokens(chosen, max_tokens)]
    logits_BL = torch.cat([logits for logits in outputs if logits is not None])
    centred_BL = logits_BL - logits_BL.mean(0)
    scale = 1.0 / centred_BL.std().clamp_min(1e-6)
    head.weight.mul_(scale)
    head.bias.sub_(logits_BL.mean(0)).mul_(scale)


def unloaded(learner: Learner) -> None:
    """Take the adapter out of the base model again, so that a fresh one can be put in."""
    if learner.has_adapter:
        kind_of(learner.wrapper).remove(learner.wrapper)


def load_learner(model: LoadedModel, folder: Path, backend: str) -> Learner:
    """A trained learner, frozen. RunError where a file of it is missing or damaged."""
    chosen, _ = choose_backend(model.model, backend)
    probe = not (folder / ADAPTER_FILE).is_file() and (folder / HEAD_FILE).is_file()
    if probe:
        require_whole(folder)
    wrapper = Plain(model.model) if probe else load_adapter(model.model, folder)
    fuse(wrapper, model.precision)
    learner = Learner(wrapper, read_heads(folder), chosen)
    learner.requires_grad_(False)
    return learner.eval()


def read_heads(folder: Path) -> dict[str, nn.Module]:
    """The heads that `Learner.save` wrote, none where there are none.

    Raises:
        ModelError: a head that is stored in another form.
    """
    if not (folder / HEAD_FILE).is_file():
        return {}
    state = load_file(str(folder / HEAD_FILE))
    heads: dict[str, nn.Module] = {}
    for task in sorted({name.rpartition(".")[0] for name in state}):
        own = {name.rpartition(".")[2]: tensor for name, tensor in state.items() if name.rpartition(".")[0] == task}
        if not task or "weight" not in own:
            raise ModelError(
                f"{folder / HEAD_FILE}: this head was saved by an earlier version of luthier (its tensors are "
                f"{', '.join(sorted(state))}; task.weight is wanted). Run the recipe again, with a new --out."
            )
        heads[task] = head_of(own)
    return heads


def head_of(state: dict[str, Tensor]) -> nn.Module:
    """The head a state is of: a linear layer, or one score with several thresholds."""
    weight, bias = state["weight"], state.get("bias")
    if bias is not None and len(bias) > len(weight):
        return Thresholds(weight, bias)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    head.load_state_dict(state)
    return head


def label_head(model: LoadedModel, prompt: ClassifyPrompt) -> nn.Linear:
    """A head that starts as the model's own opinion: row l is the mean of the output-head rows of label l's tokens.

    The mean is weighted towards the first token (weights 1, 1/2, 1/4, ...): that is the one the model would
    say next. Scaled by the model's own logit scale; the bias starts at zero.
    """
    out = output_head(model.model)
    labels = prompt.task.labels
    encoded = prompt.encode_answered(["x"] * len(labels), labels)
    rows: list[Tensor] = []
    for answer in encoded:
        tokens = answer.tokens[answer.answer_start : len(answer.tokens) - int(answer.ends_turn)]
        if not tokens:
            raise ModelError("a label has no tokens of its own; check task.labels")
        vectors = out.weight_VD.detach()[list(tokens)].float()
        weights = torch.tensor([0.5**i for i in range(len(tokens))], device=vectors.device)
        rows.append((vectors * (weights / weights.sum())[:, None]).sum(0))
    head = nn.Linear(out.weight_VD.shape[1], len(labels))
    with torch.no_grad():
        head.weight.copy_(torch.stack(rows) * out.scale)
        head.bias.zero_()
    return head
