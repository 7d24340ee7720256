"""The progress line: what it says at each moment, and how often it is printed into a log."""

from __future__ import annotations

from pipelines.generate import View
from raydecode.cli.progress import Display
from raydecode.corpus.eta import Eta
from raydecode.corpus.messages import Progress


def progress(**changes) -> Progress:
    base = {
        "rows": 0, "errors": 0, "tokens": 0, "parts": 0, "rows_rerun": 0, "deaths": 0, "suspects": 0,
        "positions_done": 0, "positions_planned": 1000, "workers": 1, "in_flight": 0, "ended": None,
    }  # fmt: skip
    return Progress(**(base | changes))


def shown(capsys, *views: View, every_s: float = 20.0) -> list[str]:
    time = iter(range(0, 10**6, int(every_s)))
    with Display(clock=lambda: next(time)) as display:
        for view in views:
            display.show(view)
    return capsys.readouterr().err.splitlines()


def test_uncommitted_work_is_counted(capsys):
    first = View("running", 0.0, progress(rows=10))
    then = View("running", 10.0, progress(rows=12, ready=8, positions_done=100, ready_positions=400, generated=2000))
    lines = shown(capsys, first, then)
    assert lines[1].startswith("20 of about 30 rows, 2,000 tokens, 200 tokens/s, 1 worker")


def test_time_left_has_an_interval_and_trouble_is_named(capsys):
    now = progress(errors=2, deaths=1, suspects=3, eta=Eta(90.0, 60.0, 150.0))
    (line,) = shown(capsys, View("running", 1.0, now))
    assert "2 errors, 1 engine deaths, 3 rows under suspicion" in line
    assert "1 min 30 s left (1 min 00 s to 2 min 30 s)" in line


def test_before_the_first_actor_it_says_what_happens(capsys):
    assert shown(capsys, View("starting", 0.0)) == ["starting"]


def test_a_log_gets_a_line_every_ten_seconds(capsys):
    """The clock is asked once per view, and once more when a line is printed."""
    views = [View("running", i * 0.25, progress()) for i in range(100)]
    assert 8 <= len(shown(capsys, *views, every_s=1)) <= 11
