"""`/v1/files` and `/v1/batches` with OpenAI's client, in process on the toy engine."""

import asyncio
import json

import openai
import pytest

from serve_app.keys import hashed
from serve_app.routes.batches import window_s
from tests.serve_app.toy import client, config_of, http, serving

ENDPOINT = "/v1/completions"


def line(id: str, url: str = ENDPOINT, **body) -> str:
    return json.dumps({"custom_id": id, "method": "POST", "url": url, "body": {"model": "toy", **body}})


def run(test) -> None:
    asyncio.run(asyncio.wait_for(test, 120))


def batched(path, **sections):
    return config_of(batches={"path": str(path), "flush_s": 0.05}, **sections)


async def ended(api, id: str):
    while (batch := await api.batches.retrieve(id)).status not in ("completed", "failed", "expired", "cancelled"):
        await asyncio.sleep(0.02)
    return batch


async def results(api, id: str | None) -> list[dict]:
    text = (await api.files.content(id)).text if id else ""
    return [json.loads(one) for one in text.splitlines()]


def test_a_batch_equals_the_same_requests_over_http(tmp_path):
    async def test():
        async with serving(batched(tmp_path)) as app:
            api = client(app)
            bodies = [
                {"prompt": "ab" * (i % 3 + 1), "seed": i, "max_tokens": 12, "temperature": 0.9, "n": 1 + i % 2}
                for i in range(20)
            ]
            text = "\n".join(line(f"r{i}", **body) for i, body in enumerate(bodies))
            file = await api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
            assert (file.purpose, file.status, file.bytes) == ("batch", "processed", len(text))
            batch = await api.batches.create(
                input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", metadata={"job": "nightly"}
            )
            assert batch.status in ("validating", "in_progress")
            batch = await ended(api, batch.id)
            assert batch.status == "completed"
            assert batch.metadata == {"job": "nightly"}
            assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
            assert batch.error_file_id is None
            lines = await results(api, batch.output_file_id)
            assert [one["custom_id"] for one in lines] == [f"r{i}" for i in range(20)]
            for one, body in zip(lines, bodies, strict=True):
                single = await api.completions.create(model="toy", **body)
                answer = one["response"]["body"]
                assert one["response"]["status_code"] == 200
                assert [c["text"] for c in answer["choices"]] == [c.text for c in single.choices]
                assert answer["usage"]["completion_tokens"] == single.usage.completion_tokens
            spent = sum(one["response"]["body"]["usage"]["total_tokens"] for one in lines)
            assert batch.usage.total_tokens == spent

    run(test())


def test_chat_lines_and_wrong_ones(tmp_path):
    chat = "/v1/chat/completions"

    async def test():
        async with serving(batched(tmp_path)) as app:
            api = client(app)
            turns = [{"role": "user", "content": "ab"}]
            text = "\n".join(
                [
                    line("good", chat, messages=turns, max_tokens=4),
                    line("model", chat, messages=turns) .replace('"toy"', '"tox"'),
                    line("field", chat, messages=turns, temprature=1),
                    line("stream", chat, messages=turns, stream=True),
                    line("empty", chat),
                    "{broken",
                    line("good", chat, messages=turns),
                ]
            )
            file = await api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
            batch = await api.batches.create(input_file_id=file.id, endpoint=chat, completion_window="24h")
            batch = await ended(api, batch.id)
            assert batch.request_counts.model_dump() == {"total": 7, "completed": 1, "failed": 6}
            lines = await results(api, batch.error_file_id)
            status = {one["custom_id"]: one["response"] and one["response"]["status_code"] for one in lines}
            assert status == {"model": 404, "field": 400, "stream": 400, "empty": 400, None: None, "good": None}
            said = {one["custom_id"]: one["response"]["body"]["error"] for one in lines if one["response"]}
            assert said["field"]["param"] == "temprature"
            assert "temperature" in said["field"]["message"]
            assert lines[-1]["error"]["code"] == "duplicate_custom_id"

    run(test())


def test_cancel_list_and_delete(tmp_path):
    async def test():
        async with serving(batched(tmp_path, engine={"options": {"step_s": 0.01}})) as app:
            api = client(app)
            body = {"prompt": "ab", "max_tokens": 200, "decoding": {"ignore_eos": True}}
            text = "\n".join(line(f"r{i}", **body) for i in range(30))
            file = await api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
            batch = await api.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            with pytest.raises(openai.ConflictError, match="cancel it first"):
                await api.files.delete(file.id)
            cancelled = await api.batches.cancel(batch.id)
            assert cancelled.status in ("cancelling", "cancelled")
            batch = await ended(api, batch.id)
            assert batch.status == "cancelled"
            assert batch.request_counts.completed + batch.request_counts.failed == 30
            with pytest.raises(openai.ConflictError):
                await api.batches.cancel(batch.id)
            assert [one.id async for one in api.batches.list(limit=1)] == [batch.id]
            assert {one.purpose async for one in api.files.list()} == {"batch", "batch_output"}
            assert [one.id async for one in api.files.list(purpose="batch", limit=1, order="asc")] == [file.id]
            assert (await api.files.retrieve(file.id)).filename == "in.jsonl"
            deleted = await api.files.delete(file.id)
            assert deleted.deleted
            with pytest.raises(openai.NotFoundError):
                await api.files.retrieve(file.id)

    run(test())


