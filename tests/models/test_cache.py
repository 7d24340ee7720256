"""Built once, by one process, never seen half built."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raydecode.models.cache import build_once, cache_root, finished
from raydecode.models.errors import ModelError

BUILDER = """
import sys, time
from pathlib import Path
from raydecode.models.cache import build_once
count, seconds = Path(sys.argv[1]), float(sys.argv[2])
def build(out):
    (out / "first").write_text("one")
    with count.open("a") as log: log.write("built\\n")
    print("half", flush=True)
    time.sleep(seconds)
    (out / "second").write_text("two")
print(build_once("thing", build), flush=True)
"""


def start(count: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(count), str(seconds)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def whole(folder: Path) -> bool:
    return (folder / "first").read_text() == "one" and (folder / "second").read_text() == "two"


def test_two_processes_build_once(cache: Path, tmp_path: Path) -> None:
    count = tmp_path / "count"
    builders = [start(count, 0.5), start(count, 0.5)]
    said = [builder.communicate(timeout=60)[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert {text.splitlines()[-1] for text in said} == {str(cache / "models" / "thing")}
    assert count.read_text() == "built\n"
    assert whole(cache / "models" / "thing")


def test_killed_builder_leaves_no_model_and_the_next_one_cleans_up(cache: Path, tmp_path: Path) -> None:
    with start(tmp_path / "count", 60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "half\n"
        killed.send_signal(signal.SIGKILL)
        killed.wait(timeout=30)
    assert finished("thing") is None
    assert len(list((cache / "models").glob(".thing.partial-*"))) == 1
    with start(tmp_path / "count", 0) as second:
        assert second.wait(timeout=60) == 0
    assert whole(cache / "models" / "thing")
    assert not list((cache / "models").glob("*partial*"))


def test_a_waiting_process_takes_over_from_a_killed_one(cache: Path, tmp_path: Path) -> None:
    with start(tmp_path / "count", 60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "half\n"
        with start(tmp_path / "count", 0) as waiting:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1)
            killed.send_signal(signal.SIGKILL)
            assert waiting.wait(timeout=60) == 0
    assert whole(cache / "models" / "thing")


def test_a_failing_build_leaves_nothing(cache: Path) -> None:
    def fail(out: Path) -> None:
        (out / "half").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        build_once("thing", fail)
    assert [path.name for path in (cache / "models").iterdir()] == [".thing.lock"]


def test_files_are_readable_for_others(cache: Path) -> None:
    def private(out: Path) -> None:
        (out / "sub").mkdir(mode=0o700)
        (out / "sub" / "weights").write_text("x")
        (out / "sub" / "weights").chmod(0o600)

    folder = build_once("thing", private)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "sub" / "weights").stat().st_mode) == 0o644


def test_disk_full_and_no_permission_name_the_cache(cache: Path) -> None:
    def full(out: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left") as refusal:
        build_once("thing", full)
    assert "RAYDECODE_CACHE" in str(refusal.value)


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAYDECODE_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.delenv("RAYDECODE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "raydecode"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "raydecode"
