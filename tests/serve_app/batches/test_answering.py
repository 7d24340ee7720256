"""Lines that wait for room, that are run again when a stream breaks, and that wait for a new day of their key."""

import asyncio
import time

import pytest

from raydecode.events import OutcomeEvent
from raydecode.request import Request, RowId, Text
from serve_app.batches import answering
from serve_app.batches.answering import Patient
from serve_app.batches.input import BatchLine
from serve_app.batches.records import Batch
from serve_app.gateway import Overloaded, Unavailable
from serve_app.keys import hashed
from serve_app.local import LocalGateway
from serve_app.observe.telling import Telling
from serve_app.service import Service
from tests.serve_app.toy import config_of, http, serving

LINE = BatchLine("a", "/v1/completions", {"model": "toy", "prompt": "ab", "max_tokens": 5, "seed": 1})
CREATED = {"at": time.time(), "window_s": 3600, "endpoint": "/v1/completions", "owner": "me"}


class Failing:
    """A gateway that fails before it does as another: refusals to open, to read and to list the tokens, then streams
    that break."""

    def __init__(self, gateway, refusals=(), asides=(), breaks=0, why=None):
        self._gateway, self._refusals, self.breaks, self.lanes = gateway, list(refusals), breaks, []
        self._asides, self._why = {"encode": list(asides), "token_bytes": list(asides)}, why

    def __getattr__(self, name):
        return getattr(self._gateway, name)

    async def open(self, model, request, *, lane="interactive", steps=False):
        self.lanes.append(lane)
        if self._refusals:
            raise self._refusals.pop(0)
        stream = await self._gateway.open(model, request, lane=lane, steps=steps)
        if self.breaks:
            self.breaks -= 1
            return _Broken(stream, self._why or Unavailable("its replica has gone"))
        return stream

    async def encode(self, model, prompt):
        return await self._aside("encode", model, prompt)

    async def token_bytes(self, model):
        return await self._aside("token_bytes", model)

    async def _aside(self, name, *asked):
        if self._asides[name]:
            raise self._asides[name].pop(0)
        return await getattr(self._gateway, name)(*asked)


class _Broken:
    migrations = 0

    def __init__(self, stream, why):
        self._stream, self._why = stream, why

    def __aiter__(self):
        return self

    async def __anext__(self):
        raise self._why

    async def aclose(self):
        await self._stream.aclose()


def answered(monkeypatch, line=LINE, keys=(), before=lambda service: None, **failing):
    """(the answer, the failing gateway)"""
    monkeypatch.setattr(answering, "PAUSE_S", 0.01)

    async def test():
        config = config_of(keys=list(keys))
        async with LocalGateway(config) as local:
            gateway = Failing(local, **failing)
            service = Service(gateway, config, Telling.plain())
            before(service)
            one = answering.answering(service, gateway)
            return await one(Batch("batch_" + "a" * 32, CREATED), line), gateway

    return asyncio.run(asyncio.wait_for(test(), 60))


def test_a_line_waits_for_room_in_its_own_lane(monkeypatch):
    refusals = [Overloaded("full", 0.01), Unavailable("starting"), Overloaded("full", 0.01)]
    found, gateway = answered(monkeypatch, refusals=refusals)
    assert found.response["status_code"] == 200
    assert len(found.tokens) == found.response["body"]["usage"]["completion_tokens"]
    assert gateway.lanes == ["batch"] * 4


def test_a_stream_that_breaks_is_run_again_a_few_times(monkeypatch):
    whole, _ = answered(monkeypatch)
    again, gateway = answered(monkeypatch, breaks=2)
    assert again.tokens == whole.tokens
    assert len(gateway.lanes) == 3
    gone, _ = answered(monkeypatch, breaks=9)
    assert gone.response["status_code"] == 503


def test_what_a_line_asks_besides_waits_for_room_too(monkeypatch):
    line = BatchLine("a", LINE.url, LINE.body | {"logprobs": 2, "echo": True})
    whole, _ = answered(monkeypatch, line)
    assert whole.response["status_code"] == 200
    again, gateway = answered(monkeypatch, line, asides=[Overloaded("full", 0.01), Unavailable("starting")])
    assert again.tokens == whole.tokens
    assert not any(gateway._asides.values())


def test_a_stream_that_finds_every_queue_full_waits_without_a_count(monkeypatch):
    whole, _ = answered(monkeypatch)
    again, gateway = answered(monkeypatch, breaks=7, why=Overloaded("full", 0.01))
    assert again.tokens == whole.tokens
    assert len(gateway.lanes) == 8


def test_a_line_without_a_seed_has_the_same_text_every_time(monkeypatch):
    line = BatchLine("a", LINE.url, {k: v for k, v in LINE.body.items() if k != "seed"} | {"max_tokens": 30})
    one, other = (answered(monkeypatch, line)[0] for _ in range(2))
    assert one.tokens == other.tokens
    assert answered(monkeypatch, BatchLine("b", line.url, line.body))[0].tokens != one.tokens


def test_a_line_is_refused_in_the_words_of_its_route(monkeypatch):
    """One body means one thing wherever it comes from, also where the model's context is asked."""
    body = LINE.body | {"max_tokens": 1_000_000}

    async def route():
        async with serving(config_of()) as app, http(app) as asking:
            return await asking.post(LINE.url, json=body)

    said = asyncio.run(asyncio.wait_for(route(), 60))
    found, _ = answered(monkeypatch, BatchLine("a", LINE.url, body))
    assert said.status_code == found.response["status_code"] == 400
    assert said.json() == found.response["body"]
    assert "context" in said.json()["error"]["message"]


def test_a_key_without_tokens_waits_for_the_next_day(monkeypatch):
    monkeypatch.setattr(answering, "QUOTA_S", 0.01)
    looks = []

    def used_up(service):
        account = service.keys.accounts[hashed("me")]
        account.used_up = lambda unix: looks.append(unix) or len(looks) < 3

    key = {"name": "me", "sha256": hashed("me"), "tokens_per_day": 5}
    found, _ = answered(monkeypatch, keys=[key], before=used_up)
    assert found.response["status_code"] == 200
    assert len(looks) == 3


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "tox"}, 404, "nearest: toy"),
        ({"n": 10**6}, 400, "n"),
        ({"stream": True}, 400, "whole"),
        ({"prompt": "a" * 5000}, 400, "context"),
        ({"temperature": "hot"}, 400, "temperature"),
    ],
)
def test_what_a_route_refuses_is_refused(monkeypatch, change, status, said):
    found, _ = answered(monkeypatch, BatchLine("a", LINE.url, LINE.body | change))
    assert found.response["status_code"] == status
    assert said in found.response["body"]["error"]["message"]


def test_a_patient_gateway_passes_all_else_on():
    class Plain:
        def models(self):
            return ["m"]

        async def encode(self, model, prompt):
            return [1]

        async def token_bytes(self, model):
            return [b"a"]

        async def ready(self):
            return True

        async def open(self, model, request, *, lane, steps):
            return [OutcomeEvent(RowId(request.id), "stop", (), b"")]

    async def test():
        one = Patient(Plain())
        stream = one.open("m", Request("r", "", Text("a")))
        asked = (one.encode("m", Text("a")), one.token_bytes("m"), one.ready(), stream)
        return one.models(), await asyncio.gather(*asked)

    models, (ids, table, ready, stream) = asyncio.run(test())
    assert (models, ids, table, ready, len(stream)) == (["m"], [1], [b"a"], True, 1)
