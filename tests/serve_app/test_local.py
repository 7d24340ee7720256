"""The gateway in this process: several models, names, readiness."""

import asyncio

import pytest

from raydecode.config import parse_serve
from raydecode.engine.toy import ToyEngine
from raydecode.errors import UserError
from raydecode.events import OutcomeEvent
from raydecode.request import DecodingSpec, Request, Text
from serve_app.gateway import Unavailable
from serve_app.live import EngineDied
from serve_app.local import LocalGateway

TWO = """
models:
  - {name: one, model: toy, engine: {name: toy, slots: 4}, decoding: {drafter: none}}
  - {name: two, model: toy, engine: {name: toy, slots: 2, max_length: 64}}
"""


def test_two_models():
    async def scenario():
        gateway = LocalGateway(parse_serve(TWO))
        assert [one.name for one in gateway.models()] == ["one", "two"]
        assert not await gateway.ready()
        with pytest.raises(Unavailable, match="not loaded"):
            await gateway.open("one", Request("r", "r", Text("a")))
        async with gateway:
            assert await gateway.ready()
            served = {one.name: one for one in gateway.models()}
            assert (served["one"].engine, served["one"].promise, served["two"].context) == ("toy", "bitwise", 64)
            assert served["one"].context > 64
            with pytest.raises(UserError) as caught:
                await gateway.open("tow", Request("r", "r", Text("a")))
            assert (caught.value.field, caught.value.nearest) == ("model", "two")
            texts = []
            for name in ("one", "two"):
                stream = await gateway.open(name, Request("r", "r", Text("ab"), DecodingSpec(max_tokens=9, seed=1)))
                texts += [e.text async for events in stream for e in events if isinstance(e, OutcomeEvent)]
            assert texts[0] == texts[1]
            assert await gateway.encode("one", Text("ab")) == [0, 1]
            assert len(await gateway.token_bytes("two")) == 5
        assert not await gateway.ready()

    asyncio.run(scenario())


class Broken(ToyEngine):
    """Steps until told to break."""

    breaks = False

    def step(self):
        if self.breaks:
            raise RuntimeError("a secret prompt")
        return super().step()


def test_what_ended_an_engine_is_in_the_log_and_not_in_answers(caplog):
    async def scenario():
        config = parse_serve("models: [{name: m, model: toy, engine: {name: toy, slots: 2}}]")
        async with LocalGateway(config, {"m": lambda: Broken(slots=2, stream=True)}) as gateway:
            gateway.engines["m"].engine.breaks = True
            stream = await gateway.open("m", Request("r", "r", Text("ab")))
            with pytest.raises(EngineDied):
                _ = [events async for events in stream]
            for _ in range(2):
                with pytest.raises(Unavailable, match="has ended; the server's log") as caught:
                    await gateway.open("m", Request("r", "r", Text("ab")))
            return str(caught.value)

    said = asyncio.run(scenario())
    assert "secret" not in said + caplog.text
    assert caplog.text.count("has ended") == 1
    assert "test_local.py" in caplog.text
