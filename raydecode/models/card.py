"""What a model folder holds, read from its headers alone: milliseconds, no weights touched, no torch.

    parameters      sum of the sizes in the safetensors headers (a tied head is stored, and counted, once)
    KV per token    2 * layers * kv_heads * head_dim * bytes(dtype)
    needed          parameters * bytes(dtype) + KV * kv_tokens + what an engine adds + the runtime's own 500 MiB

`check` refuses here what would otherwise fail minutes later or be killed by the kernel: no such folder, pickles only,
a model that is not a decoder, too little memory.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydecode.errors import nearest
from raydecode.models.errors import ModelError
from raydecode.models.memory import RUNTIME_BYTES, available_bytes, gib
from raydecode.models.weights import DTYPES, shards

STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "F8_E4M3": "float8_e4m3fn"}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
SEQ2SEQ_ENDINGS = ("ForConditionalGeneration", "MTModel")
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The figures of a decoder-only model; sizes in bytes."""

    folder: Path
    architecture: str
    family: str
    parameters: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    vocab: int
    dtype: str
    file_bytes: int
    tied: bool
    encoder_decoder: bool = False

    def weight_bytes(self, dtype: str = "auto") -> int:
        return self.file_bytes if dtype in ("auto", self.dtype) else self.parameters * BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str = "auto") -> int:
        size = BYTES[self.dtype if dtype == "auto" else dtype]
        return 2 * self.layers * self.kv_heads * self.head_dim * size

    def head_bytes(self, dtype: str = "auto") -> int:
        """Of the output layer alone: what an engine needs more, if it keeps a tied one apart from the embedding."""
        return self.vocab * self.width * BYTES[self.dtype if dtype == "auto" else dtype]

    def needed_bytes(self, dtype: str = "auto", kv_tokens: int = 0, beside: int = 0) -> int:
        return self.weight_bytes(dtype) + beside + kv_tokens * self.kv_bytes_per_token(dtype) + RUNTIME_BYTES


def check(
    folder: str | Path,
    *,
    dtype: str = "auto",
    kv_tokens: int = 0,
    beside: int = 0,
    device: str = "cpu",
    available: int | None = None,
) -> ModelCard:
    """The card of `folder`, or a `ModelError` that says what does not fit and what would.

    kv_tokens: cache positions the engine wants to hold at once (slots * longest row); 0 checks the weights alone.
    beside:    bytes that the engine keeps beside weights and cache, such as a second copy of the output layer.
    available: bytes of memory to plan with; None asks the machine.
    """
    card = read_card(folder)
    if dtype not in DTYPES:
        raise ModelError(
            f"no dtype {dtype!r}; one of {', '.join(DTYPES)}",
            field="engine.dtype",
            value=dtype,
            nearest=nearest(dtype, DTYPES),
        )
    available = available_bytes(device) if available is None else available
    needed = card.needed_bytes(dtype, kv_tokens, beside)
    if available is not None and needed > available:
        raise ModelError(
            _too_big(card, dtype, kv_tokens, beside, needed, available),
            field="model",
            value=str(folder),
            hint=_what_would_fit(card, dtype, kv_tokens, beside, available),
        )
    return card


