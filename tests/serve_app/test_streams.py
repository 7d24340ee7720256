"""What a stream does when something ends it: its slot is free, whoever ended it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from raydecode.config import check_serve
from raydecode.events import Event, Fault, OutcomeEvent, TextEvent, TokenEvent
from raydecode.request import Prompt, Request, RowId
from serve_app import translate
from serve_app.bodies import CompletionBody
from serve_app.gateway import Overloaded, Served, Unavailable
from serve_app.ingress import create_app
from serve_app.relay import EventStream, Relay
from tests.serve_app.server import Server, events, until

HOURS = 7200.0
LONG = {"model": "slow", "prompt": "ab", "max_tokens": 2000, "seed": 1}


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    with server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        next(response.iter_lines())
        assert server.held("slow") == 1
    until(lambda: server.held("slow") == 0)


def test_a_client_that_leaves_before_the_answer_frees_its_slot(server: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json={**LONG, "prompt": ["ab"] * 6, "n": 2}, timeout=0.3)
    until(lambda: server.held("slow") == 0)


def test_many_clients_leave_at_random(server: Server) -> None:
    rng = random.Random(0)

    def one(seconds: float, lines: int) -> None:
        with httpx.Client(base_url=server.url, timeout=seconds) as client, contextlib.suppress(httpx.HTTPError):
            if not lines:
                client.post("/v1/completions", json=LONG)
                return
            with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
                for _ in zip(range(lines), response.iter_lines(), strict=False):
                    pass

    threads = [threading.Thread(target=one, args=(rng.uniform(0.02, 1), rng.choice([0, 1, 9]))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until(lambda: server.held("slow") == 0)
    assert server.post("/v1/completions", {**LONG, "max_tokens": 2}).status_code == 200


def test_a_trace_shows_tokens_and_steps(server: Server) -> None:
    body = {
        "model": "toy",
        "prompt": "ab",
        "max_tokens": 12,
        "seed": 3,
        "trace": True,
        "decoding": {"drafter": "ngram"},
    }
    chunks = server.sse("/v1/completions", body)
    tokens = [one for chunk in chunks for one in chunk["raydecode"].get("tokens", ())]
    steps = [one for chunk in chunks for one in chunk["raydecode"].get("steps", ())]
    samples = chunks[-1]["raydecode"]["samples"]
    assert [one["t"] for one in tokens] == list(range(samples[0]["tokens"]))
    assert sum(len(one["emitted"]) for one in steps) == len(tokens)
    assert all(len(one["top"]) == 5 and one["logp"] <= 0 for one in tokens)
    assert sum(one["drafted"] for one in tokens) == samples[0]["stats"]["accepted"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "".join(
        bytes(one["bytes"]).decode() for one in tokens
    )
    assert all(chunk["choices"][0]["logprobs"] is None for chunk in chunks)


def test_request_ids_come_back(server: Server) -> None:
    assert server.http.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    encoded = "a+b/c=="
    assert server.http.get("/healthz", headers={"x-request-id": encoded}).headers["x-request-id"] == encoded
    made = [
        server.http.get("/v1/models", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b\tc")
    ]
    assert all(id.startswith("req-") for id in made)
    assert made[0] != made[1]
    assert server.http.get("/readyz").json() == {"status": "ready"}
    assert server.http.get("/healthz").headers.get("access-control-allow-origin") is None


# ---------------------------------------------------------------------- a gateway that does what a test wants
class Skipping(asyncio.SelectorEventLoop):
    """Its time can be put forward, so that a limit is reached without waiting and never by a slow machine."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


