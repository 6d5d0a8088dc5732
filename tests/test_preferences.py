"""The preference methods: rows, views, figures, and training on a tiny model. Their losses: test_preference_losses.py."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.corpus.lines import Problem
from luthier.errors import DataError, RecipeError
from luthier.evaluation.held_out import score_rows
from luthier.methods.base import Example, Outputs, make_batch, sequence_logprobs
from luthier.methods.preferences.kto import KtoMethod, next_other
from luthier.methods.registry import make_stage_method
from luthier.models import load_model
from luthier.prompts import Dialogue, Layout, PromptError
from luthier.recipe import Lora
from luthier.recipe.corpus import Input
from luthier.recipe.methods import Dpo, Kto, Orpo, Reward, SimPo
from luthier.recipe.stages import Rows, parse_stages
from luthier.recipe.training import Training
from luthier.records import Message, Preference, Prompt, Ranking, Rating, Source
from luthier.stages.rows import gather
from luthier.training.learner import Learner, load_learner, new_learner
from luthier.training.loop import train
from luthier.training.optimizers import make_optimizer
from luthier.training.step import annotated, evaluate, one_step

LOG2 = math.log(2)
SOURCE = Source("pairs.jsonl", 1)
WORDS = ["goal", "team", "won", "vote", "law", "senate", "painter", "museum", "match", "song"]
DPO_LOSSES = ["sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "apo_zero", "apo_down", "nca_pair"]


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def said(text: str) -> tuple[Message, ...]:
    return (Message("assistant", text),)


def pair(question: str, chosen: str, rejected: str) -> Preference:
    return Preference(asked(question), said(chosen), said(rejected), SOURCE)


PAIRS = [
    pair(f"the {a} of the {b}", f"a {a} won", " ".join([b, "passed", *WORDS[: i % 3]]))
    for i, (a, b) in enumerate(itertools.islice(itertools.permutations(WORDS, 2), 0, 80, 10))
]
THUMBS = [Rating(row.prompt, row.chosen[0].content, i % 3 > 0, SOURCE) for i, row in enumerate(PAIRS)]
RANKINGS = [
    Ranking(row.prompt, (row.chosen[0].content, row.rejected[0].content, "in a new song")[: 2 + i % 2], SOURCE,
            (4.0, 2.0, 1.0)[: 2 + i % 2] if i % 3 else None)
    for i, row in enumerate(PAIRS)
]  # fmt: skip
SETTINGS = {
    **{f"dpo-{name}": Dpo(loss=name, label_smoothing=0.1 * (name in ("conservative", "robust"))) for name in DPO_LOSSES},
    "dpo-sft": Dpo(sft_weight=0.5),
    "kto": Kto(reference_rows=5, good_weight=1.5),
    "orpo": Orpo(weight=0.5),
    "simpo": SimPo(),
    "reward": Reward(use_margins=True, centring=0.01),
    "reward-order": Reward(loss="plackett_luce"),
}  # fmt: skip


def rows_for(name: str) -> list:
    return RANKINGS if name.startswith("reward") else [*THUMBS[:4], *PAIRS[4:]] if name == "kto" else PAIRS


class Tiny:
    """A tiny learner with one method and its examples, references drawn a little off the policy."""

    def __init__(self, path, name: str, backend: str = "auto"):
        loaded = load_model(str(path))
        self.prompt = Dialogue(Layout(loaded.tokenizer))
        self.method = make_stage_method(SETTINGS[name]).fitted(rows_for(name))
        heads = self.method.heads(loaded.hidden_size)
        self.learner: Learner = new_learner(loaded, Lora(rank=2, alpha=4.0), 3, backend, heads)
        self.examples = self.method.view(self.prompt, rows_for(name))
        if self.method.needs_reference:
            self.examples = [self.referred(example) for example in self.examples]

    @torch.no_grad()
    def referred(self, example: Example) -> Example:
        """With references about 1.5 nats below the policy."""
        batch = make_batch([example])
        policy_S = sequence_logprobs(self.learner.eval()(batch), batch)
        noise = np.random.default_rng(len(example.sequences[0].tokens)).normal(-1.5, 1.0, len(policy_S))
        return replace(example, reference_S=tuple((policy_S.numpy() + noise).tolist()))

    def step(self, optimizer, most: int = 4096, number: int = 0):
        tune = tune_of(micro_batch_tokens=most)
        return one_step(self.learner, self.method, self.examples, optimizer, 1.0, tune, number)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.learner.trained().items()}


def tune_of(**changes) -> Training:
    values = {"batch_size": 4, "epochs": 2.0, "learning_rate": 5e-3, "evaluate_every": 2, "checkpoints": {"every": 1},
              "adapter": Lora(rank=2, alpha=4.0)}  # fmt: skip
    return Training(**(values | changes))


# --- gradients of the methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_push_the_right_way(name, tiny_path):
    """Up with log p (or the reward) of what is chosen or good, down with the rest; each by its own sign."""
    tiny = Tiny(tiny_path, name)
    rows, _ = annotated(tiny.learner, tiny.method, tiny.examples, 4096)
    batch = make_batch(rows)
    outputs, values, good_S = values_of(tiny, batch)
    tiny.method.loss(outputs, batch).total.backward()
    if name.startswith("reward"):
        best, last = (
            batch.role_S == 0,
            torch.tensor([len(row.sequences) - 1 for row in rows])[batch.row_S] == batch.role_S,
        )
        assert bool((values.grad[best] < 0).all()) and bool((values.grad[last & ~best] > 0).all())
        return
    signs = torch.where(good_S[batch.sequence_M], -1.0, 1.0)
    active = values.grad != 0  # a hinge or a squared loss may be at rest, or beyond its margin
    wrong_way_allowed = name in ("dpo-ipo", "dpo-conservative", "dpo-robust", "dpo-apo_down")
    assert bool(active.any()) and (wrong_way_allowed or bool((torch.sign(values.grad) == signs)[active].all()))


def values_of(tiny: Tiny, batch):
    """Outputs of leaves that stand where the model's would, and which sequences are good."""
    draw = torch.Generator().manual_seed(4)
    if not len(batch.forest.row_M):
        values = torch.randn(len(batch.row_S), 1, generator=draw).mul_(0.01).requires_grad_()
        return Outputs(logits_PL=values), values, batch.role_S == 0
    values = (-torch.rand(len(batch.row_M), generator=draw) - 5).requires_grad_()
    return Outputs(logprobs_M=values), values, batch.gold_G > 0 if len(batch.gold_G) else batch.role_S == 0


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_no_answer_changes_nothing(name, tiny_path):
    """A prompt token as a target of weight zero, of either answer, with any log-probability: exactly the same loss."""
    tiny = Tiny(tiny_path, name)
    rows, _ = annotated(tiny.learner, tiny.method, tiny.examples, 4096)
    batch = make_batch(rows)
    _, values, _ = values_of(tiny, batch)
    if name.startswith("reward"):
        assert len(batch.forest.row_M) == 0, "nothing is predicted"
        return
    padded = [
        replace(row, sequences=tuple(
            replace(s, targets=(1, *s.targets), weights=(0.0, *s.weights)) for s in row.sequences
        ))
        for row in rows
    ]  # fmt: skip
    wider = make_batch(padded)
    grown = torch.full((len(wider.row_M),), -123.0)
    grown[wider.weight_M > 0] = values.detach()
    grown.requires_grad_()
    wanted, found = (tiny.method.loss(Outputs(logprobs_M=v), b) for v, b in ((values, batch), (grown, wider)))
    assert torch.equal(wanted.total, found.total) and wanted.weight == found.weight
    found.total.backward()
    assert grown.grad[wider.weight_M == 0].abs().max() == 0


