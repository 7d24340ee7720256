"""Whole jobs on one Ray: every format at once, real process deaths, resume, ends that say why. Toy engine.

What needs no cluster is tested without one (tests/actors).
"""

import dataclasses
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.generate import _indexes, _read, _watch, run
from raydecode.corpus.history import replay
from raydecode.corpus.inputs import discover, group_reads, needs_index, open_corpus, plan_units
from raydecode.corpus.intervals import Cover
from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from raydecode.errors import JobError, UserError
from tests.actors.local import LocalJob, job_of, prompts, rows_of, write_jsonl


def texts(job):
    return {row["id"]: row["text"] for row in rows_of(job)}


def test_all_formats_two_actors_an_unreadable_file_and_a_row_that_kills(ray_session, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = prompts(40)
    rows[33]["prompt"] = "(poison)"
    write_jsonl(folder / "a.jsonl", rows[:10])
    pq.write_table(pa.Table.from_pylist(rows[10:20]), folder / "b.parquet")
    (folder / "c.csv").write_text("name,prompt\n" + "".join(f"{r['name']},{r['prompt']}\n" for r in rows[20:30]))
    write_jsonl(folder / "d.jsonl", rows[30:])
    (folder / "e.parquet").write_bytes(b"PAR1 this is not Parquet")
    job = job_of(
        tmp_path,
        str(folder),
        engine={"slots": 4, "options": {"poison": "poison"}},
        decoding={"ignore_eos": True},
        output={"flush_s": 0.5},
        actors={"min": 2, "max": 2},
    )
    views = []
    summary = run(job, progress=views.append)
    out = {row["id"]: row for row in rows_of(job)}
    assert {f"r{i}" for i in range(40)} <= set(out)
    assert len(out) == 41
    failed = {id: row["error"] for id, row in out.items() if row["error"]}
    assert failed["r33"]["type"] == "EngineDeath"
    assert [error["stage"] for id, error in failed.items() if id != "r33"] == ["read"]
    assert len(failed) == 2
    assert summary.deaths >= 3
    assert summary.rows == 41
    assert verify(open_storage(job.output.path)).ok
    assert [view.phase for view in views if view.phase != "running"] == ["starting", "reporting"]
    assert set(summary.workers) >= {"1.1", "1.2"}
    promised = replay(open_storage(job.output.path)).engines
    assert [(one["engine"], one["promise"]) for one in promised] == [("toy", "bitwise")], "once, though engines died"


def test_goes_on_where_another_run_ended_and_then_says_it_is_finished(ray_session, tmp_path):
    job = job_of(tmp_path, prompts(60), output={"flush_s": 0.01}, engine={"options": {"step_s": 0.002}})
    part = LocalJob(job)
    before = part.until(10)
    part.ledger.close()
    assert 10 <= before < 60
    first = run(job, takeover=True)
    assert (first.rows, first.rows_before, first.already_finished) == (60, before, False)
    again = run(job)
    assert (again.rows, again.rows_before, again.already_finished) == (60, 60, True)
    other = job_of(tmp_path, prompts(60), output={"path": str(tmp_path / "other")})
    LocalJob(other).run()
    assert texts(job) == texts(other)


def test_an_output_in_the_folder_of_its_input_and_the_prompt_of_a_text_file(ray_session, tmp_path):
    """The parts are no new input files: the second run has nothing to do. `auto` finds the column of a text file."""
    (tmp_path / "in.txt").write_text("ab\n(a)\n\nba")
    job = job_of(tmp_path, str(tmp_path), input={"id": None}, output={"path": str(tmp_path / "out")})
    first = run(job)
    assert (first.rows, first.errors) == (3, 0)
    assert {row["input_text"] for row in rows_of(job)} == {"ab", "(a)", "ba"}
    again = run(job)
    assert (again.rows, again.already_finished) == (3, True)


def test_end_by_error_rate_is_a_job_error(ray_session, tmp_path):
    rows = [{**row, "prompt": "a" * 90} for row in prompts(150)]
    job = job_of(
        tmp_path,
        rows,
        engine={"options": {"context": 64}},
        output={"flush_s": 0.01},
        limits={"max_error_rate": 0.1},
    )
    with pytest.raises(JobError, match="max_error_rate"):
        run(job)
    assert replay(open_storage(job.output.path)).errors > 0


def test_an_engine_that_cannot_start_says_why(ray_session, tmp_path):
    job = job_of(tmp_path, prompts(5), engine={"options": {"no_such_option": 1}})
    with pytest.raises(JobError, match="no_such_option"):
        run(job)


# ---------------------------------------------------------------------- refused before Ray is imported
SCRIPT = """
import json, sys
from pathlib import Path
from pipelines.generate import run
from raydecode.config import JobConfig
from raydecode.errors import UserError
try:
    summary = run(JobConfig.model_validate(json.loads(Path(sys.argv[1]).read_text())))
    print("finished" if summary.already_finished else "ran")
except UserError as error:
    print(error)
assert "ray" not in sys.modules
"""


def without_ray(job, tmp_path, root):
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job.to_json()))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], cwd=root, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_output_that_does_not_answer_ends_the_job(tmp_path):
    ledger = LocalJob(job_of(tmp_path, prompts(2))).ledger
    silent = dataclasses.replace(ledger.look(), storage_s=301.0)
    ended = _watch(lambda method: silent, None, lambda progress: None, 300.0)
    assert ended == "the output does not answer: a call waits since 301 s"