def test_what_is_refused_names_the_field(tmp_path):
    async def test():
        async with serving(batched(tmp_path, limits={"file_bytes": 1000})) as app:
            api = client(app)
            file = await api.files.create(file=("in.jsonl", line("a", prompt="ab").encode()), purpose="batch")

            async def refused(kind, call, *said):
                with pytest.raises(kind) as caught:
                    await call
                assert all(one in str(caught.value) for one in said), caught.value

            bad, gone = openai.BadRequestError, openai.NotFoundError
            create = api.batches.create
            base = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
            await refused(bad, create(**base | {"endpoint": "/v1/completion"}), "endpoint", "nearest: /v1/completions")
            await refused(bad, create(**base | {"completion_window": "soon"}), "completion_window", "24h")
            await refused(bad, create(**base | {"completion_window": "31d"}), "completion_window")
            await refused(bad, create(**base | {"input_file_id": "file-none"}), "input_file_id", "purpose 'batch'")
            await refused(bad, create(**base, extra_body={"prio": 1}), "prio")
            await refused(bad, create(**base, metadata={"a": "x" * 600}), "metadata")
            await refused(bad, create(**base, output_expires_after={"anchor": "created_at", "seconds": 5}), "3,600")
            await refused(gone, api.batches.retrieve("batch_none"), "batch_none")
            await refused(gone, api.files.content("file-none"), "file-none")
            await refused(bad, api.batches.list(limit=1000), "limit")
            await refused(bad, api.batches.list(after="nobody"), "after")
            await refused(bad, api.files.create(file=("a", b"x"), purpose="vision"), "vision", "batch")
            await refused(bad, api.files.create(file=("a", b""), purpose="batch"), "empty")
            large = api.files.create(file=("a", b"x" * 2000), purpose="batch")
            await refused(openai.APIStatusError, large, "1,000 bytes")
            huge = api.files.create(file=("a", b"x" * 200_000), purpose="batch")
            await refused(openai.APIStatusError, huge, "1,000 bytes")
            async with http(app) as raw:
                assert (await raw.post("/v1/files", content=b"x")).status_code == 400
                form = {"purpose": "batch", "colour": "red"}
                reply = await raw.post("/v1/files", data=form, files={"file": ("a", b"x")})
                assert reply.json()["error"]["param"] == "colour"
                assert (await raw.get("/v1/files?limt=3")).json()["error"]["param"] == "limt"

    run(test())


def test_keys_have_files_and_batches_of_their_own(tmp_path):
    keys = [{"name": name, "sha256": hashed(name)} for name in ("me", "you")]

    async def test():
        async with serving(batched(tmp_path, keys=keys)) as app:
            me, you = client(app, "me"), client(app, "you")
            file = await me.files.create(file=("in.jsonl", line("a", prompt="ab").encode()), purpose="batch")
            assert [one async for one in you.files.list()] == []
            with pytest.raises(openai.NotFoundError):
                await you.files.content(file.id)
            with pytest.raises(openai.BadRequestError):
                await you.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            batch = await me.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            with pytest.raises(openai.NotFoundError):
                await you.batches.retrieve(batch.id)
            batch = await ended(me, batch.id)
            assert len(await results(me, batch.output_file_id)) == 1
            accounts = app.state.service.keys.accounts
            assert accounts[hashed("me")].tokens > accounts[hashed("you")].tokens == 0

    run(test())


def test_a_disk_without_room_is_said(tmp_path, monkeypatch):
    import errno

    async def test():
        async with serving(batched(tmp_path)) as app:
            api = client(app)

            def full(*said, **more):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(app.state.service.desk.files, "_write", full)
            with pytest.raises(openai.APIStatusError, match="no room") as caught:
                await api.files.create(file=("a", b"x"), purpose="batch")
            assert caught.value.status_code == 507
            assert str(tmp_path) not in str(caught.value)

    run(test())


def test_without_a_path_they_are_off():
    async def test():
        async with serving(config_of()) as app:
            with pytest.raises(openai.NotFoundError, match=r"set batches\.path"):
                await client(app).batches.list()

    run(test())


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("90s", 90), ("5m", 300), ("30d", 2592000)])
def test_windows(text, seconds):
    assert window_s(text) == seconds


def test_interactive_requests_do_not_wait_for_a_batch(tmp_path):
    async def test():
        async with serving(batched(tmp_path, engine={"slots": 2, "options": {"step_s": 0.005}})) as app:
            api = client(app)
            body = {"prompt": "ab", "max_tokens": 120, "seed": 1, "decoding": {"ignore_eos": True}}
            text = "\n".join(line(f"r{i}", **body) for i in range(6))
            file = await api.files.create(file=("in.jsonl", text.encode()), purpose="batch")
            batch = await api.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            lanes = app.state.service.gateway._gateway.engines["toy"].lanes
            while lanes.running("batch") < 2:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(api.completions.create(model="toy", prompt="ab", max_tokens=5) for _ in range(2)))
            assert lanes.yields > 0
            assert (await api.batches.retrieve(batch.id)).status == "in_progress"
            batch = await ended(api, batch.id)
            texts = {one["response"]["body"]["choices"][0]["text"] for one in await results(api, batch.output_file_id)}
            single = await api.completions.create(
                model="toy", prompt="ab", max_tokens=120, seed=1, extra_body={"decoding": {"ignore_eos": True}}
            )
            assert texts == {single.choices[0].text}, "giving a slot up changes no text"
            async with http(app) as raw:
                counted = (await raw.get("/metrics")).text
            assert 'raydecode_finished_total{lane="batch",model="toy",reason="length"} 6.0' in counted
            assert 'raydecode_first_token_seconds_count{lane="interactive",model="toy"} 3.0' in counted

    run(test())
