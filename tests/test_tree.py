"""Token trees: what a drafter proposes is checked before anything trusts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydecode.tree import TokenTree

PATHS = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=8)


def test_root_chain_and_paths():
    assert TokenTree.root(3) == TokenTree((3,), (-1,), (1.0,))
    assert TokenTree.chain((3, 1, 2)) == TokenTree((3, 1, 2), (-1, 0, 1), (1.0, 1.0, 1.0))
    tree = TokenTree.paths(9, [(1, 2), (1, 3), (4,), (1, 2)])
    assert (tree.token, tree.parent) == ((9, 1, 2, 3, 4), (-1, 0, 1, 1, 0))
    assert tree.depth() == (0, 1, 2, 2, 1)


@given(PATHS)
def test_paths_are_found_again(paths):
    tree = TokenTree.paths(0, paths)
    assert tree.check(4) is None
    for path in paths:
        node = 0
        for token in path:
            node = tree.child(node, token)
            assert node is not None
        assert [tree.token[n] for n in tree.path(node)] == [0, *path]
        assert len(tree.path(node)) == tree.depth()[node] + 1
    assert len(tree) == 1 + len({tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)})


@given(PATHS, st.integers(0, 30), st.data())
def test_pruning_keeps_the_likeliest_and_their_ancestors(paths, size, data):
    whole = TokenTree.paths(0, paths)
    est = tuple(data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9, 1.0]), min_size=len(whole), max_size=len(whole))))
    whole = TokenTree(whole.token, whole.parent, (1.0, *est[1:]))
    small = whole.prune(size)
    assert len(small) == min(max(size, 1), len(whole))
    assert small.check(4) is None

    def reach(tree):
        out = []
        for i, parent in enumerate(tree.parent):
            out.append(1.0 if parent < 0 else out[parent] * tree.est[i])
        return sorted(out, reverse=True)

    assert reach(small) == reach(whole)[: len(small)]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (TokenTree((), (), ()), "a tree has a root"),
        (TokenTree((1,), (0,), (1.0,)), "a tree has a root"),
        (TokenTree((1, 2), (-1,), (1.0, 1.0)), "a tree has a root"),
        (TokenTree((1, 2), (-1, 0), (1.0,)), "a tree has a root"),
        (TokenTree((1, 2), (-1, 1), (1.0, 1.0)), "a parent comes before"),
        (TokenTree((1, 2), (-1, -1), (1.0, 1.0)), "a parent comes before"),
        (TokenTree((1, 5), (-1, 0), (1.0, 1.0)), "outside the vocabulary of 5"),
        (TokenTree((1, -1), (-1, 0), (1.0, 1.0)), "outside the vocabulary of 5"),
        (TokenTree((1, 2, 2), (-1, 0, 0), (1.0,) * 3), "siblings"),
        (TokenTree((1, 4, 2), (-1, 0, 1), (1.0,) * 3), "below an end of text"),
        (TokenTree((1, 2.0), (-1, 0), (1.0, 1.0)), "plain ints"),
        (TokenTree((1, 2), (-1, 0.0), (1.0, 1.0)), "plain ints"),
        (TokenTree((1, "2"), (-1, 0), (1.0, 1.0)), "plain ints"),
    ],
)
def test_what_is_wrong_with_a_tree(tree, why):
    assert why in tree.check(5, frozenset({4}))


def test_a_root_may_be_an_end_of_text():
    assert TokenTree.chain((4, 1)).check(5, frozenset({4})) is None, "the row that ignores EOS goes on from it"