# --- rows ------------------------------------------------------------------------------------------------------


def reason_of(found) -> str:
    assert isinstance(found, Problem)
    return found.reason


@pytest.mark.parametrize("name", ["dpo-sigmoid", "orpo", "simpo", "kto", "reward"])
def test_rows_that_are_no_choice_are_refused(name):
    method = make_stage_method(SETTINGS[name])
    twins = method.accept(pair("why", "because", "because "))
    assert reason_of(twins) == "same_answers"
    assert twins.detail == "chosen and rejected are the same but for white space. Remove the row."
    assert method.accept(pair("why", "", " ")).detail == "chosen and rejected are empty. Remove the row."
    wrong = method.accept(Prompt(asked("why"), SOURCE))
    assert reason_of(wrong) == "wrong_kind" and wrong.detail.startswith("a prompt has no ")
    assert method.accept(PAIRS[0]) == [PAIRS[0]]
    weighed = replace(PAIRS[0], chosen=(replace(PAIRS[0].chosen[0], weight=0.5),))
    assert method.accept(weighed) == Problem(
        "weighted_turns",
        "a turn of an answer has the weight 0.5; answers are compared whole. Give their turns weight 1, or 0 where "
        "they are context.",
    )


def test_identical_answers_cannot_be_ranked():
    ranking = Ranking(asked("why"), ("so", "no", "so "), SOURCE, (3.0, 2.0, 1.0))
    assert make_stage_method(Reward()).accept(ranking) == Problem(
        "same_answers", "answers of different rank are the same but for white space. Remove the row."
    )
    tied = replace(ranking, scores=(3.0, 2.0, 2.0), answers=("so", "no", "no "))
    assert make_stage_method(Reward()).accept(tied) == [tied]
    pairs = make_stage_method(Dpo()).accept(ranking)
    assert [(p.chosen[0].content, p.rejected[0].content) for p in pairs] == [("so", "no"), ("no", "so ")]
    assert reason_of(make_stage_method(Dpo()).accept(replace(ranking, answers=("so", "so ", " so")))) == "same_answers"


