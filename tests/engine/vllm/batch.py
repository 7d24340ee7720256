"""A stand-in for vLLM's batch: a model whose logits are a hash of a row's ids, and rows that ask for our chains."""

from __future__ import annotations

import torch
from torch import Tensor

from raydecode.engine.vllm.own import Kept, OwnRows, wire
from raydecode.engine.vllm.params import own_chain
from raydecode.randomness import hash64
from raydecode.request import Card

V, LENGTH = 60, 24

CHAINS = {
    "mirostat2": (Card("mirostat2", {"tau": 2.0}),),
    "mirostat1": (Card("temperature", {"value": 1.3}), Card("mirostat1", {"tau": 2.5})),
    "dry": (Card("dry", {"allowed_length": 1}), Card("typical", {"p": 0.9})),
    "order": (Card("top_p", {"p": 0.8}), Card("temperature", {"value": 1.5})),
    "penalty": (Card("no_repeat_ngram", {"n": 3}), Card("repetition_penalty", {"value": 1.3}), Card("greedy")),
    "coins": (Card("xtc", {"probability": 0.6, "threshold": 0.05}), Card("mirostat2")),
}


def logits(ids: list[int]) -> Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(hash64(bytes(ids)) >> 1)) * 2


def asked(name: str, chain: tuple[Card, ...], resumed: int = 0) -> dict:
    return wire(name, own_chain(chain), hash64(name.encode()), resumed)


def prompt(name: str) -> list[int]:
    return [hash64(name.encode()) % V, len(name), 7]


def alone(name: str, chain: tuple[Card, ...], length: int = LENGTH) -> tuple[list[int], Kept]:
    """The row's tokens, step by step in a batch of its own, and what was kept of it."""
    rows, output = OwnRows(0), []
    kept = rows.open(asked(name, chain), prompt(name))
    for _ in range(length):
        (token,) = rows.choose(logits(prompt(name) + output)[None], [kept], [output])
        assert token is not None, kept.row.fault
        output.append(token)
    return output, kept
