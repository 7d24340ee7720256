"""Which model families this engine can run, decided from class and configuration, before weights load where it can.

Needed: every layer that mixes positions does so through transformers' attention interface, with a causal mask, full or
sliding. The check at start (`promise`) is the second net: a family that passes here and still forgets is refused there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydecode.errors import Refused
from raydecode.models.weights import load_config

LAYERS = frozenset({"full_attention", "sliding_attention"})


def check_family(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise Refused for a family that transformers knows and this engine cannot run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = load_config(folder, trust_remote_code=trust_remote_code)
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if family is not None:
        check_class(family[0] if isinstance(family, tuple) else family, config)
    elif config.is_encoder_decoder:
        raise refusal(type(config).__name__, "is an encoder-decoder")


def check_class(family: type, config: Any) -> None:
    """Raise Refused for a model class, loaded or not."""
    text = config.get_text_config(decoder=True)
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - LAYERS)
    if config.is_encoder_decoder:
        raise refusal(family.__name__, "is an encoder-decoder")
    if getattr(family, "_is_stateful", False):
        raise refusal(family.__name__, "keeps a recurrent state beside or in place of keys and values")
    if strange:
        raise refusal(family.__name__, f"has layers of kind '{strange[0]}'")
    if not getattr(family, "_supports_attention_backend", False):
        raise refusal(family.__name__, "computes attention in a way of its own")


def refusal(family: str, why: str) -> Refused:
    return Refused(
        f"the torch engine cannot run {family}: it {why}", field="model", value=family,
        hint="Llama, Qwen, Mistral, Gemma, OLMo, GPT-2, GPT-NeoX, Phi work; try engine.name=vllm for this one",
    )  # fmt: skip