def test_margins_without_scores_are_refused_or_counted(tmp_path):
    method = make_stage_method(Reward(use_margins=True))
    with pytest.raises(DataError) as caught:
        method.fitted([*PAIRS, replace(PAIRS[0], scores=(2.0, 2.0))])
    assert str(caught.value) == (
        "reward: method.use_margins asks for leads as wide as the gaps of the scores, but none of the 9 training rows "
        "has scores that differ. Give pairs score_chosen and score_rejected (or margin) and rankings scores, or leave "
        "use_margins out."
    )
    assert make_stage_method(Reward()).fitted(PAIRS).gap_edges == ()
    wrong = replace(PAIRS[0], scores=(1.0, 2.0))
    assert reason_of(method.accept(wrong)) == "bad_order" and make_stage_method(Reward()).accept(wrong) == [wrong]
    lines = [{"prompt": row.prompt[0].content, "chosen": row.chosen[0].content, "rejected": row.rejected[0].content,
              **({"margin": 2.0} if i > 2 else {})} for i, row in enumerate(PAIRS)]  # fmt: skip
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = gather(Rows(train=[Input(path=str(tmp_path / "p.jsonl"))]), method, 0)
    assert found.ledger.notes == [
        "train: 3 rows have no scores that differ, so method.use_margins asks no lead of them."
    ]


def test_margins_of_a_whole_order_are_an_error():
    method = {"kind": "reward", "loss": "plackett_luce", "use_margins": True}
    with pytest.raises(RecipeError) as caught:
        parse_stages({"stages": [{"method": method, "data": {"train": "x.jsonl"}}]})
    assert "use_margins: the loss plackett_luce takes none. Leave it out, or set loss: pairs" in str(caught.value)


def test_a_pair_is_to_lead_by_its_margin(tiny_path):
    """Rewards log 2 and 0. Asked for log 2 more: -log sigmoid(0) = log 2; for nothing (tied scores): log 3/2."""
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    rows = [replace(PAIRS[0], scores=(LOG2, 0.0)), replace(PAIRS[1], scores=(1.0, 1.0)), PAIRS[2]]
    method = make_stage_method(Reward(use_margins=True)).fitted(rows)
    batch = make_batch(method.view(prompt, rows))
    outputs = Outputs(logits_PL=float64(LOG2, 0, LOG2, 0, LOG2, 0)[:, None])
    assert float(method.loss(outputs, batch).total) == pytest.approx(LOG2 + 2 * math.log(3 / 2), abs=1e-12)
    free = make_stage_method(Reward()).loss(outputs, batch)
    assert float(free.total) == pytest.approx(3 * math.log(3 / 2), abs=1e-12)


def test_accuracy_of_pairs_by_thirds_of_their_margins(tiny_path):
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    rows = [replace(row, scores=(margin, 0.0)) for row, margin in zip(PAIRS, (1.0, 2.0, 3.0), strict=False)]
    method = make_stage_method(Reward()).fitted(rows)
    assert method.gap_edges == (2.0, 3.0)
    outputs = Outputs(logits_PL=torch.tensor([[1.0], [0.0], [0.0], [1.0], [1.0], [0.0]]))
    found = method.scores(outputs, make_batch(method.view(prompt, rows)))
    assert [found[f"accuracy_{name}_gap"][0].tolist() for name in ("small", "middle", "large")] == [
        [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0],
    ]  # fmt: skip
    assert [found[f"accuracy_{name}_gap"][1].sum() for name in ("small", "middle", "large")] == [1.0, 1.0, 1.0]


