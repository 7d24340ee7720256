"""The quick reader reads what the plain one reads, and stands in for one file only."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from raydecode.models.gguf_reader import field, open_reader, opened_once
from tests.models.tiny import byte_level_tokenizer, write_gguf


@pytest.fixture(scope="module")
def file(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(LlamaForCausalLM.from_pretrained(tiny_folder("llama")), byte_level_tokenizer(), path)
    return path


def test_it_reads_the_same(file: Path) -> None:
    quick, plain = open_reader(file), gguf.GGUFReader(file)
    assert {name: value.contents() for name, value in quick.fields.items()} == {
        name: value.contents() for name, value in plain.fields.items()
    }
    for mine, theirs in zip(quick.tensors, plain.tensors, strict=True):
        assert (mine.name, mine.tensor_type) == (theirs.name, theirs.tensor_type)
        assert np.array_equal(mine.data, theirs.data)
    assert field(quick, "tokenizer.ggml.pre", None) == "gpt-2"
    assert field(quick, "no.such.key", 7) == 7


def test_only_this_file_and_only_within_the_block(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes())
    reader, before = open_reader(file), (gguf.GGUFReader, gguf.get_tensor_name_map)
    with pytest.raises(KeyboardInterrupt), opened_once(file, reader):
        assert gguf.GGUFReader(str(file)) is reader
        assert gguf.GGUFReader(other) is not reader
        raise KeyboardInterrupt
    assert before == (gguf.GGUFReader, gguf.get_tensor_name_map)
