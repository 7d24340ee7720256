"""One request, one text: through HTTP and through `raydecode generate`."""

import asyncio

import httpx
import pytest

from raydecode.config import parse_serve
from serve_app.ingress import create_app
from serve_app.local import LocalGateway
from tests.actors.local import LocalJob, job_of, prompts, rows_of

SERVER = "models: [{name: m, model: toy, engine: {name: toy, slots: 3}}]"
DECODINGS = {
    "plain": {},
    "a chain": {"sampler": [{"name": "top_k", "k": 3}, {"name": "temperature", "value": 0.7}], "n": 2},
    "a state and a stop": {"sampler": "mirostat2", "stop": ["ab"], "drafter": "token_recycling"},
}


@pytest.mark.parametrize("name", DECODINGS)
def test_server_and_batch_give_the_same_text(tmp_path, name):
    rows, decoding = prompts(9), {"max_tokens": 14, "seed": 3, **DECODINGS[name]}
    job = job_of(tmp_path, rows, decoding=decoding)
    LocalJob(job).run()
    batch = {(row["id"], row["sample"]): (row["text"], row["finish_reason"]) for row in rows_of(job)}

    async def scenario():
        async with LocalGateway(parse_serve(SERVER)) as gateway:
            transport = httpx.ASGITransport(create_app(gateway, gateway.config))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:

                async def ask(row):
                    body = {"model": "m", "prompt": row["prompt"], "noise_id": row["name"], "decoding": decoding}
                    answer = await client.post("/v1/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    return row["name"], answer.json()

                return await asyncio.gather(*map(ask, rows))

    for id, answer in asyncio.run(scenario()):
        for choice, said in zip(answer["choices"], answer["raydecode"]["samples"], strict=True):
            assert (choice["text"], said["reason"]) == batch[id, choice["index"]]
