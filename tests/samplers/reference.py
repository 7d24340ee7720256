"""The samplers once more, in numpy and float64, one row at a time, written from the papers and not from the code.

Each is a function (logits[V], options, prompt ids, output ids) -> logits[V]; `law` makes probabilities of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raydecode.engine import toy
from raydecode.request import Card

Shape = Callable[[np.ndarray, Mapping[str, Any], Sequence[int], Sequence[int]], Any]


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


def surprise_bits(x_V: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -np.log2(softmax(x_V))


def entropy(x_V: np.ndarray) -> float:
    """Nats."""
    p_V = softmax(x_V)
    return -sum(p * np.log(p) for p in p_V if p > 0)


def dynamic_temperature(x_V, options, prompt, output):
    count = np.isfinite(x_V).sum()
    if count < 2:
        return x_V
    share = entropy(x_V) / np.log(count)
    return x_V / (options["low"] + (options["high"] - options["low"]) * share ** options["exponent"])


def typical(x_V, options, prompt, output):
    p_V, distance_V = softmax(x_V), np.abs(surprise_bits(x_V) - entropy(x_V) / np.log(2))
    mass = 0.0
    for token in np.argsort(distance_V, kind="stable"):
        mass += p_V[token]
        if mass >= np.float32(options["p"]):
            break
    return np.where(distance_V <= distance_V[token], x_V, -np.inf)


def epsilon(x_V, options, prompt, output):
    p_V = softmax(x_V)
    return np.where((p_V >= options["epsilon"]) | (p_V == p_V.max()), x_V, -np.inf)


def eta(x_V, options, prompt, output):
    floor = min(options["epsilon"], np.sqrt(options["epsilon"]) * np.exp(-entropy(x_V)))
    return epsilon(x_V, {"epsilon": floor}, prompt, output)


def top_n_sigma(x_V, options, prompt, output):
    return np.where(x_V >= x_V.max() - options["n"] * x_V[np.isfinite(x_V)].std(), x_V, -np.inf)


def xtc(x_V, options, prompt, output):
    """Two laws and their weights."""
    p_V, y_V = softmax(x_V), x_V.copy()
    likely = [token for token in range(len(x_V)) if p_V[token] >= options["threshold"]]
    if len(likely) > 1:
        least = min(p_V[token] for token in likely)
        y_V[[token for token in likely if p_V[token] > least]] = -np.inf
    return [(options["probability"], y_V), (1 - options["probability"], x_V)]


def dry(x_V, options, prompt, output):
    """By trying every earlier place and every length, from the definition."""
    y_V, ids = x_V.copy(), [*prompt, *output][-options["window"] :]
    longest: dict[int, int] = {}
    for at in range(1, len(ids)):
        for length in range(1, min(at, 50) + 1):
            end = ids[-length:]
            if ids[at - length : at] == end and not set(end) & set(options["breakers"]):
                longest[ids[at]] = max(longest.get(ids[at], 0), length)
    for token, length in longest.items():
        if length >= options["allowed_length"] and token not in options["breakers"]:
            y_V[token] -= options["multiplier"] * options["base"] ** (length - options["allowed_length"])
    return y_V


def no_repeat_ngram(x_V, options, prompt, output):
    n, ids, y_V = options["n"], [*prompt, *output], x_V.copy()
    seen = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    for token in range(len(x_V)):
        if (*ids[len(ids) - n + 1 :], token) in seen and len(ids) >= n - 1:
            y_V[token] = -np.inf
    return y_V if np.isfinite(y_V).any() else x_V


def logit_bias(x_V, options, prompt, output):
    y_V = x_V.copy()
    for token, nats in options["bias"].items():
        y_V[token] += nats
    return y_V


def mu(options, prompt, output) -> float:
    """Mirostat's mu after the output, for a chain of one on the toy model: from the texts alone."""
    value = 2 * options["tau"]
    for t, token in enumerate(output):
        x_V = toy.logits((*prompt, *output[:t])).double().numpy()
        value -= options["eta"] * (surprise_bits(x_V)[token] - options["tau"])
    return value


def zipf_rank(p: Sequence[float], bits: float, size: int) -> float:
    """Mirostat 1's k before rounding; p in falling order, all above 0."""
    top = 0.0
    bottom = 0.0
    for i in range(1, min(len(p), 100)):
        t = np.log((i + 1) / i)
        top += t * np.log(p[i - 1] / p[i])
        bottom += t * t
    s = top / bottom
    e = s - 1
    return ((e * 2**bits) / (1 - size**-e)) ** (1 / s)


def mirostat1(x_V, options, prompt, output):
    p_V = np.sort(softmax(x_V))[::-1]
    k = zipf_rank(p_V[p_V > 0], mu(options, prompt, output), len(x_V))
    return top_k(x_V, {"k": int(np.clip(np.round(k), 1, len(x_V)))}, prompt, output)


def mirostat2(x_V, options, prompt, output):
    keep_V = surprise_bits(x_V) <= mu(options, prompt, output)
    keep_V[np.argmax(x_V)] = True
    return np.where(keep_V, x_V, -np.inf)


SHAPES: dict[str, Shape] = {
    shape.__name__: shape
    for shape in (
        temperature, greedy, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty,
        dynamic_temperature, typical, epsilon, eta, top_n_sigma, xtc, dry, no_repeat_ngram, logit_bias,
        mirostat1, mirostat2,
    )
}  # fmt: skip


def law(x_V: np.ndarray, chain: Sequence[Card], prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
    """Probabilities of the next token under a chain; a shape that tosses a coin gives several logits with weights."""
    ways = [(1.0, x_V.astype(np.float64))]
    for card in chain:
        split = [(weight, SHAPES[card.name](y_V, card.options, prompt, output)) for weight, y_V in ways]
        ways = [
            (weight * share, y_V)
            for weight, made in split
            for share, y_V in (made if isinstance(made, list) else [(1.0, made)])
        ]
    return np.sum([weight * softmax(y_V) for weight, y_V in ways], axis=0)