async def hours(seconds: float = HOURS) -> None:
    """Pass, at once, until a limit says that it is enough."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Skipping)
    loop.skipped += seconds
    await asyncio.Event().wait()


class Script:
    """A stream of given lists of events; exceptions are raised, numbers are seconds that pass at once."""

    migrations = 0

    def __init__(self, request: Request, script: Sequence[Any]) -> None:
        self._id, self._script = request.id, list(script)
        self.closed = False

    def __aiter__(self) -> AsyncIterator[list[Event]]:
        return self._run()

    async def _run(self) -> AsyncIterator[list[Event]]:
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, float):
                await hours(item)
            else:
                yield [event(RowId(self._id)) for event in item]

    async def aclose(self) -> None:
        self.closed = True


class Scripted:
    """A gateway of one model that plays `script` for every request."""

    def __init__(self, script: Sequence[Any] | Exception) -> None:
        self._script = script
        self.streams: list[Script] = []
        self.engine, self.slow = "", False

    def models(self) -> Sequence[Served]:
        return [Served("m", engine=self.engine)]

    async def open(self, model: str, request: Request, *, lane: str = "interactive", steps: bool = False) -> Script:
        if isinstance(self._script, Exception):
            raise self._script
        self.engine = "toy"
        self.streams.append(Script(request, self._script))
        return self.streams[-1]

    async def token_bytes(self, model: str) -> Sequence[bytes]:
        if self.slow:
            await hours()
        return [b"a"]

    async def encode(self, model: str, prompt: Prompt) -> list[int]:
        return [0]

    async def ready(self) -> bool:
        return False


def asked(gateway: Scripted, **body: Any) -> httpx.Response:
    """A completion in this process."""
    config = check_serve({"models": [{"name": "m", "model": "toy"}]})
    app = create_app(gateway, config)  # type: ignore[arg-type]

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/completions", json={"model": "m", "prompt": "a", **body})

    with asyncio.Runner(loop_factory=Skipping) as runner:
        response = runner.run(post())
    assert all(stream.closed for stream in gateway.streams)
    return response


def token(t: int) -> Any:
    return lambda row: TokenEvent(row, t, 0, b"a")


def text(said: bytes) -> Any:
    return lambda row: TextEvent(row, said)


def outcome(reason: Any, fault: Fault | None = None) -> Any:
    return lambda row: OutcomeEvent(row, reason, (0,), b"a", fault)


SECRET = "a secret prompt"
FAULTS: list[tuple[Any, int, str | None]] = [
    ([[outcome("error", Fault("admission", "ContextOverflow", "too long"))]], 400, "context_length_exceeded"),
    ([[outcome("error", Fault("request", "Refused", "decoding.search: no"))]], 400, "unsupported"),
    ([[outcome("error", Fault("engine", "Deadline", "held"))]], 504, "deadline"),
    ([[outcome("error", Fault("model", "BadLogits", "NaN"))]], 500, "bad_logits"),
    ([[outcome("cancelled")]], 503, "cancelled"),
    ([], 503, "unavailable"),
    ([ValueError(SECRET)], 500, "internal_error"),
    (Overloaded("full", 2.3), 429, "overloaded"),
    (Unavailable("starting"), 503, "unavailable"),
    ([HOURS], 504, "timeout"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("script", "status", "code"), FAULTS, ids=lambda value: str(value)[:30])
def test_a_fault_before_the_first_chunk_has_a_status(
    script: Any, status: int, code: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    response = asked(Scripted(script), stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert ("retry-after" in response.headers) == (status == 429 or isinstance(script, Unavailable))
    assert SECRET not in response.text
    assert SECRET not in caplog.text
    if code == "overloaded":
        assert response.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("after", "code"),
    [
        ([outcome("error", Fault("sampler", "Oops", "x"))], "oops"),
        (ValueError(SECRET), "internal_error"),
        (Unavailable("gone"), "unavailable"),
        (HOURS, "timeout"),
    ],
    ids=["outcome", "unforeseen", "unavailable", "late"],
)
def test_a_fault_after_it_is_the_streams_last_event(after: Any, code: str) -> None:
    response = asked(Scripted([[token(0), text(b"a")], after]), stream=True)
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert SECRET not in response.text
    *chunks, last = events(response.text)
    assert chunks[0]["choices"][0]["text"] == "a"
    assert last["error"]["code"] == code


def test_a_stream_that_ends_well_says_done() -> None:
    response = asked(Scripted([[token(0)], [text(b"a")], [outcome("eos")]]), stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert json.loads(response.text.split("\n\n")[-3][6:])["choices"][0]["finish_reason"] == "stop"


def test_what_comes_before_the_text_has_the_time_limit_too() -> None:
    gateway = Scripted([])
    gateway.slow = True
    response = asked(gateway, logprobs=1)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "timeout")


def test_prompts_are_scored_side_by_side_and_all_let_go() -> None:
    class Longer(Scripted):
        async def encode(self, model: str, prompt: Prompt) -> list[int]:
            return [0, 0]

    gateway = Longer([HOURS])
    assert asked(gateway, prompt=["a", "b"], echo=True, logprobs=1).status_code == 504
    assert len(gateway.streams) == 2


def test_the_fingerprint_is_that_of_the_replica_that_answered() -> None:
    script = [[token(0)], [text(b"a")], [outcome("eos")]]
    first, second = Scripted(script), Scripted(script)
    second.engine = "toy"  # has said so before
    whole = [asked(one).json()["system_fingerprint"] for one in (first, second)]
    first.engine = ""
    streamed = {chunk["system_fingerprint"] for chunk in events(asked(first, stream=True).text)}
    assert whole[0] == whole[1]
    assert streamed == {whole[0]}


def test_a_client_that_does_not_read_has_left() -> None:
    closed = []

    async def rest() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: 1\n\n"
        finally:
            closed.append(True)

    async def send(message: Any) -> None:
        if message.get("body") == b"data: 1\n\n":
            await hours()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with asyncio.timeout(10 * HOURS):
            await EventStream(b"data: 0\n\n", rest())({"type": "http"}, receive, send)

    with asyncio.Runner(loop_factory=Skipping) as runner:
        runner.run(scenario())
    assert closed


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": [0]}], ids=["text", "ids"])
def test_who_leaves_early_pays_for_the_prompt(body: Any) -> None:
    spent: list[int] = []
    config = check_serve({"models": [{"name": "m", "model": "toy"}]})
    gateway = Scripted([[token(0)], [outcome("eos")]])
    made = CompletionBody.model_validate({"model": "m", **body})
    call = translate.completion(made, config.models[0], "id", 1, 0)

    async def scenario() -> None:
        relay = Relay(gateway, call, asyncio.get_running_loop().time() + 60, spent.append)  # type: ignore[arg-type]
        await relay.open()
        async with contextlib.aclosing(relay.events()) as found:
            async for _ in found:
                break
        await relay.aclose()

    asyncio.run(scenario())
    assert sum(spent) == 2  # the token, and the prompt's only one


def test_an_upload_has_a_time_limit(tmp_path: Path) -> None:
    config = check_serve({"models": [{"name": "m", "model": "toy"}], "batches": {"path": str(tmp_path)}})
    app = create_app(Scripted([]), config)  # type: ignore[arg-type]

    async def never() -> AsyncGenerator[bytes, None]:
        yield b"--x\r\n"
        await hours()

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            head = {"content-type": "multipart/form-data; boundary=x"}
            return await client.post("/v1/files", content=never(), headers=head)

    with asyncio.Runner(loop_factory=Skipping) as runner:
        response = runner.run(post())
    assert (response.status_code, response.json()["error"]["code"]) == (408, "timeout")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://a.example", "sec-fetch-site": "cross-site"}, 404),
        ({"origin": "http://localhost", "sec-fetch-site": "same-origin"}, 404),
        ({"origin": "http://localhost"}, 404),
        ({}, 404),
    ],
    ids=str,
)
def test_pages_of_other_origins_change_nothing(headers: dict[str, str], status: int) -> None:
    sections = {"models": [{"name": "m", "model": "toy"}], "http": {"cors_origins": ["https://a.example"]}}
    app = create_app(Scripted([]), check_serve(sections))  # type: ignore[arg-type]

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            upload = client.post("/v1/files", files={"file": b"{}"}, data={"purpose": "batch"}, headers=headers)
            return [await upload, await client.post("/v1/batches/b/cancel", headers=headers)]

    for response in asyncio.run(send()):
        assert response.status_code == status
        assert response.json()["error"]["code"] == ("foreign_origin" if status == 403 else "batches_off")


def test_models_are_asked_once_however_many_want_to_know() -> None:
    class Counting(Scripted):
        asked = 0

        async def ready(self) -> bool:
            self.asked += 1
            return True

    gateway = Counting([])
    app = create_app(gateway, check_serve({"models": [{"name": "m", "model": "toy"}]}))  # type: ignore[arg-type]

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            await asyncio.gather(*(client.get("/readyz") for _ in range(5)))
            assert gateway.asked == 1
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Skipping)
            loop.skipped += 2
            assert (await client.get("/readyz")).status_code == 200

    with asyncio.Runner(loop_factory=Skipping) as runner:
        runner.run(ask())
    assert gateway.asked == 2


def test_addresses_that_are_not_there_and_ways_that_do_not_go(server: Server) -> None:
    assert server.http.get("/v1/nowhere").json()["error"]["code"] == "unknown_url"
    assert server.http.get("/v1/chat/completions").status_code == 405
    assert server.http.post("/v1/completions", content=b"{}").status_code == 415
    assert server.post("/v1/completions", b"[1]").json()["error"]["message"] == "the body must be a JSON object"
    assert server.post("/v1/completions", b"").json()["error"]["code"] == "invalid_body"


def test_methods_are_listed_with_their_schemas(server: Server) -> None:
    listed = server.http.get("/v1/methods").json()["data"]
    assert {"samplers", "drafters"} <= {one["room"] for one in listed}
    top_p = next(one for one in listed if one["name"] == "top_p")
    assert top_p["options"]["properties"]["p"]["maximum"] == 1
    assert {one["room"] for one in server.http.get("/v1/methods?room=drafters").json()["data"]} == {"drafters"}
    assert server.http.get("/v1/methods?room=nowhere").status_code == 400


def test_cors_is_off_unless_configured() -> None:
    app = create_app(
        Scripted([]),  # type: ignore[arg-type]
        check_serve({"models": [{"name": "m", "model": "toy"}], "http": {"cors_origins": ["https://a.example"]}}),
    )

    async def ask(origin: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/readyz", headers={"origin": origin})

    assert asyncio.run(ask("https://a.example")).headers["access-control-allow-origin"] == "https://a.example"
    other = asyncio.run(ask("https://b.example"))
    assert "access-control-allow-origin" not in other.headers
    assert other.status_code == 503
