"""One server with toy models for all tests of the routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.serve_app.server import Server

MODELS = [
    {"name": "toy", "model": "toy", "engine": {"name": "toy", "slots": 8}},
    {
        "name": "slow", "model": "toy",
        "engine": {"name": "toy", "slots": 2, "options": {"step_s": 0.01}},
        "decoding": {"ignore_eos": True, "max_tokens": 2000},
    },
    {
        "name": "set", "model": "toy", "engine": {"name": "toy", "slots": 2},
        "decoding": {
            "seed": 5, "max_tokens": 7,
            "sampler": [{"name": "temperature", "value": 0.5}, {"name": "typical", "p": 0.9}],
        },
    },
]  # fmt: skip


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server({"models": MODELS, "limits": {"n": 8, "queue": 64}}) as one:
        yield one


@pytest.fixture(scope="session")
def client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
