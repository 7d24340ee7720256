"""Resident memory over ten thousand requests."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from raydecode.contracts import Needs
from raydecode.engine.lane import Chunk
from raydecode.engine.torch import TorchEngine
from raydecode.engine.torch.cache import PAGE
from tests.engine.torch.recorder import ask
from tests.engine.torch.test_families import GROUPED

CHUNK, SLOTS, CONTEXT = 512, 32, 100
BOUND = 1 << 20
"""Bytes: 117 for each of 9,000 requests. 20 KiB in all over 5,000 when this was written."""


def resident() -> int:
    """Bytes, now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    pytest.skip("no /proc here")


def see_every_row_count(engine: TorchEngine) -> None:
    """oneDNN keeps a kernel per layer shape and number of rows (`linear.padding`); how many there are is bounded by the
    tokens of a step, not by the requests, so all of them are made first."""
    for count in range(8, CHUNK + SLOTS + 1, 8):
        sizes = [CONTEXT - 1] * (count // (CONTEXT - 1)) + [count % (CONTEXT - 1)]
        engine.lane.forward([Chunk(slot, 0, (20,) * size, None) for slot, size in enumerate(sizes) if size], Needs())
        for slot in range(len(sizes)):
            engine.lane.release(slot)


@pytest.mark.slow
def test_ten_thousand_requests_take_no_memory(tiny_folder: Callable[..., Path]) -> None:
    options = {"cache_tokens": 2048, "chunk": CHUNK, "compile": False}
    folder = tiny_folder(LlamaConfig(**GROUPED))
    engine = TorchEngine(folder, dtype="float32", slots=SLOTS, max_length=CONTEXT, options=options)
    see_every_row_count(engine)
    make = random.Random(0)

    def serve(count: int) -> int:
        for i in range(count):
            prompt = [make.randrange(20, 300) for _ in range(make.randrange(1, 90))]
            engine.submit(ask(str(i), prompt, max_tokens=2, ignore_eos=True, sampler=()))
            while engine.waiting > 8:
                engine.step()
        while engine.busy:
            engine.step()
        engine.check_integrity()
        gc.collect()
        return resident()

    first = serve(1_000)
    assert serve(9_000) - first < BOUND
    assert engine.lane.cache.pages.touched <= 2048 // PAGE
