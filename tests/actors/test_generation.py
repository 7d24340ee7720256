"""Generation actors against the real ledger in one process: exact cover, columns, errors, hunts, drains."""

import errno
import json
import threading
from dataclasses import replace

import pytest

from actors.generation import EngineDied
from raydecode.corpus.history import replay
from raydecode.corpus.messages import Limits
from raydecode.corpus.storage import open_storage
from raydecode.engine.toy import ToyEngine
from raydecode.errors import JobError
from tests.actors.local import LocalJob, job_of, prompts, rows_of, write_jsonl


def texts(job):
    return {row["id"]: row["text"] for row in rows_of(job)}


def test_every_row_once_and_the_job_is_finished(tmp_path):
    job = job_of(tmp_path, prompts(50))
    local = LocalJob(job)
    assert local.run() == ["finished"]
    assert [row["id"] for row in rows_of(job)] == sorted(f"r{i}" for i in range(50))
    assert all(row["error"] is None and row["prompt"] for row in rows_of(job)), "input columns stay"
    state = replay(open_storage(job.output.path))
    assert (state.rows, state.errors) == (50, 0)
    assert state.summary is not None


@pytest.mark.parametrize("workers", [2, 4])
def test_texts_do_not_depend_on_the_number_of_actors(tmp_path, workers):
    one, many = (job_of(tmp_path, prompts(60), output={"path": str(tmp_path / f"out{n}")}) for n in (1, workers))
    LocalJob(one).run()
    LocalJob(many, actors=workers).run(workers)
    assert texts(one) == texts(many)
    assert len(set(texts(one).values())) > 10


def test_a_second_attempt_goes_on_where_the_first_ended(tmp_path):
    job = job_of(tmp_path, prompts(40), output={"flush_s": 0.001}, engine={"options": {"step_s": 0.002}})
    before = LocalJob(job).until(10)
    assert 10 <= before < 40
    second = LocalJob(job)
    assert second.opened.rows == before
    second.run()
    assert len(rows_of(job)) == 40
    other = job_of(tmp_path, prompts(40), output={"path": str(tmp_path / "other")})
    LocalJob(other).run()
    assert texts(job) == texts(other)


def test_samples_of_a_row_stay_together(tmp_path):
    job = job_of(tmp_path, prompts(10), decoding={"n": 3, "sampler": [{"name": "temperature", "value": 1.0}]})
    LocalJob(job).run()
    assert [(row["id"], row["sample"]) for row in rows_of(job)] == [(f"r{i}", s) for i in range(10) for s in range(3)]


def test_a_decoding_column_overrides_row_by_row_and_bad_ones_are_error_rows(tmp_path):
    cells = [None, {"max_tokens": 3, "ignore_eos": True}, {"max_tokens": "three"}, {"sampler": "no_such"}, "{broken"]
    rows = [{**row, "decoding": cell} for row, cell in zip(prompts(5), cells, strict=True)]
    path = write_jsonl(
        tmp_path / "in.jsonl",
        [
            {**r, "decoding": json.dumps(r["decoding"]) if isinstance(r["decoding"], dict) else r["decoding"]}
            for r in rows
        ],
    )
    job = job_of(tmp_path, path, output={"columns": ["text", "tokens", "decoding"]})
    LocalJob(job).run()
    out = rows_of(job)
    assert out[0]["error"] is None
    assert out[1]["error"] is None
    assert len(out[1]["tokens"]) == 3
    assert json.loads(out[1]["decoding"])["max_tokens"] == 3
    assert [row["error"]["stage"] for row in out[2:]] == ["decoding"] * 3
    assert "max_tokens" in out[2]["error"]["message"]
    assert "no_such" in out[3]["error"]["message"]


def test_no_cell_of_a_decoding_column_ends_the_worker(tmp_path):
    cells = [
        '{"stop": "\\ud800"}', '{"seed": 1e400}', '{"sampler": [{"name": "top_k", "k": NaN}]}', '{"sampler": [["a"]]}',
        '{"monitors": [{"name": {"x": 1}}]}', '{"drafter": {"name": 5}}', '{"max_tokens": 1e18}', '{"n": 0}',
        '{"stop": [1]}', '{"deadline_s": NaN}', "[" * 5000,
    ]  # fmt: skip
    good = len(cells)
    job = job_of(
        tmp_path, [{**row, "decoding": cell} for row, cell in zip(prompts(19), [*cells, *[None] * 8], strict=True)]
    )
    assert LocalJob(job).run() == ["finished"]
    errors = {row["id"]: row["error"] for row in rows_of(job)}
    assert len(errors) == 19
    assert {e["stage"] for e in errors.values() if e} == {"decoding"}
    assert [id for id, e in errors.items() if e is None] == sorted(f"r{i}" for i in range(good, 19))


