"""Every registered method obeys the laws of its room: a new file is tested before it has a test."""

from __future__ import annotations

import pytest

from raydecode import conformance, registry

CASES = [
    pytest.param(method, law, id=f"{method}-{law.__name__}")
    for room in conformance.ROOMS
    for method in registry.cards(room)
    if not method.loads
    for law in conformance.laws(room)
]


@pytest.mark.parametrize(("method", "law"), CASES)
def test_law(method, law):
    law(method)


def test_check_runs_every_law_of_the_room():
    done = conformance.check(registry.get("samplers", "greedy"))
    assert done == [law.__name__ for law in conformance.laws("samplers")]
    assert conformance.laws("objectives") == ()
