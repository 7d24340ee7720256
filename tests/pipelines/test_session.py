"""Placement: what an engine may take of a machine, so that the readers always have room."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipelines import lone_node, session
from raydecode.config import ActorsConfig


def cluster(*nodes):
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": dict(node)} for node in nodes])


@pytest.mark.parametrize(
    ("nodes", "actors", "cpu_only", "placed", "threads"),
    [
        ([{"CPU": 1.0}], {}, False, (0.0, 0.0), 1),
        ([{"CPU": 2.0}], {"max": 2}, False, (0.0, 0.0), 1),
        ([{"CPU": 4.0}], {}, False, (0.0, 0.0), 4),
        ([{"CPU": 16.0}], {}, False, (15.0, 0.0), 15),
        ([{"CPU": 16.0}], {"max": 3}, False, (5.0, 0.0), 5),
        ([{"CPU": 16.0}, {"CPU": 8.0}], {"max": 4}, False, (7.0, 0.0), 7),
        ([{"CPU": 16.0, "GPU": 2.0}], {"max": 2}, False, (0.0, 1.0), 8),
        ([{"CPU": 16.0, "GPU": 2.0}], {"max": 4, "num_gpus": 0.5, "num_cpus": 1.0}, False, (1.0, 0.5), 1),
        ([{"CPU": 2.0, "GPU": 1.0}], {}, True, (0.0, 0.0), 2),
    ],
)
def test_resources(nodes, actors, cpu_only, placed, threads):
    found = session.resources(cluster(*nodes), ActorsConfig.model_validate(actors), cpu_only=cpu_only)
    assert found == ({"num_cpus": placed[0], "num_gpus": placed[1]}, threads)


def test_children_are_seen():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in session._children() or not os.path.isdir("/proc/self/task")
    finally:
        child.communicate(b"\n")


def test_dead_processes_of_a_local_ray_are_seen_at_once_and_a_clusters_are_not_ours():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lives = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    processes = {"gcs_server": lives, "raylet": ended, "log_monitor": ended}

    def ray_of(node):
        return SimpleNamespace(_private=SimpleNamespace(worker=SimpleNamespace(_global_node=node)))

    def dead():
        return [(name, process) for name, process in processes.items() if process.poll() is not None]

    try:
        assert lone_node.dead_here(ray_of(SimpleNamespace(dead_processes=dead))) == ["raylet"]
        assert lone_node.dead_here(ray_of(SimpleNamespace(dead_processes=list))) == []
        assert lone_node.dead_here(ray_of(None)) == []
    finally:
        lives.communicate(b"\n")


def test_a_bare_checkout_is_found_by_workers(monkeypatch, root):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    session._find_code_here()
    assert os.environ["PYTHONPATH"].split(os.pathsep)[:2] == [str(root), "/elsewhere"]


def test_a_cluster_gets_the_code_and_a_submitted_job_keeps_its_own(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert [os.path.basename(path) for path in session._code()["py_modules"]] == ["raydecode", "actors", "pipelines"]
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert session._code() == {}
