"""Figures from headers, and what is refused before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5Model

from raydecode.models.card import check, read_card
from raydecode.models.errors import ModelError
from raydecode.models.memory import GIB, RUNTIME_BYTES

Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    ("family", "architecture", "context", "kv_heads", "tied"),
    [
        ("llama", "LlamaForCausalLM", 128, 2, True),
        ("qwen2", "Qwen2ForCausalLM", 96, 2, False),
        ("gpt2", "GPT2LMHeadModel", 64, 4, True),
    ],
)
def test_the_card_agrees_with_the_loaded_model(
    tiny_folder: Tiny, family: str, architecture: str, context: int, kv_heads: int, tied: bool
) -> None:
    card = check(tiny_folder(family))
    module = AutoModelForCausalLM.from_pretrained(tiny_folder(family))
    assert card.parameters == sum(weight.numel() for weight in module.parameters())
    assert (card.architecture, card.family, card.context) == (architecture, family, context)
    assert (card.layers, card.width, card.heads, card.kv_heads, card.head_dim) == (2, 32, 4, kv_heads, 8)
    assert (card.vocab, card.dtype, card.tied) == (module.config.vocab_size, "float32", tied)
    assert card.file_bytes == 4 * card.parameters
    assert card.weight_bytes("bfloat16") == 2 * card.parameters
    assert card.kv_bytes_per_token("bfloat16") == 2 * 2 * kv_heads * 8 * 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: BertForMaskedLM(BertConfig(hidden_size=8, num_attention_heads=1, intermediate_size=8)),
            "does not predict next tokens",
        ),
        (
            lambda: T5Model(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1)),
            "encoder-decoder that does not predict",
        ),
    ],
    ids=["bert", "t5"],
)
def test_a_wrong_architecture_says_what_works(tmp_path: Path, model: Callable, why: str) -> None:
    model().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=why) as refusal:
        check(tmp_path)
    assert "LlamaForCausalLM" in str(refusal.value)


def test_not_enough_memory_has_figures_and_a_way_out(tiny_folder: Tiny) -> None:
    folder = tiny_folder("llama")
    card = read_card(folder)
    assert check(folder, available=card.needed_bytes()) == card
    with pytest.raises(ModelError, match=r"not enough memory: 0\.49 GiB needed .* 0\.25 GiB available"):
        check(folder, available=GIB // 4)
    tokens = 10_000_000
    with pytest.raises(ModelError, match="for 10000000 cached tokens") as refusal:
        check(folder, kv_tokens=tokens, available=RUNTIME_BYTES + card.file_bytes + 7 * card.kv_bytes_per_token())
    assert "7 cached tokens would fit" in str(refusal.value)
    between = RUNTIME_BYTES + card.weight_bytes("bfloat16") + tokens * card.kv_bytes_per_token("bfloat16")
    with pytest.raises(ModelError, match="float32") as refusal:
        check(folder, dtype="float32", kv_tokens=tokens, available=between)
    assert "bfloat16 would fit" in str(refusal.value)


def test_a_tied_output_layer_that_an_engine_copies_counts_twice(tiny_folder: Tiny) -> None:
    folder = tiny_folder("llama")
    card = read_card(folder)
    assert card.head_bytes() == 4 * card.vocab * card.width == 2 * card.head_bytes("bfloat16")
    assert check(folder, beside=card.head_bytes(), available=card.needed_bytes() + card.head_bytes()) == card
    with pytest.raises(ModelError, match="beside them"):
        check(folder, beside=card.head_bytes(), available=card.needed_bytes() + card.head_bytes() - 1)


def test_unknown_dtype_names_the_nearest(tiny_folder: Tiny) -> None:
    with pytest.raises(ModelError) as refusal:
        check(tiny_folder("llama"), dtype="bfloat61")
    assert refusal.value.nearest == "bfloat16"


def test_missing_folder_and_broken_files(tmp_path: Path, tiny_folder: Tiny) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json in it"):
        check(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON"):
        check(tmp_path)
    (tmp_path / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    weights = (tiny_folder("llama") / "model.safetensors").read_bytes()
    for cut in (0, 4, 100, len(weights) - 1):
        (tmp_path / "model.safetensors").write_bytes(weights[:cut])
        with pytest.raises(ModelError, match=r"cut off|not a complete"):
            check(tmp_path)


def test_a_vendor_quantisation_is_refused(tmp_path: Path, tiny_folder: Tiny) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text((tiny_folder("llama") / "config.json").read_text())
    save_file({"w": torch.zeros(8, 8, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="I32"):
        check(tmp_path)


def test_the_quickstart_model(smollm: Path) -> None:
    card = check(smollm)
    assert card.parameters == 134_515_008
    assert (card.layers, card.heads, card.kv_heads, card.head_dim, card.context) == (30, 9, 3, 64, 8192)
    assert json.loads((smollm / "config.json").read_text())["rope_parameters"]["rope_theta"] == 100_000
