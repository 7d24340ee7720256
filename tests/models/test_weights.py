"""Weights as they are in the file; what is missing, foreign or pickled is an error."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydecode.models import ModelError, load_module, load_tokenizer, load_weights
from raydecode.models.weights import load_config

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_weights_and_module_agree_with_transformers(tiny_folder: Tiny, family: str) -> None:
    folder = tiny_folder(family)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    stored = load_file(folder / "model.safetensors")
    weights = load_weights(folder)
    assert weights.keys() == stored.keys()
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    half = load_weights(folder, "bfloat16")
    assert all(torch.equal(half[name], stored[name].bfloat16()) for name in stored)
    module = load_module(folder, torch.float32)
    ids = torch.arange(12).reshape(1, -1)
    with torch.inference_mode():
        assert torch.equal(module(ids).logits, reference(ids).logits)
    assert not module.training
    assert module.config._attn_implementation == "eager"
    assert load_module(folder, "bfloat16").dtype == torch.bfloat16


def test_sharded_weights_are_one_dictionary(tiny_folder: Tiny, tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_folder("qwen2"))
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    weights, whole = load_weights(tmp_path), load_weights(tiny_folder("qwen2"))
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
    next(iter(tmp_path.glob("*-00002-of-*"))).unlink()
    with pytest.raises(ModelError, match="lacks 1 of"):
        load_weights(tmp_path)


def test_an_index_must_stay_in_its_folder(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../outside.safetensors"}}))
    with pytest.raises(ModelError, match="outside its folder"):
        load_weights(inner)


def test_pickles_are_refused_and_not_opened(tmp_path: Path, tiny_folder: Tiny) -> None:
    (tmp_path / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")  # a pickle that runs a program
    for load in (load_weights, load_module):
        with pytest.raises(ModelError, match=r"pickled weights only \(pytorch_model.bin\)"):
            load(tmp_path)
    assert not Path("owned").exists()


def test_missing_weights_are_an_error_not_random_numbers(tiny_folder: Tiny, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    weights = load_file(tiny_folder("llama") / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights of a LlamaForCausalLM, .*layers\.1\.mlp\.up_proj"):
        load_module(tmp_path)


def test_damaged_file_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights"):
        load_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ModelError, match="not a readable safetensors"):
        load_weights(tmp_path)


def test_writing_into_a_weight_does_not_reach_the_file(tiny_folder: Tiny) -> None:
    folder = tiny_folder("llama")
    before = load_weights(folder)["model.norm.weight"].clone()
    load_weights(folder)["model.norm.weight"].fill_(7)
    assert torch.equal(load_weights(folder)["model.norm.weight"], before)


def test_a_folder_without_tokenizer(tmp_path: Path, tiny_folder: Tiny) -> None:
    (tmp_path / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_unknown_dtype(tiny_folder: Tiny) -> None:
    with pytest.raises(ModelError, match="one of auto, float32, bfloat16, float16"):
        load_weights(tiny_folder("llama"), "fp8")


def test_foreign_code_is_not_run_unless_trusted(tiny_folder: Tiny, tmp_path: Path) -> None:
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('foreign code ran')")
    (tmp_path / "model.safetensors").write_bytes((tiny_folder("llama") / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="cannot read the configuration") as refusal:
        load_module(tmp_path)
    assert "trust_remote_code" in str(refusal.value)


def test_a_family_that_transformers_does_not_know(tiny_folder: Tiny, tmp_path: Path) -> None:
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama9"}))
    with pytest.raises(ModelError, match="cannot read the configuration"):
        load_config(tmp_path)
