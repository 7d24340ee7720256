"""Nodes that join late and nodes that die, engines on fractions of a GPU: a whole job on a cluster of raylets."""

import json
import os
import subprocess
import sys

import pytest

from raydecode.corpus.storage import open_storage
from raydecode.corpus.verify import verify
from tests.actors.local import LocalJob, job_of, prompts, rows_of
from tests.pipelines.processes import ROOT

LIMIT_S = 800


def on_cluster(tmp_path, job, steps):
    """The job through tests/pipelines/cluster.py; what it prints."""
    for name, value in (("job", job.to_json()), ("plan", steps)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    command = [sys.executable, "tests/pipelines/cluster.py", str(tmp_path / "job.json"), str(tmp_path / "plan.json")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sections(folder, out, actors):
    return {
        "engine": {"slots": 4, "options": {"step_s": 0.06}},
        "decoding": {"max_tokens": 24, "seed": 5, "sampler": [{"name": "temperature", "value": 0.9}]},
        "output": {"path": str(folder / out), "flush_s": 0.2},
        "actors": actors,
    }


def undisturbed(tmp_path, rows):
    job = job_of(tmp_path, rows, **{**sections(tmp_path, "quiet", {}), "engine": {"slots": 4}})
    LocalJob(job).run()
    return {row["id"]: row["text"] for row in rows_of(job)}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_joins_late_and_another_dies(tmp_path):
    """One GPU: two engines of half a GPU; four when the second node is there; the first one's death blames no row."""
    rows = prompts(400)
    expected = undisturbed(tmp_path, rows)
    actors = {"min": 2, "max": 4, "num_gpus": 0.5, "num_cpus": 0}
    job = job_of(tmp_path, rows, **sections(tmp_path, "out", actors))
    found = on_cluster(
        tmp_path,
        job,
        [
            {"add": {"name": "first", "num_gpus": 1}},
            {"alive": 2, "rows": 20, "add": {"name": "late", "num_gpus": 1}},
            {"alive": 4, "rows": 60, "remove": "first"},
        ],
    )
    assert found["steps_left"] == []
    assert found["most"] == {"first": 2, "late": 2}
    assert found["deaths"] >= 2
    assert {cause.split(":")[0] for cause in found["causes"]} == {"node_loss"}, found["causes"]
    assert (found["rows"], found["errors"], found["hunted"]) == (400, 0, 0)
    out = rows_of(job)
    assert len(out) == 400
    assert {row["id"]: row["text"] for row in out} == expected
    assert verify(open_storage(job.output.path)).ok


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_only_node_with_engines_dies_and_another_comes(tmp_path):
    """Nobody is left: the job waits, and goes on when there is room again."""
    rows = prompts(300)
    expected = undisturbed(tmp_path, rows)
    job = job_of(tmp_path, rows, **sections(tmp_path, "out", {"min": 1, "max": 2, "num_gpus": 1, "num_cpus": 0}))
    found = on_cluster(
        tmp_path,
        job,
        [
            {"add": {"name": "first", "num_gpus": 2}},
            {"alive": 2, "rows": 50, "remove": "first"},
            {"rows": 50, "add": {"name": "second", "num_gpus": 1}},
        ],
    )
    assert found["steps_left"] == []
    assert found["most"] == {"first": 2, "second": 1}
    assert (found["rows"], found["errors"], found["hunted"]) == (300, 0, 0)
    assert {row["id"]: row["text"] for row in rows_of(job)} == expected
