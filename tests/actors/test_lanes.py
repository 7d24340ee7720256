"""The server's engine thread: all is told, a cancelled slot is free at once, batch rows yield and lose nothing."""

import dataclasses
import threading

import pytest

from actors.lanes import Lanes
from raydecode.conformance.drive import drive
from raydecode.engine.toy import ToyEngine
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import DecodingSpec, Request, RowId, Text

WAIT_S = 60.0


class Gate(ToyEngine):
    """Steps only when it is let. Remembers what ran in each step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.free = threading.Semaphore(0)
        self.ran = []
        self.stepped = threading.Semaphore(0)

    def step(self):
        assert self.free.acquire(timeout=WAIT_S)
        events = super().step()
        self.ran.append({row.request for row in self.running} | {e.row.request for e in events})
        self.stepped.release()
        return events


class Desk:
    """Lanes over a gated engine, and what they told."""

    def __init__(self, slots=2, kind=Gate, **options):
        self.events, self.over, self.news = [], {}, threading.Condition()
        self.lanes = Lanes(lambda: kind(slots=slots, stream=True, **options), slots, self.sink)
        self.engine = self.lanes.start()

    def sink(self, events):
        with self.news:
            self.events += events
            for event in events:
                if isinstance(event, OutcomeEvent):
                    self.over.setdefault(event.row.request, {})[event.row.sample] = event
            self.news.notify_all()

    def step(self, count=1):
        for _ in range(count):
            self.engine.free.release()
            assert self.engine.stepped.acquire(timeout=WAIT_S)

    def open(self):
        """Steps as many as are wanted from here on."""
        self.engine.free.release(100_000)

    def until(self, *ids):
        with self.news:
            assert self.news.wait_for(lambda: all(id in self.over for id in ids), WAIT_S)

    def close(self):
        self.lanes.leave()
        self.engine.free.release()
        self.lanes.join()


@pytest.fixture
def desk():
    made = []

    def make(**options):
        made.append(Desk(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def request(id, tokens=12, **spec):
    return Request(id, id, Text("ab"), DecodingSpec(max_tokens=tokens, seed=3, ignore_eos=True, **spec))


def alone(asked):
    outcomes = drive(ToyEngine(slots=8), [asked]).outcomes
    return {row.sample: outcome for row, outcome in outcomes.items()}


def test_every_event_is_told(desk):
    one = desk(slots=4)
    asked = [request(f"r{i}", n=1 + i % 2) for i in range(8)]
    for each in asked:
        one.lanes.put(each)
    one.open()
    one.until(*(each.id for each in asked))
    for each in asked:
        assert one.over[each.id] == alone(each)
        for sample in range(each.decoding.n):
            tokens = [e.token for e in one.events if isinstance(e, TokenEvent) and e.row == RowId(each.id, sample)]
            assert tuple(tokens) == one.over[each.id][sample].tokens
    assert [one.lanes.running(lane) + one.lanes.waiting(lane) for lane in ("interactive", "batch")] == [0, 0]


def test_a_cancelled_slot_serves_another_in_the_next_step(desk):
    one = desk(slots=1)
    for id in ("first", "second"):
        one.lanes.put(request(id))
    one.step(2)
    one.lanes.cancel("first")
    told = len(one.events)
    one.step(2)
    assert any("second" in ran for ran in one.engine.ran[2:4])
    assert all(event.row.request == "second" for event in one.events[told + 3 :])
    one.lanes.cancel("nobody")
    one.lanes.put(request("third"))
    one.lanes.cancel("third")
    one.open()
    one.until("second")
    assert set(one.over) == {"second"}


@pytest.mark.parametrize("samples", [1, 2])
def test_batch_rows_yield_before_the_next_step_and_lose_nothing(desk, samples):
    one = desk(slots=4)
    batch = [request(f"b{i}", n=samples) for i in range(4)]
    for each in batch:
        one.lanes.put(each, "batch")
    one.step(5)
    assert one.lanes.running("batch") == 4
    quick = [request(f"i{i}", tokens=4) for i in range(3)]
    for each in quick:
        one.lanes.put(each)
    one.step(2)  # the step that ran may have begun before they were put
    assert one.lanes.running("interactive") == 3
    assert one.lanes.yields >= 1
    assert {"i0", "i1", "i2"} <= one.engine.ran[-1]
    assert "b0" in one.engine.ran[-1] or samples == 2  # the oldest batch row keeps what is left
    one.open()
    one.until(*(each.id for each in [*batch, *quick]))
    for each in [*batch, *quick]:
        assert one.over[each.id] == alone(each)
    seen = [(e.row, e.t) for e in one.events if isinstance(e, TokenEvent)]
    assert len(seen) == len(set(seen)) == sum(len(o.tokens) for own in one.over.values() for o in own.values())


def test_a_wide_request_makes_everybody_in_the_batch_yield_and_enters_an_empty_engine(desk):
    one = desk(slots=2)
    for id in ("b0", "b1"):
        one.lanes.put(request(id), "batch")
    one.step(2)
    one.lanes.put(request("wide", tokens=3, n=5))
    one.open()
    one.until("wide", "b0", "b1")
    assert one.over["wide"] == alone(request("wide", tokens=3, n=5))
    assert one.over["b1"] == alone(request("b1"))


def test_batch_rows_wait_while_somebody_else_does(desk):
    one = desk(slots=1)
    for id in ("i0", "i1"):
        one.lanes.put(request(id, tokens=3))
    one.lanes.put(request("b0", tokens=3), "batch")
    one.open()
    one.until("b0")
    order = list(one.over)
    assert order == ["i0", "i1", "b0"]


def test_an_id_that_comes_again_while_its_last_run_ends_is_a_new_request(desk):
    one = desk(slots=1)
    one.lanes.put(request("same", tokens=40))
    one.step(2)
    one.lanes.cancel("same")
    one.lanes.put(request("same", tokens=5))
    one.open()
    one.until("same")
    assert one.over["same"] == alone(request("same", tokens=5))


def test_a_row_that_goes_another_way_than_its_reader_has_gives_its_slot_back(desk):
    class Forgetful(Gate):
        """Draws with other noise when a row comes back: its promise is broken."""

        def submit(self, request):
            super().submit(dataclasses.replace(request, resume=(), noise_id="another") if request.resume else request)

    one = desk(slots=1, kind=Forgetful)
    one.lanes.put(request("b", tokens=4000), "batch")
    one.step(30)
    one.lanes.put(request("i", tokens=2))
    one.open()
    one.until("i", "b")
    assert one.over["b"][0].error.kind == "Diverged"
    one.lanes.put(request("next", tokens=2), "batch")
    one.until("next")
    assert max(index for index, ran in enumerate(one.engine.ran) if "b" in ran) < 4000, "it ran no further"
    assert one.lanes.running("batch") == 0


def test_a_failure_of_the_engine_is_seen():
    class Broken(ToyEngine):
        def step(self):
            raise RuntimeError("no more memory")

    woken = threading.Event()
    lanes = Lanes(lambda: Broken(slots=1), 1, lambda events: None, woken.set)
    lanes.start()
    woken.clear()
    lanes.put(request("r"))
    for _ in range(600):
        if lanes.failure:
            break
        woken.wait(0.1)
    assert "no more memory" in lanes.failure
    lanes.join()
