"""Spans: a request, its queue, first token and generation; the caller's trace goes on. With the SDK's own exporter."""

import asyncio

import pytest

from raydecode.errors import UserError
from serve_app.observe.logs import Lines
from serve_app.observe.metrics import Metrics
from serve_app.observe.telling import Telling
from tests.serve_app.toy import client, config_of, http, serving

trace = pytest.importorskip("opentelemetry.sdk.trace")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans():
    """(telling, finished spans by name)"""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from serve_app.observe.tracing import Tracing

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Telling(Metrics(), Lines(), Tracing(provider)), lambda: {s.name: s for s in exporter.get_finished_spans()}


def test_a_request_and_its_parts_in_the_callers_trace(spans):
    telling, found = spans

    async def test():
        async with serving(config_of(), telling=telling) as app:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await client(app).completions.create(
                model="toy", prompt="abab", seed=1, max_tokens=6, extra_body={"decoding": {"ignore_eos": True}},
                extra_headers=headers,
            )  # fmt: skip

    asyncio.run(test())
    spans_ = found()
    assert set(spans_) == {"POST /v1/completions", "queue", "first_token", "generation"}
    request, queue, first, rest = (spans_[n] for n in ("POST /v1/completions", "queue", "first_token", "generation"))
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert {s.parent.span_id for s in (queue, first, rest)} == {request.context.span_id}
    assert {s.context.trace_id for s in spans_.values()} == {request.context.trace_id}
    assert request.start_time <= queue.start_time <= queue.end_time == first.start_time
    assert first.end_time == rest.start_time <= rest.end_time
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/completions"
    assert rest.attributes["gen_ai.usage.output_tokens"] == 6
    assert rest.attributes["gen_ai.usage.input_tokens"] == 4
    assert rest.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert not any("abab" in str(s.attributes) for s in spans_.values()), "no prompts in traces"


def test_a_reader_that_leaves_ends_its_spans(spans):
    telling, found = spans

    async def test():
        config = config_of(engine={"options": {"step_s": 0.005}})
        async with serving(config, telling=telling) as app:
            body = {"model": "toy", "prompt": "ab", "max_tokens": 500, "stream": True, "decoding": {"ignore_eos": True}}
            task = asyncio.create_task(http(app).post("/v1/completions", json=body))
            while not telling.metrics._running.labels("toy", "interactive")._value.get():
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(test(), 60))
    assert found()["generation"].attributes["raydecode.cancelled"] is True


def test_errors_are_errors(spans):
    from opentelemetry.trace import StatusCode

    telling, found = spans

    async def test():
        async with serving(config_of(engine={"options": {"context": 16}}), telling=telling) as app, http(app) as raw:
            await raw.post("/v1/completions", json={"model": "toy", "prompt": "a" * 50, "max_tokens": 3})

    asyncio.run(test())
    assert found()["queue"].status.status_code == StatusCode.ERROR
    assert found()["POST /v1/completions"].attributes["http.response.status_code"] == 400


def test_what_is_configured_is_sent():
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    telling = Telling.of(config_of(tracing={"endpoint": "http://127.0.0.1:9/v1/traces", "share": 0.5}))
    processors = telling.tracing._provider._active_span_processor._span_processors
    assert isinstance(processors[0].span_exporter, OTLPSpanExporter)
    assert Telling.of(config_of()).tracing is None
    telling.close()


def test_traces_without_the_packages_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"raydecode\[trace\]") as caught:
        Telling.of(config_of(tracing={"endpoint": "http://127.0.0.1:9/v1/traces"}))
    assert caught.value.field == "tracing.endpoint"