def test_a_ranking_gives_all_its_pairs_or_one_row():
    ranking = Ranking(asked("why"), ("best", "middle", "also middle", "worst"), SOURCE, (3.0, 2.0, 2.0, 1.0))
    made = make_stage_method(Dpo()).accept(ranking)
    found = [(row.chosen[0].content, row.rejected[0].content) for row in made]
    assert found == [("best", "middle"), ("best", "also middle"), ("best", "worst"), ("middle", "worst"),
                     ("also middle", "worst")]  # fmt: skip
    assert make_stage_method(Reward()).accept(ranking) == [ranking]
    ties = make_stage_method(Reward()).accept(replace(ranking, scores=(1.0,) * 4))
    assert ties.detail == "all answers have the same score: there is no order to learn."
    assert reason_of(make_stage_method(Kto()).accept(ranking)) == "wrong_kind"


def test_one_sided_thumbs_are_refused():
    good = [replace(row, good=True) for row in THUMBS]
    with pytest.raises(DataError) as caught:
        KtoMethod().fitted(good)
    assert str(caught.value) == (
        "kto: all 8 training rows are rated good; none is rated bad. KTO learns from the difference. "
        "Add rows with the other thumb, or learn the good ones by sft."
    )
    with pytest.raises(DataError, match="all 8 training rows are rated bad; none is rated good.*the other thumb[.]$"):
        KtoMethod().fitted([replace(row, good=False) for row in THUMBS])


def test_balanced_thumbs_count_alike():
    """Six good and two bad: 8/12 and 8/4, times what the recipe says."""
    rows = [replace(row, good=i > 1) for i, row in enumerate(THUMBS)]
    method = make_stage_method(Kto(balanced=True, bad_weight=3.0)).fitted(rows)
    assert method.weights == pytest.approx((8 / 12, 3 * 8 / 4)) and method.primary == "reward_accuracy"
    assert make_stage_method(Kto(bad_weight=3.0)).fitted([*rows, PAIRS[0]]).weights == (1.0, 3.0)


def test_smoothing_where_it_would_be_ignored_is_an_error():
    recipe = {"stages": [{"method": {"kind": "dpo", "label_smoothing": 0.1}, "data": {"train": "x.jsonl"}}]}
    with pytest.raises(RecipeError) as caught:
        parse_stages(recipe)
    assert "label_smoothing: the loss sigmoid takes none. Leave it out, or set loss: conservative or robust" in str(
        caught.value
    )
    recipe["stages"][0]["method"]["loss"] = "robust"
    assert parse_stages(recipe).stages[0].method.label_smoothing == 0.1


# --- views -----------------------------------------------------------------------------------------------------


def texts(prompt: Dialogue, sequence) -> tuple[str, str]:
    """The whole text, and what the targets spell."""
    decode = prompt.tokenizer.decode
    return decode(sequence.tokens), decode([sequence.tokens[i] for i in sequence.targets])


def test_a_pair_as_sequences(tiny_path):
    """The answer with its end of turn is learnt; a longer answer's own turns all are, the user's between are not."""
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer), system="a law")
    long = (*said("one"), *asked("vote"), *said("won"))
    row = Preference(asked("the match"), long, said("a song"), SOURCE)
    (example,) = make_stage_method(Dpo()).view(prompt, [row])
    start = "<|im_start|>system\na law<|im_end|>\n<|im_start|>user\nthe match<|im_end|>\n<|im_start|>assistant\n"
    chosen, rejected = (texts(prompt, sequence) for sequence in example.sequences)
    assert chosen[0] == f"{start}one<|im_end|>\n<|im_start|>user\nvote<|im_end|>\n<|im_start|>assistant\nwon<|im_end|>"
    assert chosen[1] == "one<|im_end|>won<|im_end|>" and rejected == (f"{start}a song<|im_end|>", "a song<|im_end|>")
    assert example.num_bytes == len("one") + len("won")
    forest = make_batch([example]).forest
    shared = len(prompt.tokenizer(start)["input_ids"])
    assert forest.num_tokens == sum(len(s.tokens) - 1 for s in example.sequences) - shared


