"""What a forest is, on random sequences: every distinct beginning once, and nothing else."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.forest.plan import plan_forest
from luthier.forest.tree import build_forest
from luthier.records import Sequence

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(tuple)


@st.composite
def sequences(draw) -> list[Sequence]:
    """Short tokens over a small alphabet, so that beginnings meet; some sequences have targets, some none."""
    made = []
    for tokens in draw(st.lists(TOKENS, min_size=1, max_size=8)):
        positions = st.integers(1, len(tokens) - 1) if len(tokens) > 1 else st.nothing()
        targets = tuple(sorted(draw(st.sets(positions)))) if len(tokens) > 1 else ()
        made.append(Sequence(tokens, targets, tuple(0.5 + t for t in targets)))
    return made


def read(sequence: Sequence) -> tuple[int, ...]:
    """Tokens whose hidden state can matter: up to the one before the last target, all where there is none."""
    return sequence.tokens[: max(sequence.targets)] if sequence.targets else sequence.tokens


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
    wanted = [
        (s, t, w) for s, sequence in enumerate(many) for t, w in zip(sequence.targets, sequence.weights, strict=True)
    ]
    assert len(forest.row_M) == len(wanted)
    for m, (s, target, weight) in enumerate(wanted):
        assert forest.sequence_M[m] == s and forest.weight_M[m] == weight
        assert forest.token_M[m] == many[s].tokens[target]
        assert forest.row_M[m] == forest.rows_of(s)[target - 1]


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


@given(many=sequences(), seed=st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_changes_no_row(many, seed):
    order = list(range(len(many)))
    seed.shuffle(order)
    forest, shuffled = build_forest(many), build_forest([many[i] for i in order])
    assert np.array_equal(forest.tokens_N, shuffled.tokens_N)
    assert list(forest.nodes) == list(shuffled.nodes)
    assert [int(forest.last_row_S[i]) for i in order] == shuffled.last_row_S.tolist()


@settings(max_examples=150)
@given(many=sequences(), block_tokens=st.sampled_from([1, 2, 5, 100]))
def test_the_parts_of_a_plan_are_the_whole_mask(many, block_tokens):
    """Blocks and crosses together let each token see what it may see, once, and nothing else."""
    forest = build_forest(many)
    plan = plan_forest(forest, block_tokens=block_tokens)
    seen = np.zeros((forest.num_tokens, forest.num_tokens), dtype=int)
    for block in plan.blocks:
        for g in range(len(block.index_GT)):
            valid = block.valid_GT[g].numpy()
            rows = block.index_GT[g].numpy()[valid]
            size = len(rows)
            inside = np.tri(size, dtype=bool)
            if block.mask_G1TT is not None:
                inside = block.mask_G1TT[g, 0].numpy()[:size, :size] == 0
            seen[np.ix_(rows, rows)] += inside
    for cross in plan.crosses:
        seen[cross.query_start : cross.query_end, cross.key_start : cross.key_end] += 1
    assert np.array_equal(seen, forest.visible_NN().astype(int))
