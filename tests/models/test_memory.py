"""What the machine says it has: meminfo and control groups, on file trees written here."""

from pathlib import Path

import pytest

from raydecode.models.memory import available_bytes

MIB = 1 << 20


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, **{"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 4096000 kB\n"})
    return tmp_path


def test_meminfo_alone(root: Path) -> None:
    assert available_bytes(root=root) == 4096000 * 1024


def test_the_tightest_control_group_wins_and_page_cache_counts_as_free(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/cgroup": "0::/jobs/ours\n",
            "sys/fs/cgroup/jobs/memory.max": f"{2000 * MIB}\n",
            "sys/fs/cgroup/jobs/memory.current": f"{1500 * MIB}\n",
            "sys/fs/cgroup/jobs/memory.stat": f"anon {1200 * MIB}\ninactive_file {300 * MIB}\n",
            "sys/fs/cgroup/jobs/ours/memory.max": "max\n",
        },
    )
    assert available_bytes(root=root) == 800 * MIB


def test_version_one_and_a_container_that_sees_only_its_own_mount(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/cgroup": "5:cpu,memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1000 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{400 * MIB}\n",
        },
    )
    assert available_bytes(root=root) == 600 * MIB


def test_no_limit_in_version_one(root: Path) -> None:
    write(
        root,
        **{
            "proc/self/cgroup": "5:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert available_bytes(root=root) == 4096000 * 1024


def test_a_silent_system_is_unknown_and_this_one_is_not(tmp_path: Path) -> None:
    assert available_bytes(root=tmp_path / "nothing") is None
    assert (available_bytes() or 0) > 0
