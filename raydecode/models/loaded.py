"""From a source to a model in memory, in the order that fails early: locate, check, tokenizer, weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raydecode.models.card import ModelCard, check
from raydecode.models.source import locate
from raydecode.models.vocabulary import Vocabulary
from raydecode.models.weights import load_config, load_module, load_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for an engine: exactly one of `weights` and `module` is there, as asked."""

    folder: Path
    card: ModelCard
    config: Any
    vocabulary: Vocabulary
    weights: dict[str, torch.Tensor] | None
    module: PreTrainedModel | None

    @property
    def tokenizer(self) -> Any:
        return self.vocabulary.tokenizer


def load(
    source: str | Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    form: Literal["weights", "module"] = "module",
    kv_tokens: int = 0,
    revision: str | None = None,
    offline: bool | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """`source` in memory on `device`: as a transformers module, or as plain tensors by name.

    kv_tokens: cache positions that must fit beside the weights, for the check before loading.
    """
    folder = locate(source, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    card = check(folder, dtype=dtype, kv_tokens=kv_tokens, device=device)
    config = load_config(folder, trust_remote_code=trust_remote_code)
    vocabulary = Vocabulary.of(folder, trust_remote_code=trust_remote_code)
    weights, module = None, None
    if form == "module":
        module = load_module(folder, dtype, device=device, trust_remote_code=trust_remote_code)
    else:
        weights = {name: tensor.to(device) for name, tensor in load_weights(folder, dtype).items()}
    return LoadedModel(folder, card, config, vocabulary, weights, module)
