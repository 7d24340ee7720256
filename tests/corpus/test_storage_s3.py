"""The protocol against an S3 server (moto on 127.0.0.1): conditional put, server-side copy, the whole job."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys

import pytest

from raydecode.corpus.history import finished
from raydecode.corpus.log import Fenced
from raydecode.corpus.storage import FsspecStorage, prepare
from tests.corpus.small_job import INPUTS, JOB, check_complete, check_visible, open_log, run, write

s3fs = pytest.importorskip("s3fs")
if importlib.util.find_spec("moto") is None:
    pytest.skip("moto is not installed", allow_module_level=True)

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""A process of its own: vLLM looks into every module that its process has loaded, and Flask's do not bear it."""


@pytest.fixture(scope="module")
def endpoint():
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()


@pytest.fixture
def storage(endpoint, request):
    fs = s3fs.S3FileSystem(
        key="test",
        secret="test",
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
        client_kwargs={"region_name": "eu-west-1"},
    )
    bucket = request.node.name.replace("_", "-")
    fs.mkdir(bucket)
    return FsspecStorage(fs, f"{bucket}/out", sleep=lambda s: None)


def test_job_on_s3(storage):
    prepare(storage)
    counter = itertools.count()
    run(storage, lambda: f"{next(counter):08x}")
    check_complete(storage)
    assert finished(storage, JOB, INPUTS).rows == 20


def test_old_run_is_fenced_on_s3(storage):
    old = open_log(storage)
    open_log(storage)
    with pytest.raises(Fenced):
        old.commit([write(storage, old.attempt, [0], lambda: "x")])
    assert check_visible(storage) == []


def test_exclusive_create_on_s3(storage):
    storage.create_exclusive("_log/0", b"first")
    storage.create_exclusive("_log/0", b"first")
    with pytest.raises(FileExistsError):
        storage.create_exclusive("_log/0", b"second")
    assert storage.read("_log/0") == b"first"
