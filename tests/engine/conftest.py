"""The one vLLM engine of a test process: vLLM keeps process-wide state, and a third engine in one process fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raydecode.engine.vllm import VllmEngine, available


@pytest.fixture(scope="session")
def vllm_engine(smollm: Path) -> Iterator[VllmEngine]:
    """float32, 4 slots, rows of 384 tokens, with text events; skipped with the reason where vLLM cannot run."""
    reason = available()
    if reason:
        pytest.skip(reason)
    engine = VllmEngine(smollm, dtype="float32", slots=4, max_length=384, stream=True)
    yield engine
    engine.close()
