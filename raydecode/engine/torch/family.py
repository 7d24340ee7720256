"""Which model families this engine can run, decided from class and configuration, before weights load where it can.

Needed: every layer that mixes positions does so through transformers' attention interface, with a causal mask, full or
sliding. The check at start (`promise`) is the second net: a family that passes here and still forgets is refused there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydecode.errors import Refused
from raydecode.models.weights import load_config

SEQ2SEQ = frozenset({"t5", "bart", "marian"})
"""Encoder-decoders that were tried: equal to transformers' generate, token by token."""

LENGTH_BOUND = {"dynamic", "longrope"}
"""Rotary scalings that transformers recomputes from the highest position in a call."""

LAYERS = frozenset({"full_attention", "sliding_attention"})


def check_family(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise Refused for a family that transformers knows and this engine cannot run."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = load_config(folder, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        if config.model_type not in SEQ2SEQ:
            raise refusal(type(config).__name__, f"is an encoder-decoder other than {', '.join(sorted(SEQ2SEQ))}")
        return
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if family is not None:
        check_class(family[0] if isinstance(family, tuple) else family, config)


def check_class(family: type, config: Any) -> None:
    """Raise Refused for a model class, loaded or not."""
    text = config.get_text_config(decoder=True)
    strange = sorted(set(getattr(text, "layer_types", None) or ()) - LAYERS)
    if config.is_encoder_decoder:
        raise refusal(family.__name__, "is an encoder-decoder")
    rope = _rope_types(getattr(text, "rope_parameters", None) or {}) & LENGTH_BOUND
    if rope:
        why = f"scales rotary angles ({rope.pop()}) by the longest row of a call, so that rows would see each other"
        raise refusal(family.__name__, why)
    if getattr(family, "_is_stateful", False):
        raise refusal(family.__name__, "keeps a recurrent state beside or in place of keys and values")
    if strange:
        raise refusal(family.__name__, f"has layers of kind '{strange[0]}'")
    if not getattr(family, "_supports_attention_backend", False):
        raise refusal(family.__name__, "computes attention in a way of its own")


def _rope_types(parameters: Any) -> set[str]:
    """Of one set of rotary parameters, or of one per kind of layer."""
    sets = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    return {str(one["rope_type"]) for one in sets if "rope_type" in one}


def refusal(family: str, why: str) -> Refused:
    return Refused(
        f"the torch engine cannot run {family}: it {why}", field="model", value=family,
        hint="Llama, Qwen, Mistral, Gemma, OLMo, GPT-2, GPT-NeoX, Phi, T5, BART, Marian work; or engine.name=vllm",
    )  # fmt: skip
