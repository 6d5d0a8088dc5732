"""Question and answer pairs from documents; the answer must be supported by the passage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.corpus.lines import Problem
from luthier.recipe.synthetic import Questions
from luthier.records import Document, Instruction, Record
from luthier.synthetic.base import Asking, Job, Reply, Request, Shown
from luthier.synthetic.texts import numbers, supported_share, token_f1

INSTRUCTION = (
    "Read the passage. Write one question that the passage answers, and the answer in one or two sentences. "
    "Use only what the passage says. Reply with exactly two lines, one that begins with Question: and one that "
    "begins with Answer:"
)
SHOWN = Shown(
    "Passage: The ferry to Holm leaves at seven and at noon. A ticket costs four crowns, and dogs travel free.",
    "Question: How much does a ticket for the ferry to Holm cost?\nAnswer: A ticket costs four crowns.",
)
AGAIN = (
    "Answer the question in one or two sentences. Use only what the passage says.\n\n"
    "Passage: {passage}\n\nQuestion: {question}"
)
PAIR = re.compile(
    r"\A\W*question(?:\s*1)?\W*:\W*(?P<question>.+?)\s+\W*answer(?:\s*1)?\W*:\W*(?P<answer>.+)",
    re.IGNORECASE | re.DOTALL,
)
NEXT_PAIR = re.compile(r"^\W*(?:question|answer)(?:\s*\d)?\W*:", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class QuestionsKind:
    """Document -> Instruction (question, passage, answer)."""

    settings: Questions
    asking: Asking
    name: str = "questions"

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """`per_seed` pairs from each document."""
        return [
            self.job(seed, i) for seed in seeds if isinstance(seed, Document) for i in range(self.settings.per_seed)
        ]

    def job(self, seed: Document, sample: int) -> Job:
        """One pair."""
        passage = beginning(seed.text, self.settings.most_passage_words)
        title = f"Title: {seed.title}\n" if seed.title else ""
        request = self.asking.request(INSTRUCTION, f"{title}Passage: {passage}", sample, SHOWN)
        ours = f"{INSTRUCTION} {SHOWN.answer}"
        return Job(self.name, (request,), (seed,), seed.source, ours, passage=passage)

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The pair, where there is exactly one in the form that was asked for, and the passage supports it."""
        if replies[0].finish_reason == "length":
            return Problem("cut_off", "the reply was not finished. Raise draws.max_new_tokens.")
        found = PAIR.search(replies[0].text.strip())
        if found is None:
            return Problem("bad_format", "the reply does not have the form Question: ... Answer: ...")
        question, answer = " ".join(found["question"].split()), found["answer"].strip().strip("*").strip()
        if NEXT_PAIR.search(answer):
            return Problem("bad_format", "the reply holds more than one question or answer.")
        invented = numbers(answer) - numbers(job.passage)
        if invented:
            return Problem("not_supported", f"numbers that the passage does not have: {', '.join(sorted(invented))}.")
        share = supported_share(answer, job.passage)
        if share < self.settings.min_supported_share:
            return Problem("not_supported", f"{share:.0%} of the answer's content words stand in the passage.")
        return Instruction(question, job.passage, answer, job.source)

    def written(self, record: Record) -> str:
        """Question and answer."""
        assert isinstance(record, Instruction)
        return f"{record.instruction}\n{record.response}"

    def check(self, job: Job, record: Record) -> Request | None:
        """The same question, asked again with the passage."""
        if not self.settings.round_trip_f1:
            return None
        assert isinstance(record, Instruction)
        return self.asking.question(AGAIN.format(passage=record.context, question=record.instruction))

    def judge(self, job: Job, record: Record, reply: Reply | None) -> Problem | None:
        """Whether the second answer says the same."""
        assert isinstance(record, Instruction)
        if reply is None:
            return None
        if reply.error:
            return Problem("check_failed", f"the question could not be asked again: {reply.error}")
        score = token_f1(reply.text, record.response)
        if score >= self.settings.round_trip_f1:
            return None
        return Problem("answer_not_confirmed", f"asked again, the answer has token F1 {score:.2f} with the first one.")


def beginning(text: str, num_words: int) -> str:
    """The first words of a text, up to the end of a sentence where one ends in their second half."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if len(ends) <= num_words:
        return text.strip()
    cut = text[: ends[num_words - 1]]
    stops = [match.end() for match in re.finditer(r"[.!?。！？][\"”')\]]*(?=\s|$)", cut)]
    return cut[: stops[-1]].strip() if stops and stops[-1] > len(cut) // 2 else cut.strip()
