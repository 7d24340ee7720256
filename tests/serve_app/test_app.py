"""The application as `serve deploy` runs it: through Ray Serve's proxy, from the shipped file's form."""

import json
import time
import urllib.error
import urllib.request

import pytest

from raydecode.errors import UserError
from serve_app import build


@pytest.fixture(scope="module")
def url(serve_session, tmp_path_factory):
    from ray import serve

    args = {
        "models": [{"name": "toy", "model": "toy", "engine": {"name": "toy", "slots": 4}}],
        "batches": {"path": str(tmp_path_factory.mktemp("batches")), "flush_s": 0.2},
        "http": {"replicas": 2},
    }
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


def test_a_batch_runs_in_a_process_of_its_own_and_metrics_are_of_all(url):
    import openai

    api = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    bodies = [{"model": "toy", "prompt": "ab(", "max_tokens": 12, "seed": i} for i in range(6)]
    lines = [
        json.dumps({"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions", "body": body})
        for i, body in enumerate(bodies)
    ]
    file = api.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    end = time.monotonic() + 120
    while batch.status != "completed":
        assert time.monotonic() < end, batch
        time.sleep(0.2)
        batch = api.batches.retrieve(batch.id)
    answers = [json.loads(one) for one in api.files.content(batch.output_file_id).text.splitlines()]
    texts = [one["response"]["body"]["choices"][0]["text"] for one in answers]
    assert texts == [api.completions.create(**body).choices[0].text for body in bodies]

    def scraped(*labels: str) -> float:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            found = [one for one in answer.read().decode().splitlines() if one.startswith("raydecode_")]
        return sum(float(one.rsplit(" ", 1)[1]) for one in found if all(label in one for label in labels))

    while scraped("raydecode_first_token_seconds_count", 'lane="interactive"') < 6:  # the other ingress pushes its own
        assert time.monotonic() < end
        time.sleep(0.2)
    assert scraped("raydecode_first_token_seconds_count", 'lane="batch"') == 6
    assert scraped("raydecode_batch_rows_total", 'status="200"') == 6
