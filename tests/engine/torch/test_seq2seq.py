"""Encoder-decoders, random and tiny: greedy is transformers' generate, and a row's bits are its own."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from raydecode import registry
from raydecode.conformance.drafters import CHEAP
from raydecode.conformance.options import option_sets
from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk, Hook
from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch import seq2seq as module
from raydecode.engine.torch.cache import PAGE
from raydecode.engine.torch.layout import Layout, Run
from raydecode.errors import Refused
from raydecode.events import OutcomeEvent
from raydecode.request import Card
from raydecode.tree import TokenTree
from tests.engine.torch.recorder import SAMPLED, Decoder, ask, drain
from tests.engine.torch.test_trees import differing
from tests.methods import visiting

BART = {
    "vocab_size": 384, "d_model": 48, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 6,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 80, "max_position_embeddings": 160,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 384, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 16, "relative_attention_max_distance": 40, "eos_token_id": 0, "pad_token_id": 1,
    "decoder_start_token_id": 2, "n_positions": 160,
}  # fmt: skip
FAMILIES: dict[str, Callable[[], Any]] = {
    "t5": lambda: hf.T5Config(**T5),
    "t5_gated": lambda: hf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": lambda: hf.BartConfig(**BART),
    "marian": lambda: hf.MarianConfig(**BART, decoder_vocab_size=384, scale_embedding=True),
}
SOURCES = [[(37 * i + 11 * r) % 300 + 5 for i in range(n)] for r, n in enumerate((3, 40, 17, 90))]


@pytest.fixture(scope="module")
def engines(tiny_folder: Callable[..., Path]) -> Callable[[str], tuple[TorchEngine, Any]]:
    made: dict[str, tuple[TorchEngine, Any]] = {}

    def get(family: str) -> tuple[TorchEngine, Any]:
        if family not in made:
            folder = tiny_folder(FAMILIES[family]())
            engine = TorchEngine(folder, dtype="float32", slots=4, max_length=150)
            model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()
            made[family] = engine, model
        return made[family]

    return get


def loop(engine: TorchEngine, slots: int = 4, tokens: int | None = None, **options: Any) -> Decoder:
    lane = copy.copy(engine.lane)
    lane.slots = slots
    lane.forget(tokens)
    return Decoder(lane, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate(family: str, engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    """Batches of mixed lengths, alone, and with rows coming and going: token for token, and bit for bit (logprobs)."""
    engine, model = engines(family)
    rows = [ask(f"r{i}", ids, sampler=(Card("greedy"),), max_tokens=14, logprobs=3) for i, ids in enumerate(SOURCES)]
    alone = {key: one for row in rows for key, one in drain(loop(engine, 1), [row]).items()}
    assert drain(loop(engine, 4), rows[::-1]) == alone
    assert drain(loop(engine, 2), rows) == alone
    texts = set()
    for row in rows:
        with torch.inference_mode():
            truth = model.generate(
                torch.tensor([row.prompt.ids]), attention_mask=torch.ones(1, len(row.prompt.ids), dtype=torch.int64),
                do_sample=False, num_beams=1, max_new_tokens=14,
            )[0, 1:].tolist()  # fmt: skip
        assert list(alone[row.id, 0].tokens) == truth
        texts.add(tuple(truth))
    assert len(texts) > 1, "the source is read"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_promise_is_bitwise(family: str, engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    found = engines(family)[0].promise_found
    assert found.promise == "bitwise", found.detail


def test_samples_share_one_encoding_and_resume(
    engines: Callable[[str], tuple[TorchEngine, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engines("t5")
    row = ask("s", SOURCES[2], sampler=SAMPLED, max_tokens=9, ignore_eos=True, n=3, logprobs=1)
    reads = []
    read = module.Seq2SeqLane.read
    monkeypatch.setattr(module.Seq2SeqLane, "read", lambda lane, slot, ids: reads.append(slot) or read(lane, slot, ids))
    together = drain(loop(engine), [row])
    assert len(reads) == 1, "the encoder runs once per request"
    assert together == drain(loop(engine, 1), [row])
    assert len({one.tokens for one in together.values()}) == 3
    single = dataclasses.replace(row, decoding=dataclasses.replace(row.decoding, n=1))
    for cut in (1, 5, 8):
        again = drain(loop(engine, 2), [dataclasses.replace(single, resume=(together["s", 0].tokens[:cut],))])["s", 0]
        assert again == together["s", 0]
        assert again.stats.replay_mismatches == 0
    assert together["s", 0].stats.prompt_tokens == len(SOURCES[2])


def test_limits_of_the_source(engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    engine, _ = engines("bart")
    long = ask("long", [7] * 151, max_tokens=4)
    found = drain(loop(engine), [long, ask("empty", [], max_tokens=4)])
    assert found["long", 0].error.kind == "ContextOverflow"
    assert found["empty", 0].error.kind == "EmptyPrompt"
    assert "151 prompt tokens > context 150 of the encoder" in found["long", 0].error.message
    cut = drain(loop(engine), [dataclasses.replace(long, overflow="cut_left")])["long", 0]
    assert (cut.error, cut.stats.prompt_tokens) == (None, 150)
    wordy = dataclasses.replace(ask("wordy", SOURCES[0], max_tokens=500, ignore_eos=True), overflow="shorten")
    assert len(drain(loop(engine), [wordy])["wordy", 0].tokens) == 149


def test_a_sample_whose_leader_ends_before_its_first_token_reads_the_source_itself(
    engines: Callable[[str], tuple[TorchEngine, Any]],
) -> None:
    """With two start tokens the others wait for the leader's first forward, which never comes."""
    engine, _ = engines("bart")
    row = ask("s", SOURCES[1], sampler=SAMPLED, max_tokens=5, ignore_eos=True, n=2)

    def twice() -> Decoder:
        made = loop(engine)
        made.lane.starts = (2, 7)
        return made

    truth = drain(twice(), [row])
    decoder = twice()
    decoder.submit(row)
    leader = decoder._rows.waiting[0]
    decoder._rows.admit()
    leader.fail("monitor", RuntimeError("gone"))
    decoder._retire([])
    outcomes = [event for _ in range(9) for event in decoder.step() if isinstance(event, OutcomeEvent)]
    assert [(one.row.sample, one.tokens) for one in outcomes] == [(1, truth["s", 1].tokens)]