def test_turns_of_weight_0_are_no_targets_and_none_before_the_answer_is_one(tiny_path):
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    earlier = (*asked("one"), *said("law"), *asked("vote"))
    unlearnt = (replace(said("song")[0], weight=0.0),)
    row = Preference(earlier, (*said("won"), *asked("goal"), *unlearnt), said("match"), SOURCE)
    (example,) = make_stage_method(Dpo()).view(prompt, [row])
    assert [texts(prompt, sequence)[1] for sequence in example.sequences] == ["won<|im_end|>", "match<|im_end|>"]
    assert example.num_bytes == len("won")
    for settings in (Dpo(), Kto(), Orpo(), Reward()):
        with pytest.raises(PromptError, match="^every turn of the answer has weight 0"):
            make_stage_method(settings).view(prompt, [replace(row, chosen=unlearnt)])


def test_a_ranking_as_sequences(tiny_path):
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    method = make_stage_method(Reward())
    examples = method.view(prompt, [RANKINGS[1], RANKINGS[0], PAIRS[0]])
    assert [len(e.sequences) for e in examples] == [3, 2, 2]
    assert [e.gold for e in examples] == [(4.0, 2.0, 1.0), (), ()]
    assert examples[1].group == examples[2].group != examples[0].group, "rows of one prompt are drawn together"
    assert len({e.key for e in examples}) == 3
    for sequence in examples[0].sequences:
        ((start, stop),) = sequence.reads
        assert prompt.tokenizer.decode(sequence.tokens[start:stop]) == "<|im_end|>" and stop == len(sequence.tokens)
        assert not sequence.targets


def test_mismatched_answers_are_those_of_another_prompt(tiny_path):
    """Round the end, past rows of the same prompt, cut to the longer of both rows, and none where there is none."""
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    rows = [
        Rating(asked("the law"), "won", True, SOURCE),
        Rating(asked("the law"), "a long new song", False, SOURCE),
        pair("a much longer museum match in the senate", "one", "two of the team passed"),
    ]
    examples = make_stage_method(Kto()).view(prompt, rows)
    assert [len(e.sequences) for e in examples] == [2, 2, 4] and [e.gold for e in examples] == [(1,), (0,), (1, 0)]
    assert [texts(prompt, e.sequences[1])[1] for e in examples[:2]] == ["one<|im_end|>"] * 2
    for example, row in zip(examples, rows, strict=True):
        for sequence in example.sequences:
            assert row.prompt[0].content in texts(prompt, sequence)[0]
        assert {len(s.targets) for s in example.sequences} and all(sum(s.weights) == len(s.targets) for s in
                                                                   example.sequences)  # fmt: skip
    assert [texts(prompt, s)[1] for s in examples[2].sequences[2:]] == ["won<|im_end|>"] * 2
    assert [e.num_bytes for e in examples] == [3, 0, 3]
    alone = make_stage_method(Kto()).view(prompt, rows[:2])
    assert [len(e.sequences) for e in alone] == [1, 1]
    off = make_stage_method(Kto(reference_rows=0)).view(prompt, rows)
    assert [len(e.sequences) for e in off] == [1, 1, 2]


def test_a_mismatched_answer_is_cut_to_the_longer_row(tiny_path):
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    rows = [pair("the " * 20, "won", "one"), pair("why", "law " * 18, "law " * 5)]
    first, _ = make_stage_method(Kto()).view(prompt, rows)
    (asks, _), (answers, _) = (e.sequences for e in make_stage_method(Dpo()).view(prompt, rows))
    longest = max(len(asks.tokens), len(answers.tokens))
    assert len(first.sequences[2].tokens) == longest and first.sequences[2].targets[-1] == longest - 1
    assert len(asks.tokens) + len(answers.targets) > longest + 10, "uncut it would be much longer"


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_next_other_key_by_search(keys):
    size = len(keys)
    ahead = [[(i + k) % size for k in range(1, size) if keys[(i + k) % size] != keys[i]] for i in range(size)]
    assert next_other(keys) == [found[0] if found else None for found in ahead]


# --- figures ---------------------------------------------------------------------------------------------------


