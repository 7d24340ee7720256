"""The lane on another device than the host: nothing is mixed up, and few numbers come back.

On a pretended device (`elsewhere`), because this must fail on machines without an accelerator too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from raydecode import models, registry
from raydecode.engine.torch.lane import TorchLane
from raydecode.events import OutcomeEvent
from raydecode.request import Card
from tests.engine.torch.elsewhere import DEVICE, Elsewhere
from tests.engine.torch.recorder import SAMPLED, Decoder, ask
from tests.engine.torch.test_families import GROUPED

CHAINS = {
    "greedy": (Card("greedy"),),
    "sampled": SAMPLED,
    "penalties": tuple(Card(f"{name}_penalty", {"value": 1.2}) for name in ("repetition", "frequency", "presence")),
    "coins": (Card("xtc", {"threshold": 0.01, "probability": 0.9}), Card("min_p", {"p": 0.01})),
    "history": (Card("dry", {"allowed_length": 1}), Card("no_repeat_ngram", {"n": 2})),
    "temperatures": (Card("dynamic_temperature"), Card("epsilon", {"epsilon": 1e-3}), Card("eta", {"epsilon": 1e-3})),
    "cuts": (Card("top_k", {"k": 40}), Card("typical", {"p": 0.9}), Card("top_n_sigma", {"n": 2.0})),
    "mirostat1": (Card("mirostat1"),),
    "mirostat2": (Card("mirostat2"),),
    "early": (Card("dola"),),
    "bias": (Card("logit_bias", {"bias": {5: 3.0, 7: -9.0}}),),
}


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder(LlamaConfig(**GROUPED))


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TorchLane, Elsewhere]]:
    """A lane on the pretended device. transformers builds models on a `meta` of its own, so that part goes first."""
    loaded = models.load_module(folder, "float32")
    monkeypatch.setattr(models, "load_module", lambda *_, device, **__: copy.deepcopy(loaded).to(device))
    with torch.inference_mode(), Elsewhere() as device:
        yield TorchLane(folder, dtype="float32", slots=12, context=126, device=DEVICE), device


def decode(
    lane: TorchLane, rows: int, chains: dict[str, tuple[Card, ...]], **spec: Any
) -> tuple[dict[str, OutcomeEvent], int]:
    """Outcomes by request, and how many steps it took."""
    loop = Decoder(lane, chunk=60)
    for i in range(rows):
        for name, chain in chains.items():
            ids = range(30 + i, 100 + 2 * i)
            loop.submit(ask(f"{name}{i}", ids, sampler=chain, max_tokens=4, ignore_eos=True, **spec))
    out = {}
    while loop.busy:
        out |= {event.row.request: event for event in loop.step() if isinstance(event, OutcomeEvent)}
    loop.check_integrity()
    assert all(one.reason == "length" for one in out.values()), [one.error for one in out.values()]
    return out, loop.steps


def test_texts_are_those_of_the_host(folder: Path, there: tuple[TorchLane, Elsewhere]) -> None:
    """Every sampler, a long prompt in chunks, shared pages. The host's layers are packed, so its bits are others."""
    lane, device = there
    assert lane.model.device == DEVICE
    assert not lane.packed
    found, _ = decode(lane, 1, CHAINS, logprobs=2)
    with device.away():
        truth, _ = decode(TorchLane(folder, dtype="float32", slots=12, context=126), 1, CHAINS, logprobs=2)
    assert {key: one.tokens for key, one in found.items()} == {key: one.tokens for key, one in truth.items()}


def test_transfers_do_not_grow_with_rows(there: tuple[TorchLane, Elsewhere]) -> None:
    """Two a step: which rows have no finite logit, and the tokens that were chosen."""
    lane, device = there
    for rows in (2, 12):
        device.fetched.clear()
        _, steps = decode(lane, rows, {"greedy": (Card("greedy"),)})
        assert 0 < device.fetched.total() <= 2 * steps, device.fetched


def test_all_samplers_were_tried() -> None:
    tried = {card.name for chain in CHAINS.values() for card in chain}
    assert set(registry.methods("samplers")) - tried == set()


def test_the_pretended_device_refuses_what_cuda_refuses() -> None:
    with torch.inference_mode(), Elsewhere():
        x = torch.tensor([1.0, 2.0], device=DEVICE)
        assert (x + 1).tolist() == [2.0, 3.0]
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
