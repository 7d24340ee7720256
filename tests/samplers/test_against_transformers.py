"""The samplers against the logits processors of transformers, on random logits: an independent implementation.

Where theirs breaks ties by sort order, ours keeps equals, so logits here have no ties (float32 normals).
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from raydecode import registry
from raydecode.conformance.bench import BenchRows

ROWS, SIZE = 24, 1000

CASES = [
    ("temperature", {"value": 0.3}, TemperatureLogitsWarper(0.3)),
    ("temperature", {"value": 2.5}, TemperatureLogitsWarper(2.5)),
    ("top_k", {"k": 1}, TopKLogitsWarper(1)),
    ("top_k", {"k": 50}, TopKLogitsWarper(50)),
    ("top_k", {"k": 5000}, TopKLogitsWarper(5000)),
    ("top_p", {"p": 0.1}, TopPLogitsWarper(0.1)),
    ("top_p", {"p": 0.9}, TopPLogitsWarper(0.9)),
    ("top_p", {"p": 0.999}, TopPLogitsWarper(0.999)),
    ("min_p", {"p": 0.05}, MinPLogitsWarper(0.05)),
    ("min_p", {"p": 0.9}, MinPLogitsWarper(0.9)),
    ("repetition_penalty", {"value": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
    ("repetition_penalty", {"value": 0.8}, RepetitionPenaltyLogitsProcessor(0.8)),
    ("typical", {"p": 0.2}, TypicalLogitsWarper(0.2)),
    ("typical", {"p": 0.95}, TypicalLogitsWarper(0.95)),
    ("epsilon", {"epsilon": 9e-4}, EpsilonLogitsWarper(9e-4)),
    ("epsilon", {"epsilon": 0.3}, EpsilonLogitsWarper(0.3)),
    ("eta", {"epsilon": 2e-3}, EtaLogitsWarper(2e-3)),
    ("eta", {"epsilon": 0.3}, EtaLogitsWarper(0.3)),
    ("no_repeat_ngram", {"n": 1}, NoRepeatNGramLogitsProcessor(1)),
    ("no_repeat_ngram", {"n": 2}, NoRepeatNGramLogitsProcessor(2)),
    ("no_repeat_ngram", {"n": 4}, NoRepeatNGramLogitsProcessor(4)),
    ("logit_bias", {"bias": {3: 1.5, 999: -7.0}}, SequenceBiasLogitsProcessor([[[3], 1.5], [[999], -7.0]])),
]


@pytest.mark.parametrize(("name", "options", "theirs"), CASES, ids=lambda value: str(value)[:24])
@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
def test_same_logits(name, options, theirs, spread):
    generator = torch.Generator().manual_seed(int(10 * spread))
    x_RV = torch.randn(ROWS, SIZE, generator=generator) * spread
    ids_RL = torch.randint(0, 4 if name == "no_repeat_ngram" else SIZE, (ROWS, 24), generator=generator)
    rows = BenchRows([options] * ROWS, [{}] * ROWS, list(ids_RL), [5] * ROWS, [0] * ROWS)
    ours = registry.get("samplers", name).factory().shape(x_RV.clone(), rows)
    expected = theirs(ids_RL, x_RV.clone())
    kept, wanted = ours.isfinite(), expected.isfinite()
    assert (kept != wanted).sum() <= _rounding(name), "the sets may differ where the running mass meets p to rounding"
    both = kept & wanted
    torch.testing.assert_close(ours[both], expected[both], rtol=1e-6, atol=1e-6)


def _rounding(name: str) -> int:
    """Tokens, over all rows, that float32 sums may decide the other way: theirs adds from the small end up."""
    return 3 if name in ("top_p", "typical") else 0
