"""One model per dtype and session; tests make their own slots over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.lane import TorchLane
from tests.models.tiny import byte_level_tokenizer


@pytest.fixture(scope="session")
def engine(smollm: Path) -> TorchEngine:
    """float32 by torch's own kernels, 16 slots, rows of 1024 tokens."""
    return TorchEngine(smollm, dtype="float32", slots=16, max_length=1024, options={"compile": False})


@pytest.fixture(scope="session")
def lane(engine: TorchEngine) -> TorchLane:
    return engine.lane


@pytest.fixture(scope="session")
def compiled_lane(smollm: Path) -> TorchLane:
    """The same by kernels of our own."""
    return TorchLane(smollm, dtype="float32", slots=16, context=1024, compiled=True)


@pytest.fixture(scope="session")
def reference(smollm: Path) -> Any:
    """transformers' own model, eager attention, unpacked weights."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Config class and its fields -> folder of a random model with a real tokenizer."""

    def make(config: Any, dtype: torch.dtype = torch.float32) -> Path:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        folder = tmp_path_factory.mktemp(config.model_type)
        torch.manual_seed(1)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = auto.from_config(config, dtype=dtype)
        with torch.no_grad():  # the usual start at 0.02 gives nearly uniform attention, which hides wrong masks
            for name, weight in model.named_parameters():
                if weight.dim() >= 2:
                    weight.mul_(8 if "embed" not in name else 2)
        model.save_pretrained(folder)
        byte_level_tokenizer().save_pretrained(folder)
        return folder

    return make
