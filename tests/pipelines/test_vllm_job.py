"""A job on vLLM through Ray, on two threads: there the engine lives in a thread of an actor, unseen by unit tests."""

import pytest

from raydecode.corpus.history import replay
from raydecode.corpus.storage import open_storage
from raydecode.engine.vllm import available
from tests.actors.local import job_of, prompts, rows_of
from tests.pipelines.processes import Run


@pytest.mark.real_model
@pytest.mark.timeout(1200)
def test_rows_of_a_vllm_job(tmp_path, smollm):
    reason = available()
    if reason:
        pytest.skip(reason)
    job = job_of(
        tmp_path,
        prompts(6),
        model=str(smollm),
        engine={"name": "vllm", "dtype": "float32", "slots": 4, "max_length": 256, "threads": 2},
        decoding={"max_tokens": 6, "ignore_eos": True},
    )
    run = Run(job)
    try:
        assert run.wait() == 0, run.output()
    finally:
        run.reap()
    rows = rows_of(job)
    assert [row["error"] for row in rows] == [None] * 6
    assert [row["output_tokens"] for row in rows] == [6] * 6
    (engine,) = replay(open_storage(job.output.path)).engines
    assert (engine["engine"], engine["promise"], engine["device"]) == ("vllm", "near-ties only", "cpu")
