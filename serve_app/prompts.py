"""Prompts that come back (`echo`), with their log-probabilities: a replay of the prompt behind its first token.

`Request.resume` forces ids through the ordinary walk, where every token's log-probability is computed, so the numbers
are those that the model gave the same tokens as output. The text that follows is a request of its own: its noise does
not know that the prompt was scored.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from raydecode.errors import Refused
from raydecode.events import OutcomeEvent, RowStats
from raydecode.request import DecodingSpec, Ids, Request, RowId, Text
from serve_app.answers import Prompted
from serve_app.fold import Scored
from serve_app.gateway import Gateway
from serve_app.relay import Relay, collect
from serve_app.translate import Call


async def prompted(
    gateway: Gateway, call: Call, table: Sequence[bytes], until: float, spend: Callable[[int], None] | None
) -> list[Prompted]:
    """The call's prompts as text, and their tokens where they shall be scored."""
    ids = await asyncio.gather(*(gateway.encode(call.model, request.prompt) for request in call.requests))
    texts = [
        request.prompt.text
        if isinstance(request.prompt, Text)
        else b"".join(table[id] for id in own).decode("utf-8", "replace")
        for request, own in zip(call.requests, ids, strict=True)
    ]
    if not call.score:
        return [Prompted(text) for text in texts]
    wanted = [(request, own) for request, own in zip(call.requests, ids, strict=True) if len(own) > 1]
    logprobs: dict[str, Sequence[tuple[float, tuple[tuple[int, float], ...]]]] = {}
    if wanted:
        requests = tuple(_replay(request, own, call.top or 0) for request, own in wanted)
        scoring = dataclasses.replace(call, requests=requests, trace=False, n=1)
        relay = await collect(Relay(gateway, scoring, until, spend))  # all at once: the engine batches them
        logprobs = {request.id: held[0].logprobs for request, held in zip(requests, relay.ended, strict=True)}
    return [
        Prompted(text, _scored(own, logprobs.get(f"{request.id}.prompt", ()), table))
        for request, own, text in zip(call.requests, ids, texts, strict=True)
    ]


def _replay(request: Request, ids: Sequence[int], top: int) -> Request:
    spec = DecodingSpec(max_tokens=len(ids) - 1, logprobs=top, ignore_eos=True)
    return Request(f"{request.id}.prompt", "", Ids((ids[0],)), spec, resume=(tuple(ids[1:]),))


def _scored(
    ids: Sequence[int], logprobs: Sequence[tuple[float, tuple[tuple[int, float], ...]]], table: Sequence[bytes]
) -> tuple[Scored, ...]:
    if len(logprobs) != len(ids) - 1:
        raise Refused(
            "this engine does not give the log-probabilities of a prompt", field="echo", value=True,
            hint="leave out echo or logprobs, or serve the model on engine torch",
        )  # fmt: skip
    facts = [(None, ()), *logprobs]
    out, text = [], b""
    for id, (logp, top) in zip(ids, facts, strict=True):
        out.append(Scored(id, table[id], logp, top, len(text.decode("utf-8", "ignore"))))
        text += table[id]
    return tuple(out)


def silent(call: Call, prompts: Sequence[Prompted]) -> list[list[OutcomeEvent]]:
    """The outcomes of a call that asks for no text (max_tokens: 0)."""
    return [
        [
            OutcomeEvent(RowId(request.id, i), "length", (), b"", stats=RowStats(prompt_tokens=len(said.scored)))
            for i in range(call.n)
        ]
        for request, said in zip(call.requests, prompts, strict=True)
    ]
