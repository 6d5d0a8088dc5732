"""What the heads share: which records they take, how a text becomes an example, and a fresh linear layer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from luthier.corpus.fold import row_key
from luthier.corpus.labels import listed_labels
from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.errors import DataError, did_you_mean
from luthier.methods.base import MAIN, Example
from luthier.methods.heads.texts import text_sequences
from luthier.prompts import Dialogue
from luthier.records import Labelled, Record

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
UNKNOWN = -1  # gold of a held-out row whose label no training row has
HEAD_DEVIATION = 0.02  # of a fresh head's weights
SHOWN = 5


def labelled(record: Record, method: str) -> Labelled | Problem:
    """The record, if it is a text with a label."""
    if isinstance(record, Labelled):
        several = None if method == "multilabel" else listed_labels(record.label)
        if several is None:
            return record
        if len(several) == 1:
            return relabelled(record, several[0])
        found = ", ".join(f'"{label}"' for label in several) or "none"
        return Problem(
            "several_labels", f"the text has {len(several)} labels ({found}); {method} takes one. Use multilabel."
        )
    advice = "Name the label's column: data.train: {path: FILE, label: COLUMN}."
    return Problem("wrong_kind", f"a {kind_of(record)} has no label; {method} takes labelled texts. {advice}")


def as_number(text: str) -> float | None:
    """A finite number written with digits and a point; None for any other text."""
    number = float(text) if NUMBER.fullmatch(text.strip()) else math.inf
    return number if math.isfinite(number) else None


def relabelled(row: Labelled, label: str) -> Labelled:
    """The row with its label in another spelling."""
    return row if label == row.label else replace(row, label=label, key=row_key(row.text, label))


def known(label: str, labels: ManyOf[str], where: str) -> Problem | None:
    """The problem of a label that is not among those the settings name (any is good where they name none)."""
    if not labels or label in labels:
        return None
    hint = did_you_mean(label, labels)
    return Problem("unknown_label", f'"{label}" is not in {where}.{hint} Mend the row, or add it to {where}.')


def text_examples(
    prompt: Dialogue, rows: ManyOf[Labelled], gold: Callable[[Labelled], tuple[float, ...]]
) -> list[Example]:
    """One span over each text; a row of whose text no token is left gives none."""
    sequences = text_sequences(prompt.tokenizer, [row.text for row in rows])
    return [
        Example((sequence,), gold(row), key=key_of(row))
        for sequence, row in zip(sequences, rows, strict=True)
        if sequence is not None
    ]


def fresh_head(width: int, outputs: int) -> Mapping[str, nn.Module]:
    """A linear layer for the only task, the same on every call: small normal weights, no bias yet."""
    return {MAIN: filled(nn.utils.skip_init(nn.Linear, width, outputs))}


@torch.no_grad()
def filled(head: nn.Linear) -> nn.Linear:
    """The layer with its starting weights."""
    draw = torch.Generator().manual_seed(0)
    head.weight.copy_(torch.randn(head.weight.shape, generator=draw) * HEAD_DEVIATION)
    head.bias.zero_()
    return head


def labels_of(counts: Counter[str], chosen: ManyOf[str], method: str) -> tuple[str, ...]:
    """The labels that the settings name, or those of the training rows, sorted.

    Raises:
        DataError: fewer than two.
    """
    labels = tuple(chosen) or tuple(sorted(counts))
    if len(labels) < 2:
        had = f'only the label "{labels[0]}"' if labels else "no label"
        raise DataError(f"{method}: the training rows have {had}; there is nothing to tell apart. Give more rows.")
    return labels


def class_weights(counts: Counter[str], labels: ManyOf[str], how: str) -> tuple[float, ...]:
    """One weight a label: 1, or balanced: n / (L n_l), with n training rows, n_l of label l, L labels that have any.

    A label without training rows weighs 0.
    """
    if how == "none":
        return (1.0,) * len(labels)
    present = [label for label in labels if counts[label]]
    total = sum(counts[label] for label in present)
    return tuple(total / (len(present) * counts[label]) if counts[label] else 0.0 for label in labels)


def remark(unknown: Counter[str], num_rows: int) -> list[str]:
    """What is to be said of labels that no training row has."""
    if not unknown:
        return []
    shown = ", ".join(f'"{label}"' for label, _ in unknown.most_common(SHOWN))
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    return [f"{sum(unknown.values()):,} labels of {num_rows:,} rows are in no training row ({shown}{more}): all wrong."]


def index_of(labels: ManyOf[str]) -> dict[str, int]:
    """Where each label stands."""
    return {label: index for index, label in enumerate(labels)}


def described(method: Any, **more: Any) -> dict[str, Any]:
    """What a saved head needs to be read: the method, its settings, and what it learnt from the rows."""
    return {"method": method.name, "settings": method.settings.model_dump(), **more}
