"""Tiny models made on the spot: random weights, a tokenizer trained on a few lines, the files a real folder has."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from raydecode.models import Vocabulary
from tests.models.tiny import byte_level_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty model cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYDECODE_CACHE", str(folder))
    return folder


SHAPES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda vocab: LlamaForCausalLM(
        LlamaConfig(vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True)
    ),
    "qwen2": lambda vocab: Qwen2ForCausalLM(
        Qwen2Config(vocab_size=vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=False)
    ),
    "gpt2": lambda vocab: GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family name -> a folder with a random model of that family, and its tokenizer. Made once each."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            tokenizer = byte_level_tokenizer()
            torch.manual_seed(0)
            SHAPES[family](len(tokenizer)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def smollm_vocabulary(smollm: Path) -> Vocabulary:
    """The vocabulary of the quickstart model; building it takes a second."""
    return Vocabulary.of(smollm)
