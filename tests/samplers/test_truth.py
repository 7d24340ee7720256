"""Truth by enumeration: on the toy model every text of up to four tokens has a known probability under every chain.

20,000 rows are drawn with the engine's own keys, draw and samplers, batched over rows that share a context (the walk's
bookkeeping would take minutes; that the engine draws the same tokens is tested beside it). Seeds are fixed: a test
here passes always or never. p > 1e-3 in each; the broken twins are below 1e-12.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats

from raydecode import registry
from raydecode.conformance.bench import BenchRows
from raydecode.conformance.drive import drive
from raydecode.engine import toy, walk
from raydecode.randomness import draw
from raydecode.request import Card, DecodingSpec, Ids, Request
from tests.methods import cheats, visiting
from tests.samplers.reference import law

STEPS, ROWS, PROMPT = 4, 20_000, (0, 1, 2)
CHAINS = {
    "plain": (),
    "temperature": (Card("temperature", {"value": 1.7}),),
    "cold": (Card("temperature", {"value": 0.4}),),
    "zero": (Card("temperature", {"value": 0.0}),),
    "greedy": (Card("greedy"),),
    "top_k": (Card("top_k", {"k": 2}),),
    "top_p": (Card("top_p", {"p": 0.8}),),
    "min_p": (Card("min_p", {"p": 0.25}),),
    "repetition_penalty": (Card("repetition_penalty", {"value": 1.8}),),
    "frequency_penalty": (Card("frequency_penalty", {"value": 0.7}),),
    "presence_penalty": (Card("presence_penalty", {"value": -1.2}),),
    "usual chain": (
        Card("repetition_penalty", {"value": 1.3}), Card("temperature", {"value": 1.4}),
        Card("top_k", {"k": 4}), Card("top_p", {"p": 0.95}),
    ),
    "truncated first": (Card("min_p", {"p": 0.1}), Card("temperature", {"value": 3.0})),
    "dynamic_temperature": (Card("dynamic_temperature", {"low": 0.4, "high": 2.5, "exponent": 1.5}),),
    "typical": (Card("typical", {"p": 0.6}),),
    "epsilon": (Card("epsilon", {"epsilon": 0.15}),),
    "eta": (Card("eta", {"epsilon": 0.3}),),
    "top_n_sigma": (Card("top_n_sigma", {"n": 1.2}),),
    "xtc": (Card("xtc", {"threshold": 0.2, "probability": 0.5}),),
    "dry": (Card("dry", {"multiplier": 1.2, "base": 1.5, "allowed_length": 1, "window": 5, "breakers": (2,)}),),
    "no_repeat_ngram": (Card("no_repeat_ngram", {"n": 2}),),
    "logit_bias": (Card("logit_bias", {"bias": {1: 1.5, 4: -2.0}}),),
    "mirostat1": (Card("mirostat1", {"tau": 1.0, "eta": 0.7}),),
    "mirostat2": (Card("mirostat2", {"tau": 1.1, "eta": 0.6}),),
    "both penalties": (Card("frequency_penalty", {"value": 0.4}), Card("presence_penalty", {"value": 0.9})),
}  # fmt: skip


def enumerated(chain: Sequence[Card]) -> dict[tuple[int, ...], float]:
    """Every text and its probability, by the reference in numpy."""
    ended, open_texts = {}, {(): 1.0}
    for step in range(STEPS):
        longer: dict[tuple[int, ...], float] = {}
        for output, probability in open_texts.items():
            next_V = law(toy.logits((*PROMPT, *output)).numpy(), chain, PROMPT, output)
            for token in range(toy.VOCAB):
                if next_V[token] > 0:
                    done = token == toy.EOS or step == STEPS - 1
                    (ended if done else longer)[(*output, token)] = probability * next_V[token]
        open_texts = longer
    return ended


@functools.cache
def noise_keys(rows: int) -> list[int]:
    request = Request("x", "x", Ids(PROMPT), DecodingSpec(seed=11))
    return [request.noise_key(sample) for sample in range(rows)]


def drawn(chain: Sequence[Card], rows: int) -> list[tuple[int, ...]]:
    """The texts of samples 0..rows-1 of one request: the product's samplers and draw, one batch per context.

    Rows of one context have one state; they are shaped as one row unless a sampler tosses a coin for each.
    """
    keys = noise_keys(rows)
    texts: list[tuple[int, ...]] = [()] * rows
    live = list(range(rows))
    samplers = [(card, registry.get("samplers", card.name).factory()) for card in chain]
    start = [{name: float(make(card.options)) for name, make in sampler.columns.items()} for card, sampler in samplers]
    states: dict[tuple[int, ...], list[dict[str, float]]] = {(): start}
    for step in range(STEPS):
        live.sort(key=lambda row: texts[row])
        for output, group in itertools.groupby(live, key=lambda row: texts[row]):
            members = list(group)
            mine = [keys[row] for row in members]
            history = torch.tensor((*PROMPT, *output))
            x_RV, inputs = toy.logits((*PROMPT, *output))[None], []
            for (card, sampler), state in zip(samplers, states[output], strict=True):
                count = len(members) if card.name == "xtc" else len(x_RV)
                view = (mine if count > 1 else mine[:1],)
                bench = BenchRows(
                    [card.options] * count, [state] * count, [history] * count, [len(PROMPT)] * count, *view
                )
                inputs.append((sampler, bench, x_RV))
                x_RV = sampler.shape(x_RV.expand(count, -1).contiguous(), bench)
            tokens = draw(x_RV.expand(len(members), -1), mine, [step] * len(members)).tolist()
            for row, token in zip(members, tokens, strict=True):
                texts[row] = (*output, token)
            for token in set(tokens):
                states[*output, token] = [_observed(*stage, token) for stage in inputs]
        live = [row for row in live if texts[row][-1] != toy.EOS]
    return texts


def _observed(sampler, bench: BenchRows, x_1V: torch.Tensor, token: int) -> dict[str, float]:
    if not sampler.columns:
        return {}
    columns = sampler.observe(bench, torch.tensor([token]), x_1V.double().log_softmax(1)[:, token])
    return {name: float(column[0]) for name, column in columns.items()}


def p_value(texts: Sequence[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square; texts expected fewer than five times count together. A text that cannot be has p = 0."""
    seen = Counter(texts)
    if any(text not in expected for text in seen):
        return 0.0
    often = [text for text, p in expected.items() if p * len(texts) >= 5]
    have = [seen[text] for text in often]
    want = [expected[text] * len(texts) for text in often]
    rest = len(texts) - sum(want)
    if rest >= 5:
        have, want = [*have, len(texts) - sum(have)], [*want, rest]
    if len(have) < 2:
        return 1.0
    return float(stats.chisquare(have, np.array(want) * sum(have) / sum(want)).pvalue)


