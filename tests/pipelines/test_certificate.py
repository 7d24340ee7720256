"""One seed, one text: the same sampled job gives one hash however it was run. Also the shape of `raydecode verify`'s
promise: the hash is over (id, sample, text), sorted.

Here actors are threads, so that many ways of running fit in seconds; real processes are in test_kill_storm.py.
"""

import hashlib
import json
import random
import threading

import pytest

from raydecode import assemble
from raydecode.corpus.history import replay
from raydecode.corpus.storage import open_storage
from tests.actors.local import LocalJob, job_of, prompts, rows_of, toy, write_jsonl

SAMPLED = [{"name": "temperature", "value": 0.9}, {"name": "top_p", "p": 0.95}]


def certificate(job) -> str:
    rows = [(row["id"], row["sample"], row["text"]) for row in rows_of(job)]
    assert all(row["error"] is None for row in rows_of(job))
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()


def interrupted(job, build, after):
    """Run, stop dead after some rows, as a killed process would: what is buffered is lost."""
    local = LocalJob(job)
    worker = local.worker("w0", build=build)
    commit, enough = worker._ledger, threading.Event()

    def until(method, *arguments):
        if method == "commit" and replay(open_storage(job.output.path)).rows >= after:
            enough.set()
            raise SystemExit
        return commit(method, *arguments)

    worker._ledger = until
    worker.start()

    def run():
        try:
            worker.run()
        except BaseException:
            enough.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert enough.wait(120)
    local.ledger.close()


def ways(tmp_path, rows, build, sections, *, counts, after):
    """Hash of the job run by each way."""
    orders = {"as given": rows, "shuffled": random.Random(1).sample(rows, len(rows))}

    def made(name, order, **more):
        path = write_jsonl(tmp_path / f"{name}.jsonl", orders[order])
        merged = {**sections, "output": {"path": str(tmp_path / name), "flush_s": 0.05}}
        for key, value in more.items():
            merged[key] = {**merged.get(key, {}), **value}
        return job_of(tmp_path, path, **merged)

    out = {}
    for count in counts:
        job = made(f"actors{count}", "as given")
        LocalJob(job, actors=count).run(count, build=build)
        out[f"{count} actors"] = certificate(job)
    job = made("shuffled", "shuffled", engine={"slots": 3})
    LocalJob(job, actors=2).run(counts[-1], build=build)
    out["shuffled, 3 slots"] = certificate(job)
    job = made("killed", "shuffled", engine={"slots": 2})
    interrupted(job, build, after)
    assert 0 < replay(open_storage(job.output.path)).rows < len(rows)
    LocalJob(job).run(build=build)
    out["killed and resumed, 2 slots"] = certificate(job)
    return out


def test_toy_engine(tmp_path):
    sections = {"decoding": {"max_tokens": 24, "seed": 11, "n": 2, "sampler": SAMPLED}}
    found = ways(tmp_path, prompts(60), toy, sections, counts=(1, 2, 4), after=5)
    assert len(set(found.values())) == 1, found
    other = job_of(
        tmp_path,
        prompts(60),
        decoding={**sections["decoding"], "seed": 12},
        output={"path": str(tmp_path / "seed12")},
    )
    LocalJob(other).run()
    assert certificate(other) not in found.values(), "the seed matters"


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_engine(tmp_path, smollm, dtype):
    rows = [
        {"name": f"r{i}", "prompt": text}
        for i, text in enumerate(["The capital of", "Once upon a", "1 2 3", "Bread is", "def f(", "If"])
    ]
    sections = {
        "model": str(smollm),
        "engine": {"name": "torch", "dtype": dtype, "slots": 4, "threads": 1},
        "decoding": {"max_tokens": 10, "seed": 11, "sampler": SAMPLED},
    }
    found = ways(tmp_path, rows, assemble.build_engine, sections, counts=(1, 2, 4), after=1)
    assert len(set(found.values())) == 1, found
