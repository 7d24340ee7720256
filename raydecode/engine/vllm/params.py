"""A row's `DecodingSpec` as vLLM's `SamplingParams`, or why not. Pure: knows cards and fields, imports no vLLM.

vLLM 0.32 shapes logits in one fixed order (v1/sample/sampler.py; stage numbers are ours, from the cards):

    10 repetition   12 frequency, presence   20 temperature   30 min_p   40 top_k   50 top_p   then the draw

A chain maps if its stages never fall, no method occurs twice and no two methods set one field; without a temperature
the field is set to 1. The engine knows no method: `registry.Vllm` on the card says which field an option becomes.
Any other chain of samplers that read logits and ids only is run whole by our logits processor (`own.py`), draw
included, and vLLM's own fields stay neutral. So is every chain but plain greedy, unless a job says otherwise
(`draws.py`).

Where the two engines' laws differ if vLLM runs a chain that maps:
  - top-k and top-p: of tokens with equal logits at the cut vLLM's top-p keeps some, ours all;
  - vLLM's draw uses a generator of its own per request, seeded by the row's noise key: the same row gives the same
    text in every batch of the same shape of logits, but not the text that the torch engine draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raydecode import registry
from raydecode.engine.vllm.draws import own_draws, refuse_draws
from raydecode.engine.vllm.speculation import both, refuse_speculation, speculation
from raydecode.errors import Refused, UserError
from raydecode.request import FIELDS, SINGLE, Card, DecodingSpec

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0.01, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
"""Fields whose range in vLLM is narrower than our option's. vLLM rejects a value above silently raises a temperature
below 0.01 to 0.01; exactly 0 is greedy on both sides and allowed."""

INSTEAD = {
    "searches": "engine torch",
    "monitors": "engine torch",
    "interventions": "engine torch: vLLM runs the model where no tensor can be changed",
}
"""Rooms that vLLM cannot host, and what would work."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """fields: arguments of SamplingParams. history: a stage looks at output ids, so where the output begins matters.

    own: the whole chain, its options complete, if our processor runs it; None if vLLM does
    state: a stage of `own` keeps state that tokens alone do not determine
    """

    fields: dict[str, Any]
    history: bool
    own: tuple[Card, ...] | None = None
    state: bool = False

    @property
    def greedy(self) -> bool:
        return self.fields["temperature"] == 0 and self.own is None

    @property
    def replayable(self) -> bool:
        """Whether a row can go on behind ids that another engine delivered."""
        return not self.state if self.own is not None else self.greedy and not self.history


DRAFTER = "decoding.drafter"


def decided(spec: DecodingSpec) -> DecodingSpec:
    """A drafter that chooses by measurement chooses none here: nothing is measured."""
    return replace(spec, drafter=None) if registry.chooses(spec.drafter) else spec


def refuse(spec: DecodingSpec, options: Mapping[str, Any] | None = None) -> Refused | None:
    """Why vLLM, started with `engine.options`, cannot host `spec`, naming the pair and what would work; else None."""
    spec = decided(spec)
    for room, cards in spec.cards().items():
        if room in INSTEAD and cards:
            field = FIELDS[room]
            return Refused(
                f"engine vllm cannot host {field.removesuffix('s')} '{cards[0].name}'",
                field=f"decoding.{field}{'' if field in SINGLE else '[0]'}.name",
                value=cards[0].name,
                hint=f"what would work: {INSTEAD[room]}",
            )
    options = options or {}
    refused = refuse_draws(options) or refuse_speculation(options)
    if refused:
        return refused
    try:
        _check_drafter(spec.drafter, options)
        plan(spec.sampler, own=own_draws(options) or bool(speculation(options)))
    except Refused as refusal:
        return refusal
    except UserError as error:
        return Refused(error.message, field=error.field, value=error.value, nearest=error.nearest, hint=error.hint)
    return None


def _check_drafter(card: Card | None, options: Mapping[str, Any]) -> None:
    """Raise for a drafter that cannot run inside vLLM, and for two on one row."""
    if card is None:
        return
    given = speculation(options)
    if given:
        raise both(f"drafter '{card.name}'", given, DRAFTER, card.name)
    refused = refuse_speculation(options, drafts=1)
    if refused:
        raise refused
    method = registry.get("drafters", card.name, DRAFTER)
    if "vllm" not in method.engines:
        here = ", ".join(one.name for one in registry.cards("drafters") if "vllm" in one.engines)
        why = f"inside vLLM a drafter sees token ids only: {here}"
        hint = f"{why}; engines that host it: {', '.join(method.engines) or 'none'}"
        raise Refused(f"engine vllm cannot host drafter '{card.name}'", field=DRAFTER, value=card.name, hint=hint)
    method.parse(card, DRAFTER)


def plan(chain: Sequence[Card], *, own: bool = False) -> Mapped:
    """The chain as vLLM's parameters if they express it, else as our processor's; raises Refused where neither can.

    own: all that is not plainly greedy is ours: where raydecode draws (`draws.py`), and where vLLM speculates, since
    its rejection sampling would make the text of a seed depend on the drafts, and it ignores or refuses some fields.
    """
    try:
        mapped = map_chain(chain)
    except Refused:
        cards = own_chain(chain)
    else:
        registry.check_chain(chain, "decoding.sampler")
        if not own or (mapped.greedy and len(mapped.fields) == 1):
            return mapped
        cards = own_chain(chain)
    methods = [registry.get("samplers", card.name) for card in cards]
    state = any(method.needs.own_logp and getattr(method.factory, "columns", {}) for method in methods)
    return Mapped({"temperature": 0.0}, any(method.needs.history for method in methods), cards, state)


def own_chain(chain: Sequence[Card]) -> tuple[Card, ...]:
    """The chain with all options filled in, for our processor; raises Refused for a sampler that it cannot run."""
    own = []
    for i, card in enumerate(chain):
        where = f"decoding.sampler[{i}]"
        method = registry.get("samplers", card.name, f"{where}.name")
        if "vllm" not in method.engines:
            why = "vLLM gives logits and token ids, nothing of the model's inside"
            hint = f"{why}; engines that have it: {', '.join(method.engines) or 'none'}"
            raise _no(f"engine vllm cannot run sampler '{card.name}'", where, card, hint)
        own.append(method.parse(card, where))
    registry.check_chain(own, "decoding.sampler")
    return tuple(own)


def map_chain(chain: Sequence[Card]) -> Mapped:
    """The chain as fields of SamplingParams; raises Refused for a chain that vLLM's order cannot give."""
    fields: dict[str, Any] = {}
    owner: dict[str, str] = {}
    seen: list[registry.Method] = []
    for i, card in enumerate(chain):
        where = f"decoding.sampler[{i}]"
        method = registry.get("samplers", card.name, f"{where}.name")
        if method.vllm is None:
            raise _no(f"vLLM has no sampler '{card.name}' of its own", where, card, "use engine torch")
        if any(method.name == earlier.name for earlier in seen):
            raise _no(f"engine vllm applies '{card.name}' once, here it is the second", where, card, "use engine torch")
        if seen and method.vllm.stage < _stage(seen[-1]):
            raise _no(f"engine vllm applies '{card.name}' before '{seen[-1].name}'", where, card, _order(chain))
        options = method.parse(card, where).options
        given = {field: options[option] for option, field in method.vllm.params.items()} | dict(method.vllm.fixed)
        for field, value in given.items():
            if field in owner:
                both = f"'{owner[field]}' and '{card.name}' are one setting of engine vllm ({field})"
                raise _no(both, where, card, "keep one of them, or use engine torch")
            _check_range(field, value, where, card)
            owner[field] = card.name
        fields |= given
        seen.append(method)
    return Mapped({"temperature": 1.0} | fields, any(method.needs.history for method in seen))


