"""Drafters' forwards on real layers: blocks left out, windows, models beside the job's, and what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import GemmaConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, PhiConfig

from raydecode.conformance.drive import drive
from raydecode.contracts import Needs
from raydecode.engine import spelling
from raydecode.engine.lane import Chunk
from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.lane import TorchLane
from raydecode.errors import UserError
from raydecode.request import Card, DecodingSpec, Ids, Request
from raydecode.tree import TokenTree
from tests.engine.torch.builds import builds
from tests.models.tiny import sentencepiece_tokenizer

SIZES = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=96, num_key_value_heads=2),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=96),  # attention and MLP side by side
    "phi": lambda: PhiConfig(**SIZES, intermediate_size=96, pad_token_id=None),
    "gemma": lambda: GemmaConfig(**SIZES, intermediate_size=96, num_key_value_heads=1, head_dim=16),
    "gpt2": lambda: GPT2Config(vocab_size=384, n_embd=64, n_layer=4, n_head=4),
}
IDS = tuple(range(40, 52))


def logits(lane: TorchLane, ids, skip=frozenset()):
    """At the last token, read alone."""
    assert lane.reserve(0, 0, len(ids))
    out = lane.forward([Chunk(0, 0, tuple(ids[:-1]), TokenTree.root(ids[-1]))], Needs(), (), skip).logits_MV[0]
    lane.release(0)
    return out


@builds
def test_a_fused_layer_runs_as_its_parts_where_one_is_left_out(tiny_folder):
    """One call per layer cannot leave a part out: near the eager kernels' logits, and fused again afterwards."""
    folder, skip = tiny_folder(FAMILIES["llama"]()), frozenset({"attention.1", "mlp.2", "attention.3", "mlp.3"})
    eager, fused = (TorchLane(folder, dtype="float32", slots=2, context=64, compiled=one) for one in (False, True))
    assert fused.fused == 4
    whole = logits(fused, IDS)
    found, expected = logits(fused, IDS, skip), logits(eager, IDS, skip)
    assert torch.allclose(found, expected, atol=1e-3)
    assert not torch.allclose(found, whole, atol=1e-1)
    assert torch.equal(logits(fused, IDS), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_that_is_left_out_adds_nothing(family, tiny_folder):
    """Against the same model with the blocks' last products at zero; and nothing of it stays."""
    lane = TorchLane(tiny_folder(FAMILIES[family]()), dtype="float32", slots=2, context=64)
    assert lane.blocks == tuple(f"{kind}.{i}" for i in range(4) for kind in ("attention", "mlp"))
    whole = logits(lane, IDS)
    for skip in (frozenset({"attention.1", "mlp.2"}), frozenset({"attention.2", "mlp.2", "mlp.1"})):
        found = logits(lane, IDS, skip)
        handles = []
        for name in skip:
            block = lane.inside._blocks[name]
            zero = (lambda m, a, out: (out[0] * 0, *out[1:])) if "attention" in name else (lambda m, a, out: out * 0)
            handles.append(block.register_forward_hook(zero))
        expected = logits(lane, IDS)
        for handle in handles:
            handle.remove()
        assert torch.equal(found, expected)
        assert not torch.allclose(found, whole)
    assert torch.equal(logits(lane, IDS), whole)


def requests(drafter=None, **spec):
    given = DecodingSpec(**{"max_tokens": 16, "seed": 5, "ignore_eos": True, "drafter": drafter} | spec)
    prompts = [IDS, IDS[:5], (7, 9, 11) * 30, IDS]
    return [
        Request(str(i), str(i), Ids(tuple(ids)), dataclasses.replace(given, n=1 + i % 2))
        for i, ids in enumerate(prompts)
    ]


WARM = (Card("temperature", {"value": 0.8}), Card("top_p", {"p": 0.9}))


@pytest.fixture(scope="module")
def pair(tiny_folder):
    """A tiny Llama that drafts for itself, as a further lane under two names: its own words, and others."""
    folder = tiny_folder(FAMILIES["llama"]())
    other = tiny_folder(LlamaConfig(**SIZES | {"num_hidden_layers": 1, "vocab_size": 512}, intermediate_size=96))
    tokenizer = sentencepiece_tokenizer()
    tokenizer.save_pretrained(other)
    return TorchEngine(
        folder, dtype="float32", slots=4, max_length=160, options={"chunk": 40}, lanes={"same": folder, "other": other}
    )


CARDS = [
    Card("swift", {"skip": 0.5, "confidence": 0.0, "window": 6, "siblings": 2, "tries": 6}),
    Card("swift", {"skip": 0.0, "confidence": 0.0}),
    Card("draft_model", {"model": "same", "confidence": 0.0}),
    Card("draft_model", {"model": "other", "confidence": 0.0}),
]


@pytest.mark.parametrize("sampler", [(Card("greedy"),), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("card", CARDS, ids=["swift", "swift whole", "same", "other"])
def test_texts_are_plain(card, sampler, pair):
    plain, run = drive(pair, requests(sampler=sampler)), drive(pair, requests(card, sampler=sampler))
    assert plain.difference(run) is None
    stats = [one.stats for one in run.outcomes.values()]
    assert all(one.draft_failures == 0 for one in stats)
    assert sum(one.drafted for one in stats) > 20
    if card.options.get("model") == "same" or card.options.get("skip") == 0.0:
        assert all(one.accepted == one.drafted for one in stats), "the same model with the same noise"


def test_drafting_leaves_the_committed_columns_alone(pair):
    """Keys and values of committed tokens, bit for bit, around every forward that skips."""
    lane, compared = pair.lane, []
    forward = lane.forward

    def committed():
        lane.cache.flush()  # moves of accepted nodes that are due at the next call
        rows = [row for row in pair._rows.running if row.cached]
        tables = lane.cache.pages.tables
        where = [(tables[row.slot][c // lane.page], c % lane.page) for row in rows for c in range(row.cached)]
        page, offset = map(list, zip(*where, strict=True))
        return [pool[page, :, offset].clone() for pair in lane.cache._layers.values() for pool in pair]

    def watching(chunks, needs, hooks=(), skip=frozenset()):
        before = committed() if skip else None
        out = forward(chunks, needs, hooks, skip)
        if before is not None:
            compared.append(all(torch.equal(a, b) for a, b in zip(before, committed(), strict=True)))
        return out

    lane.forward = watching
    try:
        drive(pair, requests(CARDS[0]))
    finally:
        del lane.forward
    assert len(compared) > 20
    assert all(compared)


def test_the_other_words_are_read_as_they_are_spelled(pair):
    """What the further lane holds of a row are its text's bytes, in pieces of its own."""
    further = pair._rounds._further["other"]
    assert pair._rounds._further["same"].spell is None
    assert further.spell is not None
    for id, text in enumerate(pair.lane.token_bytes):
        spelled = further.spell.there(id)
        if text and id not in pair.lane.eos:
            assert b"".join(further.lane.token_bytes[one] for one in spelled) == text


def test_a_vocabulary_that_does_not_fit_is_an_error_before_weights_load(tiny_folder, monkeypatch):
    from tests.models.tiny import wordpiece_tokenizer

    folder, other = tiny_folder(FAMILIES["llama"]()), tiny_folder(FAMILIES["llama"]())
    wordpiece_tokenizer().save_pretrained(other)
    monkeypatch.setattr("raydecode.models.load_module", lambda *a, **k: pytest.fail("weights were loaded"))
    monkeypatch.setattr(spelling, "ENOUGH", 0.9)  # a tiny vocabulary is mostly single bytes
    with pytest.raises(UserError, match="vocabularies do not fit") as caught:
        TorchEngine(folder, dtype="float32", slots=2, max_length=64, lanes={"some/model": other})
    assert (caught.value.field, caught.value.value) == ("decoding.drafter.model", "some/model")


def test_memory_of_draft_models_is_foreseen(tiny_folder, monkeypatch):
    from raydecode.models import card

    folder = tiny_folder(FAMILIES["llama"]())
    one = card.read_card(folder)
    enough = one.needed_bytes("float32", 64, one.head_bytes("float32")) + 1000
    monkeypatch.setattr(card, "available_bytes", lambda device: enough)
    monkeypatch.setattr("raydecode.models.load_module", lambda *a, **k: pytest.fail("weights were loaded"))
    options = {"cache_tokens": 64}
    with pytest.raises(UserError, match="not enough memory"):
        TorchEngine(folder, dtype="float32", slots=1, max_length=64, options=options, lanes={"draft": folder})
