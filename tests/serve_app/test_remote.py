"""Replicas on Ray Serve: events arrive as in one process, and go on elsewhere when a replica is killed."""

import asyncio

import pytest

from raydecode.errors import UserError
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Text
from serve_app.gateway import Overloaded
from serve_app.remote import RemoteStream
from tests.actors.told import told
from tests.serve_app.serving import (
    configured,
    deployed,
    idle,
    kill,
    loads,
    over,
    read,
    request,
    undisturbed,
    until,
)


@pytest.fixture(scope="module")
def two(serve_session):
    """Two replicas of the toy."""
    with deployed(configured("limits.queue=6", scaling="{min: 2, max: 2}")) as (gateway, handle):
        yield gateway, handle


def test_events_are_those_of_an_engine_of_ones_own(two):
    gateway, _ = two
    asked = [request(f"r{i}", tokens=10, n=1 + i % 3) for i in range(4)]

    async def scenario():
        streams = [await gateway.open("toy", one) for one in asked]
        return await asyncio.gather(*map(read, streams))

    for one, events in zip(asked, over(gateway, scenario), strict=True):
        assert told(events) == undisturbed(one)
    assert gateway.models()[0].promise == "bitwise"


def test_what_is_asked_besides(two):
    gateway, _ = two

    async def scenario():
        assert await gateway.ready()
        assert await gateway.encode("toy", Text("ab(")) == [0, 1, 2]
        assert await gateway.token_bytes("toy") == [b"a", b"b", b"(", b")", b""]
        with pytest.raises(UserError, match="no model 'tyo'"):
            await gateway.open("tyo", request("r"))
        refused = await gateway.open("toy", request("r", n=0))
        (event,) = await read(refused)
        assert (event.reason, event.error.kind) == ("error", "BadLimit")

    over(gateway, scenario)


def test_a_reader_that_leaves_frees_the_slot_there(two):
    gateway, handle = two

    async def scenario():
        streams = [await gateway.open("toy", request(f"r{i}", tokens=3000)) for i in range(5)]
        for stream in streams:
            await anext(stream)
        waiting = asyncio.create_task(read(streams[0]))
        await asyncio.sleep(0)
        for stream in streams:
            await stream.aclose()
        await waiting  # is told that it is over
        await until(lambda: idle(handle))

    over(gateway, scenario)


def test_full_queues_are_refused(two):
    gateway, handle = two

    async def scenario():
        streams, refusals = [], []
        for i in range(40):
            try:
                streams.append(await gateway.open("toy", request(f"r{i}", tokens=3000)))
            except Overloaded as full:
                refusals.append(full.retry_after_s)
        assert 16 < len(streams) <= 28  # 8 slots and a queue of 6 each
        assert len(refusals) == 40 - len(streams)
        assert min(refusals) >= 1
        await asyncio.gather(*(stream.aclose() for stream in streams))
        await until(lambda: idle(handle))

    over(gateway, scenario)


def test_a_killed_replicas_streams_go_on_in_the_other(two):
    gateway, handle = two
    asked = [request(f"r{i}", n=1 + (i == 3)) for i in range(6)]

    async def scenario():
        streams = [await gateway.open("toy", one) for one in asked]
        seen = [await anext(stream) for stream in streams]
        victim = max(await loads(handle), key=lambda one: one["running"]["interactive"])
        assert victim["running"]["interactive"]
        kill(victim)
        rest = await asyncio.gather(*map(read, streams))
        await until(lambda: _both(handle))
        return [first + more for first, more in zip(seen, rest, strict=True)], [one.migrations for one in streams]

    events, migrations = over(gateway, scenario)
    for one, own in zip(asked, events, strict=True):
        assert told(own) == undisturbed(one)
        tokens = [(event.row, event.t) for event in own if isinstance(event, TokenEvent)]
        assert len(tokens) == len(set(tokens))
        assert sum(isinstance(event, OutcomeEvent) for event in own) == one.decoding.n
    assert sum(migrations) >= 1


async def _both(handle):
    found = await loads(handle)
    return len(found) == 2 and found


class _Slow:
    """A gateway whose replica takes a request only when it is let."""

    patience_s = 60.0

    def __init__(self):
        self.known, self.asked, self.let, self.ended = {}, asyncio.Event(), asyncio.Event(), []

    async def run(self, model, request, lane, steps):
        self.asked.set()
        await self.let.wait()
        return self

    async def taken(self):
        return "served"

    def end(self, cancel):
        self.ended.append(cancel)


def test_a_reader_that_leaves_while_its_request_is_taken_leaves_nothing_open():
    async def scenario():
        slow = _Slow()
        stream = RemoteStream(slow, "toy", request("r"), "interactive", False)
        beginning = asyncio.create_task(stream.begin())
        await slow.asked.wait()
        await stream.aclose()
        slow.let.set()
        await beginning
        assert [event async for event in stream] == []
        return slow.ended

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == [True]
