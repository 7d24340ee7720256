"""DoLa against a reference in numpy and float64, written from the paper; on a Llama: tests/engine/torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from raydecode import registry
from raydecode.conformance.bench import DEPTH, bench
from raydecode.conformance.drive import drive
from raydecode.engine import toy
from raydecode.engine.toy import ToyEngine
from raydecode.randomness import derive
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId
from tests.methods import visiting


def log_softmax(x_V: np.ndarray) -> np.ndarray:
    kept = x_V[np.isfinite(x_V)]
    return x_V - (kept.max() + np.log(np.exp(kept - kept.max()).sum()))


def jsd(p_V: np.ndarray, q_V: np.ndarray) -> float:
    """Of two log-laws: half the sum of their divergences from their mean."""
    p, q = np.exp(p_V), np.exp(q_V)
    mean = (p + q) / 2
    both = mean > 0
    return float(sum((a[both & (a > 0)] * np.log(a[both & (a > 0)] / mean[both & (a > 0)])).sum() for a in (p, q)) / 2)


def reference(last_V: np.ndarray, early: Mapping[int, np.ndarray], alpha: float) -> tuple[np.ndarray, int]:
    """(scores, the layer that was contrasted)."""
    q_N = log_softmax(last_V.astype(np.float64))
    laws = {j: log_softmax(np.where(np.isfinite(last_V), x_V.astype(np.float64), -np.inf)) for j, x_V in early.items()}
    chosen = max(sorted(laws), key=lambda j: jsd(q_N, laws[j]))
    with np.errstate(invalid="ignore"):
        scores = q_N - laws[chosen]
    return np.where(q_N >= q_N.max() + np.log(alpha), scores, -np.inf), chosen


def test_buckets_are_the_papers() -> None:
    from raydecode.samplers.dola import _bucket

    assert _bucket("low", 32) == tuple(range(0, 16, 2))
    assert _bucket("high", 32) == tuple(range(16, 32, 2))
    assert _bucket("high", 0) == _bucket("low", 0) == (0,), "a site that a lane without sites refuses"
    assert _bucket("low", 80) == tuple(range(0, 20, 2))
    assert _bucket("high", 80) == tuple(range(60, 80, 2))
    assert [_bucket(name, 1) for name in ("low", "high")] == [(0,), (0,)]


def test_scores_are_the_references() -> None:
    method = registry.get("samplers", "dola")
    x_RV, rows = bench(method, rows=40)
    shaped = method.factory().shape(x_RV, rows).numpy()
    contrasted = set()
    for r, options in enumerate(rows.options):
        half = DEPTH // 2
        layers = {"low": range(0, half, 2), "high": range(half, DEPTH, 2)}.get(options["layers"], options["layers"])
        early = {
            j: rows.early_logits("embedding" if j == 0 else f"layer.{j - 1}", [r], options["norm"])[0].numpy()
            for j in layers
        }
        scores, chosen = reference(x_RV[r].numpy(), early, np.float32(options["alpha"]))
        contrasted.add(chosen)
        assert (np.isfinite(scores) == np.isfinite(shaped[r])).all()
        kept = np.isfinite(scores)
        np.testing.assert_allclose(shaped[r][kept], scores[kept], rtol=1e-4, atol=2e-4)
    assert len(contrasted) > 2


def toy_early(context: Sequence[int], j: int) -> np.ndarray:
    level_key = derive(toy.ROOT, *context)
    return toy._logits(torch.tensor([toy._table(j, context[-1], level_key)]))[0].numpy()


@pytest.mark.parametrize(
    ("options", "layers"), [({"layers": "low"}, [0]), ({"layers": [0, 1, 2], "alpha": 0.4}, [0, 1, 2])]
)
def test_greedy_texts_of_the_toy_model_are_the_references(options, layers) -> None:
    with visiting():
        spec = DecodingSpec(max_tokens=30, ignore_eos=True, sampler=(Card("dola", options), Card("greedy")))
        drafted = dataclasses.replace(spec, drafter=Card("random_paths"))
        requests = [
            Request(f"{name}{i}", "x", Ids((i, 1)), one)
            for i in range(4)
            for name, one in (("p", spec), ("d", drafted))
        ]
        plain = Request("plain", "x", Ids((0, 1)), DecodingSpec(max_tokens=30, ignore_eos=True))
        outcomes = drive(ToyEngine(), [plain, *requests]).outcomes
        chosen = set()
        for i in range(4):
            context = [i, 1]
            for _ in range(30):
                early = {j: toy_early(context, j) for j in layers}
                scores, layer = reference(toy.logits(context).numpy(), early, np.float32(options.get("alpha", 0.1)))
                chosen.add(layer)
                context.append(int(np.argmax(scores)))
            assert outcomes[RowId(f"p{i}")].tokens == tuple(context[2:])
            assert outcomes[RowId(f"d{i}")].tokens == tuple(context[2:])
        assert chosen == set(layers), "each layer was the most different one somewhere"
        assert drive(ToyEngine(), [plain]).outcomes[RowId("plain")] == outcomes[RowId("plain")]


def test_a_layer_that_is_not_there_is_refused() -> None:
    refused = ToyEngine().refuse(DecodingSpec(sampler=(Card("dola", {"layers": [9]}),)))
    assert refused is not None
    assert (refused.field, refused.value) == ("decoding.sampler", "layer.8")