def read_card(folder: str | Path) -> ModelCard:
    """The card of `folder`; refuses what is no decoder, does not look at memory."""
    folder = Path(folder)
    whole = read_json(folder / "config.json", folder)
    architecture = _decoder(whole, folder)
    config = {**whole, **whole["text_config"]} if isinstance(whole.get("text_config"), dict) else whole
    heads = _first(config, "decoder_attention_heads", "num_attention_heads", "n_head", "num_heads")
    width = _first(config, "hidden_size", "n_embd", "d_model")
    parameters, file_bytes, dtype = _headers(folder)
    return ModelCard(
        folder=folder,
        architecture=architecture,
        family=str(whole.get("model_type", "unknown")),
        parameters=parameters,
        layers=_first(config, "num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "num_layers"),
        width=width,
        heads=heads,
        kv_heads=_first(config, "num_key_value_heads", "n_head_kv", default=heads),
        head_dim=_first(config, "head_dim", "d_kv", default=width // max(1, heads)),
        context=_first(
            config,
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "seq_length",
            "max_seq_len",
            default=512 if whole.get("is_encoder_decoder") else 0,
        ),
        vocab=_first(config, "vocab_size"),
        dtype=dtype,
        file_bytes=file_bytes,
        tied=_tied(config, folder),
        encoder_decoder=bool(whole.get("is_encoder_decoder")),
    )


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON object of a model folder; a missing or broken file is a `ModelError` with the next step."""
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else f"no {path.name} in it"
        raise ModelError(
            f"{folder} is no model folder: {what}",
            field="model",
            value=str(folder),
            hint="a model folder holds config.json, *.safetensors and tokenizer.json",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as broken:
        raise ModelError(f"{path} is no JSON: {broken}", field="model", value=str(folder)) from broken
    if not isinstance(content, dict):
        raise ModelError(f"{path} is no JSON object", field="model", value=str(folder))
    return content


def read_headers(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {dtype, shape, data_offsets}: 8 bytes little-endian length, then JSON (safetensors format)."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= path.stat().st_size - 8:
            raise ModelError(
                f"{path} is not a complete safetensors file",
                field="model",
                value=str(path.parent),
                hint="the download was interrupted; fetch the model again",
            )
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if 8 + length + end > path.stat().st_size:
        raise ModelError(
            f"{path} is cut off: {path.stat().st_size} bytes of {8 + length + end}",
            field="model",
            value=str(path.parent),
            hint="the download was interrupted; fetch the model again",
        )
    return header


def _headers(folder: Path) -> tuple[int, int, str]:
    """Parameters, bytes, and the dtype that most parameters are stored in."""
    parameters, size, by_dtype = 0, 0, dict[str, int]()
    for path, names in shards(folder).items():
        tensors = read_headers(path)
        for name in tensors if names is None else names:
            tensor = tensors[name]
            count = math.prod(tensor["shape"])
            parameters += count
            size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
            by_dtype[tensor["dtype"]] = by_dtype.get(tensor["dtype"], 0) + count
    most = max(by_dtype, key=by_dtype.__getitem__, default="F32")
    if most not in STORED:
        raise ModelError(
            f"{folder} stores its weights as {most}, which only its own kernels can read",
            field="model",
            value=str(folder),
            hint=f"weights stored as {', '.join(STORED.values())} work; look for the unquantised model, or a GGUF",
        )
    return parameters, size, STORED[most]


def _decoder(config: dict[str, Any], folder: Path) -> str:
    """The architecture's class name; refuses encoders, classifiers and encoder-decoders without a language head."""
    names = config.get("architectures") or []
    architecture = str(names[0]) if names else f"{config.get('model_type', 'unknown')} (no architecture named)"
    wrong = None
    if config.get("is_encoder_decoder"):
        if not architecture.endswith(SEQ2SEQ_ENDINGS):
            wrong = "is an encoder-decoder that does not predict next tokens"
    elif not architecture.endswith(CAUSAL_ENDINGS):
        wrong = "does not predict next tokens"
    elif architecture.endswith("ForConditionalGeneration") and "text_config" not in config:
        wrong = "is an encoder-decoder"
    if wrong:
        raise ModelError(
            f"{folder} holds a {architecture}, which {wrong}",
            field="model",
            value=str(folder),
            hint="decoder-only causal models work: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
            "MistralForCausalLM, Gemma2ForCausalLM, GPT2LMHeadModel and other transformers classes *ForCausalLM",
        )
    return architecture


def _tied(config: dict[str, Any], folder: Path) -> bool:
    """Whether the output projection is the embedding. Configurations leave this out where it is their class's default,
    so the file decides: no head stored, or the configuration says so."""
    heads = ("lm_head.weight", "embed_out.weight", "output.weight")
    stored = any(head in (names or read_headers(path)) for path, names in shards(folder).items() for head in heads)
    return bool(config.get("tie_word_embeddings", not stored)) or not stored


def _first(config: dict[str, Any], *names: str, default: int = 0) -> int:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), default)


def _too_big(card: ModelCard, dtype: str, kv_tokens: int, beside: int, needed: int, available: int) -> str:
    more = f" + {gib(beside)} beside them" if beside else ""
    kv = f" + {gib(kv_tokens * card.kv_bytes_per_token(dtype))} for {kv_tokens} cached tokens" if kv_tokens else ""
    weights = f"{gib(card.weight_bytes(dtype))} weights in {card.dtype if dtype == 'auto' else dtype}"
    return (
        f"not enough memory: {gib(needed)} needed ({weights}{more}{kv} + {gib(RUNTIME_BYTES)} runtime), "
        f"{gib(available)} available"
    )


def _what_would_fit(card: ModelCard, dtype: str, kv_tokens: int, beside: int, available: int) -> str:
    size = BYTES[card.dtype if dtype == "auto" else dtype]
    if size > 2 and card.needed_bytes("bfloat16", kv_tokens) <= available:
        return "engine.dtype: bfloat16 would fit"
    room = available - card.needed_bytes(dtype, 0, beside)
    if kv_tokens and room > 0:
        return f"{room // card.kv_bytes_per_token(dtype)} cached tokens would fit: fewer slots or shorter rows"
    return "choose a smaller model or a machine with more memory"
