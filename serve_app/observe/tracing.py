"""OpenTelemetry spans, where the packages are installed (`pip install raydecode[trace]`) and an endpoint is configured.

    POST /v1/chat/completions       the request; continues the caller's trace (W3C `traceparent`)
      queue                         from the gateway to a slot
      first_token                   from the slot to the first token
      generation                    from there to the last

The three are made when the stream ends, from the times in its record: a token costs nothing. Names of attributes are
OpenTelemetry's for generative models (`gen_ai.*`); prompts and texts are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydecode.errors import UserError
from serve_app.observe.inquiry import Inquiry
from serve_app.observe.watch import Seen

SERVICE = "raydecode"


def exporting(endpoint: str, share: float = 1.0) -> Any:
    """A tracer provider that sends to an OTLP collector over HTTP. share: of the traces that begin here, 0 to 1."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise UserError(
            f"traces need OpenTelemetry ({error})", field="tracing.endpoint", value=endpoint,
            hint="pip install raydecode[trace], or leave tracing.endpoint out",
        ) from None  # fmt: skip
    provider = TracerProvider(
        resource=Resource.create({"service.name": SERVICE}), sampler=ParentBased(TraceIdRatioBased(share))
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Teller and watcher. provider: a tracer provider of OpenTelemetry's SDK"""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace, self._provider = trace, provider
        self._tracer = provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    # ------------------------------------------------------------------ of requests
    def arrived(self, inquiry: Inquiry, headers: Mapping[str, str]) -> None:
        parent = self._propagator.extract(dict(headers))
        inquiry.span = self._tracer.start_span(
            inquiry.method, context=parent, kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": inquiry.method, "raydecode.request_id": inquiry.id},
        )  # fmt: skip

    def answered(self, inquiry: Inquiry) -> None:
        span = inquiry.span
        span.update_name(f"{inquiry.method} {inquiry.route}")
        span.set_attribute("http.route", inquiry.route)
        if inquiry.status:
            span.set_attribute("http.response.status_code", inquiry.status)
        if inquiry.disconnected or inquiry.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()

    # ------------------------------------------------------------------ of streams
    def began(self, seen: Seen) -> None: ...
    def first(self, seen: Seen) -> None: ...

    def ended(self, seen: Seen) -> None:
        assert seen.ended is not None
        span = seen.inquiry.span if seen.inquiry is not None else None
        context = self._trace.set_span_in_context(span) if span is not None else None
        queued = min((one.stats.queued_s for one in seen.outcomes), default=None)
        first = seen.ended if seen.first is None else seen.first
        slot = min(first, seen.opened + queued) if queued is not None else first
        about = {
            "gen_ai.request.model": seen.model,
            "raydecode.lane": seen.lane,
            "raydecode.request": seen.request.id,
        }
        self._span("queue", context, seen, seen.opened, slot, about)
        if seen.first is not None:
            self._span("first_token", context, seen, slot, seen.first, about)
            self._span("generation", context, seen, seen.first, seen.ended, about | _ending(seen), seen.error)

    def _span(
        self, name: str, context: Any, seen: Seen, start: float, end: float, about: Mapping[str, Any],
        error: BaseException | None = None,
    ) -> None:  # fmt: skip
        span = self._tracer.start_span(name, context=context, start_time=_at(seen, start), attributes=dict(about))
        if error is not None or any(one.error for one in seen.outcomes):
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(end_time=_at(seen, end))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _at(seen: Seen, monotonic: float) -> int:
    """Unix nanoseconds of a monotonic time."""
    return seen.wall_ns + int((monotonic - seen.opened) * 1e9)


def _ending(seen: Seen) -> dict[str, Any]:
    stats = [one.stats for one in seen.outcomes]
    return {
        "gen_ai.usage.input_tokens": max((one.prompt_tokens for one in stats), default=0),
        "gen_ai.usage.output_tokens": sum(len(one.tokens) for one in seen.outcomes) or seen.tokens,
        "gen_ai.response.finish_reasons": [one.reason for one in seen.outcomes],
        "raydecode.migrations": seen.migrations,
        "raydecode.cancelled": seen.cancelled,
    }
