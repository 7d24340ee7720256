"""The commit log under every crash that the durability model allows."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import threading
from dataclasses import replace

import pytest

from raydecode.corpus.history import finished, record_name, records, replay
from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.log import Fenced, Log
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import PartMeta
from raydecode.corpus.storage import FsspecStorage, LocalStorage
from raydecode.errors import JobError, UserError
from tests.corpus.faulty_store import FaultyStore
from tests.corpus.power_loss import Crash, PowerLossDisk
from tests.corpus.small_job import INPUTS, JOB, N, check_complete, check_visible, open_log, run, write

CRASHES = ("kept", "lost", "mixed")


class PublishFirst(Log):
    """The broken twin: "one atomic rename with a manifest entry" invites publishing first, logging second."""

    def commit(self, parts):
        for part in parts:
            for source, target in part.moves():
                self.storage.publish(source, target)
        self._put({"kind": "commit", "parts": [part.to_json() for part in parts]})
        for part in parts:
            self.state.pending.pop(part.name, None)


def tags():
    """Part names that differ between attempts, as uuids do."""
    counter = itertools.count()
    return lambda: f"{next(counter):08x}"


def stop_at(disk, i, torn=False):
    """Crash before call i (or in the middle of it, when it is a write)."""
    count = itertools.count()
    state = {"torn": False}

    def hook(what, path):
        if next(count) == i:
            if torn and what == "write":
                state["torn"] = True
                return
            raise Crash

    disk.hook, disk.torn = hook, lambda: state["torn"]
    return count


def calls_of_a_run():
    disk = PowerLossDisk()
    count = stop_at(disk, -1)
    run(LocalStorage("/out", disk), tags())
    return next(count)


def trial(plan, kind=Log, seed=0):
    """Run into each (call, torn, how) of the plan in turn, then to the end. Every state on the way must be right."""
    disk, tag, rng = PowerLossDisk(), tags(), random.Random(seed)
    storage = LocalStorage("/out", disk)
    for i, torn, how in plan:
        stop_at(disk, i, torn)
        try:
            run(storage, tag, kind)
        except Crash:
            disk.crash(how, rng)
        else:
            disk.crash("kept", rng)
            break
        seen = set(check_visible(storage))
        try:
            done = replay(storage).done
        except FileNotFoundError:
            done = Cover()
        assert all(done.covers(Span(0, k, k + 1)) for k in seen), "visible but not committed"
    run(storage, tag, kind)
    check_complete(storage)
    assert replay(storage).done == Cover([Span(0, 0, N)])
    assert finished(storage, JOB, INPUTS) is not None


POINTS = calls_of_a_run()


def test_a_run_has_many_points():
    assert POINTS > 150


@pytest.mark.parametrize("how", CRASHES)
@pytest.mark.parametrize("torn", [False, True])
def test_crash_at_every_call(how, torn):
    for i in range(POINTS):
        trial([(i, torn, how)], seed=i)


def test_crash_again_inside_recovery():
    rng = random.Random(1)
    for i in range(0, POINTS, 2):
        for j in range(0, 28, 3):
            trial([(i, False, rng.choice(CRASHES)), (j, rng.random() < 0.5, rng.choice(CRASHES))], seed=i * 100 + j)


def test_crash_many_times():
    rng = random.Random(2)
    for seed in range(150):
        plan = [(rng.randrange(60), rng.random() < 0.3, rng.choice(CRASHES)) for _ in range(6)]
        trial(plan, seed=seed)


def test_the_broken_twin_fails():
    """A harness that cannot fail proves nothing."""
    caught = 0
    for i in range(POINTS):
        try:
            trial([(i, False, "kept")], PublishFirst)
        except (AssertionError, JobError):
            caught += 1
    assert caught >= 10


def test_a_disk_that_syncs_no_folders_is_caught():
    """The adversary sees a missing fsync of a folder: the other broken twin."""

    class Lazy(LocalStorage):
        def publish(self, source, target):
            self._disk.link(self._full(source), self._prepare(target))
            self._disk.unlink(self._full(source))
            self._disk.sync_dir(os.path.dirname(self._full(source)))

    caught = 0
    for i in range(POINTS):
        disk, tag = PowerLossDisk(), tags()
        storage = Lazy("/out", disk)
        stop_at(disk, i)
        try:
            run(storage, tag)
        except Crash:
            disk.crash("lost", random.Random(0))
        try:
            disk.hook = lambda what, path: None
            run(storage, tag)
            check_complete(storage)
        except (AssertionError, JobError):
            caught += 1
    assert caught >= 5


class Turns:
    """Threads that take turns at their file-system calls, in the order that a seed says."""

    def __init__(self, disk, rng):
        self.disk, self.rng = disk, rng
        self.waiting: dict[int, threading.Event] = {}
        self.alive: set[int] = set()
        self.lock = threading.Condition()
        disk.hook = self.hook

    def hook(self, what, path):
        me = threading.get_ident()
        with self.lock:
            if me not in self.alive:
                return
            gate = self.waiting[me] = threading.Event()
            self.lock.notify_all()
        gate.wait()

    def start(self, job):
        def body():
            with self.lock:
                self.alive.add(threading.get_ident())
            try:
                job()
            finally:
                with self.lock:
                    self.alive.discard(threading.get_ident())
                    self.lock.notify_all()

        before = len(self.alive)
        thread = threading.Thread(target=body)
        thread.start()
        with self.lock:
            self.lock.wait_for(lambda: len(self.alive) > before or not thread.is_alive(), 5)
        return thread

    def play(self, choose):
        """Release one waiting call at a time until every thread is done."""
        while True:
            with self.lock:
                self.lock.wait_for(lambda: not self.alive or len(self.waiting) == len(self.alive), 5)
                if not self.alive:
                    return
                me = choose(sorted(self.waiting))
                if me is None:
                    return
                self.waiting.pop(me).set()


def results_of(storage, tag, out):
    def job():
        try:
            run(storage, tag)
            out.append("finished")
        except (Fenced, FileNotFoundError, UserError) as error:
            # FileNotFoundError: `--overwrite` removed a committed part between its record and its publishing
            out.append("fenced" if isinstance(error, Fenced) else type(error).__name__)

    return job


def test_zombie_is_resumed_after_every_call():
    """A run stops before call i, a new one does everything, the old one wakes: fenced, nothing lost or doubled."""
    fenced = 0
    for i in range(POINTS):
        disk = PowerLossDisk()
        storage, tag, out = LocalStorage("/out", disk), tags(), []
        turns = Turns(disk, None)
        thread = turns.start(results_of(storage, tag, out))
        steps = itertools.count()
        turns.play(lambda waiting, steps=steps, i=i: waiting[0] if next(steps) < i else None)
        if turns.alive:
            run(storage, tag)  # this thread takes no turns: its calls go through
            check_visible(storage)
            turns.play(lambda waiting: waiting[0])
        thread.join()
        run(storage, tag)
        check_complete(storage)
        fenced += out == ["fenced"]
    assert fenced > POINTS // 2


def test_any_interleaving_of_three_runs():
    """Two or three runs share an output, their calls interleaved at random: recovery of one while another writes."""
    for seed in range(200):
        rng = random.Random(seed)
        disk = PowerLossDisk()
        storage, tag, out = LocalStorage("/out", disk), tags(), []
        turns = Turns(disk, rng)
        threads = [turns.start(results_of(storage, tag, out)) for _ in range(rng.choice([2, 3]))]
        favourite = {"who": None, "left": 0}

        def choose(waiting, rng=rng, favourite=favourite):
            if favourite["left"] <= 0 or favourite["who"] not in waiting:
                favourite["who"], favourite["left"] = rng.choice(waiting), rng.choice([1, 2, 10, 60])
            favourite["left"] -= 1
            return favourite["who"]

        turns.play(choose)
        for thread in threads:
            thread.join()
        check_visible(storage)
        assert len(out) == len(threads)
        run(storage, tag)
        check_complete(storage)


def test_any_interleaving_on_an_object_store():
    """The same, where publishing is copy and delete, and where nothing is a folder."""
    for seed in range(100):
        rng = random.Random(seed)
        fs = FaultyStore(seed=seed)
        storage, tag, out = FsspecStorage(fs, "bucket/out", sleep=lambda s: None), tags(), []
        turns = Turns(fs, rng)
        threads = [turns.start(results_of(storage, tag, out)) for _ in range(2)]
        turns.play(lambda waiting, rng=rng: waiting[0] if rng.random() < 0.7 else rng.choice(waiting))
        for thread in threads:
            thread.join()
        check_visible(storage)
        assert len(out) == 2
        run(storage, tag)
        check_complete(storage)


def test_overwrite_while_the_old_run_still_writes():
    """The old run's calls are interleaved with those of a run that voids it: none of its rows may stay or come back."""
    for seed in range(150):
        rng = random.Random(seed)
        disk = PowerLossDisk()
        storage, tag, out = LocalStorage("/out", disk), tags(), []
        turns = Turns(disk, rng)
        old = turns.start(results_of(storage, tag, out))
        steps, stop = itertools.count(), rng.randrange(POINTS)
        turns.play(lambda waiting, steps=steps, stop=stop: waiting[0] if next(steps) < stop else None)

        def new(storage=storage, tag=tag, out=out):
            with contextlib.suppress(Fenced):
                run(storage, tag, job={"model": "b"}, overwrite=True)
            out.append("new")

        other = turns.start(new)
        turns.play(lambda waiting, rng=rng: rng.choice(waiting))
        for thread in (old, other):
            thread.join()
        state = replay(storage)
        run(storage, tag, job={"model": "b"}, overwrite=state.job == JOB)
        check_complete(storage)


