"""What is counted: scraped from the app, read by Prometheus' own parser; the board over several processes; the
dashboard names what there is."""

import asyncio
import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from raydecode.events import Drafting, Fault, OutcomeEvent, RowStats, TokenEvent
from raydecode.request import DecodingSpec, Request, RowId, Text
from serve_app.gateway import Overloaded
from serve_app.observe.board import KEEP, STALE_S, Board
from serve_app.observe.metrics import Metrics, exposition
from serve_app.observe.watch import WatchedGateway
from tests.serve_app.toy import client, config_of, http, serving

ROOT = Path(__file__).resolve().parents[3]


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(sample, labels) -> value, by Prometheus' parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: dict, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (sample, held), value in found.items() if sample == name and wanted <= set(held))


class Recorded:
    """A gateway whose streams are lists of events, or errors."""

    def __init__(self, *lists, error=None, open_error=None):
        self._lists, self._error, self._open_error = lists, error, open_error

    async def open(self, model, request, *, lane="interactive", steps=False):
        if self._open_error:
            raise self._open_error
        return _Stream(self._lists, self._error)


class _Stream:
    migrations = 2

    def __init__(self, lists, error):
        self._lists, self._error, self.closed = iter(lists), error, False

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return next(self._lists)
        except StopIteration:
            raise self._error or StopAsyncIteration from None

    async def aclose(self):
        self.closed = True


ROW = RowId("r")


def token(t, row=ROW):
    return TokenEvent(row, t, 1, b"a")


def outcome(row=ROW, **changes):
    stats = RowStats(
        prompt_tokens=10, cached_tokens=4, forwards=5, queued_s=0.5, preempted=1,
        drafting={"ngram": Drafting(forwards=2, drafted=8, accepted=4), "none": Drafting(forwards=3)},
    )  # fmt: skip
    return OutcomeEvent(row, **{"reason": "stop", "tokens": (1, 2, 3), "text": b"abc", "stats": stats} | changes)


def watched(gateway, *, n=1, lane="interactive", read=10):
    """What the metrics say of one stream."""
    metrics = Metrics()

    async def listen():
        request = Request("r", "", Text("ab"), DecodingSpec(n=n))
        stream = await WatchedGateway(gateway, [metrics]).open("toy", request, lane=lane)
        try:
            for _ in range(read):
                await anext(aiter(stream))
        except StopAsyncIteration:
            pass
        finally:
            await stream.aclose()

    try:
        asyncio.run(listen())
    except Exception as error:
        if error not in (gateway._error, gateway._open_error):
            raise
    return values(exposition([metrics.snapshot()]).decode())


def test_a_stream_is_counted_when_it_ends():
    found = watched(Recorded([token(0)], [token(1), token(2), outcome()]))
    labels = {"model": "toy", "lane": "interactive"}
    assert total(found, "raydecode_output_tokens_total", **labels) == 3
    assert total(found, "raydecode_prompt_tokens_total", **labels) == 10
    assert total(found, "raydecode_cached_tokens_total", **labels) == 4
    assert total(found, "raydecode_forwards_total", **labels) == 5
    assert total(found, "raydecode_drafted_tokens_total", drafter="ngram") == 8
    assert total(found, "raydecode_accepted_length_sum", drafter="ngram") == 2
    assert total(found, "raydecode_queue_seconds_sum", **labels) == 0.5
    assert total(found, "raydecode_first_token_seconds_count", **labels) == 1
    assert total(found, "raydecode_token_seconds_count", **labels) == 1
    assert total(found, "raydecode_finished_total", reason="stop") == 1
    assert total(found, "raydecode_migrations_total", model="toy") == 2
    assert total(found, "raydecode_preempted_total", model="toy") == 1
    assert total(found, "raydecode_queued") == total(found, "raydecode_running") == 0
    assert total(found, "raydecode_cancelled_total") == total(found, "raydecode_errors_total") == 0


def test_a_prompt_counts_once_for_all_samples():
    rows = [RowId("r", 0), RowId("r", 1)]
    found = watched(Recorded([outcome(rows[0])], [outcome(rows[1])]), n=2)
    assert total(found, "raydecode_prompt_tokens_total") == 10
    assert total(found, "raydecode_output_tokens_total") == 6
    assert total(found, "raydecode_finished_total") == 2


