"""Two answers to one prompt, one better: by design of the prompts, or by a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from luthier.corpus.lines import Problem
from luthier.recipe.synthetic import Preferences
from luthier.records import Conversation, Instruction, Message, Preference, Prompt, Record
from luthier.synthetic.base import Asking, Job, Reply, Request, Score
from luthier.synthetic.texts import token_f1

GOOD = "Answer correctly, completely and to the point."
BAD = (
    "Answer badly on purpose: stay vague, leave out the most important point, and put in one mistake. "
    "Do not say that you do so."
)


@dataclass(frozen=True)
class PreferencesKind:
    """Prompt, Instruction or Conversation -> Preference. Neither answer knows how the other was asked for."""

    settings: Preferences
    asking: Asking
    score: Score | None = None

    @property
    def name(self) -> str:
        """Says who decided which answer is the better one: it stands in the records' provenance."""
        if self.score is not None:
            return "preferences-by-score"
        return f"preferences-by-{self.settings.decide}"

    @property
    def designed(self) -> bool:
        """Whether the prompts decide, rather than a score."""
        return self.score is None and self.settings.decide == "design"

    def jobs(self, seeds: Sequence[Record]) -> list[Job]:
        """`per_seed` pairs for each prompt; by reference only where the seed has an answer."""
        found = [(seed, *question_of(seed)) for seed in seeds if isinstance(seed, Prompt | Instruction | Conversation)]
        needs_answer = self.score is None and self.settings.decide == "reference"
        return [
            self.job(seed, prompt, answer, sample)
            for seed, prompt, answer in found
            if prompt and (answer or not needs_answer)
            for sample in range(self.settings.per_seed)
        ]

    def job(self, seed: Record, prompt: tuple[Message, ...], answer: str, sample: int) -> Job:
        """One pair: two replies, asked for differently."""
        plain = self.request(prompt, "", sample)
        if self.designed:
            pair = (self.request(prompt, GOOD, sample), self.request(prompt, BAD, sample))
        else:
            warmer = replace(self.asking.sampling, temperature=self.settings.other_temperature)
            pair = (plain, replace(plain, sampling=warmer))
        instruction = f"{GOOD} {BAD}" if self.designed else ""
        return Job(self.name, pair, (seed,), seed.source, instruction, passage=answer)

    def request(self, prompt: tuple[Message, ...], wish: str, sample: int) -> Request:
        """The prompt, with a wish behind its last turn."""
        wishes = " ".join(part for part in (wish, self.asking.said("").strip()) if part)
        last = prompt[-1]
        turns = (*prompt[:-1], replace(last, content=f"{last.content}\n\n{wishes}" if wishes else last.content))
        return Request(turns, self.asking.sampling, self.asking.max_new_tokens, sample)

    def parse(self, job: Job, replies: Sequence[Reply]) -> Record | Problem:
        """The pair in its order, where there is a difference."""
        answers = [reply.text.strip() for reply in replies]
        if any(reply.finish_reason == "length" for reply in replies):
            return Problem("cut_off", "a reply was not finished. Raise draws.max_new_tokens.")
        if not all(answers):
            return Problem("empty_reply", "a reply is empty.")
        if " ".join(answers[0].split()) == " ".join(answers[1].split()):
            return Problem("no_difference", "both answers are the same.")
        if not self.designed:
            scores = [self.scored(job, answer) for answer in answers]
            if abs(scores[0] - scores[1]) < self.settings.min_margin or scores[0] == scores[1]:
                return Problem("no_difference", f"the answers score {scores[0]:.2f} and {scores[1]:.2f}.")
            answers = answers if scores[0] > scores[1] else answers[::-1]
        chosen, rejected = ((Message("assistant", answer),) for answer in answers)
        prompt, _ = question_of(job.seeds[0])
        return Preference(prompt, chosen, rejected, job.source)

    def scored(self, job: Job, answer: str) -> float:
        """How good an answer is."""
        return self.score(job, answer) if self.score is not None else token_f1(answer, job.passage)

    def written(self, record: Record) -> str:
        """Both answers."""
        assert isinstance(record, Preference)
        return f"{record.chosen[0].content}\n{record.rejected[0].content}"

    def check(self, job: Job, record: Record) -> Request | None:
        """Nothing to ask."""
        return None

    def judge(self, job: Job, record: Record, reply: Reply | None) -> Problem | None:
        """Nothing to say."""
        return None


def question_of(seed: Record) -> tuple[tuple[Message, ...], str]:
    """The turns that wait for an answer, and the seed's own answer (may be empty)."""
    match seed:
        case Prompt():
            return seed.messages, ""
        case Instruction():
            text = f"{seed.instruction}\n\n{seed.context}" if seed.context else seed.instruction
            return (Message("user", text),), seed.response
        case Conversation():
            return seed.messages[:-1], seed.messages[-1].content
        case _:
            return (), ""
