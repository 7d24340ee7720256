"""The engine that asks a gateway: answers, cancellations that were asked for, the end of a server, which is neither."""

import asyncio
import time

import pytest

from raydecode.request import Request, Text
from serve_app.batches.proxy import Answered, GatewayEngine
from tests.serve_app.batches.local import ENDPOINT, line, looping, response


@pytest.fixture
def loop():
    with looping() as loop:
        yield loop


def engine_of(loop, answer):
    engine = GatewayEngine(ENDPOINT, answer, loop)
    for i in range(2):
        engine.submit(Request(f"r{i}", f"r{i}", Text(line(f"{i}"))))
    return engine


def drained(engine, most):
    """Outcomes by row, until there are `most`."""
    out, end = {}, time.monotonic() + 30
    while len(out) < most:
        assert time.monotonic() < end
        engine.wait(0.1)
        out.update((event.row.request, event) for event in engine.step())
    return out


async def never(asked):
    await asyncio.Event().wait()


def ended(loop):
    """Cancel every task of the loop, as asyncio.run does when it leaves; back when they have ended."""

    async def cancel():
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run_coroutine_threadsafe(cancel(), loop).result(30)


def settled(loop):
    """What was scheduled so far has run."""
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.05), loop).result(30)


def test_a_cancelled_line_has_an_outcome(loop):
    engine = engine_of(loop, never)
    settled(loop)
    engine.cancel("r0")
    assert {id: one.reason for id, one in drained(engine, 1).items()} == {"r0": "cancelled"}
    engine.close()


def test_a_server_that_ends_answers_nothing(loop):
    async def failing(asked):
        """As a gateway whose engines go with the server."""
        try:
            await never(asked)
        except asyncio.CancelledError:
            return Answered(response({"error": {"message": "gone"}}, 503))

    for answer in (never, failing):
        engine = engine_of(loop, answer)
        settled(loop)
        ended(loop)
        settled(loop)
        assert engine.step() == []
        assert engine.busy, "no row may look finished"


def test_what_ends_behind_the_close_is_no_answer(loop):
    gone = asyncio.Event()

    async def late(asked):
        try:
            await gone.wait()
        except asyncio.CancelledError:
            raise ConnectionError("the engine has gone") from None

    engine = engine_of(loop, late)
    settled(loop)
    engine.close()
    settled(loop)
    assert engine.step() == []


def test_a_cancellation_within_is_an_error_of_the_line(loop):
    async def within(asked):
        task = asyncio.ensure_future(never(asked))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    found = drained(engine_of(loop, within), 2)
    assert {one.error.kind for one in found.values()} == {"Cancelled"}
