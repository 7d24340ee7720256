"""Composition of constraints: order does not matter, the stricter side wins, nothing is invented."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from raydecode.constraint import Constraint, Pending, compose

EOS = frozenset({4})
CONSTRAINTS = st.builds(
    Constraint,
    allowed=st.none() | st.frozensets(st.integers(0, 4)),
    bias=st.dictionaries(st.integers(0, 4), st.sampled_from([-1.0, 0.5, 2.0]), max_size=2),
    forced=st.sampled_from([(), (1,), (1, 2), (3,)]),
    eos=st.sampled_from(["allow", "forbid", "auto"]),
    priority=st.integers(0, 1),
    on_empty=st.sampled_from(["eos", "error"]),
)


def test_free():
    assert compose([], EOS) is None
    assert compose([None, None], EOS) is None


def test_one_alone_is_itself():
    only = Constraint(allowed=frozenset({1}), hint=(2,))
    assert compose([None, only], EOS) is only


def test_pending_waits_for_all():
    assert compose([Constraint(), Pending("x"), None], EOS) == Pending("x")


def test_allowed_intersect_and_biases_add():
    both = compose([Constraint(frozenset({1, 2}), {1: 0.5}), Constraint(frozenset({2, 3}), {1: 1.0, 2: -1.0})], EOS)
    assert both.allowed == {2}
    assert both.bias == {1: 1.5, 2: -1.0}


def test_eos():
    assert compose([Constraint(frozenset({1}), eos="allow")], EOS).allowed == {1, 4}
    assert compose([Constraint(frozenset({1, 4}), eos="forbid")], EOS).allowed == {1}
    assert compose([Constraint(eos="forbid")], EOS).bias == {4: float("-inf")}
    one_forbids = compose([Constraint(frozenset({1}), eos="allow"), Constraint(eos="forbid")], EOS)
    assert one_forbids.allowed == {1}, "a text ends only if every monitor lets it"


def test_forced_of_highest_priority_then_the_shorter():
    forced = [Constraint(forced=(1, 2)), Constraint(forced=(3,), priority=1), Constraint(forced=(1,), priority=1)]
    assert compose(forced, EOS).forced == (3,)
    assert compose([Constraint(forced=(1, 2)), Constraint(forced=(1,))], EOS).forced == (1,)


def test_one_strict_monitor_makes_the_empty_set_an_error():
    empty = compose([Constraint(frozenset({1})), Constraint(frozenset({2}), on_empty="error")], EOS)
    assert (empty.allowed, empty.on_empty) == (frozenset(), "error")


@given(st.lists(CONSTRAINTS, min_size=2, max_size=4))
def test_order_does_not_matter(constraints):
    first = compose(constraints, EOS)
    for order in itertools.permutations(constraints):
        other = compose(order, EOS)
        assert (other.allowed, other.on_empty) == (first.allowed, first.on_empty)
        assert other.bias.keys() == first.bias.keys()
        assert all(abs(other.bias[k] - first.bias[k]) < 1e-9 or other.bias[k] == first.bias[k] for k in first.bias)
        assert len(other.forced) == len(first.forced)


@given(st.lists(CONSTRAINTS, min_size=1, max_size=4))
def test_nothing_is_allowed_that_one_forbids(constraints):
    allowed = compose(constraints, EOS).allowed
    for one in constraints:
        if one.allowed is not None:
            assert allowed is not None
            assert allowed <= one.allowed | (EOS if one.eos == "allow" else frozenset())
        if one.eos == "forbid" and allowed is not None:
            assert not allowed & EOS
