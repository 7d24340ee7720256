"""A server in one process: toy engines, the real gateway, the real app with its lifespan; no Ray, no port."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from raydecode.config import ServeConfig
from serve_app.ingress import create_app
from serve_app.local import LocalGateway

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI


def config_of(**sections: Any) -> ServeConfig:
    """One toy model; `engine` and `decoding` change it, other names are sections."""
    engine = {"name": "toy", "dtype": "float32", "slots": 4} | sections.pop("engine", {})
    model = {"name": "toy", "model": "toy", "engine": engine, "decoding": sections.pop("decoding", {})}
    return ServeConfig.model_validate({"models": [model], **sections})


@asynccontextmanager
async def serving(config: ServeConfig, **options: Any) -> AsyncIterator[FastAPI]:
    """The app, its engines up, its batches running."""
    async with LocalGateway(config) as gateway:
        app = create_app(gateway, config, **options)
        async with app.router.lifespan_context(app):
            yield app


def http(app: FastAPI, **headers: str) -> "httpx2.AsyncClient":
    """A client without a port. httpx2 and not httpx: OpenAI's client brings it and takes no other."""
    import httpx2

    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://127.0.0.1", headers=headers)


def client(app: FastAPI, key: str = "none") -> "AsyncOpenAI":
    """OpenAI's client of it. A second to import, which a driver process can do without."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key=key, http_client=http(app), max_retries=0)
