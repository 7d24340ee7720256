"""Replicas die, clients leave, everybody comes at once, versions change, replicas come and go: no text notices."""

import asyncio
import dataclasses
import random
import time

import pytest

from raydecode.events import OutcomeEvent
from raydecode.request import Text
from serve_app.gateway import Overloaded, Unavailable
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
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


async def follow(gateway, asked):
    stream = await gateway.open("toy", asked)
    return await read(stream), stream.migrations


def test_fifty_streams_survive_the_death_of_every_replica(serve_session):
    """One of two is killed, then the other one that took its streams, so that for a while there is none. A stream takes
    ten seconds in any replica, so each kill finds some however late it comes."""
    asked = [request(f"r{i}", tokens=100, n=1 + (i % 10 == 0)) for i in range(50)]
    config = configured(
        "limits.queue=64",
        **{"engine.slots": 16, "engine.options.step_s": "0.1", "scaling": "{min: 2, max: 2}"},
    )
    with deployed(config) as (gateway, handle):

        async def scenario():
            streams = [await gateway.open("toy", one) for one in asked]
            running = [asyncio.create_task(read(stream)) for stream in streams]
            first, second = await until(lambda: _busy(handle))
            kill(first)
            await until(lambda: moved(streams) > 4)
            before = moved(streams)
            kill(second)
            left = sum(not one.done() for one in running)
            out = await asyncio.gather(*running)
            await until(lambda: idle(handle))
            return out, before, moved(streams), left

        found, before, migrations, left = over(gateway, scenario)
    for one, events in zip(asked, found, strict=True):
        assert told(events) == undisturbed(one)
    assert before > 4
    assert migrations > before or not left, "what the second one held moved, too"


def moved(streams):
    return sum(one.migrations for one in streams)


async def _busy(handle):
    """The loads, once both run something."""
    found = await loads(handle)
    return found if len(found) == 2 and all(one["running"]["interactive"] for one in found) else None


def test_two_hundred_clients_that_leave_at_random_hold_no_slot(serve_session):
    config = configured("limits.queue=256", **{"engine.slots": 16, "scaling": "{min: 2, max: 2}"})
    chance = random.Random(1)

    async def client(gateway, i):
        """Reads for a while and goes, in one of the ways of going."""
        stream = await gateway.open("toy", request(f"c{i}", tokens=2000))
        patience, way = chance.uniform(0.0, 3.0), i % 3
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(patience)
        if way == 1:
            reading.cancel()
        if way == 2:
            await stream.aclose()
        await stream.aclose()
        await asyncio.gather(reading, return_exceptions=True)

    with deployed(config) as (gateway, handle):

        async def scenario():
            await asyncio.gather(*(client(gateway, i) for i in range(200)))
            await until(lambda: idle(handle))
            events, _ = await follow(gateway, request("after", tokens=5))
            return events

        assert told(over(gateway, scenario)) == undisturbed(request("after", tokens=5))


def test_five_times_too_many_are_answered_or_refused(serve_session):
    """A minute of five times what two slots can do."""
    config = configured("limits.queue=4", **{"engine.slots": 2, "scaling": "{min: 1, max: 1}"})
    tokens, seconds = 20, 60.0
    with deployed(config) as (gateway, handle):

        async def client(i):
            try:
                events, _ = await follow(gateway, request(f"o{i}", tokens=tokens))
            except Overloaded:
                return None
            return events

        async def scenario():
            began = time.monotonic()
            await asyncio.gather(*(client(f"warm{i}") for i in range(4)))
            each = (time.monotonic() - began) / 4
            clients, i = [], 0
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                clients.append(asyncio.create_task(client(i)))
                i += 1
                await asyncio.sleep(each / 5)
            answers = await asyncio.gather(*clients)
            await until(lambda: idle(handle))
            return answers

        answers = over(gateway, scenario)
    served = [(i, events) for i, events in enumerate(answers) if events is not None]
    assert 0 < len(served) < len(answers)
    for i, events in served:
        outcomes = [event for event in events if isinstance(event, OutcomeEvent)]
        assert [one.reason for one in outcomes] == ["length"], i
    truth = undisturbed(request("o1", tokens=tokens))
    assert all(told(events) == truth for i, events in served if i == 1)


