"""Engines that hang instead of dying: the watchdog ends them, the row that did it is found, the others are whole."""

import signal

import pytest

from pipelines.generate import run
from raydecode.corpus.history import records
from raydecode.corpus.storage import open_storage
from tests.actors.local import LocalJob, job_of, prompts, rows_of
from tests.pipelines.processes import Run, command_line, signal_to

LIMITS = {"stall_s": 3, "stall_steps": 5, "first_step_s": 10}


def causes(job):
    return [one["cause"] for one in records(open_storage(job.output.path)) if one["kind"] == "blame"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_row_that_hangs_its_engine_becomes_an_error_row(ray_session, tmp_path, capsys):
    rows = prompts(12)
    rows[5]["prompt"] = "(stuck)"
    job = job_of(
        tmp_path,
        rows,
        engine={"slots": 1, "options": {"hang": "stuck"}},
        output={"flush_s": 0.1},
        limits=LIMITS,
    )
    summary = run(job)
    out = {row["id"]: row for row in rows_of(job)}
    assert len(out) == 12
    assert [id for id, row in out.items() if row["error"]] == ["r5"]
    assert (out["r5"]["error"]["stage"], out["r5"]["error"]["type"]) == ("engine", "EngineDeath")
    assert 2 <= summary.deaths <= 3
    said = causes(job)
    assert all(one.startswith("watchdog: no token for") for one in said), said
    start = next(span for span in (row["_key"] for row in out.values() if row["error"]))
    assert f"0:{start}" in said[0].splitlines()[0], "the row that waits is named"
    assert "-- engine" in said[0], "with the stacks of the process"
    assert "worker 1.1: no token for" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_process_is_replaced_and_no_text_changes(tmp_path):
    """SIGSTOP: it cannot even answer with its stacks, and it must be gone, not merely forgotten."""
    job = job_of(
        tmp_path,
        prompts(150),
        engine={"slots": 8, "options": {"step_s": 0.01}},
        output={"flush_s": 0.2},
        limits=LIMITS,
    )
    quiet = job_of(tmp_path, prompts(150), output={"path": str(tmp_path / "quiet")})
    LocalJob(quiet).run()
    one = Run(job)
    try:
        assert one.until(lambda rows: rows >= 40), "it ended before it could be stopped"
        (stopped,) = one.find("actor")
        signal_to(stopped, signal.SIGSTOP)
        assert one.wait() == 0, one.output()
        assert not command_line(stopped).startswith("ray::GenerationActor")
    finally:
        one.reap()
    assert [said.split(":")[0] for said in causes(job)] == ["watchdog"]
    assert {row["id"]: row["text"] for row in rows_of(job)} == {row["id"]: row["text"] for row in rows_of(quiet)}
