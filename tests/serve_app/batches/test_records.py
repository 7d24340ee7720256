"""Records of batches: asked for by many threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

from serve_app.batches.records import BatchStore


def test_threads_that_look_for_an_unknown_batch_find_none(tmp_path):
    store = BatchStore(str(tmp_path))
    meet, read = threading.Barrier(2), store.storage.read

    def together(path):
        meet.wait(30)
        return read(path)

    store.storage.read = together
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(store.get, ["batch_" + "a" * 32] * 2)) == [None, None]
