"""Prometheus metrics, from the records of streams and requests.

A plain registry and a `/metrics` route, and not Ray's metrics: those leave a process through the node's dashboard
agent, which a lone node need not have, at a port per node that is random unless set. What they would give for free, one
view over several processes, board.py does. Ray's own metrics of Serve (`ray_serve_*`) are where they always are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from raydecode.events import OutcomeEvent
from serve_app.observe.inquiry import Inquiry
from serve_app.observe.watch import Seen

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_WAIT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
_LENGTH = (0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)
_NO_DRAFT = ("none", "known")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Snapshot = dict[str, tuple[str, str, Samples]]
"""Metric name -> (type, help, sample name and labels -> value): what a process has counted, as plain data."""


class Metrics:
    """Teller and watcher. Every name is `raydecode_...`; times are seconds."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        mine = ("model", "lane")

        def counter(name: str, help: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"raydecode_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"raydecode_{name}", help, labels, registry=registry, buckets=buckets)

        self._requests = counter("requests", "HTTP requests answered", ("route", "model", "status"))
        self._seconds = histogram("request_seconds", "from arrival to the last byte", ("route",), _WAIT)
        self._open = Gauge("raydecode_http_open", "HTTP requests being answered", registry=registry)
        self._queued = Gauge("raydecode_queued", "requests without a first token", mine, registry=registry)
        self._running = Gauge("raydecode_running", "requests past their first token", mine, registry=registry)
        self._queue_s = histogram("queue_seconds", "from submission to a slot, as the engine says", mine, _WAIT)
        self._first_s = histogram("first_token_seconds", "from the gateway to the first token", mine, _WAIT)
        self._token_s = histogram("token_seconds", "mean time of a request's tokens behind the first", mine, _TOKEN)
        self._prompt = counter("prompt_tokens", "tokens of prompts", mine)
        self._cached = counter("cached_tokens", "tokens of prompts that were in the cache", mine)
        self._output = counter("output_tokens", "generated tokens", mine)
        self._forwards = counter("forwards", "forwards of the model, by the rows in them", mine)
        self._drafted = counter("drafted_tokens", "proposed tokens", ("model", "drafter"))
        self._accepted = counter("accepted_tokens", "proposed tokens that were kept", ("model", "drafter"))
        self._length = histogram(
            "accepted_length", "a request's accepted tokens per drafted forward", ("model", "drafter"), _LENGTH
        )
        self._finished = counter("finished", "samples, by what ended them", (*mine, "reason"))
        self._flags = counter("monitor_flags", "samples that a monitor ended", ("model", "monitor"))
        self._errors = counter("errors", "samples and requests that failed", ("model", "stage", "kind"))
        self._cancelled = counter("cancelled", "requests whose reader left", mine)
        self._migrations = counter("migrations", "times a request went on in another replica", ("model",))
        self._preempted = counter("preempted", "times a sample gave its memory to an earlier one", ("model",))
        self._rows = counter("batch_rows", "lines of batches answered, by status", ("status",))
        self._batches = Gauge("raydecode_batches", "batches that are not ended", ("status",), registry=registry)

    # ------------------------------------------------------------------ of streams
    def began(self, seen: Seen) -> None:
        self._queued.labels(seen.model, seen.lane).inc()

    def first(self, seen: Seen) -> None:
        assert seen.first is not None
        self._queued.labels(seen.model, seen.lane).dec()
        self._running.labels(seen.model, seen.lane).inc()
        self._first_s.labels(seen.model, seen.lane).observe(seen.first - seen.opened)

    def ended(self, seen: Seen) -> None:
        assert seen.ended is not None
        model, lane = seen.model, seen.lane
        (self._queued if seen.first is None else self._running).labels(model, lane).dec()
        tokens = sum(len(one.tokens) for one in seen.outcomes) or seen.tokens
        self._output.labels(model, lane).inc(tokens)
        if seen.first is not None and seen.tokens > 1:
            per_sample = max(1, len(seen.outcomes))
            self._token_s.labels(model, lane).observe(
                (seen.ended - seen.first) / max(1, seen.tokens - per_sample) * per_sample
            )
        if seen.migrations:
            self._migrations.labels(model).inc(seen.migrations)
        if seen.cancelled:
            self._cancelled.labels(model, lane).inc()
        if seen.error is not None:
            self._errors.labels(model, "gateway", type(seen.error).__name__).inc()
        if seen.outcomes:
            stats = [one.stats for one in seen.outcomes]
            self._prompt.labels(model, lane).inc(max(one.prompt_tokens for one in stats))
            self._cached.labels(model, lane).inc(min(one.cached_tokens for one in stats))
            self._queue_s.labels(model, lane).observe(min(one.queued_s for one in stats))
        for outcome in seen.outcomes:
            self._outcome(seen, outcome)

    def _outcome(self, seen: Seen, outcome: OutcomeEvent) -> None:
        model, stats = seen.model, outcome.stats
        self._finished.labels(model, seen.lane, outcome.reason).inc()
        self._forwards.labels(model, seen.lane).inc(stats.forwards)
        if outcome.reason == "monitor":
            self._flags.labels(model, outcome.cause.partition(":")[0] or "unnamed").inc()
        if outcome.error is not None:
            self._errors.labels(model, outcome.error.stage, outcome.error.kind).inc()
        if stats.preempted:
            self._preempted.labels(model).inc(stats.preempted)
        for name, one in stats.drafting.items():
            if name in _NO_DRAFT or not one.drafted:
                continue
            self._drafted.labels(model, name).inc(one.drafted)
            self._accepted.labels(model, name).inc(one.accepted)
            if one.forwards:
                self._length.labels(model, name).observe(one.accepted / one.forwards)

    # ------------------------------------------------------------------ of requests and batches
    def arrived(self, inquiry: Inquiry, headers: Mapping[str, str]) -> None:
        self._open.inc()

    def answered(self, inquiry: Inquiry) -> None:
        self._open.dec()
        status = str(inquiry.status) if inquiry.status else "disconnected"
        self._requests.labels(inquiry.route, inquiry.model, status).inc()
        self._seconds.labels(inquiry.route).observe(inquiry.seconds)

    def batch_row(self, status: int) -> None:
        """A line of a batch has its answer."""
        self._rows.labels(str(status)).inc()

    def batches(self, by_status: Mapping[str, int]) -> None:
        """Batches that are not ended."""
        for status in ("validating", "in_progress", "cancelling", "finalizing"):
            self._batches.labels(status).set(by_status.get(status, 0))

    # ------------------------------------------------------------------ out
    def snapshot(self) -> Snapshot:
        """Everything counted so far."""
        out: Snapshot = {}
        for family in self.registry.collect():
            samples = {
                (one.name, tuple(sorted(one.labels.items()))): float(one.value)
                for one in family.samples
                if not one.name.endswith("_created")
            }
            out[family.name] = family.type, family.documentation, samples
        return out

    def names(self) -> list[str]:
        """Names of all samples that there can be."""
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        return [
            f"{family.name}{suffix}"
            for family in self.registry.collect()
            for suffix in suffixes.get(family.type, ("",))
        ]


class _Merged:
    """A registry, as the exposition sees one, over snapshots."""

    def __init__(self, snapshots: list[Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        names = dict.fromkeys(name for one in self._snapshots for name in one)
        for name in names:
            held = [one[name] for one in self._snapshots if name in one]
            kind, help, _ = held[0]
            sums: Samples = {}
            for _, _, samples in held:
                for key, value in samples.items():
                    sums[key] = sums.get(key, 0.0) + value
            metric = Metric(name, help, kind)
            for (sample, labels), value in sums.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric


def exposition(snapshots: list[Snapshot]) -> bytes:
    """Prometheus' text format of the sum of several processes' snapshots."""
    return generate_latest(_Merged(snapshots))  # type: ignore[arg-type]
