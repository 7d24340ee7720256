"""Items over a connection: in order, a frame per turn, none from strangers, and an end that is noticed."""

import asyncio
import pickle
import struct

import pytest

from serve_app.lines import Inbox, Lines

WAIT_S = 30


def over(scenario):
    async def whole():
        inbox, lines = Inbox("127.0.0.1"), Lines()
        address = await inbox.start()
        try:
            async with asyncio.timeout(WAIT_S):
                await scenario(inbox, lines, address)
        finally:
            await inbox.close()

    asyncio.run(whole())


async def until(fact):
    while not fact():
        await asyncio.sleep(0.01)


def test_streams_share_a_connection_and_keep_their_order():
    async def scenario(inbox, lines, address):
        seen = {k: [] for k in range(3)}
        numbers = [inbox.open(seen[k].append) for k in range(3)]
        line, same = await asyncio.gather(lines.to(address), lines.to(address))
        assert line is same
        for i in range(50):
            for number in numbers:
                line.put(number, i)
            if i % 7 == 0:
                await asyncio.sleep(0)
        await until(lambda: all(len(items) == 50 for items in seen.values()))
        assert all(items == list(range(50)) for items in seen.values())
        inbox.forget(numbers[0])
        line.put(numbers[0], "late")
        line.put(numbers[1], "last")
        await until(lambda: seen[1][-1] == "last")
        assert len(seen[0]) == 50

    over(scenario)


def test_a_inbox_hears_that_the_other_side_has_gone_and_the_other_way_round():
    async def scenario(inbox, lines, address):
        heard, others = [], []
        number = inbox.open(heard.append)
        inbox.open(others.append)  # of another replica
        line = await lines.to(address)
        line.put(number, "item")
        await until(lambda: heard)
        told = []
        line.listeners.add(lambda: told.append("ended"))
        line.end()
        await until(lambda: heard[-1] is None)
        assert (heard, others) == (["item", None], [])
        assert told == ["ended"]
        again = await lines.to(address)
        again.listeners.add(lambda: told.append("hung up"))
        await inbox.close()
        await until(lambda: told[-1] == "hung up")
        assert again.broken
        again.put(number, "to nobody")
        with pytest.raises(OSError):
            await lines.to(address)

    over(scenario)


def test_nothing_is_read_from_who_does_not_know_the_secret():
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("it was read",))

    async def scenario(inbox, lines, address):
        source, sink = await asyncio.open_connection(address.host, address.port)
        frame = pickle.dumps([(1, Bomb())])
        sink.write(b"x" * len(address.secret) + struct.pack("!I", len(frame)) + frame)
        assert await source.read() == b""
        sink.close()
        assert repr(address.secret) not in repr(address)

    over(scenario)
