"""The protocol on gs:// through gcsfs, against a bucket of this machine: conditional put, copy, the whole job.

Runs where gcsfs is installed. It pins one fsspec each, so it is no dependency of the tests.
"""

import itertools
import os
import subprocess
import sys

import pytest

from raydecode.corpus.history import finished
from raydecode.corpus.log import Fenced
from raydecode.corpus.storage import open_storage, prepare
from raydecode.errors import UserError
from tests.corpus.small_job import INPUTS, JOB, check_complete, check_visible, open_log, run, write

os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it asks Google over gRPC first
pytest.importorskip("gcsfs")


@pytest.fixture(params=[()], ids=["bucket"])
def storage(request):
    command = [sys.executable, "tests/corpus/gcs_server.py", *request.param]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with server:
        options = {"endpoint_url": f"http://127.0.0.1:{int(server.stdout.readline())}", "token": "anon"}
        yield open_storage("gs://bucket/out", options=options | {"skip_instance_cache": True})
        server.stdin.close()


def test_job_on_gcs(storage):
    prepare(storage)
    counter = itertools.count()
    run(storage, lambda: f"{next(counter):08x}")
    check_complete(storage)
    assert finished(storage, JOB, INPUTS).rows == 20


def test_old_run_is_fenced_on_gcs(storage):
    old = open_log(storage)
    open_log(storage)
    with pytest.raises(Fenced):
        old.commit([write(storage, old.attempt, [0], lambda: "x")])
    assert check_visible(storage) == []


def test_exclusive_create_on_gcs(storage):
    storage.create_exclusive("_log/0", b"first")
    storage.create_exclusive("_log/0", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("_log/0", b"second")
    assert storage.read("_log/0") == b"first"


@pytest.mark.parametrize("storage", [["--unconditional"]], indirect=True, ids=["ignores conditions"])
def test_a_bucket_that_ignores_the_condition_is_refused(storage):
    with pytest.raises(UserError, match="no exclusive create"):
        prepare(storage)
    assert storage.list("") == []
