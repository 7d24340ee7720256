"""The promise is found by trying, and a lane that breaks it is found out."""

from __future__ import annotations

import pytest
import torch

from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.promise import check_lane, probe
from raydecode.errors import Refused
from tests.engine.torch.twins import TWINS

pytestmark = pytest.mark.real_model


def test_this_lane_is_bitwise_and_left_clean(engine: TorchEngine) -> None:
    found = check_lane(engine.lane, "float32")
    assert (found.promise, found.noise) == ("bitwise", 0.0), found.detail
    assert (engine.promise, engine.device, engine.noise) == ("bitwise", "cpu", 0.0), "what a report says of the engine"
    assert engine.detail
    assert engine.lane.model.config.num_hidden_layers == 30
    engine.check_integrity()
    assert engine.lane.cache.pages.retained == 0


@pytest.mark.parametrize("twin", TWINS)
def test_a_broken_twin_is_near_ties_only(engine: TorchEngine, monkeypatch, twin: str) -> None:
    TWINS[twin](monkeypatch)
    found = check_lane(engine.lane, "float32")
    assert found.promise == "near-ties only"
    assert 0 < found.noise < 1e-2


def test_a_lane_that_forgets_is_refused(engine: TorchEngine, monkeypatch) -> None:
    """The twin loses its cache between calls, as a family with a state of its own would."""

    def forget() -> None:
        for keys, values in engine.lane.cache._layers.values():
            keys.zero_()
            values.zero_()

    monkeypatch.setattr(engine.lane.cache, "flush", forget)
    with pytest.raises(Refused, match="LlamaForCausalLM"):
        check_lane(engine.lane, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probe_needs_no_model(dtype: str) -> None:
    found = probe(dtype)
    assert found.promise == "bitwise", found.detail
    assert found.dtype == dtype


def test_probe_sees_plain_layers_of_one_row(monkeypatch) -> None:
    from raydecode.engine.torch import promise

    monkeypatch.setattr(promise.PackedLinear, "forward", lambda self, x: x @ self.weight.t())
    monkeypatch.setattr(promise.PackedLinear, "weight", torch.randn(1536, 576), raising=False)
    assert probe("float32").promise == "near-ties only"
