"""The teacher of a distillation: its candidates for each trained position, asked for once and kept by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file, save

from luthier.adapters import folded
from luthier.errors import ModelError
from luthier.files import content_hash, open_aside, sha256, write_json
from luthier.forest.forward import choose_backend, cooled, hidden_states, set_backend
from luthier.forest.head import top_logprobs
from luthier.forest.output import output_head
from luthier.methods.base import Candidates, Example, make_batch, split_by_tokens
from luthier.models import LoadedModel, load_model
from luthier.models.load import folder_hash, load_tokenizer
from luthier.models.store import find_model
from luthier.recipe.methods import Distil
from luthier.records import Sequence

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
KEPT_TOGETHER = 64  # examples of one file: what a stop can lose


class Teacher(Protocol):
    """Who is asked."""

    @property
    def identity(self) -> str:
        """What tells its candidates from another teacher's."""
        ...

    def candidates(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Its likeliest tokens for every target of each example."""
        ...


@dataclass(frozen=True)
class LocalTeacher:
    """A model on this machine. `vocabulary` is the number of tokens that the student has too."""

    loaded: LoadedModel
    settings: Distil
    vocabulary: int
    backend: str
    max_tokens: int  # distinct tokens of one forward pass

    @property
    def identity(self) -> str:
        """Weights, adapter, and what is asked for."""
        return local_identity(self.settings, self.vocabulary)

    @torch.no_grad()
    def candidates(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Log-probabilities at the temperature of the settings, under the softmax over the shared vocabulary.

        Raises:
            ModelError: an example is longer than what the teacher reads.
        """
        longest = max(len(sequence.tokens) for example in examples for sequence in example.sequences)
        if longest > self.loaded.context_tokens:
            raise ModelError(
                f"method.teacher: {self.settings.teacher} reads {self.loaded.context_tokens} tokens at most, and the "
                f"longest row has {longest}. Set data.max_tokens to {self.loaded.context_tokens}."
            )
        plain = [replace(example, teacher=None, reference_S=(), annotation=None) for example in examples]
        place = {id(example): i for i, example in enumerate(plain)}
        found: dict[int, Candidates] = {}
        for micro in split_by_tokens(plain, self.max_tokens):
            found |= dict(zip((place[id(example)] for example in micro), self.asked(micro), strict=True))
        return [found[i] for i in range(len(examples))]

    def asked(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Those of one forward pass."""
        model, temperature = self.loaded.model, self.settings.temperature
        device = next(model.parameters()).device
        forest = make_batch(examples, device).forest
        hidden_ND = hidden_states(model, forest, self.backend)
        rows, reader_M = np.unique(forest.row_M, return_inverse=True)
        head = cooled(output_head(model), temperature)
        bias = None if head.bias_V is None else head.bias_V[: self.vocabulary]
        tokens_RK, logprobs_RK = top_logprobs(
            head.read(hidden_ND[torch.from_numpy(rows).to(device)]),
            head.weight_VD[: self.vocabulary],
            bias,
            self.settings.top_k,
            head.softcap,
            head.scale,
        )
        tokens_MK = tokens_RK.cpu().numpy().astype(np.int32)[reader_M.reshape(-1)]
        logprobs_MK = logprobs_RK.float().cpu().numpy()[reader_M.reshape(-1)]
        edges = np.cumsum([len(example.sequences[0].targets) for example in examples])[:-1]
        pairs = zip(np.split(tokens_MK, edges), np.split(logprobs_MK, edges), strict=True)
        return [Candidates(tokens_QK, logprobs_QK, temperature) for tokens_QK, logprobs_QK in pairs]


@dataclass(frozen=True, eq=False)
class WaitingTeacher:
    """A model on this machine that is loaded when it is first asked: never, where all its candidates are kept."""

    settings: Distil
    student: LoadedModel
    attention: str
    max_tokens: int
    key: str = ""  # what the teacher is by content; asked of its files where it is not given

    @cached_property
    def identity(self) -> str:
        """That of the loaded teacher."""
        return local_identity(self.settings, shared_vocabulary(self.student), self.key)

    @cached_property
    def local(self) -> LocalTeacher:
        """The loaded teacher."""
        return local_teacher(self.settings, self.student, self.attention, self.max_tokens)

    def candidates(self, examples: ManyOf[Example]) -> list[Candidates]:
        """Those of the loaded teacher."""
        return self.local.candidates(examples)


def local_identity(settings: Distil, vocabulary: int, key: str = "") -> str:
    """What tells the candidates of a teacher on this machine from another's. `vocabulary`: tokens that are shared."""
    return content_hash(key or teacher_key(settings), settings.top_k, settings.temperature, vocabulary)


def shared_vocabulary(student: LoadedModel) -> int:
    """Tokens of the student: the first so many of a teacher's are the same."""
    return int(max(student.tokenizer.get_vocab().values())) + 1


def load_teacher(settings: Distil) -> LoadedModel:
    """The teacher's model, its adapter folded into the weights."""
    loaded = load_model(settings.teacher)
    if settings.adapter is not None:
        folded(loaded.model, Path(settings.adapter))
    return loaded


def local_teacher(settings: Distil, student: LoadedModel, attention: str, max_tokens: int) -> LocalTeacher:
    """The teacher on this machine; ModelError where its vocabulary is not the student's."""
    refuse_other_tokenizer(settings, student.tokenizer)
    loaded = load_teacher(settings)
    vocabulary = shared_vocabulary(student)
    rows = len(output_head(loaded.model).weight_VD)
    if rows < vocabulary:
        raise ModelError(
            f"method.teacher: {settings.teacher} has probabilities of {rows} tokens, its tokenizer has {vocabulary}. "
            "The model folder is not whole; fetch it again."
        )
    backend, _ = choose_backend(loaded.model, attention)
    set_backend(loaded.model, backend)
    return LocalTeacher(loaded, settings, vocabulary, backend, max_tokens)


def refuse_other_tokenizer(settings: Distil, student_tokenizer: Any) -> None:
    """Probabilities are of tokens: every token of the student must be the teacher's under the same number.

    Nothing but the tokenizers is read. Answers are text, and an address shows its tokens with its first reply.

    Raises:
        ModelError: with the first token that differs.
    """
    if settings.what == "answers" or settings.address is not None:
        return
    teacher = load_tokenizer(find_model(settings.teacher)).get_vocab()
    problem = vocabulary_problem(student_tokenizer.get_vocab(), teacher)
    if problem:
        raise ModelError(
            f"method.teacher: {settings.teacher} has another tokenizer than the student: {problem}. Its probabilities "
            "say nothing about the student's tokens. Take a teacher of the student's family, or set what: answers."
        )


def vocabulary_problem(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    """How the vocabularies differ; None where the teacher has every token of the student under the same number.

    What the teacher has beyond (added tokens, rows that pad its embedding) is cut off.
    """
    differing = sorted((number, text) for text, number in student.items() if teacher.get(text) != number)
    if not differing:
        return None
    number, text = differing[0]
    there = next((other for other, n in teacher.items() if n == number), None)
    said = "nothing" if there is None else f'"{there}"'
    return (
        f'{len(differing):,} of {len(student):,} tokens differ, first: number {number} is "{text}" here, {said} there'
    )


def teacher_key(settings: Distil) -> str:
    """What the teacher is, by content: weights and tokenizer, or address, and the adapter."""
    if settings.address is not None:
        return settings.teacher
    files = [Path(settings.adapter) / name for name in ADAPTER_FILES] if settings.adapter else []
    for file in files:
        if not file.is_file():
            raise ModelError(f"method.adapter: {settings.adapter} holds no {file.name}; give an adapter's folder.")
    return content_hash(folder_hash(find_model(settings.teacher)), [sha256(file) for file in files])


@dataclass(frozen=True)
class TeacherKeys:
    """What the teachers of a run are by content, remembered in a file: one whose words are all kept may be gone."""

    path: Path

    def of(self, settings: Distil) -> str:
        """`teacher_key`, or what it was when the teacher was last here; ModelError where it never was."""
        name = content_hash(settings.teacher, settings.adapter, settings.address)
        known = self.known()
        try:
            key = teacher_key(settings)
        except ModelError:
            if name in known:
                return known[name]
            raise
        if known.get(name) != key:
            write_json(self.path, known | {name: key})
        return key

    def is_gone(self, settings: Distil) -> bool:
        """Whether a teacher that is known from earlier cannot be read now."""
        try:
            teacher_key(settings)
        except ModelError:
            return content_hash(settings.teacher, settings.adapter, settings.address) in self.known()
        return False

    def known(self) -> dict[str, str]:
        """Keys by teacher."""
        return dict(json.loads(self.path.read_text(encoding="utf-8"))) if self.path.is_file() else {}


def with_teacher(
    teacher: Teacher, examples: ManyOf[Example], folder: Path, update: Callable[[int, int], None] | None = None
) -> list[Example]:
    """The examples with the teacher's candidates, from `folder` where it has been asked before.

    Every KEPT_TOGETHER examples are on disk before the next are asked for, so a stop loses no more than these.
    """
    keys = [candidates_key(teacher, example.sequences[0]) for example in examples]
    known = kept_candidates(folder)
    missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in known}
    ordered = sorted(missing.items(), key=lambda item: item[1].sequences[0].tokens)  # neighbours share beginnings
    for start in range(0, len(ordered), KEPT_TOGETHER):
        names, rows = zip(*ordered[start : start + KEPT_TOGETHER], strict=True)
        fresh = dict(zip(names, teacher.candidates(rows), strict=True))
        keep_candidates(folder, fresh)
        known |= fresh
        if update is not None:
            update(start + len(rows), len(ordered))
    return [replace(example, teacher=known[key]) for key, example in zip(keys, examples, strict=True)]


def candidates_key(teacher: Teacher, sequence: Sequence) -> str:
    """What a teacher's candidates depend on."""
    return content_hash(teacher.identity, sequence.tokens, sequence.targets)


def keep_candidates(folder: Path, found: Mapping[str, Candidates]) -> None:
    """Write candidates to a file of their own, whole or not at all."""
    tensors = {}
    for key, teacher in found.items():
        tensors[f"{key}.tokens"] = np.ascontiguousarray(teacher.tokens_QK)
        tensors[f"{key}.logprobs"] = np.ascontiguousarray(teacher.logprobs_QK)
        tensors[f"{key}.temperature"] = np.array([teacher.temperature])
    with open_aside(folder / f"{content_hash(sorted(found))[:16]}.safetensors") as file:
        file.write(save(tensors))


def kept_candidates(folder: Path) -> dict[str, Candidates]:
    """All candidates in a folder."""
    found: dict[str, Candidates] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for key in {name.partition(".")[0] for name in tensors}:
            temperature = float(tensors[f"{key}.temperature"][0])
            found[key] = Candidates(tensors[f"{key}.tokens"], tensors[f"{key}.logprobs"], temperature)
    return found
