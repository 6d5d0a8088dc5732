"""What a forest is, on random sequences: every distinct beginning once, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.forest import plan as plans
from luthier.forest.plan import plan_forest
from luthier.forest.tree import Forest, build_forest
from luthier.records import Sequence

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple)


@st.composite
def sequences(draw) -> list[Sequence]:
    """Short tokens over a small alphabet, so that beginnings meet; some have targets or spans to read, some none.

    Where other tokens are wanted than those that stand there, an index may stand several times.
    """
    made = []
    for tokens in draw(st.lists(TOKENS, min_size=1, max_size=8)):
        positions = st.integers(1, len(tokens) - 1) if len(tokens) > 1 else st.nothing()
        targets = tuple(sorted(draw(st.sets(positions)))) if len(tokens) > 1 else ()
        wanted = None
        if draw(st.booleans()):
            targets = tuple(t for t in targets for _ in range(draw(st.integers(1, 3))))
            wanted = tuple(draw(st.integers(0, 9)) for _ in targets)
        weights = tuple(0.5 + m + t for m, t in enumerate(targets))
        made.append(Sequence(tokens, targets, weights, wanted=wanted, reads=draw(spans(len(tokens)))))
    return made


def spans(size: int) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    """None, one or two spans of a sequence of `size` tokens; they may overlap."""
    edges = st.lists(st.integers(0, size), min_size=2, max_size=2, unique=True).map(lambda pair: tuple(sorted(pair)))
    return st.lists(edges, max_size=2).map(tuple)


def read(sequence: Sequence) -> tuple[int, ...]:
    """Tokens whose hidden state can matter: up to the one before the last target and to the end of the last span.

    All where there is neither.
    """
    ends = [*sequence.targets, *(stop for _, stop in sequence.reads)]
    return sequence.tokens[: max(ends)] if ends else sequence.tokens


def beginnings(many: list[Sequence]) -> set[tuple[int, ...]]:
    return {read(s)[: i + 1] for s in many for i in range(len(read(s)))}


@given(many=sequences())
def test_every_distinct_beginning_has_one_row(many):
    forest = build_forest(many)
    assert forest.num_tokens == len(beginnings(many))
    assert forest.num_sequence_tokens == sum(len(s.tokens) for s in many)
    assert forest.num_padded_tokens == len(many) * max(len(s.tokens) for s in many)


@given(many=sequences())
def test_the_rows_of_a_sequence_spell_it(many):
    forest = build_forest(many)
    paths: dict[int, tuple[int, ...]] = {}
    for s, sequence in enumerate(many):
        rows = forest.rows_of(s)
        assert tuple(forest.tokens_N[rows]) == read(sequence)
        assert list(forest.positions_N[rows]) == list(range(len(read(sequence))))
        assert rows[-1] == forest.last_row_S[s]
        for i, row in enumerate(rows.tolist()):
            assert paths.setdefault(row, read(sequence)[: i + 1]) == read(sequence)[: i + 1]
    assert set(paths) == set(range(forest.num_tokens)), "every row belongs to a sequence"


@given(many=sequences())
def test_a_row_stands_in_the_padded_batch_where_it_says(many):
    forest = build_forest(many)
    for row in range(forest.num_tokens):
        owner, time = many[int(forest.first_N[row])], int(forest.positions_N[row])
        assert owner.tokens[time] == forest.tokens_N[row] and row in forest.rows_of(int(forest.first_N[row]))


@given(many=sequences())
def test_a_token_sees_itself_and_its_ancestors_only(many):
    forest = build_forest(many)
    path_of = {}
    for s, sequence in enumerate(many):
        for i, row in enumerate(forest.rows_of(s).tolist()):
            path_of[row] = read(sequence)[: i + 1]
    wanted = [[path_of[q][: len(path_of[k])] == path_of[k] for k in path_of] for q in path_of]
    found = forest.visible_NN()[np.ix_(list(path_of), list(path_of))]
    assert np.array_equal(found, np.array(wanted))


@given(many=sequences())
def test_a_target_is_read_from_the_token_before_it(many):
    forest = build_forest(many)
    assert_targets(forest, many, before=1)


def assert_targets(forest: Forest, many: list[Sequence], before: int) -> None:
    """Targets stand in the order of the sequences; each asks for the wanted token, else for the one that stands there."""
    listed = [(s, i) for s, sequence in enumerate(many) for i in range(len(sequence.targets))]
    assert len(forest.row_M) == len(listed)
    for m, (s, i) in enumerate(listed):
        sequence = many[s]
        target = sequence.targets[i]
        assert forest.sequence_M[m] == s and forest.weight_M[m] == sequence.weights[i]
        assert forest.token_M[m] == (sequence.tokens[target] if sequence.wanted is None else sequence.wanted[i])
        assert forest.row_M[m] == forest.rows_of(s)[target - before]


@given(many=sequences())
def test_a_span_is_computed_to_its_end(many):
    forest = build_forest(many)
    for s, sequence in enumerate(many):
        for start, stop in sequence.reads:
            assert tuple(forest.tokens_N[forest.rows_of(s)[start:stop]]) == sequence.tokens[start:stop]


@given(many=sequences())
def test_nodes_are_a_preorder_tree(many):
    forest = build_forest(many)
    covered = 0
    for i, node in enumerate(forest.nodes):
        assert node.start == covered and node.start < node.end <= node.subtree_end <= forest.num_tokens
        covered = node.end
        assert list(forest.positions_N[node.start : node.end]) == list(
            range(node.depth, node.depth + node.end - node.start)
        )
        assert -1 <= node.parent < i and (node.depth == 0) == (node.parent == -1)
        if node.parent >= 0:
            parent = forest.nodes[node.parent]
            assert parent.end <= node.start and node.subtree_end <= parent.subtree_end
            assert node.depth == parent.depth + parent.end - parent.start
    assert covered == forest.num_tokens


@given(many=sequences())
def test_an_encoders_forest_shares_nothing_and_leaves_nothing_out(many):
    """Every token of a sequence sees all of that sequence and nothing else; a target is read from its own place."""
    many = [*many, Sequence((1, 2), (0, 0), (1.0, 2.0), wanted=(3, 0)), many[0]]
    forest = build_forest(many, causal=False)
    assert not forest.causal and forest.num_tokens == forest.num_sequence_tokens
    owner_N = np.full(forest.num_tokens, -1)
    for s, sequence in enumerate(many):
        rows = forest.rows_of(s)
        assert tuple(forest.tokens_N[rows]) == sequence.tokens
        assert list(forest.positions_N[rows]) == list(range(len(sequence.tokens)))
        assert (owner_N[rows] == -1).all() and (forest.first_N[rows] == s).all()
        owner_N[rows] = s
    assert np.array_equal(forest.visible_NN(), owner_N[:, None] == owner_N[None, :])
    assert_targets(forest, many, before=0)


@pytest.mark.parametrize(
    ("sequence", "told"),
    [
        (lambda: Sequence((1, 2), (1,), ()), "one weight per target"),
        (lambda: Sequence((1, 2), (1,), (1.0,), wanted=(1, 2)), "one wanted token per target"),
        (lambda: Sequence((1, 2), (2,), (1.0,)), "a target stands in the sequence"),
        (lambda: Sequence((1, 2), reads=((1, 1),)), "a span holds tokens"),
        (lambda: Sequence((1, 2), reads=((0, 3),)), "a span holds tokens"),
        (lambda: build_forest([Sequence((1, 2), (0,), (1.0,))]), "a target needs a token before it"),
    ],
)
def test_a_sequence_that_cannot_be_is_caught(sequence, told):
    with pytest.raises(AssertionError, match=told):
        sequence()


@given(many=sequences(), seed=st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_changes_no_row(many, seed):
    order = list(range(len(many)))
    seed.shuffle(order)
    forest, shuffled = build_forest(many), build_forest([many[i] for i in order])
    assert np.array_equal(forest.tokens_N, shuffled.tokens_N)
    assert list(forest.nodes) == list(shuffled.nodes)
    assert [int(forest.last_row_S[i]) for i in order] == shuffled.last_row_S.tolist()


@settings(max_examples=300)
@given(
    many=sequences(),
    block_tokens=st.sampled_from([1, 2, 5, 100]),
    folded_keys=st.sampled_from([0, 4, 8, 160]),
    folded_copies=st.sampled_from([1, 4]),
)
def test_the_parts_of_a_plan_are_the_whole_mask(many, block_tokens, folded_keys, folded_copies):
    """Blocks, the trunks copied to them, and crosses let each token see what it may see, once, and nothing else."""
    forest = build_forest(many)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "FOLDED_KEYS", folded_keys)
        patch.setattr(plans, "FOLDED_COPIES", folded_copies)
        plan = plan_forest(forest, block_tokens=block_tokens)
    seen = np.zeros((forest.num_tokens, forest.num_tokens), dtype=int)
    for block in plan.blocks:
        for g in range(len(block.index_GT)):
            valid = block.valid_GT[g].numpy()
            rows = block.index_GT[g].numpy()[valid]
            keys = block.keys_GJ[g].numpy()
            if block.mask_G1TJ is None:
                inside = np.tri(len(valid), dtype=bool)[valid]
            else:
                inside = block.mask_G1TJ[g, 0].numpy()[valid] == 0
            for row, sees in zip(rows, inside, strict=True):
                np.add.at(seen[row], keys[sees], 1)
    for cross in plan.crosses:
        seen[cross.query_start : cross.query_end, cross.key_start : cross.key_end] += 1
    assert np.array_equal(seen, forest.visible_NN().astype(int))
