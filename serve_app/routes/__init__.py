"""One file per group of addresses; `routers` is the list of them."""

from __future__ import annotations

from fastapi import APIRouter

from serve_app.routes import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    methods,
    metrics,
    models,
    responses,
)
from serve_app.service import Service


def routers(service: Service) -> list[APIRouter]:
    """All routers of the app. A new group of addresses adds its module here."""
    every = (models, completions, chat, responses, embeddings, files, batches, methods, metrics, health)
    return [module.routes(service) for module in every]
