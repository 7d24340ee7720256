"""Other families, random and tiny: our logits are transformers' own, eager, for ragged batches, chunks and chains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.lane import TorchLane
from raydecode.errors import Refused
from raydecode.models import ModelError
from raydecode.tree import TokenTree

SMALL = {
    "vocab_size": 384, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 384,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama_biased_tied": lambda: hf.LlamaConfig(**GROUPED, attention_bias=True, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=16),
    "mistral_sliding": lambda: hf.MistralConfig(**GROUPED, sliding_window=9),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=16, sliding_window=9, query_pre_attn_scalar=12),
    "gemma3": lambda: hf.Gemma3TextConfig(**GROUPED, head_dim=16, sliding_window=9),
    "gpt2": lambda: hf.GPT2Config(**GPT2),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SMALL, rotary_pct=0.25),
    "phi": lambda: hf.PhiConfig(**GROUPED, partial_rotary_factor=0.5),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "opt": lambda: hf.OPTConfig(
        vocab_size=384, hidden_size=48, ffn_dim=80, num_hidden_layers=2, num_attention_heads=6,
        max_position_embeddings=128, word_embed_proj_dim=48, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    ),
    "gemma": lambda: hf.GemmaConfig(**GROUPED, head_dim=16),
    "olmo": lambda: hf.OlmoConfig(**GROUPED),
    "granite": lambda: hf.GraniteConfig(**GROUPED, logits_scaling=4.0, residual_multiplier=0.5),
    "starcoder2": lambda: hf.Starcoder2Config(**GROUPED, sliding_window=9),
    "rope_llama3": lambda: hf.LlamaConfig(**GROUPED, rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}),
    "rope_linear": lambda: hf.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    "rope_yarn": lambda: hf.LlamaConfig(**GROUPED, rope_parameters={
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}),
    "olmoe": lambda: hf.OlmoeConfig(**GROUPED, num_experts=8, num_experts_per_tok=2),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip
MOE = {"olmoe", "mixtral"}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers_own(family: str, tiny_folder: Callable[..., Path]) -> None:
    folder = tiny_folder(FAMILIES[family]())
    follows_transformers(TorchLane(folder, dtype="float32", slots=3, context=64), folder)


def follows_transformers(lane: TorchLane, folder: Path) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    rows = [[(37 * i + 11 * r) % 300 + 5 for i in range(n)] for r, n in enumerate((31, 12, 40))]
    with torch.inference_mode():
        truth = [model(torch.tensor([ids])).logits[0] for ids in rows]

    def check(found: torch.Tensor, wanted: torch.Tensor) -> None:
        wanted = wanted[:, : found.shape[1]]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * float(wanted.abs().max()))

    # step 1: a chunk of each prompt, one of them whole; step 2: chunk, single token, chain; step 3: all by one
    a, b, c = rows
    first = lane.forward(
        [
            Chunk(0, 0, tuple(a[:17]), None),
            Chunk(1, 0, tuple(b[:10]), TokenTree.root(b[10])),
            Chunk(2, 0, tuple(c[:5]), None),
        ],
        Needs(),
    ).logits_MV
    check(first, truth[1][10:11])
    second = lane.forward(
        [Chunk(2, 5, tuple(c[5:30]), TokenTree.chain(c[30:34])), Chunk(1, 11, (), TokenTree.root(b[11])),
         Chunk(0, 17, tuple(a[17:29]), TokenTree.root(a[29]))],
        Needs(),
    ).logits_MV  # fmt: skip
    check(second, torch.cat([truth[2][30:34], truth[1][11:12], truth[0][29:30]]))
    lane.release(1)
    third = lane.forward(
        [Chunk(0, 30, (), TokenTree.root(a[30])), Chunk(2, 34, (), TokenTree.root(c[34]))], Needs()
    ).logits_MV
    check(third, torch.stack([truth[0][30], truth[2][34]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_promise_is_found(family: str, tiny_folder: Callable[..., Path]) -> None:
    """Experts are plain products over as many rows as chose them: their bits may depend on the batch; that is said."""
    engine = TorchEngine(tiny_folder(FAMILIES[family]()), dtype="float32", slots=4, max_length=100)
    found = engine.promise_found
    assert engine.promise == found.promise
    if family in MOE:
        assert (found.promise == "bitwise") == (found.noise == 0)
        assert found.noise < 1e-2
    else:
        assert found.promise == "bitwise", found.detail


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "ALiBi": (lambda: hf.BloomConfig(vocab_size=384, hidden_size=48, n_layer=2, n_head=4), "Bloom"),
    "rows see each other": (lambda: hf.LlamaConfig(
        **GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}), "longest row"),
    "attention of its own, again": (lambda: hf.StableLmConfig(**GROUPED), "StableLm"),
    "attention of its own": (lambda: hf.FalconConfig(
        vocab_size=384, hidden_size=48, num_hidden_layers=2, num_attention_heads=4), "Falcon"),
    "attention sinks": (
        lambda: hf.GptOssConfig(
            **{**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16}
        ), "GptOss"
    ),
    "recurrent": (lambda: hf.MambaConfig(vocab_size=384, hidden_size=48, num_hidden_layers=2), "Mamba"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    from tests.models.tiny import byte_level_tokenizer

    make, name = REFUSED[kind]
    config = make()
    torch.manual_seed(0)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises((Refused, ModelError)) as caught:
        TorchEngine(tmp_path, dtype="float32", slots=2, max_length=32)
    assert name.lower() in str(caught.value).lower()