def test_a_committed_part_is_never_committed_again(tmp_path):
    storage = LocalStorage(str(tmp_path))
    log = open_log(storage)
    part = write(storage, log.attempt, [0, 1], tags())
    log.commit([part])
    with pytest.raises(ValueError, match="committed already"):
        log.commit([replace(part, name="part-000001-x.parquet")])


def test_checkpoints_carry_everything_over():
    """450 records: replay starts at 400 and knows what the whole log says."""
    storage, tag = LocalStorage("/out", PowerLossDisk()), tags()
    files = [replace(INPUTS[0], size_positions=1000)]
    log = open_log(storage, inputs=files)
    for k in range(0, 850, 2):
        log.commit([write(storage, log.attempt, [k], tag)])
    log.blame([[Span(0, 1, 2), Span(0, 3, 4)]], [Span(0, 5, 6)], {Span(0, 1, 2): 2}, rerun=7, worker="w", cause="crash")
    assert log.state.next > 400
    kinds = [record["kind"] for record in records(storage)]
    assert [i for i, kind in enumerate(kinds) if kind == "checkpoint"] == [100, 200, 300, 400]
    late = replay(storage)
    early = replay_all(storage)
    early.pending = late.pending  # a checkpoint forgets parts that were published before it
    assert late == early
    assert len(late.pending) < 100
    assert late.rerun == 7
    assert late.hunt == [[Span(0, 1, 2), Span(0, 3, 4)]]
    again = open_log(storage, inputs=files)
    assert again.state.done == log.state.done
    assert not again.state.pending


