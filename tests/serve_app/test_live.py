"""An engine behind asyncio: streams, full queues, readers that leave, draining, and an engine that ends."""

import asyncio
import threading

import pytest

from raydecode.conformance.drive import drive
from raydecode.engine.toy import ToyEngine
from raydecode.errors import UserError
from raydecode.events import OutcomeEvent, StepEvent, TextEvent, TokenEvent
from raydecode.request import DecodingSpec, Request, RowId, Text
from serve_app.gateway import Overloaded, Unavailable
from serve_app.live import EngineDied, LiveEngine

WAIT_S = 60


def request(id, tokens=8, **spec):
    return Request(id, id, Text("ab"), DecodingSpec(max_tokens=tokens, seed=4, ignore_eos=True, **spec))


def served(scenario, *, build=None, slots=2, queue=8):
    """Run a scenario over a started engine."""

    async def whole():
        live = LiveEngine(build or (lambda: ToyEngine(slots=slots, stream=True)), slots=slots, queue=queue)
        await live.start()
        try:
            async with asyncio.timeout(WAIT_S):
                return await scenario(live)
        finally:
            await live.close()

    return asyncio.run(whole())


async def all_of(stream):
    return [event async for events in stream for event in events]


async def until(fact):
    while not fact():
        await asyncio.sleep(0.01)


def test_streams_side_by_side_are_what_each_is_alone():
    asked = [request(f"r{i}", n=1 + i % 3) for i in range(7)]

    async def scenario(live):
        return await asyncio.gather(*(all_of(live.open(one)) for one in asked))

    for one, events in zip(asked, served(scenario), strict=True):
        alone = drive(ToyEngine(slots=8), [one])
        assert {e.row: e for e in events if isinstance(e, OutcomeEvent)} == alone.outcomes
        for sample in range(one.decoding.n):
            row = RowId(one.id, sample)
            assert [e for e in events if isinstance(e, TokenEvent) and e.row == row] == alone.tokens[row]
            shown = b"".join(e.bytes for e in events if isinstance(e, TextEvent) and e.row == row)
            assert shown == alone.outcomes[row].text
        assert not any(isinstance(e, StepEvent) for e in events)


def test_steps_come_when_asked_for():
    async def scenario(live):
        return await all_of(live.open(request("r"), steps=True))

    assert sum(isinstance(event, StepEvent) for event in served(scenario)) == 8


class Gated(ToyEngine):
    """Steps when it is let; the first two, of the probe, at once."""

    def __init__(self, slots=2):
        super().__init__(slots=slots, stream=True)
        self.gate = threading.Event()

    def step(self):
        if self.steps >= 2:
            assert self.gate.wait(WAIT_S)
        return super().step()


def test_a_full_queue_is_said_with_a_time_to_come_back():
    async def scenario(live):
        streams = [live.open(request(f"r{i}")) for i in range(2)]
        await until(lambda: live.lanes.running("interactive") == 2)
        streams += [live.open(request(f"q{i}")) for i in range(3)]
        with pytest.raises(Overloaded) as caught:
            live.open(request("one too many"))
        assert caught.value.retry_after_s >= 1
        live.open(request("batch"), "batch")  # has a queue of its own
        live.engine.gate.set()
        return [len(await all_of(stream)) for stream in streams]

    assert all(served(scenario, build=Gated, queue=3))


def test_a_burst_on_an_idle_engine_fills_its_slots_before_its_queue():
    async def scenario(live):
        streams = [live.open(request(f"r{i}", n=1 + (i == 1))) for i in range(4)]  # at once: nothing is admitted yet
        with pytest.raises(Overloaded, match="2 requests wait"):
            live.open(request("one too many"))
        live.open(request("batch"), "batch")  # everything before it waits, in its own lane nobody does
        live.engine.gate.set()
        return [len(await all_of(stream)) for stream in streams]

    assert all(served(scenario, build=lambda: Gated(3), slots=3, queue=2))


def test_a_reader_that_leaves_frees_its_slot():
    async def scenario(live):
        streams = [live.open(request(f"r{i}", tokens=4000)) for i in range(6)]
        await anext(streams[0])
        for stream in streams:
            await stream.aclose()
            await stream.aclose()
        assert [event async for event in streams[0]] == []
        await until(lambda: not live.engine.busy and not live.lanes.running("interactive"))
        return await all_of(live.open(request("r0")))

    assert isinstance(served(scenario)[-1], OutcomeEvent)


def test_an_id_in_use_is_refused():
    async def scenario(live):
        live.open(request("same", tokens=4000))
        with pytest.raises(UserError, match="in use"):
            live.open(request("same"))

    served(scenario)


def test_draining_lets_what_runs_end_and_takes_nothing_new():
    async def scenario(live):
        stream = live.open(request("r", tokens=50))
        assert not await live.drain(0.0)
        with pytest.raises(Unavailable, match="draining"):
            live.open(request("late"))
        drained = asyncio.create_task(live.drain(WAIT_S))
        events = await all_of(stream)
        assert await drained
        return events

    assert served(scenario)[-1].reason == "length"


class Broken(ToyEngine):
    """Ends in the third step."""

    def step(self):
        if self.steps >= 3:
            raise RuntimeError("out of memory")
        return super().step()


def test_an_engine_that_ends_fails_its_streams():
    async def scenario(live):
        stream = live.open(request("r", tokens=30))
        with pytest.raises(EngineDied, match="out of memory"):
            await all_of(stream)
        with pytest.raises(EngineDied):
            live.open(request("late"))
        with pytest.raises(EngineDied):
            live.check()

    served(scenario, build=lambda: Broken(slots=2, stream=True))


def test_a_model_that_does_not_answer_does_not_start():
    class Silent(ToyEngine):
        def submit(self, request):
            super().submit(Request(request.id, "", Text("")))

    with pytest.raises(Unavailable, match="does not answer"):
        served(all_of, build=lambda: Silent(slots=2, stream=True))


def test_what_building_raises_is_raised():
    def build():
        raise UserError("no such model", field="model", value="x")

    with pytest.raises(UserError, match="no such model"):
        served(all_of, build=build)


def test_prompts_are_read_as_the_engine_reads_them():
    async def scenario(live):
        return await live.encode(Text("ab(")), live.token_bytes

    ids, table = served(scenario)
    assert b"".join(table[id] for id in ids) == b"ab("