def test_figures_of_pairs_by_hand(tiny_path):
    """Means per token: -1 against -2 (won), -2 against -2 (half). Log-ratios: 3 - 1 = 2, and 0.01, which is a tie."""
    tiny = Tiny(tiny_path, "dpo-sigmoid")
    sizes = [(2, 1), (1, 3)]
    sequence = tiny.examples[0].sequences[0]
    examples = [
        replace(tiny.examples[0], num_bytes=4, reference_S=reference, sequences=tuple(
            replace(sequence, targets=tuple(range(1, n + 1)), weights=(1.0,) * n) for n in row
        ))
        for row, reference in zip(sizes, [(-5.0, -3.0), (-2.01, -6.0)], strict=True)
    ]  # fmt: skip
    outputs = Outputs(logprobs_M=float64(-1, -1, -2, -2, -1, -2, -3))
    found = {
        name: (a.tolist(), b.tolist()) for name, (a, b) in tiny.method.scores(outputs, make_batch(examples)).items()
    }
    assert found == {
        "accuracy": ([1.0, 0.5], [1.0, 1.0]),
        "bits_per_byte": (pytest.approx([2 / LOG2, 2 / LOG2]), [4.0, 4.0]),
        "reward_accuracy": ([1.0, 0.5], [1.0, 1.0]),
        "margin": (pytest.approx([0.2, 0.001]), [1.0, 1.0]),
    }


def test_figures_of_rankings_by_hand(tiny_path):
    """Row 1: order right in 2 of 3 pairs; row 2 has a tie of rewards. Gaps 2 | 1 | 3 of scores 4, 2, 1, in thirds."""
    method = make_stage_method(Reward()).fitted([RANKINGS[1]])
    assert method.gap_edges == (2.0, 3.0)
    prompt = Dialogue(Layout(load_model(str(tiny_path)).tokenizer))
    batch = make_batch(method.view(prompt, [RANKINGS[1], PAIRS[0]]))
    outputs = Outputs(logits_PL=torch.tensor([[3.0], [-1.0], [2.0], [0.5], [0.5]]))
    found = {name: (a.tolist(), b.tolist()) for name, (a, b) in method.scores(outputs, batch).items()}
    assert found == {
        "accuracy": ([2.0, 0.5], [3.0, 1.0]),
        "margin": ([4.0 + 1.0 - 3.0, 0.0], [3.0, 1.0]),
        "reward": ([4.0, 1.0], [3.0, 2.0]),
        "squared_reward": ([14.0, 0.5], [3.0, 2.0]),
        "accuracy_small_gap": ([0.0, 0.0], [1.0, 0.0]),
        "accuracy_middle_gap": ([1.0, 0.0], [1.0, 0.0]),
        "accuracy_large_gap": ([1.0, 0.0], [1.0, 0.0]),
    }


def test_figures_of_thumbs_by_hand(tiny_path):
    """z = 1. A good answer at log-ratio 3 is right; in the pair the good one at 0 is wrong, the bad one at 1 a tie."""
    tiny = Tiny(tiny_path, "kto")
    sequence = replace(tiny.examples[0].sequences[0], targets=(1,), weights=(1.0,))
    row = replace(tiny.examples[0], num_bytes=2, annotation=1.0)
    examples = [
        replace(row, sequences=(sequence,), reference_S=(-4.0,), gold=(1.0,)),
        replace(row, sequences=(sequence, sequence), reference_S=(-2.0, -4.0), gold=(1.0, 0.0)),
    ]
    outputs = Outputs(logprobs_M=float64(-1, -2, -3))
    found = {
        name: (a.tolist(), b.tolist()) for name, (a, b) in tiny.method.scores(outputs, make_batch(examples)).items()
    }
    assert found == {
        "accuracy": ([0.0, 1.0], [0.0, 1.0]),
        "reward_accuracy": ([1.0, 0.5], [1.0, 2.0]),
        "margin": (pytest.approx([0.2, -0.1]), [1.0, 2.0]),
        "bits_per_byte": (pytest.approx([1 / LOG2, 2 / LOG2]), [2.0, 2.0]),
    }