def replay_all(storage):
    from raydecode.corpus.records import State

    state = State()
    for record in records(storage):
        state.apply(record)
    return state


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    storage = LocalStorage(str(tmp_path))
    run(storage, tags())
    other = {"model": "toy", "decoding": {"seed": 8, "max_tokens": 4, "stop": ["\n"]}}
    with pytest.raises(UserError, match=r"decoding\.seed: 7 -> 8") as caught:
        open_log(storage, job=other)
    assert "decoding.stop[0]: (not set)" in str(caught.value)
    assert "--overwrite" in str(caught.value)
    with pytest.raises(UserError):
        finished(storage, other)


def test_overwrite_voids_the_old_rows_and_removes_them(tmp_path):
    storage, tag = LocalStorage(str(tmp_path)), tags()
    run(storage, tag)
    before = set(storage.list(""))
    log = run(storage, tag, job=JOB | {"model": "other"}, overwrite=True)
    check_complete(storage)
    assert log.attempt == 2
    names = {path for path in before if path.endswith((".parquet", ".ids"))}
    assert not names & set(storage.list(""))
    assert finished(storage, JOB | {"model": "other"}, INPUTS).rows == N


def test_overwrite_survives_a_crash_at_every_call():
    for how in CRASHES:
        for i in range(0, POINTS, 3):
            disk, tag = PowerLossDisk(), tags()
            storage = LocalStorage("/out", disk)
            run(storage, tag)
            stop_at(disk, i)
            try:
                run(storage, tag, job={"model": "b"}, overwrite=True)
            except Crash:
                disk.crash(how, random.Random(i))
            disk.hook = lambda what, path: None
            state = replay(storage)
            run(storage, tag, job={"model": "b"}, overwrite=state.job == JOB)
            check_complete(storage)