def test_large_files_are_indexed_as_tasks_before_they_are_read(ray_session, tmp_path):
    """Rows without ids, repeated over 4 MiB: one task makes the index, each reading task waits for it."""
    import ray

    texts = [f"{i} " + "x" * 250_000 for i in range(9)]
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in (*texts, *texts)])
    files = discover(str(tmp_path / "in.jsonl"))
    (tmp_path / "out").mkdir()
    corpus = open_corpus(files, id=None, root=str(tmp_path / "out"))
    assert needs_index(corpus, 0)
    ((number, index),) = _indexes(corpus, [0]).items()
    (lot,) = group_reads(corpus, plan_units(corpus, Cover(), max_actors=1))[:1]
    blocks = [block for _, block in _read(corpus, lot, index)]
    assert number == 0
    assert not needs_index(corpus, 0)
    assert ray.get(index) == [None], "made by the task"
    names = [name for block in blocks for name in block["_id"].to_pylist()]
    assert len(names) == len(set(names)), "a repeated row has an id of its own"


def test_a_finished_job_is_answered_without_ray(tmp_path, root):
    job = job_of(tmp_path, prompts(10))
    LocalJob(job).run()
    assert without_ray(job, tmp_path, root).strip() == "finished"


def test_a_changed_job_over_an_old_output_is_refused_without_ray(tmp_path, root):
    job = job_of(tmp_path, prompts(10))
    LocalJob(job).run()
    said = without_ray(job_of(tmp_path, prompts(10), decoding={"seed": 4}), tmp_path, root)
    assert "decoding.seed: 3 -> 4" in said
    assert "--overwrite" in said


def test_an_output_that_cannot_be_written_is_refused_without_ray(tmp_path, root):
    (tmp_path / "file").write_text("in the way")
    said = without_ray(job_of(tmp_path, prompts(10), output={"path": str(tmp_path / "file" / "out")}), tmp_path, root)
    assert "output.path" in said


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"input": {"id": "nmae"}}, "input.id"),
        ({"prompt": {"template": "{{ promt }}"}}, "prompt"),
        ({"input": {"path": "no/such/file.jsonl"}}, "input.path"),
    ],
)
def test_wrong_columns_and_files_are_refused_by_name(tmp_path, sections, field):
    with pytest.raises(UserError) as caught:
        run(job_of(tmp_path, prompts(3), **sections))
    assert field in str(caught.value)
    assert not (tmp_path / "out" / "_log").exists()


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(UserError, match="empty"):
        run(job_of(tmp_path, []))