def row_seed(noise_key: int) -> int:
    """vLLM's seed of one sample: 63 bits of the row's noise key (vLLM reads -1 as "no seed")."""
    return noise_key >> 1


def _stage(method: registry.Method) -> int:
    return method.vllm.stage if method.vllm else 0


def _order(chain: Sequence[Card]) -> str:
    """The order in which the same cards would map."""
    known = [(card, registry.methods("samplers").get(card.name)) for card in chain]
    ranked = sorted((_stage(method), i, card.name) for i, (card, method) in enumerate(known) if method and method.vllm)
    return f"use engine torch, or the order that vLLM has: {', '.join(name for _, _, name in ranked)}"


def _check_range(field: str, value: Any, where: str, card: Card) -> None:
    low, high = LIMITS.get(field, (float("-inf"), float("inf")))
    if not isinstance(value, int | float) or low <= value <= high or (field == "temperature" and value == 0):
        return
    near = min(max(value, low), high)
    refusal = _no(f"engine vllm takes {field} from {low:g} to {high:g}, not {value:g}", where, card, "use engine torch")
    refusal.nearest = f"{near:g}"
    raise refusal


def _no(message: str, where: str, card: Card, hint: str) -> Refused:
    return Refused(message, field=where, value=card.name, hint=hint)
