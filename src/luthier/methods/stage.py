"""What a method needs to be a stage of training, beside its objective: which records it takes and what decides."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from typing import Any, Protocol, runtime_checkable

from torch import nn

from luthier.corpus.lines import Problem
from luthier.methods.base import Example, Objective
from luthier.prompts import Dialogue
from luthier.records import Record


class StageMethod(Objective, Protocol):
    """The contract. A method is frozen; it knows its settings, and what `fitted` has learnt from the rows."""

    @property
    def primary(self) -> str:
        """The figure of `scores` that says whether the stage was worth it."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Which way that figure is to go."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether examples carry log-probabilities of the model the stage starts from."""
        ...

    def accept(self, record: Record) -> list[Any] | Problem:
        """The rows a record gives (none, one or several), or why it cannot be used."""
        ...

    def fitted(self, rows: ManyOf[Any]) -> StageMethod:
        """The method with what the training rows decide (their labels, weights, scale). Most return themselves."""
        ...

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """Fresh heads over hidden states of that width, by task; empty for most methods."""
        ...

    def view(self, prompt: Dialogue, rows: ManyOf[Any]) -> list[Example]:
        """Sequences of each row, with targets or spans. Several examples of one row share its `key`."""
        ...


@runtime_checkable
class Described(Protocol):
    """A method that has learnt from the rows what its outputs mean."""

    def described(self) -> dict[str, Any]:
        """That as JSON values (its labels in their order); stored beside the adapter."""
        ...


@runtime_checkable
class Passing(Protocol):
    """A method of which a row may give no example, for a reason that is always the same."""

    @property
    def passed(self) -> Problem:
        """That reason, for the ledger."""
        ...


@runtime_checkable
class Noting(Protocol):
    """A method that takes some records otherwise than they are, or than its settings ask."""

    def noted(self, record: Record, row: Any) -> str | None:
        """What is to be said of a record and the row it gave, counted in a note: "have ...". None: nothing."""
        ...


@runtime_checkable
class Labelling(Protocol):
    """A method whose rows have labels, of which some may be rare."""

    @property
    def stratified(self) -> bool:
        """Whether each label gives its share to the held-out rows."""
        ...

    def labels_in(self, row: Any) -> ManyOf[str]:
        """The labels of an accepted row, each as often as it stands there (the tags of all words)."""
        ...


@runtime_checkable
class Telling(Protocol):
    """A method whose rows have an answer that stands in no sequence of tokens."""

    def told(self, row: Any) -> str:
        """That answer as a text, for whoever looks at the rows."""
        ...


@runtime_checkable
class Scaled(Protocol):
    """A method whose outputs get a scale once it is trained."""

    def scale(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """The scale as JSON values, from the trained model's figures on validation (else training) rows.

        It is stored beside the adapter, with the settings.
        """
        ...


@runtime_checkable
class Remarking(Protocol):
    """A method of one example a row that has something to say of the rows of a part."""

    def remarks(self, rows: ManyOf[Any]) -> list[str]:
        """Sentences for the ledger, such as: labels that it cannot give."""
        ...
