"""A GGUF file -> a Hugging Face folder: dequantised once, tokenizer repaired.

Weights go through transformers' reader, per architecture. What that leaves out is added here:

- Its quantizer object stays on the model and makes `save_pretrained` raise: removed.
- It reads `tokenizer.ggml.pre`, llama.cpp's name for the splitting rule, but knows only some of the rules; for the
  others it silently falls back to GPT-2's. For SmolLM2 that moves white space before digits into other tokens
  (`"\\n\\n1."`): 20 % of HumanEval's texts and 0.6 % of GSM8K's get other ids. `RULES` has the rules we know (from
  llama.cpp, llama-vocab.cpp); a file with a rule that nobody knows is refused instead of being tokenised differently.
- It drops `add_bos_token`, and llama.cpp's default for it, and the rule that whole vocabulary words skip merging.

Stored dtype: float32, float16 and bfloat16 files keep theirs; quantised files become bfloat16, so that a float32 and
a bfloat16 run hold *the same* weights and differ by arithmetic alone, and so that a file is mapped, not converted, by
most engines. The price, measured on SmolLM2-135M Q4_1: 75 % of the Q4_1 and 97 % of the Q8_0 values are rounded, by
at most 2^-8 of the value; the quantisation itself moved them by far more. Cost there, once:
7 s of one core, 1.35 GiB at the peak.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydecode.models.cache import build_once
from raydecode.models.errors import ModelError
from raydecode.models.gguf_reader import field, open_reader, opened_once
from raydecode.models.memory import RUNTIME_BYTES, available_bytes, gib

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

RECIPE = 1
"""Part of every cache key: raise it when a conversion comes out differently."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What llama.cpp does for one value of `tokenizer.ggml.pre`."""

    digits_apart: bool = False
    bos: bool = False
    whole_words_first: bool = False


_DIGITS, _PLAIN, _LLAMA3 = Rule(digits_apart=True), Rule(), Rule(bos=True, whole_words_first=True)
_SPLIT_BY_TRANSFORMERS = Rule()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("gpt-2", "mpt", "olmo", "jais", "phi-2", "gigachat", "trillion", "granite-docling"), _PLAIN),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    "tekken": Rule(bos=True, whole_words_first=True),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "qwen35", "gpt-4o", "llama4"), _SPLIT_BY_TRANSFORMERS),
}
"""Byte-level BPE files only; SentencePiece files name no rule."""


def folder_of(file: Path) -> Path:
    """The converted folder of a local GGUF `file`, from the cache if path, size and time of change are the same."""
    if not file.is_file():
        raise ModelError(f"no such file {file}", field="model", value=str(file))
    stat = file.stat()
    identity = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    provenance = {"source": file.name, "bytes": stat.st_size}
    return build_once(f"{file.stem}-{key}-r{RECIPE}", lambda out: convert(file, out, provenance))


def convert(file: Path, out: Path, provenance: dict[str, Any], *, available: int | None = None) -> None:
    """Write `file` as a Hugging Face folder into the empty folder `out`; `provenance` goes into `raydecode.json`."""
    reader = _open(file)
    _refuse_too_big(reader, file, available)
    with opened_once(file, reader):
        _write_weights(file, reader, out)
        _write_tokenizer(file, reader, out)
    import transformers

    record = {**provenance, "recipe": RECIPE, "transformers": transformers.__version__}
    (out / "raydecode.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _open(file: Path) -> GGUFReader:
    try:
        reader = open_reader(file)
    except ImportError as absent:
        raise ModelError(
            "reading GGUF files needs the package gguf", field="model", value=str(file), hint="pip install gguf"
        ) from absent
    except (ValueError, OSError, IndexError, KeyError) as broken:
        raise ModelError(f"{file} is not a complete GGUF file: {broken}", field="model", value=str(file)) from broken
    if (count := field(reader, "split.count", 1)) > 1:
        raise ModelError(
            f"{file} is one of {count} parts",
            field="model",
            value=str(file),
            hint="join them with llama.cpp's tool: llama-gguf-split --merge FIRST_PART OUT.gguf",
        )
    rule = field(reader, "tokenizer.ggml.pre", None)
    if field(reader, "tokenizer.ggml.model", "") == "gpt2" and rule not in RULES:
        raise ModelError(
            f"{file} splits text by the rule {rule!r}, which is not known here; its tokens would differ silently",
            field="model",
            value=str(file),
            hint="use the model's Hugging Face folder instead; known rules: " + ", ".join(sorted(RULES)),
        )
    return reader


def _write_weights(file: Path, reader: GGUFReader, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    try:
        module = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (ValueError, KeyError, RuntimeError) as refusal:
        architecture = field(reader, "general.architecture", "unknown")
        raise ModelError(
            f"{file} holds a {architecture!r} model, which transformers cannot read from GGUF: {refusal}",
            field="model",
            value=str(file),
            hint="llama, qwen2, qwen3, mistral, gemma2, phi3, gpt2 and others work; or use its Hugging Face folder",
        ) from refusal
    module.hf_quantizer = None
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    ids = {name: field(reader, f"tokenizer.ggml.{name}_token_id", None) for name in ("bos", "eos", "padding")}
    module.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["eos"] if ids["padding"] is None else ids["padding"],
    )
    module.to(getattr(torch, _stored_dtype(reader))).save_pretrained(out)


def _write_tokenizer(file: Path, reader: GGUFReader, out: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    sentencepiece = field(reader, "tokenizer.ggml.model", "") == "llama"
    rule = Rule(bos=True) if sentencepiece else RULES.get(field(reader, "tokenizer.ggml.pre", ""), _PLAIN)
    backend = tokenizer.backend_tokenizer
    if rule.digits_apart:
        from tokenizers import pre_tokenizers as split

        digits = split.Digits(individual_digits=True)  # \p{N}, each alone
        gpt2 = split.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        backend.pre_tokenizer = split.Sequence([digits, gpt2])
    if rule.whole_words_first:
        backend.model.ignore_merges = True
    _set_bos(tokenizer, bool(field(reader, "tokenizer.ggml.add_bos_token", rule.bos)))
    context = field(reader, f"{field(reader, 'general.architecture', '')}.context_length", None)
    if context:
        tokenizer.model_max_length = int(context)
    tokenizer.save_pretrained(out)


def _set_bos(tokenizer: PreTrainedTokenizerBase, wanted: bool) -> None:
    """Plain prompts begin with BOS exactly if the file says so."""
    from tokenizers.processors import TemplateProcessing

    if hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = wanted
    bos = tokenizer.bos_token
    if wanted and bos is not None:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)]
        )
    elif tokenizer.encode("a") != tokenizer.encode("a", add_special_tokens=False):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A:0", pair="$A:0 $B:1")


def _stored_dtype(reader: GGUFReader) -> str:
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}  # norms are always F32
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _refuse_too_big(reader: GGUFReader, file: Path, available: int | None) -> None:
    """The conversion holds the mapped file, all weights in float32 and, while it writes, in the stored dtype too."""
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    needed = parameters * (4 if _stored_dtype(reader) == "float32" else 6)
    needed += file.stat().st_size + RUNTIME_BYTES
    available = available_bytes() if available is None else available
    if available is not None and needed > available:
        raise ModelError(
            f"not enough memory to convert {file.name}: {gib(needed)} needed, {gib(available)} available",
            field="model",
            value=str(file),
            hint="convert it on a larger machine; the finished folder can be copied and needs less",
        )
