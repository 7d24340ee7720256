"""The laws of interventions have teeth: each broken twin fails the law that it breaks, the honest ones pass."""

from __future__ import annotations

import pytest

from raydecode import registry
from raydecode.conformance import Violation, interventions
from tests.methods import visiting
from tests.methods.interventions import HONEST

BREAKS = {
    "batch_centred": interventions.nodes_do_not_see_each_other,
    "widening": interventions.keeps_shape,
    "scribbling": interventions.pure,
    "counting": interventions.pure,
    "partial": interventions.identity_changes_nothing,
    "named": interventions.nodes_do_not_see_each_other,
}


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


@pytest.mark.parametrize("name", BREAKS)
def test_twin_fails_its_law(name):
    with pytest.raises(Violation, match=f"interventions/{name} breaks '{BREAKS[name].__name__}'"):
        BREAKS[name](registry.get("interventions", name))


@pytest.mark.parametrize("law", interventions.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["push", "by_path"])
def test_the_honest_ones_obey(name, law):
    assert len(HONEST) == 2
    law(registry.get("interventions", name))
