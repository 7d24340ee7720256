"""What goes into an engine: plain, frozen, JSON-able.

A `DecodingSpec` is the YAML section `decoding`, the per-row column, the HTTP field and the stored provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydecode.randomness import derive, hash64

Json = Any


@dataclass(frozen=True, slots=True)
class Card:
    """A method by name with its options: `{name: top_p, p: 0.9}`."""

    name: str
    options: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name, **self.options}


@dataclass(frozen=True, slots=True)
class DecodingSpec:
    """How to decode one request.

    max_tokens:    most output tokens of a row (>= 1)
    seed:          with `noise_id` and the sample number the only source of randomness
    n:             samples per request; they share one prefill
    sampler:       the chain, applied in order; empty = the model's own law (temperature 1)
    drafter:       None, or a card
    stop:          byte strings; the text ends before the first of them
    stop_tokens:   token ids that end the text like an EOS, besides the model's own
    ignore_eos:    EOS is an ordinary token (benchmarks)
    logprobs:      None = not computed; k >= 0 = log-probability of the token and of the k likeliest
    deadline_s:    seconds a row may hold a slot; impure, never part of the text's promise
    """

    max_tokens: int = 256
    seed: int = 0
    n: int = 1
    sampler: tuple[Card, ...] = ()
    drafter: Card | None = None
    search: Card | None = None
    monitors: tuple[Card, ...] = ()
    interventions: tuple[Card, ...] = ()
    stop: tuple[bytes, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    deadline_s: float | None = None

    def cards(self) -> dict[str, tuple[Card, ...]]:
        """Room -> cards in use."""
        held = {room: getattr(self, field) for room, field in FIELDS.items()}
        return {room: (one,) if isinstance(one, Card) else tuple(one or ()) for room, one in held.items()}


FIELDS: Mapping[str, str] = {
    "samplers": "sampler",
    "drafters": "drafter",
    "searches": "search",
    "monitors": "monitors",
    "interventions": "interventions",
}
"""Room -> the field of `DecodingSpec` (and the key of the section `decoding`) that names its methods."""

SINGLE = ("drafter", "search")
"""Fields that hold one card or none; the others hold a tuple."""


@dataclass(frozen=True, slots=True)
class Ids:
    """A prompt as token ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as text; the engine tokenises."""

    text: str


@dataclass(frozen=True, slots=True)
class Messages:
    """A chat; the engine renders it with the model's template."""

    messages: tuple[Mapping[str, Json], ...]


Prompt = Ids | Text | Messages


@dataclass(frozen=True, slots=True)
class Request:
    """One request to an engine.

    id:       names the request in events; unique among those in flight
    noise_id: names the randomness. Batch: the row id. HTTP: a field.
    resume:   output ids already delivered, one tuple per sample (or none at all): replayed through the ordinary walk,
              their events suppressed; a stream's TextEvents go on behind the bytes that could be shown at that point
    overflow: what to do when prompt + max_tokens exceeds the context:
              "error", "cut_left" or "cut_right" (the prompt), "shorten" (the output)
    """

    id: str
    noise_id: str
    prompt: Prompt
    decoding: DecodingSpec = field(default_factory=DecodingSpec)
    resume: tuple[tuple[int, ...], ...] = ()
    overflow: str = "error"

    def resumed(self, sample: int) -> tuple[int, ...]:
        """Output ids of one sample that were delivered before."""
        return self.resume[sample] if self.resume else ()

    def bad_resume(self, most: int) -> str | None:
        """Why nothing can go on from `resume`; most: output tokens of a sample."""
        n = self.decoding.n
        if self.resume and len(self.resume) != n:
            return f"resume needs one tuple of ids per sample: n is {n}, got {len(self.resume)}"
        if any(len(ids) > most for ids in self.resume):
            return f"resume needs no more ids than max_tokens: {most}, got {max(map(len, self.resume))}"
        return None

    def noise_key(self, sample: int) -> int:
        """64-bit key of one sample's noise: H(seed, noise_id, sample)."""
        return derive(hash64(b"raydecode.noise.v1"), self.decoding.seed, hash64(self.noise_id.encode()), sample)


OVERFLOW = ("error", "cut_left", "cut_right", "shorten")


@dataclass(frozen=True, slots=True, order=True)
class RowId:
    """One sample of one request."""

    request: str
    sample: int = 0
