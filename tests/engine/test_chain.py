"""Chains of many rows at once: grouped by method, each row by its own options, faults by row."""

from __future__ import annotations

import pytest
import torch

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import visiting
from tests.methods.samplers import Stateless

T, P = (lambda v: Card("temperature", {"value": v})), (lambda p: Card("top_p", {"p": p}))
CHAINS = [(), (T(0.5),), (T(2.0),), (T(2.0), P(0.5)), (P(0.9), T(0.7)), (Card("greedy"),), (T(0.0),)]


@pytest.fixture(autouse=True)
def guests():
    with visiting():
        yield


def _requests(chains=CHAINS, max_tokens=10) -> list[Request]:
    specs = [DecodingSpec(max_tokens=max_tokens, seed=2, sampler=chain, ignore_eos=True) for chain in chains]
    return [Request(f"r{i}", f"r{i}", Ids((0, 1)), spec) for i, spec in enumerate(specs)]


def test_each_row_by_its_own_chain():
    together = drive(ToyEngine(), _requests())
    for request in _requests():
        assert drive(ToyEngine(), [request]).outcomes[RowId(request.id)] == together.outcomes[RowId(request.id)]


def test_the_order_of_a_chain_matters():
    run = drive(ToyEngine(), [
        Request(f"r{i}", "same", Ids((0, 1)), DecodingSpec(max_tokens=60, sampler=chain, ignore_eos=True))
        for i, chain in enumerate([(T(3.0), P(0.4)), (P(0.4), T(3.0))])
    ])  # fmt: skip
    assert run.outcomes[RowId("r0")].tokens != run.outcomes[RowId("r1")].tokens


def test_one_call_per_method_and_stage():
    calls = []

    class Counted:
        needs = Needs()
        columns = {}

        def shape(self, x_RC, rows):
            calls.append(len(rows.t_R))
            return x_RC.clone()

    Counted.__doc__ = "Count."
    for name in ("counted", "recounted"):
        registry.register("samplers", name=name, engines=("toy",))(Counted)
    drive(ToyEngine(), _requests([(Card("counted"), T(1.3), Card("recounted"))] * 5, max_tokens=1))
    assert calls == [5, 5]


@pytest.mark.parametrize(("mode", "kind"), [("raise", "RuntimeError"), ("nan", "BadLogits")])
def test_a_guilty_row_ends_alone(mode, kind):
    chains = [(T(1.3), Card("explosive", {"mode": m})) for m in ("calm", mode, "calm", mode)]
    run = drive(ToyEngine(), _requests(chains))
    calm = drive(ToyEngine(), _requests([chains[0]] * 4))
    for i in (1, 3):
        assert (run.outcomes[RowId(f"r{i}")].error.stage, run.outcomes[RowId(f"r{i}")].error.kind) == ("sampler", kind)
    for i in (0, 2):
        assert run.outcomes[RowId(f"r{i}")] == calm.outcomes[RowId(f"r{i}")]


M = {"m": lambda options: 0.0}


def _one_off(name: str, **members) -> tuple[Card, ...]:
    members = {"__doc__": "One.", "shape": lambda self, x, rows: x, **members}
    registry.register("samplers", engines=("toy",))(type(name, (Stateless,), members))
    return (Card(name.lower()),)


@pytest.mark.parametrize(
    ("members", "kind", "said"),
    [
        ({"shape": lambda self, x, rows: x.double()}, "BadShape", "float64"),
        ({"shape": lambda self, x, rows: x[:, :3]}, "BadShape", "[1, 3]"),
        ({"shape": lambda self, x, rows: None}, "AttributeError", "shape"),
        ({"columns": M, "observe": lambda self, r, t, o: {}}, "BadColumns", "owes the columns m"),
        (
            {"columns": M, "observe": lambda self, r, t, o: {"m": torch.zeros(7)}},
            "BadColumns",
            "[1]",
        ),
        ({"columns": {"m": lambda o: o["absent"]}}, "KeyError", "absent"),
    ],
)
def test_an_ill_formed_answer_is_the_rows_fault(members, kind, said):
    chain = _one_off("Oddity", **members)
    run = drive(ToyEngine(), [*_requests([chain]), Request("well", "well", Ids((1,)), DecodingSpec(max_tokens=5))])
    fault = run.outcomes[RowId("r0")].error
    assert fault.kind == kind
    assert said in fault.message
    assert run.outcomes[RowId("well")].error is None
