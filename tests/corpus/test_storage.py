"""Storage: exclusive creation, idempotent publishing, and stores that fail, lie and answer late."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import threading

import pytest

from raydecode.corpus.history import finished, replay
from raydecode.corpus.log import Fenced
from raydecode.corpus.storage import FsspecStorage, LocalStorage, is_full, open_storage, prepare
from raydecode.errors import UserError
from tests.corpus.faulty_store import FaultyStore
from tests.corpus.power_loss import Crash, PowerLossDisk
from tests.corpus.small_job import INPUTS, JOB, check_complete, check_visible, open_log, run, write


def store(**options):
    fs = FaultyStore(**options)
    return fs, FsspecStorage(fs, "bucket/out", sleep=lambda s: None)


def tags():
    counter = itertools.count()
    return lambda: f"{next(counter):08x}"


@pytest.fixture(params=["local", "store"])
def storage(request, tmp_path):
    return LocalStorage(str(tmp_path / "out")) if request.param == "local" else store()[1]


def test_contract(storage):
    storage.write("_tmp/1/a", b"one")
    storage.create_exclusive("_log/0", b"first")
    storage.create_exclusive("_log/0", b"first")  # the same bytes: a lost answer, sent again
    with pytest.raises(FileExistsError):
        storage.create_exclusive("_log/0", b"second")
    assert storage.read("_log/0") == b"first"
    storage.publish("_tmp/1/a", "a")
    storage.publish("_tmp/1/a", "a")
    assert storage.read("a") == b"one"
    assert not storage.exists("_tmp/1/a")
    assert storage.list("") == ["_log/0", "a"]
    assert storage.list("_log") == ["_log/0"]
    assert storage.list("nowhere") == []
    with pytest.raises(FileNotFoundError):
        storage.publish("_tmp/1/b", "b")
    storage.remove("a")
    storage.remove("a")
    assert not storage.exists("a")
    with pytest.raises(FileNotFoundError):
        storage.read("a")


def test_exclusive_create_has_one_winner_among_threads(storage):
    for round_ in range(10):
        won = []

        def race(i, round_=round_, won=won):
            try:
                storage.create_exclusive(f"_log/{round_}", f"{i}".encode())
                won.append(i)
            except FileExistsError:
                pass

        threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert storage.read(f"_log/{round_}") == f"{won[0]}".encode()


def test_job_on_a_store_with_five_percent_errors():
    """5 % of calls fail, 5 % lose their answer, listings miss a third of the keys, plain puts arrive late."""
    for seed in range(200):
        fs, storage = store(seed=seed, fail=0.05, lose=0.05, late=0.02, partial=0.3)
        run(storage, tags())
        fs.fail = fs.lose = fs.late = fs.partial = 0.0
        assert check_visible(storage) == list(range(20))
        assert finished(storage, JOB, INPUTS) is not None


def test_every_single_answer_may_be_lost():
    """The fate of one call at a time: failed, or done with its answer lost. Nothing may depend on it."""
    fs, storage = store()
    run(storage, tags())
    for number in range(fs.calls):
        for fate in ("fail", "lose"):
            one, storage = store()
            one.script = {number: fate}
            run(storage, tags())
            check_complete(storage)


def test_crash_before_every_call_to_a_store():
    fs, storage = store()
    run(storage, tags())
    for number in range(fs.calls):
        one, storage = store(seed=number)
        count = itertools.count()

        def hook(what, path, count=count, number=number):
            if next(count) == number:
                raise Crash

        one.hook = hook
        tag = tags()
        with pytest.raises(Crash):
            run(storage, tag)
        one.hook = lambda what, path: None
        check_visible(storage)
        run(storage, tag)
        check_complete(storage)


def test_a_late_record_of_a_dead_run_is_either_read_or_refused():
    """A conditional put whose answer timed out arrives after its process died: before the new attempt's record it
    counts, after it the store refuses it."""
    for when in ("before", "after"):
        fs, storage = store()
        log = open_log(storage)
        part = write(storage, log.attempt, [0, 1], tags())
        sent = []
        real = storage.create_exclusive
        storage.create_exclusive = lambda path, data, sent=sent: sent.append((path, data))
        log._put({"kind": "commit", "parts": [part.to_json()]})
        storage.create_exclusive = real
        if when == "before":
            fs.create_late("bucket/out/" + sent[0][0], sent[0][1])
        new = open_log(storage)
        fs.create_late("bucket/out/" + sent[0][0], sent[0][1])
        assert check_visible(storage) == ([0, 1] if when == "before" else [])
        assert replay(storage).done == new.state.done


def test_old_run_on_a_store_is_fenced():
    _, storage = store()
    old = open_log(storage)
    new = open_log(storage)
    part = write(storage, old.attempt, [0], tags())
    with pytest.raises(Fenced):
        old.commit([part])
    new.finish({})
    assert check_visible(storage) == []


def test_store_without_conditional_put_is_refused():
    _, storage = store(conditional=False)
    with pytest.raises(UserError, match="no exclusive create") as caught:
        prepare(storage)
    assert "upload" in str(caught.value)
    fs, storage = store()
    prepare(storage)
    assert not fs.objects  # the probe leaves nothing behind


def test_store_that_looks_first_and_puts_then_is_refused():
    """Two creates in a row would not find this one out; four at once do."""

    class Racy(FaultyStore):
        def pipe_file(self, path, value, mode="overwrite", **kwargs):
            if mode == "create" and self._strip_protocol(path) in self.objects:
                raise FileExistsError(path)
            barrier.wait()
            self.objects[self._strip_protocol(path)] = value

    class Meet:
        """Everyone who looked waits a moment for the others."""

        def wait(self):
            threading.Event().wait(0.05)

    barrier = Meet()
    with pytest.raises(UserError, match="no exclusive create"):
        prepare(FsspecStorage(Racy(), "bucket/out", sleep=lambda s: None))


def test_probe_survives_a_flaky_store():
    for seed in range(30):
        _, storage = store(seed=seed, fail=0.05, lose=0.05)
        prepare(storage)


def test_bucket_that_enforces_conditional_writes():
    """Plain copies are refused (403, 501): the part is put again under its name."""

    class Strict(FaultyStore):
        def cp_file(self, path1, path2, **kwargs):
            raise PermissionError("AccessDenied")

    fs = Strict()
    storage = FsspecStorage(fs, "bucket/out")
    run(storage, tags())
    check_complete(storage)


def test_full_disk_ends_with_what_is_committed():
    disk = PowerLossDisk()
    storage = LocalStorage("/out", disk)
    rng = random.Random(0)
    for _ in range(60):
        left = [rng.randrange(1, 40)]
        plain = disk.write

        def write_some(path, data, left=left, plain=plain):
            left[0] -= 1
            if left[0] < 0:
                plain(path, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "no space left on device", path)
            plain(path, data)

        disk.write = write_some
        full = True
        try:
            run(storage, tags())
        except OSError as error:
            full = is_full(error)
        assert full
        disk.write = plain
        check_visible(storage)
    tag = tags()
    run(storage, lambda: "last" + tag())
    check_complete(storage)


def test_full_store_is_not_retried():
    fs, storage = store()
    fs.room = 10
    calls = fs.calls
    with pytest.raises(OSError, match="no space") as caught:
        storage.write("a", b"x" * 100)
    assert is_full(caught.value)
    assert fs.calls == calls + 1


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts a tmpfs")
def test_really_full_disk(tmp_path):
    where = tmp_path / "tiny"
    where.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)], capture_output=True).returncode:
        pytest.skip("mount is not permitted here")
    try:
        storage = LocalStorage(str(where / "out"))
        log = open_log(storage)
        log.commit([write(storage, log.attempt, [0], tags())])
        with pytest.raises(OSError) as caught:
            storage.write("_tmp/000001/big", b"x" * 200_000)
        assert is_full(caught.value)
        assert not storage.exists("_tmp/000001/big")
        assert check_visible(storage) == [0]
    finally:
        subprocess.run(["umount", str(where)], check=True, capture_output=True)


def test_unwritable_output_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UserError, match=r"output\.path: cannot write to"):
        prepare(open_storage(str(blocked / "out")))
    prepare(open_storage(str(tmp_path / "fine")))
    prepare(open_storage(f"file://{tmp_path}/also"))


def test_file_system_without_links_is_refused(tmp_path):
    class NoLinks(PowerLossDisk):
        def link(self, source, target):
            raise OSError(errno.EPERM, "Operation not permitted", target)

    with pytest.raises(UserError, match="hard links"):
        prepare(LocalStorage("/out", NoLinks()))


def test_torn_record_cannot_block_its_number():
    """`O_EXCL` and a write would leave half a record under the final name; the temporary file does not."""
    disk = PowerLossDisk()
    storage = LocalStorage("/out", disk)
    open_log(storage)
    disk.torn = lambda: True
    with pytest.raises(Crash):
        storage.create_exclusive("_log/000000000002.json", b'{"kind": "finish"}')
    disk.crash("kept", random.Random(0))
    assert not storage.exists("_log/000000000002.json")
    run(storage, tags())
    check_complete(storage)
