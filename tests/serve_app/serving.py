"""Toy models on Ray Serve, and what the tests ask of their replicas."""

import asyncio
import contextlib
import os
import signal

from raydecode.config import parse_serve
from raydecode.conformance.drive import drive
from raydecode.engine.toy import ToyEngine
from raydecode.request import DecodingSpec, Request, Text

WAIT_S = 120.0
STEP_S = 0.01


def request(id, tokens=60, **spec):
    spec = DecodingSpec(max_tokens=tokens, seed=9, ignore_eos=True, **spec)
    return Request(id, id, Text("ab" + "ab()"[len(id) % 4]), spec)


def configured(*overrides, **model):
    """A toy model whose steps take a while. model: sections of it."""
    overrides = [*overrides, *(f"models.0.{name}={value}" for name, value in model.items())]
    text = f"models: [{{name: toy, model: toy, engine: {{name: toy, slots: 8, options: {{step_s: {STEP_S}}}}}}}]"
    return parse_serve(text, overrides)


@contextlib.contextmanager
def deployed(config, name="toy"):
    """(gateway, handle) of the config's one model, on the running Ray Serve."""
    import ray
    from ray import serve

    from serve_app.deploy import replicas_of
    from serve_app.remote import RemoteGateway

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    handle = serve.run(replicas_of(config.models[0], config, nodes), name=name, route_prefix=None)
    try:
        yield RemoteGateway(config, {config.models[0].name: handle}), handle
    finally:
        serve.delete(name)


def over(gateway, scenario):
    """Run a scenario, then let the gateway hang up."""

    async def whole():
        try:
            return await scenario()
        finally:
            await gateway.close()

    return asyncio.run(whole())


async def loads(handle):
    """What every replica says of itself."""
    return await handle.broadcast("load").results_async(timeout_s=WAIT_S)


async def until(fact, every=0.1):
    """Wait for a fact, plain or awaited; bounded."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = fact()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(every)


async def idle(handle):
    """No slot is held and nobody waits, anywhere."""
    try:
        found = await loads(handle)
    except Exception:  # one of those asked has just died, and is to be replaced
        return False
    return all(not any((*one["running"].values(), *one["waiting"].values())) for one in found)


def kill(load):
    os.kill(load["pid"], signal.SIGKILL)


async def read(stream):
    return [event async for events in stream for event in events]


def undisturbed(asked):
    """The same of an engine of its own."""
    run = drive(ToyEngine(slots=8, stream=True), [asked])
    return {
        row.sample: ([*run.tokens.get(row, []), outcome], run.texts.get(row, b""))
        for row, outcome in run.outcomes.items()
    }
