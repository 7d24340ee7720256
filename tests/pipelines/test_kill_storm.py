"""SIGKILL of driver, actor, raylet and ledger, early, middle and late: no row lost, none doubled, no text changed.

Eight stratified seeds here; `make chaos` runs RAYDECODE_CHAOS_SEEDS of them (200). A third of the runs is restarted at
once, while the old processes still run.
"""

import itertools
import json
import os
import random
import signal
from dataclasses import dataclass

import pytest

from tests.actors.local import LocalJob, job_of, prompts, rows_of
from tests.pipelines.processes import Run, command_line, signal_to

ROWS = 300
VICTIMS = ("driver", "actor", "raylet", "ledger")
MOMENTS = {"early": 0.02, "middle": 0.45, "late": 0.85}
IN_CI = 8
ALL = int(os.environ.get("RAYDECODE_CHAOS_SEEDS", "200"))
TURNS = list(itertools.islice(itertools.cycle(MOMENTS), 12))


@dataclass(frozen=True)
class Storm:
    seed: int
    victim: str
    moment: str
    actors: int
    at_once: bool  # restart while old processes run

    def __str__(self) -> str:
        return f"{self.seed}-{self.victim}-{self.moment}-{self.actors}{'-at-once' if self.at_once else ''}"


def storm(seed: int) -> Storm:
    """Every four seeds kill each victim once, every twelve at each moment."""
    draw = random.Random(seed)
    return Storm(seed, VICTIMS[seed % 4], TURNS[(seed + seed // 4) % 12], draw.choice([1, 2]), seed % 3 == 0)


STORMS = [storm(seed) for seed in range(IN_CI)]
CHAOS = [pytest.param(storm(seed), marks=pytest.mark.chaos, id=str(storm(seed))) for seed in range(IN_CI, ALL)]


def sampled(folder, out, **sections):
    """300 rows of sampled text, of which some are long, in about four seconds of steps."""
    return job_of(
        folder,
        prompts(ROWS),
        engine={"slots": 8, "options": {"step_s": 0.008}},
        decoding={"max_tokens": 24, "seed": 5, "sampler": [{"name": "temperature", "value": 0.9}]},
        output={"path": str(folder / out), "flush_s": 0.2},
        **sections,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = sampled(folder, "out")
    LocalJob(job).run()
    return {row["id"]: row["text"] for row in rows_of(job)}


def check(job, undisturbed):
    rows = rows_of(job)
    ids = [row["id"] for row in rows]
    assert set(ids) == set(undisturbed)
    assert len(ids) == len(set(ids)), "a row is doubled"
    assert {row["id"]: row["text"] for row in rows if row["error"] is None} == undisturbed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("storm", [*STORMS, *CHAOS], ids=str)
def test_kill(storm, tmp_path, undisturbed):
    job = sampled(tmp_path, "out", actors={"min": storm.actors, "max": storm.actors})
    runs, victims = [Run(job)], []
    try:
        if runs[0].until(lambda rows: rows >= MOMENTS[storm.moment] * ROWS):
            victims = runs[0].find(storm.victim)
        if victims:
            signal_to(random.Random(storm.seed).choice(victims), signal.SIGKILL)
        if storm.at_once:
            runs.append(Run(job, "--takeover"))
            runs[-1].wait()
        runs[0].wait()
        if not storm.at_once:
            runs[0].reap()
        while runs[-1].process.returncode != 0:
            assert len(runs) < 5, runs[-1].output()
            runs.append(Run(job, "--takeover"))
            runs[-1].wait()
        check(job, undisturbed)
        if victims and storm.victim in ("actor", "ledger") and not storm.at_once:
            assert len(runs) == 1, "the run itself survives this death: " + runs[0].output()
    finally:
        for run in runs:
            run.reap()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_kill_with_the_real_model(tmp_path, smollm, root):
    """SmolLM2 on the torch engine, sampled: driver, actor and ledger killed in mid-job, texts as undisturbed."""
    corpus = (root / "configs" / "data" / "quickstart.jsonl").read_text().splitlines()[:24]
    rows = [{"name": one["id"], "prompt": one["prompt"]} for one in map(json.loads, corpus)]

    def real(out):
        return job_of(
            tmp_path,
            rows,
            model=str(smollm),
            engine={"name": "torch", "slots": 4, "threads": 1, "max_length": 1024},
            decoding={"max_tokens": 12, "seed": 5, "sampler": [{"name": "temperature", "value": 0.8}]},
            output={"path": str(tmp_path / out), "flush_s": 0.2},
        )

    quiet = Run(real("quiet"))
    assert quiet.wait() == 0, quiet.output()
    undisturbed = {row["id"]: row["text"] for row in rows_of(quiet.job)}
    assert len(undisturbed) == len(rows)
    for victim in ("driver", "actor", "ledger"):
        runs = [Run(real(victim))]
        try:
            assert runs[0].until(lambda done: done >= len(rows) // 3), "it ended before it could be hit"
            signal_to(runs[0].find(victim)[0], signal.SIGKILL)
            runs[0].wait()
            runs[0].reap()
            while runs[-1].process.returncode != 0:
                assert len(runs) < 4, runs[-1].output()
                runs.append(Run(runs[0].job, "--takeover"))
                runs[-1].wait()
            check(runs[0].job, undisturbed)
        finally:
            for run in runs:
                run.reap()


@pytest.mark.timeout(1200)
def test_zombie_is_fenced(tmp_path, undisturbed):
    """Driver and ledger stop, a new run finishes the job, the old ones wake: they leave, and not a byte changes."""
    job = sampled(tmp_path, "out")
    old = Run(job)
    new = None
    try:
        assert old.until(lambda rows: 0 < rows < ROWS), "it ended before it could be stopped"
        stopped = [*old.find("ledger"), *old.find("driver")]
        assert len(stopped) == 2
        for pid in stopped:
            signal_to(pid, signal.SIGSTOP)
        new = Run(job, "--takeover")
        assert new.wait() == 0, new.output()
        check(job, undisturbed)
        before = contents(tmp_path / "out")
        for pid in reversed(stopped):
            signal_to(pid, signal.SIGCONT)
        assert old.wait() != 0
        assert not command_line(stopped[0]).startswith("ray::LedgerActor"), "the old ledger has left"
        assert contents(tmp_path / "out") == before
    finally:
        for pid in stopped if new else []:
            signal_to(pid, signal.SIGCONT)
        for run in filter(None, (old, new)):
            run.reap()


def contents(out):
    """Everything that counts: the log's records and the visible files."""
    files = [file for file in out.rglob("*") if file.is_file() and "_tmp" not in file.parts]
    return {str(file): file.read_bytes() for file in files if not file.name.startswith("heartbeat")}
