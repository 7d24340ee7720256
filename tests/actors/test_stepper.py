"""The engine's thread: rows in, outcomes out, no more rows than slots, a failure that is seen."""

import threading
import time

import pytest

from actors.stepper import Stepper
from raydecode.engine.toy import ToyEngine
from raydecode.request import DecodingSpec, Request, Text


def requests(count, **spec):
    return [
        Request(f"r{i}", f"r{i}", Text("ab" * (1 + i % 3)), DecodingSpec(max_tokens=8, **spec)) for i in range(count)
    ]


def collect(stepper, n, wake):
    out = {}
    for _ in range(600):
        out.update(stepper.ended())
        if len(out) == n:
            return out
        assert stepper.failure is None, stepper.failure
        wake.wait(0.1)
        wake.clear()
    raise AssertionError(f"{len(out)} of {n} rows came back")


@pytest.mark.parametrize("samples", [1, 3])
def test_every_row_comes_back_with_all_its_samples(samples):
    wake = threading.Event()
    stepper = Stepper(lambda: ToyEngine(slots=4), 4, wake.set)
    stepper.start()
    stepper.feed(requests(20, n=samples))
    out = collect(stepper, 20, wake)
    assert {id: [one.row.sample for one in outcomes] for id, outcomes in out.items()} == {
        f"r{i}": list(range(samples)) for i in range(20)
    }
    assert stepper.idle
    assert stepper.tokens >= sum(len(one.tokens) for outcomes in out.values() for one in outcomes)


def test_never_more_samples_inside_than_slots():
    class Watched(ToyEngine):
        most = 0

        def submit(self, request):
            super().submit(request)
            Watched.most = max(Watched.most, self.waiting + len(self.running))

    wake = threading.Event()
    stepper = Stepper(lambda: Watched(slots=4), 4, wake.set)
    stepper.start()
    stepper.feed(
        [*requests(10), *(Request(f"n{i}", "x", Text("a"), DecodingSpec(max_tokens=5, n=3)) for i in range(5))]
    )
    collect(stepper, 15, wake)
    assert Watched.most <= 4


def test_a_row_wider_than_the_engine_runs_alone():
    wake = threading.Event()
    stepper = Stepper(lambda: ToyEngine(slots=2), 2, wake.set)
    stepper.start()
    stepper.feed(requests(3, n=5))
    assert all(len(outcomes) == 5 for outcomes in collect(stepper, 3, wake).values())


def test_a_refused_request_ends_all_its_samples_and_frees_their_slots():
    wake = threading.Event()
    stepper = Stepper(lambda: ToyEngine(slots=4, context=8), 4, wake.set)
    stepper.start()
    stepper.feed([Request("long", "x", Text("a" * 50), DecodingSpec(max_tokens=5, n=3)), *requests(6, n=1)[:1]])
    out = collect(stepper, 2, wake)
    assert [(one.row.sample, one.reason) for one in out["long"]] == [(s, "error") for s in range(3)]
    assert stepper._held == 0


def test_a_failing_step_is_told_and_not_swallowed():
    class Broken(ToyEngine):
        def step(self):
            raise RuntimeError("cable out")

    wake = threading.Event()
    stepper = Stepper(lambda: Broken(slots=2), 2, wake.set)
    stepper.start()
    stepper.feed(requests(1))
    deadline = time.monotonic() + 30
    while stepper.failure is None and time.monotonic() < deadline:
        wake.wait(0.1)
    assert "cable out" in stepper.failure


def test_the_engine_is_built_and_stepped_in_one_thread():
    """OpenMP's thread count is the thread's: an engine that sets it elsewhere steps with another."""
    seen = []

    class Threaded(ToyEngine):
        def __init__(self):
            seen.append(threading.get_ident())
            super().__init__(slots=2)

        def step(self):
            seen.append(threading.get_ident())
            return super().step()

    wake = threading.Event()
    stepper = Stepper(Threaded, 2, wake.set)
    assert isinstance(stepper.start(), Threaded)
    stepper.feed(requests(3))
    collect(stepper, 3, wake)
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_an_engine_that_cannot_be_built_is_said():
    def build():
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        Stepper(build, 2, lambda: None).start()
