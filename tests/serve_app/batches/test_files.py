"""Files: whole or not at all, ids that nobody guesses, owners, expiry, a bucket, a disk that is full."""

import errno
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from raydecode.errors import UserError
from serve_app.batches.files import FileStore, TooLarge, Unwritable, check


def test_a_file_comes_back_as_it_was(tmp_path):
    store = FileStore(str(tmp_path))
    file = store.create([b"one\n", b"two\n"], filename="a.jsonl", purpose="batch")
    assert re.fullmatch(r"file-[0-9a-f]{32}", file.id)
    assert b"".join(store.read(file.id)) == b"one\ntwo\n"
    assert FileStore(str(tmp_path)).get(file.id) == file, "another process sees it"
    assert file.to_json() | {"created_at": 0} == {
        "object": "file", "status": "processed", "status_details": None, "id": file.id, "bytes": 8, "created_at": 0,
        "filename": "a.jsonl", "purpose": "batch", "expires_at": None,
    }  # fmt: skip


def test_a_deleted_file_is_gone_everywhere(tmp_path):
    store, other = FileStore(str(tmp_path)), FileStore(str(tmp_path))
    file = store.create([b"x"], filename="a", purpose="batch")
    assert other.get(file.id)
    store.delete(file.id)
    assert other.get(file.id) is None
    assert store.all() == other.all() == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("id", ["", "file-", "file-../../passwd", "file-" + "G" * 32, "../meta/x", "file-" + "a" * 31])
def test_what_is_no_id_touches_no_path(tmp_path, id):
    assert FileStore(str(tmp_path)).get(id) is None


def test_keys_see_their_own_files(tmp_path):
    store = FileStore(str(tmp_path))
    mine = store.create([b"x"], filename="a", purpose="batch", owner="me")
    store.create([b"y"], filename="b", purpose="batch", owner="you")
    assert [file.id for file in store.all("me")] == [mine.id]
    assert store.get(mine.id, "you") is None
    assert len(store.all()) == 2


def test_one_that_is_too_large_leaves_nothing(tmp_path):
    store = FileStore(str(tmp_path))
    with pytest.raises(TooLarge, match="1,000"):
        store.create((b"x" * 100 for _ in range(100)), filename="a", purpose="batch", most=1000)
    assert store.all() == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_files_expire(tmp_path):
    now = [1000.0]
    store = FileStore(str(tmp_path), clock=lambda: now[0])
    file = store.create([b"x"], filename="a", purpose="batch", expires_after_s=60)
    assert file.expires_at == 1060
    now[0] = 1060.0
    assert store.get(file.id) is None
    assert store.get(file.id, expired=True) == file
    assert store.expired() == [file.id]


def test_the_same_file_again_is_the_same_file(tmp_path):
    store, id = FileStore(str(tmp_path)), "file-" + "a" * 32
    first = store.create([b"x"], filename="a", purpose="batch_output", id=id, at=5)
    assert store.create([b"never read"], filename="a", purpose="batch_output", id=id, at=5) == first
    assert b"".join(store.read(id)) == b"x"


@pytest.mark.parametrize("url", ["", "memory://twice-at-once"])
def test_two_that_make_one_file_at_once_end_with_one(tmp_path, url):
    url, id = url or str(tmp_path), "file-" + "a" * 32
    first, second = FileStore(url), FileStore(url)
    inside = {}

    def chunks():
        """Half of the one; then the other makes all of it."""
        yield b"one"
        inside["made"] = second.create([b"one", b"two"], filename="a", purpose="batch_output", id=id, at=5)
        yield b"two"

    assert first.create(chunks(), filename="loser", purpose="batch_output", id=id, at=5) == inside["made"]
    for store in (first, second, FileStore(url)):
        assert b"".join(store.read(id)) == b"onetwo"
    assert len(first.storage.list("content")) == 1, "the loser's bytes are gone"
    first.delete(id)


def test_a_record_whose_answer_was_lost_keeps_its_bytes(tmp_path, monkeypatch):
    store, id = FileStore(str(tmp_path)), "file-" + "a" * 32
    create = store.storage.create_exclusive

    def lost(path, data):
        create(path, data)
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(store.storage, "create_exclusive", lost)
    with pytest.raises(Unwritable):
        store.create([b"x"], filename="a", purpose="batch_output", id=id, at=5)
    assert b"".join(store.read(id)) == b"x"


def test_threads_that_look_for_a_deleted_file_find_none(tmp_path):
    store, other = FileStore(str(tmp_path)), FileStore(str(tmp_path))
    meet, exists = threading.Barrier(2), store.storage.exists

    def together(path):
        found = exists(path)
        meet.wait(30)
        return found

    store.storage.exists = together
    file = store.create([b"x"], filename="a", purpose="batch")
    store._known[file.id] = file
    other.delete(file.id)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(store.get, [file.id] * 2)) == [None, None]


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    store = FileStore(str(tmp_path))

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.storage, "create_exclusive", full)
    with pytest.raises(Unwritable, match="the disk is full") as caught:
        store.create([b"x"], filename="a", purpose="batch")
    assert caught.value.full
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        check(str(tmp_path / "file"))
    assert caught.value.field == "batches.path"
    check(str(tmp_path / "good"))


def test_a_bucket_holds_them_too():
    store = FileStore("memory://serve-c-files")
    file = store.create([b"one", b"two"], filename="a", purpose="batch")
    assert b"".join(store.read(file.id)) == b"onetwo"
    assert [one.id for one in store.all()] == [file.id]
    store.delete(file.id)
    assert store.all() == []