# --- the loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dpo-sigmoid", "dpo-ipo", "dpo-sft", "kto", "orpo", "simpo", "reward", "reward-order"]
)
def test_one_trajectory_however_a_step_is_cut(name, tiny_path):
    """8 rows at once, some at a time, one at a time, and through the padded model: three steps end in one place."""
    ends = []
    for most, backend in ((4096, "grouped"), (90, "grouped"), (16, "grouped"), (4096, "padded")):
        tiny = Tiny(tiny_path, name, backend)
        optimizer = make_optimizer(tiny.learner, tune_of())
        done = [tiny.step(optimizer, most, number) for number in range(3)]
        ends.append(([(d.loss, d.gradient_norm) for d in done], tiny.weights()))
    for steps, weights in ends[1:]:
        assert np.array(steps) == pytest.approx(np.array(ends[0][0]), rel=2e-4)
        for key, value in weights.items():
            torch.testing.assert_close(value, ends[0][1][key], rtol=1e-3, atol=2e-5, msg=key)


def test_the_reference_point_is_one_number_of_the_step(tiny_path):
    """The mean log-ratio over the mismatched answers of the first five rows, none of whose sequences is learnt from."""
    tiny = Tiny(tiny_path, "kto")
    ratios = []
    for row in tiny.examples[:5]:
        rated = len(row.gold)
        batch = make_batch([replace(row, reference_S=())])
        with torch.no_grad():
            values = tiny.learner.eval()(batch).logprobs_M.double()
        sums = [float(values[batch.sequence_M == s].sum()) for s in range(len(row.sequences))]
        ratios += [sums[s] - row.reference_S[s] for s in range(rated, len(row.sequences))]
    wanted = max(0.0, float(np.mean(ratios)))
    assert wanted > 0 and len(ratios) == 6, "four thumbs and a pair"
    for most in (16, 4096):
        rows, computed = annotated(tiny.learner, tiny.method, tiny.examples, most)
        (point,) = {row.annotation for row in rows}
        assert point == pytest.approx(wanted, rel=1e-5) and computed > 0
        assert [len(row.sequences) for row in rows] == [len(row.gold) for row in tiny.examples]
    below = [replace(row, reference_S=(0.0,) * len(row.sequences)) for row in tiny.examples]
    assert {row.annotation for row in annotated(tiny.learner, tiny.method, below, 4096)[0]} == {0.0}
    found = score_rows(tiny.learner, tiny.method, tiny.examples, 50)
    _, figures = evaluate(tiny.learner, tiny.method, tiny.examples, 4096)
    for name in ("margin", "reward_accuracy", "accuracy"):
        assert found[name][0].sum() / found[name][1].sum() == pytest.approx(figures[name], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo-sigmoid", "dpo-ipo", "kto", "orpo", "simpo", "reward", "reward-order"])
def test_one_batch_is_learnt(name, tiny_path):
    """Every pair and every thumb comes out right on the rows that were trained on."""
    tiny = Tiny(tiny_path, name)
    optimizer = make_optimizer(tiny.learner, tune_of(learning_rate=2e-2))
    losses = [tiny.step(optimizer, number=number).loss for number in range(40)]
    _, figures = evaluate(tiny.learner, tiny.method, tiny.examples, 4096)
    assert figures["accuracy"] == 1.0 and figures.get("reward_accuracy", 1.0) == 1.0, (losses[0], losses[-1], figures)


@pytest.mark.parametrize("name", ["dpo-sigmoid", "kto", "reward"])
def test_resume_is_exact(name, tiny_path, tmp_path):
    """Four steps at once, and two, a stop, and two more from the checkpoint."""

    class Interrupted(Exception):
        pass

    def interrupt(progress):
        if progress.step == 3:
            raise Interrupted

    def run(folder, report) -> dict[str, torch.Tensor]:
        tiny = Tiny(tiny_path, name)
        train(tiny.learner, tiny.method, tiny.examples, tiny.examples[:3], tune_of(), 5, folder, report)
        return tiny.weights()

    whole = run(tmp_path / "whole", lambda progress: None)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", interrupt)
    again = run(tmp_path / "cut", lambda progress: None)
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_a_reward_head_is_saved_without_bias(tiny_path, tmp_path):
    tiny = Tiny(tiny_path, "reward")
    tiny.learner.save(tmp_path)
    loaded = load_learner(load_model(str(tiny_path)), tmp_path, "auto")
    assert loaded.heads["main"].bias is None
    batch = make_batch(tiny.examples)
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits_PL, tiny.learner.eval()(batch).logits_PL)
