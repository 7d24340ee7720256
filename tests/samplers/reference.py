"""The samplers once more, in numpy and float64, one row at a time, written from the papers and not from the code.

Each is a function (logits[V], options, prompt ids, output ids) -> logits[V]; `law` makes probabilities of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raydecode.request import Card

Shape = Callable[[np.ndarray, Mapping[str, Any], Sequence[int], Sequence[int]], np.ndarray]


def softmax(x_V: np.ndarray) -> np.ndarray:
    weight_V = np.exp(x_V - x_V.max())
    return weight_V / weight_V.sum()


def temperature(x_V, options, prompt, output):
    if options["value"] == 0:
        return greedy(x_V, options, prompt, output)
    return x_V / options["value"]


def greedy(x_V, options, prompt, output):
    y_V = np.full_like(x_V, -np.inf)
    y_V[int(np.argmax(x_V))] = x_V.max()
    return y_V


def top_k(x_V, options, prompt, output):
    """Ranked by logit; everything that equals the k-th stays."""
    cut = sorted(x_V, reverse=True)[min(options["k"], len(x_V)) - 1]
    return np.where(x_V >= cut, x_V, -np.inf)


def top_p(x_V, options, prompt, output):
    """Take tokens from the likeliest on until the mass is reached, then whatever equals the last one."""
    if options["p"] >= 1:
        return x_V
    mass, probability_V = 0.0, softmax(x_V)
    for token in np.argsort(-x_V, kind="stable"):
        mass += probability_V[token]
        if mass >= np.float32(options["p"]):  # the engine's options are float32
            break
    return np.where(x_V >= x_V[token], x_V, -np.inf)


def min_p(x_V, options, prompt, output):
    probability_V = softmax(x_V)
    return np.where(probability_V >= options["p"] * probability_V.max(), x_V, -np.inf)


def repetition_penalty(x_V, options, prompt, output):
    y_V = x_V.copy()
    for token in set(prompt) | set(output):
        y_V[token] = x_V[token] / options["value"] if x_V[token] > 0 else x_V[token] * options["value"]
    return y_V


def frequency_penalty(x_V, options, prompt, output):
    y_V = x_V.copy()
    for token in output:
        y_V[token] -= options["value"]
    return y_V


def presence_penalty(x_V, options, prompt, output):
    y_V = x_V.copy()
    for token in set(output):
        y_V[token] -= options["value"]
    return y_V


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (temperature, greedy, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty)
}


def law(x_V: np.ndarray, chain: Sequence[Card], prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
    """Probabilities of the next token under a chain."""
    y_V = x_V.astype(np.float64)
    for card in chain:
        y_V = SHAPES[card.name](y_V, card.options, prompt, output)
    return softmax(y_V)