def test_a_decoding_cell_that_does_not_fit_its_column_still_counts(tmp_path, monkeypatch):
    """The head of the file knows texts, or no such column at all; later rows bring objects."""
    monkeypatch.setattr("raydecode.corpus.inputs.HEAD_ROWS", 5)
    short = {"max_tokens": 2, "ignore_eos": True}
    for name, first in (("texts", json.dumps({"max_tokens": 3})), ("none", None)):
        rows = prompts(12)
        for row in rows[:5] if first else ():
            row["decoding"] = first
        for row in rows[8:]:
            row["decoding"] = short
        job = job_of(tmp_path, rows, output={"path": str(tmp_path / name), "columns": ["tokens"]})
        LocalJob(job).run()
        out = {row["id"]: row for row in rows_of(job)}
        assert [len(out[f"r{i}"]["tokens"]) for i in range(8, 12)] == [2] * 4
        assert all(row["error"] is None for row in out.values())


def test_chosen_columns(tmp_path):
    names = [
        "text",
        "finish_reason",
        "tokens",
        "logprobs",
        "prompt",
        "prompt_tokens",
        "output_tokens",
        "total_s",
        "worker",
    ]
    job = job_of(tmp_path, prompts(6), output={"columns": names}, decoding={"logprobs": 2})
    LocalJob(job).run()
    for row in rows_of(job):
        assert row["finish_reason"] in ("eos", "length")
        assert row["output_tokens"] == len(row["tokens"]) == len(row["logprobs"]) == len(row["top_logprobs"])
        assert all(len(top) == 2 for top in row["top_logprobs"])
        assert row["prompt_tokens"] == 4
        assert row["worker"] == "w0"
        assert row["input_prompt"] == row["prompt"], "an input column whose name the output takes is kept under another"


def test_errors_of_every_stage_are_rows(tmp_path):
    lines = [json.dumps(row) for row in prompts(6)]
    lines[1] = "{not json"
    lines[3] = json.dumps({"name": "long", "prompt": "a" * 90})
    lines[4] = json.dumps({"name": "odd", "prompt": None})
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    job = job_of(
        tmp_path,
        str(tmp_path / "in.jsonl"),
        engine={"options": {"context": 64}},
        prompt={"template": "{{ prompt + '' }}"},
    )
    LocalJob(job).run()
    errors = {row["id"]: row["error"] for row in rows_of(job)}
    assert len(errors) == 6
    assert sorted(e["stage"] for e in errors.values() if e) == sorted(["read", "template", errors["long"]["stage"]])
    assert errors["r0"] is errors["r5"] is None


def test_a_lost_block_is_read_again(tmp_path):
    def lost(block):
        raise OSError("the node is gone")

    job = job_of(tmp_path, prompts(30))
    LocalJob(job).run(fetch=lost)
    assert len(rows_of(job)) == 30


def test_a_block_of_another_unit_is_not_believed(tmp_path):
    job = job_of(tmp_path, prompts(30))

    class Swapped(LocalJob):
        def blocks(self, corpus, units):
            blocks = list(super().blocks(corpus, units))
            yield from (replace(one, units=other.units) for one, other in zip(blocks, reversed(blocks), strict=True))

    Swapped(job).run()
    assert sorted(texts(job)) == sorted(f"r{i}" for i in range(30))


def test_a_reading_side_that_breaks_is_replaced_by_the_actors(tmp_path):
    def broken(corpus, units):
        raise OSError("no cluster")
        yield

    job = job_of(tmp_path, prompts(30))
    LocalJob(job, blocks=broken).run()
    assert len(rows_of(job)) == 30


def test_the_reading_side_stops_when_nobody_pulls(tmp_path):
    job = job_of(tmp_path, prompts(400))
    local = LocalJob(job, limits=Limits(queue=4), actors=8)
    before = -1
    while before != len(local.read):
        before = len(local.read)
        threading.Event().wait(0.3)
    assert len(local.read) <= 4 + 1
    local.run()
    assert len(rows_of(job)) == 400


class Died(Exception):
    """What a process death is here: the engine's thread ends, and the keeper tells the ledger."""


def mortal(marker, deaths):
    """A toy engine that dies as a process would when a poisoned row holds a slot."""

    class Mortal(ToyEngine):
        def step(self):
            poisoned = [row for row in (*self._rows.waiting, *self._rows.running) if marker in row.request.prompt.text]
            if poisoned:
                deaths.append([row.id.request for row in poisoned])
                raise Died("killed")
            return super().step()

    return lambda job: Mortal(slots=job.engine.slots)