def test_a_new_version_under_load_loses_no_request(serve_session):
    """The same application deployed again with other settings, while requests come all the time."""
    old = configured("limits.queue=64", scaling="{min: 2, max: 2, drain_s: 2}")
    new = configured("limits.queue=64", **{"engine.slots": 6, "scaling": "{min: 2, max: 2, drain_s: 2}"})
    with deployed(old) as (gateway, handle):
        before = over(gateway, lambda: loads(handle))

        async def scenario():
            stop, answers = asyncio.Event(), {}

            async def client(k):
                i = 0
                while not stop.is_set():
                    asked = request(f"u{k}.{i}", tokens=400 if k == 0 else 30)
                    answers[asked.id] = (asked, await follow(gateway, asked))
                    i += 1

            clients = [asyncio.create_task(client(k)) for k in range(6)]
            await asyncio.sleep(1.0)
            await asyncio.to_thread(_deploy, new)
            await until(lambda: _all_new(handle, {one["pid"] for one in before}))
            await asyncio.sleep(1.0)
            stop.set()
            await asyncio.gather(*clients)
            return answers

        answers = over(gateway, scenario)
        assert len(answers) > 12
        for asked, (events, _) in answers.values():
            assert told(events) == undisturbed(asked)


def _deploy(config):
    import ray
    from ray import serve

    from serve_app.deploy import replicas_of

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    serve.run(replicas_of(config.models[0], config, nodes), name="toy", route_prefix=None)


async def _all_new(handle, old):
    try:
        found = await loads(handle)
    except Exception:  # one of those asked has just left
        return False
    return len(found) == 2 and not old & {one["pid"] for one in found}


@pytest.mark.parametrize("least", [1, 0])
def test_replicas_come_and_go_with_the_load(serve_session, least):
    """1 -> 2 -> 1 and 0 -> 1 or 2 -> 0, with streams all the time."""
    scaling = f"{{min: {least}, max: 2, target: 2, upscale_delay_s: 0, downscale_delay_s: 3, drain_s: 5}}"
    with deployed(configured("limits.queue=64", scaling=scaling)) as (gateway, _):

        async def count():
            from ray import serve

            deployment = next(iter(serve.status().applications["toy"].deployments.values()))
            return deployment.replica_states.get("RUNNING", 0)

        async def at(number):
            return (await count()) == number

        async def scenario():
            await until(lambda: at(least), every=0.5)
            asked = [request(f"s{i}", tokens=900) for i in range(12)]
            running = [asyncio.create_task(follow(gateway, one)) for one in asked]
            await until(lambda: at(2), every=0.5)
            answers = await asyncio.gather(*running)
            late = request("late", tokens=30)
            answers.append(await follow(gateway, late))
            await until(lambda: at(least), every=0.5)
            return [*asked, late], answers

        asked, answers = over(gateway, scenario)
    for one, (events, _) in zip(asked, answers, strict=True):
        assert told(events) == undisturbed(one)


def test_a_request_that_ends_its_replica_is_given_up_and_the_others_go_on(serve_session):
    config = configured("limits.queue=64", **{"engine.options.poison": "))", "scaling": "{min: 2, max: 2}"})
    good = [request(f"g{i}", tokens=1500) for i in range(4)]
    with deployed(config) as (gateway, handle):

        async def scenario():
            running = [asyncio.create_task(follow(gateway, one)) for one in good]
            with pytest.raises(Unavailable, match="in a row"):
                await follow(gateway, dataclasses.replace(request("bad"), prompt=Text("a))")))
            answers = await asyncio.gather(*running)
            await until(lambda: idle(handle))
            return answers

        answers = over(gateway, scenario)
    for one, (events, _) in zip(good, answers, strict=True):
        assert told(events) == undisturbed(one)
