"""Log lines: JSON, with the request's id, without a word of what was asked or answered unless that is wanted."""

import asyncio
import io
import json
import logging

import pytest

from serve_app.observe.logs import LOGGER, configure
from tests.serve_app.toy import config_of, http, serving

log = logging.getLogger(LOGGER)
BODY = {"model": "toy", "prompt": "abba(secret", "seed": 3, "max_tokens": 5, "decoding": {"ignore_eos": True}}


@pytest.fixture
def written():
    """A stream that the log goes to."""
    before = log.handlers[:], log.level, log.propagate
    stream = io.StringIO()
    configure("debug", "json", stream)
    yield stream
    log.handlers[:], log.level, log.propagate = before
    log.setLevel(before[1])


def ask(config, *requests) -> list:
    async def test():
        async with serving(config) as app, http(app) as raw:
            return [await raw.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(asyncio.wait_for(test(), 60))


def lines(stream) -> list[dict]:
    return [json.loads(one) for one in stream.getvalue().splitlines()]


def test_a_line_per_request_with_its_id(written):
    given = {"json": BODY, "headers": {"x-request-id": "mine-1"}}
    replies = ask(config_of(), ("POST", "/v1/completions", given), ("GET", "/v1/models", {}), ("GET", "/healthz", {}))
    assert replies[0].headers["x-request-id"] == "mine-1"
    first, second, third = lines(written)
    assert first["request_id"] == "mine-1"
    assert (first["message"], first["route"]) == ("request", "/v1/completions")
    assert (first["status"], first["model"]) == (200, "toy")
    assert (first["prompt_tokens"], first["output_tokens"]) == (11, 5)
    assert second["request_id"] == replies[1].headers["x-request-id"] != third["request_id"]
    assert (second["level"], third["level"]) == ("info", "debug"), "what is asked every few seconds is quiet"
    assert "secret" not in written.getvalue()


@pytest.mark.parametrize("id", ["x" * 200, "a b", "a\\nb", 'a"b', "ä"])
def test_an_id_that_is_not_decent_is_replaced(written, id):
    (reply,) = ask(config_of(), ("GET", "/v1/models", {"headers": {"x-request-id": id.encode()}}))
    assert reply.headers["x-request-id"].startswith("req-")


def test_prompts_and_texts_only_when_wanted(written):
    ask(config_of(logging={"prompts": True}), ("POST", "/v1/completions", {"json": BODY}))
    stream, request = lines(written)
    assert stream["prompt"] == BODY["prompt"]
    assert stream["texts"][0]
    assert stream["request_id"] == request["request_id"]


def test_faults_are_named_without_their_text(written):
    asked = {"json": BODY | {"prompt": "ab" * 99}}
    ask(config_of(engine={"options": {"context": 16}}), ("POST", "/v1/completions", asked))
    stream, request = lines(written)
    assert stream["faults"] == ["admission: ContextOverflow"]
    assert request["status"] == 400
    assert "abab" not in written.getvalue()


def test_exceptions_and_people(written):
    configure("info", "text", written)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it broke", extra={"raydecode": {"batch": "b1"}})
    assert "error it broke batch=b1" in written.getvalue()
    assert "ValueError: why" in written.getvalue()
    log.debug("unseen")
    assert "unseen" not in written.getvalue()