def test_a_reader_that_leaves_and_streams_that_fail():
    found = watched(Recorded([token(0)], [token(1)], [token(2)]), read=2, lane="batch")
    assert total(found, "raydecode_cancelled_total", lane="batch") == 1
    assert total(found, "raydecode_output_tokens_total", lane="batch") == 2
    assert total(found, "raydecode_running") == 0
    found = watched(Recorded([token(0)], error=RuntimeError("gone")))
    assert total(found, "raydecode_errors_total", stage="gateway", kind="RuntimeError") == 1
    found = watched(Recorded(open_error=Overloaded("full", 1.0)))
    assert total(found, "raydecode_errors_total", kind="Overloaded") == 1
    assert total(found, "raydecode_queued") == 0
    fault = Fault("engine", "Deadline", "too long")
    found = watched(Recorded([token(0), outcome(reason="error", error=fault)]))
    assert total(found, "raydecode_errors_total", stage="engine", kind="Deadline") == 1
    found = watched(Recorded([outcome(reason="monitor", cause="looping: five times")]))
    assert total(found, "raydecode_monitor_flags_total", monitor="looping") == 1


def test_a_scrape_of_the_app(tmp_path):
    async def test():
        async with serving(config_of(batches={"path": str(tmp_path)})) as app:
            api = client(app)
            for i in range(3):
                await api.completions.create(model="toy", prompt="ab", seed=i, max_tokens=8)
            stream = await api.completions.create(model="toy", prompt="ab", seed=1, max_tokens=8, stream=True)
            async for _ in stream:
                pass
            async with http(app) as raw:
                await raw.post("/v1/completions", json={"model": "toy", "promt": "ab"})
                await raw.get("/nowhere")
                reply = await raw.get("/metrics")
            assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
            found = values(reply.text)
            assert total(found, "raydecode_requests_total", route="/v1/completions", model="toy", status="200") == 4
            assert total(found, "raydecode_requests_total", route="/v1/completions", status="400") == 1
            assert total(found, "raydecode_requests_total", route="other", status="404") == 1
            assert total(found, "raydecode_first_token_seconds_count", model="toy") == 4
            assert total(found, "raydecode_output_tokens_total", model="toy") > 0
            assert total(found, "raydecode_running") == total(found, "raydecode_queued") == 0
            assert total(found, "raydecode_http_open") == 1, "the scrape itself"
            assert total(found, "raydecode_batches", status="in_progress") == 0

    asyncio.run(asyncio.wait_for(test(), 60))


def counted(n: int) -> Metrics:
    metrics = Metrics()
    for _ in range(n):
        metrics.batch_row(200)
    metrics.batches({"in_progress": n})
    return metrics


def test_the_board_sums_what_processes_count():
    now = [0.0]
    board = Board(lambda: now[0])
    board.push("a", counted(2).snapshot())
    board.push("b", counted(3).snapshot())
    board.push("b", counted(4).snapshot())

    def seen(but="", *more):
        return values(exposition([*board.read(but), *more]).decode())

    assert total(seen(), "raydecode_batch_rows_total", status="200") == 6
    assert total(seen("a", counted(10).snapshot()), "raydecode_batch_rows_total") == 14
    assert total(seen(), "raydecode_batches", status="in_progress") == 6
    now[0] = STALE_S + 1
    board.push("c", counted(1).snapshot())
    assert total(seen(), "raydecode_batch_rows_total") == 7, "counters of a process that is gone stay"
    assert total(seen(), "raydecode_batches", status="in_progress") == 1, "its gauges do not"
    for i in range(2 * KEEP):
        board.push(f"d{i}", counted(1).snapshot())
        now[0] += STALE_S + 1
    assert len(board._last) <= KEEP + 2
    assert total(seen(), "raydecode_batch_rows_total") == 7 + 2 * KEEP


def test_the_exposition_of_one_is_prometheus_own():
    from prometheus_client import generate_latest

    metrics = counted(3)
    theirs = values(generate_latest(metrics.registry).decode())
    own = {key: value for key, value in theirs.items() if not key[0].endswith("_created")}
    assert values(exposition([metrics.snapshot()]).decode()) == own


def test_every_panel_of_the_dashboard_has_its_metrics():
    board = json.loads((ROOT / "infra/grafana/raydecode.json").read_text())
    names = set(Metrics().names())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [one["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    for text in asked:
        found = set(re.findall(r"raydecode_\w+", text))
        assert found, text
        assert found <= names, f"no metric {found - names}"
    def family(name: str) -> str:
        return re.sub(r"_(total|bucket|sum|count)$", "", name)

    shown = {family(name) for text in asked for name in re.findall(r"raydecode_\w+", text)}
    assert {family(name) for name in names} == shown, "every metric is on some panel"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


