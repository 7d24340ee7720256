"""The application as `serve deploy` runs it: through Ray Serve's proxy, from the shipped file's form."""

import json
import urllib.error
import urllib.request

import pytest

from raydecode.errors import UserError
from serve_app import build


@pytest.fixture(scope="module")
def url(serve_session):
    from ray import serve

    args = {"models": [{"name": "toy", "model": "toy", "engine": {"name": "toy", "slots": 4}}]}
    serve.run(build(args), name="raydecode", route_prefix="/")
    yield f"http://127.0.0.1:{serve_session}"
    serve.delete("raydecode")


def post(url, body):
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=120) as answer:
        return answer.read().decode()


def test_a_completion_and_its_stream_are_one_text(url):
    body = {"model": "toy", "prompt": "ab(", "max_tokens": 12, "seed": 3}
    whole = json.loads(post(f"{url}/v1/completions", body))["choices"][0]["text"]
    lines = post(f"{url}/v1/completions", body | {"stream": True}).split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == whole


def test_errors_are_those_of_the_api(url):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{url}/v1/completions", {"model": "tyo", "prompt": "a"})
    assert caught.value.code == 404
    assert "nearest" in json.loads(caught.value.read())["error"]["message"]


def test_a_wrong_configuration_is_refused_before_anything_starts():
    with pytest.raises(UserError) as caught:
        build({"models": [{"model": "toy", "engine": {"slot": 4}}]})
    assert caught.value.field == "models[0].engine.slot"
