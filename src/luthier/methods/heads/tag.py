"""One tag for each word: entities (BIO), parts of speech. A linear layer on the hidden states of a word's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as ManyOf
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.corpus.lines import Problem
from luthier.corpus.wire import key_of, kind_of
from luthier.methods.base import Batch, Example, LossOut, Outputs, Scores, per_row
from luthier.methods.heads import base, losses
from luthier.methods.heads.spans import agreement, as_bio, entities, inside, is_chunk_tag, likeliest, well_formed
from luthier.methods.heads.texts import word_sequences
from luthier.prompts import Dialogue
from luthier.recipe.methods import Tag
from luthier.records import Record, Tagged

UNKNOWN_TAG = "B-\0unknown"  # a gold tag that no training row has: an entity that cannot be found


@dataclass(frozen=True)
class TagHead:
    """Cross-entropy over the words, each tag with its weight. Gold: one index a word.

    `mends`: what it says is well formed (no I without a B or I of its type before it), since the training rows are.
    """

    name: str = "tag"
    settings: Tag = field(default_factory=Tag)
    tags: tuple[str, ...] = ()
    tag_weights: tuple[float, ...] = ()
    mends: bool = False
    higher_is_better: bool = True
    needs_reference: bool = False
    stratified: bool = False

    @property
    def primary(self) -> str:
        """What decides: entities where tags name them, else words."""
        return "entity_f1" if self.settings.scheme == "bio" else "word_accuracy"

    def accept(self, record: Record) -> list[Tagged] | Problem:
        """Words with tags of the scheme, IOB1 as BIO, and of the settings' tags where they name some."""
        if not isinstance(record, Tagged):
            advice = "tag takes rows of words and tags, two lists of one length."
            return Problem("wrong_kind", f"a {kind_of(record)} has no tags; {advice}")
        if len(record.words) != len(record.tags):
            detail = f"{len(record.words)} words, but {len(record.tags)} tags. Give each word one tag."
            return Problem("unequal_lengths", detail)
        for number, (word, tag) in enumerate(zip(record.words, record.tags, strict=True), start=1):
            if any(character.isspace() for character in word):
                return Problem("white_space", f'word {number} ("{word}") holds white space. Part it into words.')
            if self.settings.scheme == "bio" and not is_chunk_tag(tag):
                advice = "BIO tags are O, B-TYPE and I-TYPE. Mend it, or set method.scheme to plain."
                return Problem("bad_tag", f'word {number} ("{word}") has the tag "{tag}". {advice}')
            problem = base.known(tag, self.settings.tags, "method.tags")
            if problem is not None:
                return problem
        return [replace(record, tags=self.read_tags(record))]

    def read_tags(self, record: Tagged) -> tuple[str, ...]:
        """The tags, those of IOB1 as BIO, unless the settings name tags and leave out a B that this takes."""
        if self.settings.scheme == "plain":
            return record.tags
        mended, named = as_bio(record.tags), set(self.settings.tags)
        return record.tags if named and not named.issuperset(mended) else mended

    def noted(self, record: Record, row: Any) -> str | None:
        """Whether a record's tags are read as others than they are written."""
        assert isinstance(record, Tagged) and isinstance(row, Tagged)
        if record.tags == row.tags:
            return None
        return "have entities that begin with I, as IOB1 has; they are read as BIO, beginning with B"

    def fitted(self, rows: ManyOf[Tagged]) -> TagHead:
        """With the tags of the training rows and their weights; and whether entities begin with a B there."""
        counts = Counter(tag for row in rows for tag in row.tags)
        tags = base.labels_of(counts, self.settings.tags, self.name)
        mends = self.settings.scheme == "bio" and not all(map(inside, tags)) and all(well_formed(r.tags) for r in rows)
        weights = base.class_weights(counts, tags, self.settings.class_weights)
        return replace(self, tags=tags, tag_weights=weights, mends=mends)

    def described(self) -> dict[str, Any]:
        """Tags in the order of the head's outputs."""
        return base.described(self, tags=list(self.tags), mends=self.mends)

    def remarks(self, rows: ManyOf[Tagged]) -> list[str]:
        """Tags that the head cannot give."""
        return base.remark(Counter(tag for row in rows for tag in row.tags if tag not in self.tags), len(rows))

    def labels_in(self, row: Tagged) -> tuple[str, ...]:
        """The tag of each word."""
        return row.tags

    def told(self, row: Tagged) -> str:
        """Each word with its tag behind it; words outside entities alone."""
        outside = "O" if self.settings.scheme == "bio" else ""
        pairs = zip(row.words, row.tags, strict=True)
        return " ".join(word if tag == outside else f"{word}/{tag}" for word, tag in pairs)

    def heads(self, width: int) -> Mapping[str, nn.Module]:
        """One output a tag."""
        return base.fresh_head(width, len(self.tags))

    def view(self, prompt: Dialogue, rows: ManyOf[Tagged]) -> list[Example]:
        """One span a word; a row in which a word has no token of its own gives none."""
        index = base.index_of(self.tags)
        words = [row.words for row in rows]
        sequences = word_sequences(prompt.tokenizer, words, self.settings.reads, self.settings.twice)
        return [
            Example((sequence,), tuple(index.get(tag, base.UNKNOWN) for tag in row.tags), key=key_of(row))
            for sequence, row in zip(sequences, rows, strict=True)
            if sequence is not None
        ]

    def weight(self, example: Example) -> float:
        """The sum of the weights of its tags."""
        return sum(self.tag_weights[int(gold)] for gold in example.gold if gold >= 0)

    def loss(self, outputs: Outputs, batch: Batch) -> LossOut:
        """Weighted cross-entropy over words; weight: the sum of the words' tag weights."""
        assert outputs.logits_PL is not None
        logprobs_PL = torch.log_softmax(outputs.logits_PL, dim=1)
        gold_P = batch.gold_G.long()
        weights_L = torch.tensor(self.tag_weights, dtype=logprobs_PL.dtype, device=logprobs_PL.device)
        total = losses.weighted_cross_entropy(logprobs_PL, gold_P, weights_L, self.settings.label_smoothing)
        return LossOut(total, sum(self.tag_weights[gold] for gold in gold_P.tolist() if gold >= 0))

    def scores(self, outputs: Outputs, batch: Batch) -> Scores:
        """Words with the right tag; for BIO also F1, precision and recall of whole entities."""
        assert outputs.logits_PL is not None
        gold_P = batch.gold_G.long()
        rows = outputs.logits_PL.cpu().split(torch.bincount(batch.row_G, minlength=batch.num_rows).tolist())
        given_P = torch.tensor([tag for row in rows for tag in self.given(row)], device=gold_P.device)
        right_B = per_row((given_P == gold_P).double(), batch.row_G, batch.num_rows)
        words_B = per_row(torch.ones_like(batch.gold_G), batch.row_G, batch.num_rows)
        figures: Scores = {"word_accuracy": (right_B, words_B)}
        if self.settings.scheme == "bio":
            counts_B3 = self.entity_counts(gold_P, given_P, batch)
            both_B, wanted_B, found_B = counts_B3.unbind(1)
            figures["entity_f1"] = (2 * both_B, wanted_B + found_B)
            figures["entity_precision"] = (both_B, found_B)
            figures["entity_recall"] = (both_B, wanted_B)
        return figures

    def entity_counts(self, gold_P: Tensor, given_P: Tensor, batch: Batch) -> Tensor:
        """Entities of each row that are in both, in gold, given: [B, 3]."""
        names = (*self.tags, UNKNOWN_TAG)  # -1 is the last
        rows: list[tuple[list[str], list[str]]] = [([], []) for _ in range(batch.num_rows)]
        for row, gold, given in zip(batch.row_G.tolist(), gold_P.tolist(), given_P.tolist(), strict=True):
            rows[row][0].append(names[gold])
            rows[row][1].append(names[given])
        counts = [agreement(gold, given) for gold, given in rows]
        return torch.tensor(counts, dtype=torch.float64, device=gold_P.device).view(-1, 3)

    def given(self, logits_PL: Tensor) -> list[int]:
        """The tag of each word of one text: the likeliest, or the likeliest of well-formed ones where it mends."""
        found: list[int] = logits_PL.argmax(1).tolist()
        if not self.mends or well_formed([self.tags[index] for index in found]):
            return found
        return likeliest(torch.log_softmax(logits_PL.double(), dim=1).cpu().numpy(), self.tags)

    def answer(self, logits_PL: Tensor) -> dict[str, Any]:
        """The tag of each word of one text, and for BIO the entities as (type, first word, behind the last)."""
        tags = [self.tags[index] for index in self.given(logits_PL)]
        if self.settings.scheme == "plain":
            return {"tags": tags}
        return {"tags": tags, "entities": sorted(entities(tags), key=lambda entity: entity[1])}