def test_neighbours_in_the_wrong_position_show(
    engines: Callable[[str], tuple[TorchEngine, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twins: BART's positions counted along the flat call, T5's bias left out."""
    for family in ("bart", "t5"):
        engine, _ = engines(family)
        rows = [ask(f"r{i}", ids, sampler=(Card("greedy"),), max_tokens=9, logprobs=0) for i, ids in enumerate(SOURCES)]
        truth = drain(loop(engine), rows)
        with monkeypatch.context() as broken:
            start = module._Decoding.__init__

            def wrong(self: Any, lane: Any, runs: Any, rows: int, start: Any = start) -> None:
                start(self, lane, runs, rows)
                self.bias, self.position_M = None, torch.arange(len(self.position_M))

            broken.setattr(module._Decoding, "__init__", wrong)
            assert drain(loop(engine), rows) != truth


@pytest.mark.parametrize("family", FAMILIES)
def test_a_node_of_a_tree_has_the_bits_of_its_chain(
    family: str, engines: Callable[[str], tuple[TorchEngine, Any]]
) -> None:
    lane = loop(engines(family)[0]).lane
    with lane.rehearsing():
        wrong, seen = differing(lane, random.Random(family))
    assert seen > 20
    assert wrong == 0
    lane.check(())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_naive_kernel_is_found_out(
    family: str, engines: Callable[[str], tuple[TorchEngine, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin lets the nodes of a tree read each other's columns where they lie."""

    class Scattered(Layout):
        def __init__(self, cache: Any, runs: Any) -> None:
            class Chain(Run):
                branches = False

            super().__init__(cache, [Chain(run.slot, run.start, run.first, run.prefix, run.tree) for run in runs])

    lane = loop(engines(family)[0]).lane
    monkeypatch.setattr(module, "Layout", Scattered)
    with lane.rehearsing():
        wrong, seen = differing(lane, random.Random(5))
    assert 0 < wrong < seen


DRAFTERS = [one.name for one in registry.cards("drafters") if not one.factory().needs.lanes and not one.loads]


def rows_of(drafter: Card | None) -> list[Any]:
    penalty, steered = Card("repetition_penalty", {"value": 1.3}), Card("mirostat2", {"tau": 3.0})
    chains = (Card("greedy"),), SAMPLED, (steered,), (penalty,)
    return [
        ask(f"r{i}", ids, sampler=chain, max_tokens=18 + i, ignore_eos=True, logprobs=1, drafter=drafter, n=1 + i % 2)
        for i, (ids, chain) in enumerate(zip(SOURCES, chains, strict=True))
    ]


def texts(found: dict[Any, OutcomeEvent]) -> dict[Any, Any]:
    return {key: (one.tokens, one.logprobs, one.reason) for key, one in found.items()}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_drafts_change_no_text(family: str, engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    engine, _ = engines(family)
    truth = texts(drain(loop(engine), rows_of(None)))
    accepted = 0
    for name in DRAFTERS:
        card = Card(name, option_sets(registry.get("drafters", name))[0])
        found = drain(loop(engine, 3), rows_of(card))
        assert texts(found) == truth, name
        accepted += sum(one.stats.accepted for one in found.values())
    with visiting():
        for name in ("random_paths", "maximal", "constant"):
            assert texts(drain(loop(engine), rows_of(Card(name)))) == truth, name
    assert accepted > 0


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_auto_measures_and_drafts_where_it_pays(family: str, engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    """With a source in the slots that it measures in, and nothing of it left; on cheap calls it drafts."""
    engine, _ = engines(family)
    truth = texts(drain(loop(engine), rows_of(None)))
    auto = Card("auto")
    measured = loop(engine)
    assert texts(drain(measured, rows_of(auto))) == truth
    assert measured.choice.curve is not None
    assert measured.choice.curve(1, 1) > 0
    found = drain(loop(engine, curve=CHEAP), rows_of(auto))
    assert texts(found) == truth
    assert sum(one.stats.drafted for one in found.values()) > 0


def test_short_memory_costs_time_and_no_text(engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    engine, _ = engines("t5")
    rows = [ask(f"r{i}", SOURCES[i], max_tokens=80, ignore_eos=True, logprobs=0, sampler=SAMPLED) for i in range(3)]
    found = drain(loop(engine, 3, tokens=3 * PAGE), rows)
    assert sum(one.stats.preempted for one in found.values()) > 0
    assert texts(found) == texts(drain(loop(engine, 3), rows))


def test_a_source_with_a_nan_ends_its_own_row(tiny_folder: Callable[..., Path]) -> None:
    engine = TorchEngine(tiny_folder(FAMILIES["t5_gated"]()), dtype="float32", slots=3, max_length=64)
    rows = [ask(f"r{i}", SOURCES[i], sampler=SAMPLED, max_tokens=9, ignore_eos=True, logprobs=1) for i in (0, 2)]
    truth = texts(drain(loop(engine), rows))
    with torch.no_grad():
        engine.lane.model.get_encoder().embed_tokens.weight[301] = float("nan")
    bad = ask("bad", [30, 301, 31], sampler=SAMPLED, max_tokens=9)
    one = loop(engine, 1)
    for decoder in (loop(engine), one):
        found = drain(decoder, [bad, *rows])
        assert (found["bad", 0].reason, found["bad", 0].error.kind) == ("error", "BadLogits")
        assert "arose in layer.0 at position 0" in found["bad", 0].error.message, "the encoder has no sites"
        assert {key: value for key, value in texts(found).items() if key in truth} == truth


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_are_transformers_decoder_states(family: str, engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    engine, model = engines(family)
    lane = loop(engine).lane
    depth = len(lane.sites) - 3
    assert lane.sites == ("input", "embedding", *(f"layer.{i}" for i in range(depth)), "final")
    ids = [2, *SOURCES[1][:12]]
    lane.read(0, SOURCES[2])
    lane.read(1, SOURCES[3])
    wanted = lane.sites[1:]
    chunks = [Chunk(1, 0, (9, 8), None), Chunk(0, 0, tuple(ids[:8]), TokenTree.chain(ids[8:]))]
    out = lane.forward(chunks, Needs(hidden=wanted))
    with torch.inference_mode():
        truth = model(
            input_ids=torch.tensor([SOURCES[2]]), decoder_input_ids=torch.tensor([ids]), output_hidden_states=True
        )
    close = {"rtol": 1e-4, "atol": 1e-4}
    for site, state in zip(lane.sites[1:-2], truth.decoder_hidden_states, strict=False):  # the last one is normed there
        torch.testing.assert_close(out.hidden[site], state[0, 8:], **close)
    torch.testing.assert_close(out.hidden["final"], truth.decoder_hidden_states[-1][0, 8:], **close)
    assert torch.equal(lane.head(out.hidden["final"], False), out.logits_MV)
    normed = lane.head(out.hidden[lane.sites[-2]], True)
    torch.testing.assert_close(normed, out.logits_MV, rtol=1e-4, atol=1e-4 * float(out.logits_MV.abs().max()))


def test_interventions_act_in_the_decoder(engines: Callable[[str], tuple[TorchEngine, Any]]) -> None:
    """One at a layer changes its own row and no other; the twin that is never called would change nothing."""
    engine, _ = engines("t5")
    lane = loop(engine).lane
    lane.read(0, SOURCES[1])
    lane.read(1, SOURCES[2])
    chunks = [Chunk(0, 0, (2, 7), TokenTree.root(9)), Chunk(1, 0, (2,), TokenTree.root(8))]
    plain = lane.forward(chunks, Needs()).logits_MV
    pushed = lane.forward(chunks, Needs(), [Hook("layer.0", (0, 1, 2), lambda x_ND: x_ND + 3.0)]).logits_MV
    assert not torch.equal(pushed[0], plain[0])
    assert torch.equal(pushed[1], plain[1])


def test_another_encoder_decoder_is_refused_by_name(tmp_path: Path) -> None:
    from tests.models.tiny import byte_level_tokenizer

    config = hf.PegasusConfig(**BART)
    hf.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(Refused, match="Pegasus"):
        TorchEngine(tmp_path, dtype="float32", slots=2, max_length=32)
