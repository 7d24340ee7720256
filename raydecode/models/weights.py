"""Weights, module and tokenizer of a local Hugging Face folder.

A *folder* here is what `raydecode.models.locate` returns: `config.json`, `*.safetensors`, `tokenizer.json`.
Nothing in this file touches the network or unpickles anything.

`load_weights` maps the file instead of reading it: opening SmolLM2-135M in its stored dtype costs no copy, and several
processes on one machine share the pages. Casting to another dtype copies, tensor by tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydecode.models.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def resolve_dtype(dtype: str | torch.dtype, *, field: str = "engine.dtype") -> torch.dtype | None:
    """`"bfloat16"` or a `torch.dtype` -> `torch.dtype`; `"auto"` -> None, the dtype of the file."""
    import torch

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; one of {', '.join(DTYPES)}", field=field, value=dtype)
    return None if dtype == "auto" else getattr(torch, dtype)


def shards(folder: str | Path) -> Mapping[Path, tuple[str, ...] | None]:
    """Safetensors file -> tensor names to take from it (None: all of them).

    Errors: a folder with pickled weights only, an index that names a missing or a foreign file.
    """
    folder = Path(folder)
    index = folder / INDEX
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[Path, list[str]] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:  # an index is foreign data: it must not reach outside its folder
                raise ModelError(f"{index} names a file outside its folder: {file!r}", field="model", value=str(folder))
            by_file.setdefault(folder / file, []).append(name)
        missing = [path.name for path in by_file if not path.is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of {len(by_file)} weight files, the first {missing[0]}",
                field="model",
                value=str(folder),
                hint="the download was interrupted; fetch the model again",
            )
        return {path: tuple(names) for path, names in by_file.items()}
    if (folder / SINGLE).is_file():
        return {folder / SINGLE: None}
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1 and not lone[0].name.startswith("adapter_"):
        return {lone[0]: None}
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} has pickled weights only ({', '.join(pickled[:3])}): refused, because unpickling runs code",
            field="model",
            value=str(folder),
            hint="convert them to safetensors, or choose a revision of the model that has them",
        )
    raise ModelError(
        f"{folder} has no weights: neither {SINGLE} nor {INDEX}",
        field="model",
        value=str(folder),
        hint="a model folder holds config.json, *.safetensors and tokenizer.json",
    )


def load_weights(folder: str | Path, dtype: str | torch.dtype = "auto") -> dict[str, torch.Tensor]:
    """Tensor name -> tensor on the CPU, floating tensors in `dtype`, straight from the safetensors.

    Names are those of the file. A tied `lm_head.weight` is absent (use the embedding, `config.tie_word_embeddings`).
    In the stored dtype the tensors are views of a private mapping of the file: reading costs nothing until touched,
    writing into one never reaches the disk.
    """
    from safetensors import SafetensorError, safe_open

    wanted = resolve_dtype(dtype)
    weights: dict[str, torch.Tensor] = {}
    for path, names in shards(folder).items():
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys() if names is None else names:
                    tensor = file.get_tensor(name)
                    weights[name] = tensor.to(wanted) if wanted and tensor.is_floating_point() else tensor
        except SafetensorError as broken:
            raise ModelError(
                f"{path} is not a readable safetensors file: {broken}",
                field="model",
                value=str(folder),
                hint="the download was interrupted or the disk is damaged; fetch the model again",
            ) from broken
    return weights


def load_module(
    folder: str | Path,
    dtype: str | torch.dtype = "auto",
    *,
    device: str | torch.device = "cpu",
    attention: str = "eager",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The transformers causal model of `folder`, in evaluation mode, on `device`.

    `attention` is "eager" because its arithmetic does not depend on the batch, and because batched bfloat16 decoding on
    a CPU was 1.5 times faster with it than with "sdpa" (16 rows, Zen 4). A weight that the file lacks is an error here;
    transformers itself would initialise it at random and only warn.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    shards(folder)  # the clear error first: transformers would fall back to pickles or say "no file named ..."
    config = load_config(folder, trust_remote_code=trust_remote_code)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with _quiet_bars():
        try:
            module, info = auto.from_pretrained(
                str(folder),
                config=config,
                dtype=resolve_dtype(dtype) or "auto",
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
        except (ValueError, OSError, ImportError) as refusal:
            raise ModelError(
                f"{folder} cannot be loaded as a language model: {refusal}", field="model", value=str(folder)
            ) from refusal
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of a {type(module).__name__}, the first {missing[0]}",
            field="model",
            value=str(folder),
            hint="config.json and the weights do not belong together",
        )
    return module.to(device).eval()


def load_config(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of `folder`; a family that transformers does not know is a `ModelError`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, ImportError, KeyError) as refusal:
        raise ModelError(
            f"transformers cannot read the configuration of {folder}: {str(refusal).splitlines()[0]}",
            field="model",
            value=str(folder),
            hint="its family may need a newer transformers, or its own code: trust_remote_code, if you trust it",
        ) from refusal


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The transformers tokenizer of `folder`, as its own files describe it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, ImportError, TypeError) as refusal:
        raise ModelError(
            f"{folder} has no usable tokenizer: {str(refusal).splitlines()[0]}",
            field="model",
            value=str(folder),
            hint="a model folder holds tokenizer.json (or the files of its slow tokenizer) beside config.json",
        ) from refusal


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Loading takes a second: transformers' progress bar would only cut through ours."""
    from transformers.utils import logging

    shown: Any = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
