"""Comparing short texts: support by a passage, token F1, Jaccard of word runs. Pure functions on words."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from luthier.corpus.duplicates.words import words_of

Shingle = tuple[str, ...]
ENDINGS = ("ing", "ed", "es", "s")
# Words that carry no content of their own; a short list, as numbers and names are what matters.
EMPTY_WORDS = frozenset(
    words_of(
        "a about also an and any are as at be because been but by can could did do does for from had has have he her "
        "his how i if in into is it its may more most no not of on one or our she should so some such than that the "
        "their them then there these they this those to up was we were what when where which who why will with would "
        "you your"
    )
)


def stem(word: str) -> str:
    """The word without a common English ending, so that `voted` and `votes` agree."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content_words(text: str) -> list[str]:
    """Stems of the words that say something."""
    return [stem(word) for word in words_of(text) if word not in EMPTY_WORDS]


def supported_share(answer: str, passage: str) -> float:
    """Share of the answer's content words that stand in the passage; 0 where it has none."""
    words = content_words(answer)
    known = set(content_words(passage))
    return sum(word in known for word in words) / len(words) if words else 0.0


def numbers(text: str) -> set[str]:
    """The numbers of a text, without thousands separators: `2,500` and `2500` agree."""
    found = re.findall(r"\d+(?:[.,'\u00a0\u202f]\d+)*", text)
    return {re.sub(r"[,'\u00a0\u202f](?=\d{3}(?!\d))", "", number) for number in found}


def token_f1(one: str, other: str) -> float:
    """Harmonic mean of precision and recall of words, as in SQuAD (Rajpurkar et al. 2016); 0 where one is empty."""
    a, b = Counter(words_of(one)), Counter(words_of(other))
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if shared else 0.0


def shingles(text: str, size: int = 3) -> frozenset[Shingle]:
    """Runs of `size` words; a shorter text is one run."""
    words = words_of(text) or text.split()
    count = max(len(words) - size + 1, 1)
    return frozenset(tuple(words[i : i + size]) for i in range(count))


def jaccard(one: frozenset[Shingle], other: frozenset[Shingle]) -> float:
    """Shared share of two sets."""
    union = len(one | other)
    return len(one & other) / union if union else 0.0


def copied_share(text: str, sources: Iterable[str]) -> float:
    """Share of a text's word runs that stand in the sources: 1 for a piece of one, or pieces of several."""
    found = shingles(text)
    known = frozenset[Shingle]().union(*(shingles(source) for source in sources))
    return len(found & known) / len(found)


class Similar:
    """Texts seen so far, to find the one most like a new text. Holds every shingle once for each text it is in."""

    def __init__(self, texts: Iterable[str] = ()):
        self.sets: list[frozenset[Shingle]] = []
        self.places: dict[Shingle, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        found = shingles(text)
        for shingle in found:
            self.places[shingle].append(len(self.sets))
        self.sets.append(found)

    def nearest(self, text: str) -> tuple[int, float]:
        """(number of the most similar text, its Jaccard similarity); (-1, 0) where none shares a run."""
        found = shingles(text)
        shared: Counter[int] = Counter(place for shingle in found for place in self.places.get(shingle, ()))
        best, highest = -1, 0.0
        for place, count in shared.items():
            similarity = count / (len(found) + len(self.sets[place]) - count)
            if similarity > highest or (similarity == highest and place < best):
                best, highest = place, similarity
        return best, highest


REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi(?:'m| am) (?:just )?an? (?:ai|language model|virtual assistant)\b"
    r"|\bi(?:'m| am)? (?:sorry|afraid)\b[^.!?\n]{0,30}\b(?:can(?:no|')t|unable|not able|won't)\b"
    r"|\bi (?:can(?:no|')t|am unable to|'m unable to|am not able to|won't) "
    r"(?:assist|help|comply|fulfil|fulfill|provide|generate|create|write|answer)\b"
    r"|\bplease provide (?:me )?(?:with )?(?:the|a|some|more|your) (?:text|passage|information|context|details)\b"
    r"|\bich bin (?:nur )?eine? (?:ki|sprachmodell)\b|\ben tant qu(?:e modèle|'ia|'intelligence artificielle)\b"
    r"|\bcomo (?:un )?modelo de lenguaje\b",
    re.IGNORECASE,
)
CHATTER = re.compile(
    r"\A(?:sure|certainly|of course|absolutely|great)[!,.]"
    r"|\A(?:here(?:'s| is| are)|this is|below is) (?:a|an|the|your|one|some)\b[^.!?]*:"
    r"|\b(?:i am|i'm) here to (?:assist|help|support|provide)\b|\bhow can i (?:assist|help)\b"
    r"|\b(?:feel free|(?:do not|don't) hesitate) to (?:ask|reach out|contact me)\b"
    r"|\b(?:the|this|your) (?:original |new |rewritten |revised |given )?(?:text|sentence|passage) "
    r"(?:can|could|should|is|was|has been|above|below|uses|describes)\b"
    r"|\b(?:original|rewritten|revised) (?:text|sentence|version)\b",
    re.IGNORECASE,
)
MARKS = re.compile(
    r"<\|[a-z_]+\|>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>|<your [a-z ]+>|\[your [a-z ]+\]", re.IGNORECASE
)


def refuses(text: str) -> bool:
    """Whether a reply talks of being a model, or of not doing what was asked."""
    return REFUSAL.search(text.replace("’", "'")) is not None


def chatters(text: str) -> bool:
    """Whether a text talks about a text or to its reader like an assistant, or announces what does not come."""
    return text.rstrip().endswith(":") or CHATTER.search(text.replace("’", "'")) is not None


def leaks(text: str, instruction: str, num_words: int) -> bool:
    """Whether a text repeats a run of the instruction's words (all, where it has fewer) or a template's marks."""
    if MARKS.search(text):
        return True
    wanted = words_of(instruction)
    size = min(num_words, len(wanted))
    runs = {tuple(wanted[i : i + size]) for i in range(len(wanted) - size + 1)} if size >= 3 else set()
    words = words_of(text)
    return any(tuple(words[i : i + size]) in runs for i in range(len(words) - size + 1))
