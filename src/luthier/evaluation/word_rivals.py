"""Rivals of a tagger: each word's usual tag, a lexicon of entities, and a linear-chain CRF where one is installed."""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from collections.abc import Sequence as ManyOf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.methods.heads import TagHead
from luthier.methods.heads.spans import entities
from luthier.records import Tagged

Answers = Callable[[ManyOf[Any]], list[NDArray[np.float64]]]

CRF_ITERATIONS = 100
RIGHT_SHARE = 0.5  # of a phrase's places in training rows at which it is an entity, for it to be in the lexicon


def said(method: TagHead, tags: ManyOf[str]) -> NDArray[np.float64]:
    """The outputs [P, L] that say these tags, and O for a tag that the method has not."""
    had = [tag if tag in method.tags else "O" for tag in tags]
    return np.array([[float(tag == known) for known in method.tags] for tag in had])


def usual_tags(method: TagHead, rows: ManyOf[Tagged], strength: float) -> Answers:
    """Each word's commonest tag; for new words the commonest of the words that stand once, else of all."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        for word, tag in zip(row.words, row.tags, strict=True):
            counts[word][tag] += 1
    rare = Counter(tag for found in counts.values() if found.total() == 1 for tag in found)
    other = (rare or Counter(tag for row in rows for tag in row.tags)).most_common(1)[0][0]
    usual = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    return lambda asked: [said(method, [usual.get(word, other) for word in row.words]) for row in asked]


# --- a lexicon -----------------------------------------------------------------------------------------


def lexicon_tags(method: TagHead, rows: ManyOf[Tagged], strength: float) -> Answers:
    """Entities of the training rows, case folded, found from left to right by the longest match."""
    found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for row in rows:
        for kind, start, stop in entities(row.tags):
            found[folded(row.words[start:stop])][kind] += 1
    phrases = {words: kinds.most_common(1)[0][0] for words, kinds in found.items()}
    right, seen = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for row in rows:
        gold = entities(row.tags)
        for kind, start, stop in matches(row.words, phrases):
            words = folded(row.words[start:stop])
            seen[words] += 1
            right[words] += (kind, start, stop) in gold
    kept = {words: kind for words, kind in phrases.items() if right[words] >= RIGHT_SHARE * max(seen[words], 1)}
    return lambda asked: [said(method, bio(row.words, kept)) for row in asked]


def folded(words: ManyOf[str]) -> tuple[str, ...]:
    """Words without case."""
    return tuple(word.casefold() for word in words)


def matches(words: ManyOf[str], phrases: dict[tuple[str, ...], str]) -> Iterator[tuple[str, int, int]]:
    """(type, start, stop) of the longest phrase at each place, none overlapping."""
    lengths = sorted({len(phrase) for phrase in phrases}, reverse=True)
    plain, place = folded(words), 0
    while place < len(plain):
        size = next((n for n in lengths if plain[place : place + n] in phrases and place + n <= len(plain)), 0)
        if size:
            yield phrases[plain[place : place + size]], place, place + size
        place += max(size, 1)


def bio(words: ManyOf[str], phrases: dict[tuple[str, ...], str]) -> list[str]:
    """The BIO tags of the phrases that are found."""
    tags = ["O"] * len(words)
    for kind, start, stop in matches(words, phrases):
        tags[start:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - start - 1)]
    return tags


# --- a conditional random field ------------------------------------------------------------------------


def has_crf() -> bool:
    """Whether python-crfsuite is there (the extra `tagging`)."""
    return importlib.util.find_spec("pycrfsuite") is not None


def crf_tags(method: TagHead, rows: ManyOf[Tagged], strength: float) -> Answers:
    """A linear-chain CRF (Lafferty et al. 2001); `strength` is its L1 and a tenth of it its L2 penalty."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False)
    trainer.set_params({"c1": strength, "c2": strength / 10, "max_iterations": CRF_ITERATIONS,
                        "feature.possible_transitions": True})  # fmt: skip
    for row in rows:
        trainer.append(features(row.words), list(row.tags))
    tagger = pycrfsuite.Tagger()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "crf")
        trainer.train(path)
        tagger.open(path)  # read whole; its in-memory way keeps no hold of the bytes
    return lambda asked: [said(method, tagger.tag(features(row.words))) for row in asked]


def features(words: ManyOf[str]) -> list[list[str]]:
    """What the CRF sees of each word: itself and its neighbours, their shapes, its affixes."""
    around = [("", 0), ("-1", -1), ("+1", 1), ("-2", -2), ("+2", 2)]
    found = []
    for place, word in enumerate(words):
        seen = ["bias", f"shape={shape(word)}"]
        seen += [f"start{n}={word[:n].casefold()}" for n in (2, 3, 4)]
        seen += [f"end{n}={word[-n:].casefold()}" for n in (2, 3, 4)]
        for name, step in around:
            inside = 0 <= place + step < len(words)
            neighbour = words[place + step] if inside else "<edge>"
            seen.append(f"word{name}={neighbour.casefold()}")
            if abs(step) == 1:
                seen.append(f"shape{name}={shape(neighbour)}")
        found.append(seen)
    return found


def shape(word: str) -> str:
    """Capitals as X, small letters as x, digits as 9, runs of them as one, and the rest as it is."""
    classes = ["X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c for c in word]
    return "".join(c for i, c in enumerate(classes) if not i or classes[i - 1] != c)
