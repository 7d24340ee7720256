"""What the loop keeps after its rows: nothing that grows with their number.

The measure is what Python holds (`tracemalloc`) when no row is left, after some requests and after
two and a half times as many. Tensors and what torch keeps beside them are in `torch/test_growth.py`.
"""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

import raydecode
from raydecode import randomness, registry
from raydecode.engine import host, toy
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods.drafters import Recycling
from tests.methods.monitors import Watching

FIRST, MORE = 400, 600
BOUND = 24 * MORE
"""Bytes: for each request that came later, less than the smallest object (28) and a pointer to it. Some 9 KB were
found after 300, most of it in the interpreter's own reserves of numbers, and 1 KB over 600 more."""


class Asking(Watching):
    """Every row asks a question of its own."""

    def open(self, request, host, options):
        return host, request.id

    def constrain(self, state):
        asked, id = state
        answer = asked.ask("echo", id)
        return None if answer == id else answer


@contextlib.contextmanager
def engine_of(leak: str | None) -> Iterator[ToyEngine]:
    """An engine that keeps 20 answers of its services; a leak: one word per row, or every answer."""
    host.KEPT = 10**9 if leak == "answers" else 20
    with registry.guests():
        registry.register("monitors", name="asking")(Asking)
        registry.register("drafters", name="recycling")(Recycling)
        engine = ToyEngine(slots=8, context=200, tokens=200, stream=True, services={"echo": lambda x: x})
        if leak == "outcomes":
            kept: list[str] = []
            outcome = engine._outcome
            engine._outcome = lambda row: kept.append(row.id.request) or outcome(row)  # type: ignore[method-assign]
        yield engine


def request(i: int) -> Request:
    """A hundred prompts in turn, samples, drafts, monitors, faults; the likeliest token, so that the toy's table stays
    small."""
    ids = tuple((i % 100 + k * k) % 4 for k in range(1 + i % 25)) if i % 13 else (99,)
    spec = DecodingSpec(
        max_tokens=2, ignore_eos=True, sampler=(Card("mirostat2"), Card("top_k", {"k": 1})), n=1 + i % 2,
        drafter=Card("recycling") if i % 3 else None, monitors=(Card("asking"),) if i % 2 == 0 else (),
    )  # fmt: skip
    return Request(str(i), "noise", Ids(ids), spec)


def serve(engine: ToyEngine, start: int, count: int) -> set[str]:
    """Reasons that rows ended with; every seventeenth request is cancelled on its way."""
    reasons = set()
    for i in range(start, start + count):
        engine.submit(request(i))
        if i % 17 == 0:
            engine.cancel(str(i))
        while engine.waiting > 8 or (i == start + count - 1 and engine.busy):
            engine.wait(1.0)
            reasons |= {event.reason for event in engine.step() if isinstance(event, OutcomeEvent)}
    engine.check_integrity()
    return reasons


def held() -> int:
    """Bytes that this library's lines, and the tests', asked for; not the table that the toy keeps of its own texts."""
    gc.collect()
    ours = [tracemalloc.Filter(True, f"{Path(file).parent}/*") for file in (raydecode.__file__, __file__)]
    tables = [tracemalloc.Filter(False, file) for file in (toy.__file__, randomness.__file__)]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([*ours, *tables]).traces)


def grown(leak: str | None) -> int:
    """Bytes more after MORE requests than after FIRST."""
    with engine_of(leak) as engine:
        tracemalloc.start()
        serve(engine, 0, FIRST)
        before = held()
        assert serve(engine, FIRST, MORE) == {"length", "error", "cancelled"}
        return held() - before


def measured(leak: str | None) -> int:
    """In a process of its own: threads and tables that other tests left behind give and take here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(grown, leak).result(timeout=600)


def test_nothing_stays() -> None:
    assert measured(None) < BOUND


@pytest.mark.parametrize("leak", ["outcomes", "answers"])
def test_the_measure_sees_a_leak(leak: str) -> None:
    assert measured(leak) > BOUND