def test_a_row_that_kills_engines_becomes_an_error_row_and_takes_no_other_with_it(tmp_path):
    rows = prompts(40)
    rows[17]["prompt"] = "(poison)"
    job, deaths = job_of(tmp_path, rows, output={"flush_s": 0.2}), []
    local, reason = LocalJob(job), None
    for k in range(20):
        worker = local.worker(f"w{k}", build=mortal("poison", deaths))
        worker.start()
        try:
            reason = worker.run()
            break
        except EngineDied as error:
            local.ledger.died(f"w{k}", "crash", str(error)[-50:])
    assert reason == "finished"
    out = {row["id"]: row for row in rows_of(job)}
    assert len(out) == 40
    assert out["r17"]["error"]["type"] == "EngineDeath"
    assert out["r17"]["error"]["stage"] == "engine"
    assert [id for id, row in out.items() if row["error"]] == ["r17"]
    assert len(deaths) <= 3 + 3, "first, together, halvings of at most 8 suspects, alone"


def test_end_by_error_rate_says_so(tmp_path):
    rows = prompts(150)
    for row in rows[::2]:
        row["prompt"] = "a" * 90
    job = job_of(tmp_path, rows, engine={"options": {"context": 64}}, output={"flush_s": 0.01})
    local = LocalJob(job, limits=Limits(max_error_rate=0.1))
    (reason,) = local.run()
    assert "max_error_rate" in reason
    assert "max_error_rate" in local.ledger.look().progress.ended


def test_a_full_disk_ends_the_worker_with_the_cause(tmp_path, monkeypatch):
    job = job_of(tmp_path, prompts(20))
    local = LocalJob(job)
    worker = local.worker("w0")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker._storage, "write", full)
    worker.start()
    with pytest.raises(JobError, match="disk is full"):
        worker.run()
    LocalJob(job).run()
    assert len(rows_of(job)) == 20


def test_a_full_disk_under_the_log_ends_the_job_with_the_cause(tmp_path, monkeypatch):
    job = job_of(tmp_path, prompts(20))
    local = LocalJob(job)
    worker = local.worker("w0")

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.ledger._ledger.log.storage, "create_exclusive", full)
    worker.start()
    with pytest.raises(JobError, match="disk is full"):
        worker.run()
    with pytest.raises(JobError, match="disk is full"):
        local.ledger.died("w0", "crash", "")
    assert "cannot be written" in local.ledger.look().progress.ended
    LocalJob(job).run()
    assert len(rows_of(job)) == 20


def test_stacks_name_the_threads(tmp_path):
    local = LocalJob(job_of(tmp_path, prompts(3)))
    worker = local.worker("w0")
    worker.start()
    text = worker.stacks()
    assert "-- engine" in text
    assert "-- MainThread" in text
    worker.run()


def test_a_slow_row_does_not_hold_the_others(tmp_path):
    """The longest row outlives many blocks; everything else is done and committed meanwhile."""
    rows = prompts(80)
    rows[0]["decoding"] = json.dumps({"max_tokens": 1200, "ignore_eos": True})
    job = job_of(tmp_path, rows, output={"flush_s": 0.05})
    local, worker = LocalJob(job, actors=4), None
    worker = local.worker("w0", build=lambda job: ToyEngine(slots=4, step_s=0.002))
    worker.start()
    thread = threading.Thread(target=worker.run)
    thread.start()
    while (rows_now := replay(open_storage(job.output.path)).rows) < 79:
        assert thread.is_alive()
        threading.Event().wait(0.02)
    assert rows_now == 79
    thread.join(60)
    assert len(rows_of(job)) == 80


def test_a_spare_actor_gives_its_place_back_when_it_is_idle(tmp_path, monkeypatch):
    monkeypatch.setattr("actors.generation.SPARE_S", 0.2)
    rows = prompts(10)
    rows[0]["decoding"] = json.dumps({"max_tokens": 1500, "ignore_eos": True})
    job = job_of(tmp_path, rows, output={"flush_s": 0.05})
    local, reasons = LocalJob(job), {}

    def slow(job):
        return ToyEngine(slots=4, step_s=0.002)

    def work(name, spare):
        worker = local.worker(name, build=slow, spare=spare)
        worker.start()
        reasons[name] = worker.run()

    threads = [threading.Thread(target=work, args=("needed", False))]
    threads[0].start()
    while replay(open_storage(job.output.path)).rows < 9:
        assert threads[0].is_alive()
        threading.Event().wait(0.02)
    work("spare", True)
    assert reasons == {"spare": "idle"}
    threads[0].join(60)
    assert reasons["needed"] == "finished"
    assert len(rows_of(job)) == 10