@pytest.mark.parametrize("name", CHAINS)
def test_texts_have_the_enumerated_law(name):
    expected = enumerated(CHAINS[name])
    assert sum(expected.values()) == pytest.approx(1)
    assert p_value(drawn(CHAINS[name], ROWS), expected) > 1e-3


@pytest.mark.parametrize("name", CHAINS)
def test_the_engine_draws_these_very_texts(name):
    spec = DecodingSpec(max_tokens=STEPS, seed=11, n=120, sampler=CHAINS[name])
    run = drive(toy.ToyEngine(slots=50), [Request("x", "x", Ids(PROMPT), spec)])
    assert [outcome.tokens for _, outcome in sorted(run.outcomes.items())] == drawn(CHAINS[name], 120)


def engine_texts(drafter: str, rows: int) -> list[tuple[int, ...]]:
    """Texts of the usual chain without the shortcut: through submit and step, drafted."""
    with visiting():
        spec = DecodingSpec(max_tokens=STEPS, seed=5, n=rows, sampler=CHAINS["usual chain"], drafter=Card(drafter))
        run = drive(toy.ToyEngine(slots=512), [Request("x", "y", Ids(PROMPT), spec)])
    return [outcome.tokens for outcome in run.outcomes.values()]


def test_the_engine_alone_has_the_enumerated_law():
    assert p_value(engine_texts("recycling", 2000), enumerated(CHAINS["usual chain"])) > 1e-3


def test_an_always_accepting_verifier_has_another_law(monkeypatch):
    monkeypatch.setattr(walk, "_take", functools.partial(cheats.accepting, take=walk._take))
    assert p_value(engine_texts("constant", 2000), enumerated(CHAINS["usual chain"])) < 1e-12


@pytest.mark.parametrize(
    ("chain", "wrong"),
    [
        ("top_p", (Card("top_p", {"p": 0.9}),)),
        ("temperature", (Card("temperature", {"value": 1.5}),)),
        ("usual chain", CHAINS["usual chain"][::-1]),
        ("frequency_penalty", (Card("presence_penalty", {"value": 0.7}),)),
        ("dynamic_temperature", (Card("dynamic_temperature", {"low": 0.4, "high": 2.5, "exponent": 1.0}),)),
        ("typical", (Card("top_p", {"p": 0.6}),)),
        ("epsilon", (Card("min_p", {"p": 0.15}),)),
        ("eta", (Card("epsilon", {"epsilon": 0.3}),)),
        ("top_n_sigma", (Card("top_n_sigma", {"n": 2.4}),)),
        ("xtc", (Card("xtc", {"threshold": 0.2, "probability": 0.55}),)),
        ("dry", (Card("dry", {**CHAINS["dry"][0].options, "allowed_length": 2}),)),
        ("no_repeat_ngram", (Card("no_repeat_ngram", {"n": 3}),)),
        ("logit_bias", (Card("logit_bias", {"bias": {1: 1.5}}),)),
        ("mirostat1", CHAINS["mirostat2"]),
        ("mirostat2", (Card("mirostat2", {"tau": 1.1, "eta": 0.001}),)),
    ],
)
def test_a_wrong_law_is_caught(chain, wrong):
    assert p_value(drawn(wrong, ROWS), enumerated(CHAINS[chain])) < 1e-12