def test_a_finished_job_is_recognised_and_new_files_reopen_it(tmp_path):
    storage = LocalStorage(str(tmp_path))
    assert finished(storage) is None
    run(storage, tags())
    summary = finished(storage, JOB, INPUTS)
    assert summary.rows == N
    assert summary.details == {"ok": True}
    more = [*INPUTS, replace(INPUTS[0], number=1, path="new.parquet", size_positions=3)]
    assert finished(storage, JOB, more) is None
    log = open_log(storage, inputs=more)
    assert [one.path for one in log.state.inputs] == ["in.parquet", "new.parquet"]
    assert finished(storage) is None


def test_a_live_run_is_not_disturbed(tmp_path):
    storage = LocalStorage(str(tmp_path))
    parent = Owner("elsewhere", 1, "x")
    log = open_log(storage, owner=parent, takeover=False)
    with pytest.raises(UserError, match="another run is writing here: process 1 on elsewhere"):
        open_log(storage, takeover=False, now=lambda: 20.0)
    open_log(storage, takeover=False, now=lambda: 40.0)  # its heartbeat is old
    with pytest.raises(Fenced):
        log.finish({})


def test_a_dead_run_on_this_host_is_taken_over_at_once(tmp_path):
    storage = LocalStorage(str(tmp_path))
    dead = replace(Owner.me(), pid=2**22 - 1)
    log = open_log(storage, owner=dead, takeover=False)
    log.beat(5)
    again = open_log(storage, owner=Owner.me(), takeover=False)
    assert again.state.rerun == 5  # what was in slots is run again
    again.beat(3)
    restarted = open_log(storage, owner=Owner.me(), takeover=False)  # the ledger died, the same driver goes on
    assert restarted.state.rerun == 8
    restarted.beat(4)
    other = open_log(storage, owner=Owner("elsewhere", 1, "x"), takeover=True)
    assert other.state.rerun == 12
    other.beat(6)
    other.beat(0, closed=True)
    assert open_log(storage).state.rerun == 12
    assert replace(Owner.me(), born="1").alive() is False  # the pid was reused by another process
    assert Owner.me().alive() is True


def test_torn_heartbeats_are_ignored(tmp_path):
    storage = LocalStorage(str(tmp_path))
    open_log(storage, owner=Owner("elsewhere", 1, "x"))
    storage.write("_log/heartbeat-000001-1", b'{"att')
    open_log(storage, takeover=False)


def test_a_damaged_or_mixed_log_is_reported(tmp_path):
    storage = LocalStorage(str(tmp_path))
    log = run(storage, tags())
    last = json.loads(storage.read(record_name(log.state.next - 1)))
    storage.create_exclusive(record_name(log.state.next), json.dumps(last | {"kind": "wish"}).encode())
    with pytest.raises(JobError, match="unknown kind 'wish'"):
        replay(storage)
    storage.remove(record_name(log.state.next))
    storage.create_exclusive(record_name(log.state.next), b"{")
    with pytest.raises(JobError, match="damaged"):
        replay(storage)


def test_a_lost_committed_part_is_named(tmp_path):
    storage, tag = LocalStorage(str(tmp_path)), tags()
    log = open_log(storage)
    part = write(storage, log.attempt, [0], tag)
    log._put({"kind": "commit", "parts": [part.to_json()]})
    storage.remove(part.moves()[1][0])
    with pytest.raises(JobError, match=part.name):
        open_log(storage)


def test_part_meta_is_small():
    cover = Cover([Span(0, 0, 10_000)])
    part = PartMeta(
        "part-000001-" + "a" * 32 + ".parquet",
        1,
        10_000,
        10_000,
        640_000,
        10_000,
        0,
        1 << 20,
        "f" * 64,
        "e" * 64,
        cover,
    )
    assert len(json.dumps(part.to_json())) < 420
    assert PartMeta.from_json(json.loads(json.dumps(part.to_json()))) == part
