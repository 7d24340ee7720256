"""Who draws on vLLM: pure, no vLLM needed."""

from __future__ import annotations

import pytest

from raydecode.engine.vllm.draws import own_draws, refuse_draws
from raydecode.engine.vllm.params import plan, refuse
from raydecode.request import Card, DecodingSpec


def test_raydecode_unless_a_job_says_otherwise() -> None:
    assert own_draws({})
    assert own_draws({"draws": "raydecode"})
    assert not own_draws({"draws": "vllm"})


@pytest.mark.parametrize(
    ("given", "nearest"), [("vlm", "vllm"), ("own", "raydecode"), (True, "raydecode"), ([], "raydecode")]
)
def test_anything_else_is_refused(given: object, nearest: str) -> None:
    refusal = refuse_draws({"draws": given})
    assert refusal
    assert (refusal.field, refusal.value, refusal.nearest) == ("engine.options.draws", given, nearest)
    assert str(refuse(DecodingSpec(), {"draws": given})) == str(refusal)


def test_a_chain_that_no_processor_can_run_is_refused_by_whoever_draws() -> None:
    for draws in ("raydecode", "vllm"):
        assert refuse(DecodingSpec(sampler=(Card("dola"),)), {"draws": draws})
        assert refuse(DecodingSpec(sampler=(Card("temperature", {"value": 0.7}),)), {"draws": draws}) is None


def test_sampled_rows_are_ours_and_can_be_resumed() -> None:
    chain = (Card("temperature", {"value": 0.8}), Card("top_p", {"p": 0.9}))
    assert plan(chain).own is None
    assert not plan(chain).replayable
    ours = plan(chain, own=True)
    assert ours.own == chain
    assert ours.replayable
    assert plan((Card("greedy"),), own=True).own is None, "nothing is drawn"
