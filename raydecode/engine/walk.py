"""The walk down the verified trees, by depth, batched over rows: the only place where a token is chosen.

    constrain -> mask -> chain -> draw -> sampler.observe -> TokenEvent -> monitors.observe -> verdict -> stop or limit
    -> is the token a drafted child?

What is emitted is by construction what plain decoding would have emitted: a draft only decides whether the next
position's logits are there already. Plain decoding is the walk over trees of one node, replay the walk along given ids.

x_RV: float32 logits, R rows that walk, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raydecode.constraint import Constraint, Pending, Stop, compose
from raydecode.contracts import Monitor, Needs
from raydecode.engine import chain
from raydecode.engine.candidates import Candidates
from raydecode.engine.ending import first_stop, named
from raydecode.engine.host import ServiceHost
from raydecode.engine.inside import Look, SlopeOf
from raydecode.engine.lane import Outputs
from raydecode.engine.rows import Row
from raydecode.errors import RowError
from raydecode.events import Event, TokenEvent
from raydecode.numerics import normaliser, normaliser_and_entropy
from raydecode.tree import TokenTree

if TYPE_CHECKING:
    from raydecode.randomness import Contend


@dataclass(slots=True)
class Visit:
    """One row's way through its tree. base: the root's index among all logits; path: nodes where a token was chosen."""

    row: Row
    tree: TokenTree
    base: int
    node: int = 0
    path: list[int] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Methods:
    """Live objects by name, made on first use; one per engine. contend: see `randomness.draw`."""

    samplers: chain.SamplerOf
    monitors: Callable[[str], Monitor]
    sites: Sequence[str] = ()
    slope: SlopeOf | None = None
    contend: Contend | None = None


def walk(visits: Sequence[Visit], outputs: Outputs, methods: Methods, host: ServiceHost, events: list[Event]) -> None:
    """Choose tokens until every row ended, parked, or left its tree. Appends fold events; fills path and emitted."""
    active = [visit for visit in visits if visit.row.reason is None]  # an intervention may have ended a row
    while active:
        active, masks = constrained(active, methods, host)
        if not active:
            return
        rows = [visit.row for visit in active]
        node_R = [visit.base + visit.node for visit in active]
        every = node_R == list(range(len(outputs.logits_MV)))  # plain decoding: no copy of 6 MB at 32 rows
        raw_RV = outputs.logits_MV if every else outputs.logits_MV[node_R]
        x_RV, kept_R = masked(raw_RV, rows, masks, host.eos)
        look = Look(outputs, methods.sites, node_R, methods.slope)
        left, observations = chain.shape(x_RV, rows, methods.samplers, look)
        refuse_empty(left, raw_RV, rows)
        keys, t = [row.key for row in rows], [row.t for row in rows]
        token_R = left.draw(keys, t, methods.contend).cpu()  # one transfer for all
        for r, row in enumerate(rows):
            if row.t < len(row.replay):
                row.replay_mismatches += int(token_R[r]) != row.replay[row.t]
                token_R[r] = row.replay[row.t]
        chain.observe(observations, rows, token_R)
        facts = token_facts(raw_RV, rows, token_R)
        for r, row in enumerate(rows):
            if row.needs.hidden and row.reason is None:
                facts[r]["hidden"] = {site: outputs.hidden[site][node_R[r]] for site in row.needs.hidden}
        onward = []
        for r, visit in enumerate(active):
            if visit.row.reason is None:
                token = int(token_R[r])
                event = TokenEvent(
                    row=visit.row.id,
                    t=visit.row.t,
                    token=token,
                    bytes=host.token_bytes[token],
                    kept=kept_R[r],
                    source="forced" if (mask := masks[r]) and mask.forced else "sampled",
                    **facts[r],
                )
                if _take(visit, event, methods, host, events):
                    onward.append(visit)
        active = onward


def constrained(
    visits: list[Visit], methods: Methods, host: ServiceHost
) -> tuple[list[Visit], list[Constraint | None]]:
    """Rows that may go on, with their constraint. A row whose monitor waits for an answer is parked where it stands."""
    free: list[Visit] = []
    masks: list[Constraint | None] = []
    size = len(host.token_bytes)
    for visit in visits:
        row = visit.row
        try:
            asked = (
                methods.monitors(c.name).constrain(s) for c, s in zip(row.spec.monitors, row.monitor_state, strict=True)
            )
            constraint = compose(asked, host.eos) if row.spec.monitors else None
            if isinstance(constraint, Constraint):
                _check_ids(constraint, size)
        except Exception as error:
            row.fail("monitor", error)
            continue
        row.parked = isinstance(constraint, Pending)
        if not isinstance(constraint, Pending):
            free.append(visit)
            masks.append(constraint)
    return free, masks


def _check_ids(mask: Constraint, size: int) -> None:
    """Monitors are not trusted: an id outside the vocabulary would index another token, or end the batch."""
    for name, ids in (("allowed", mask.allowed or ()), ("bias", mask.bias), ("forced", mask.forced)):
        if ids and not 0 <= min(ids) <= max(ids) < size:
            wrong = next(token for token in ids if not 0 <= token < size)
            raise RowError("monitor", "BadToken", f"constraint.{name}: token {wrong} is not in a vocabulary of {size}")


def masked(
    raw_RV: Tensor, rows: Sequence[Row], masks: Sequence[Constraint | None], eos: frozenset[int]
) -> tuple[Tensor, list[float]]:
    """Logits with biases added and forbidden tokens at -inf, and -ln of the mass that stayed."""
    if not any(masks):
        return raw_RV, [0.0] * len(rows)
    x_RV, kept_R = raw_RV.clone(), [0.0] * len(rows)
    for r, mask in enumerate(masks):
        if mask is None:
            continue
        for token, nats in mask.bias.items() if not mask.forced else ():
            x_RV[r, token] += nats
        if mask.allowed is not None or mask.forced:
            allowed = [mask.forced[0]] if mask.forced else sorted(mask.allowed or ())
            if not allowed and mask.on_empty == "error":
                rows[r].fail(
                    "monitor", RowError("monitor", "NothingAllowed", "the monitors' constraints leave no token")
                )
            keep = torch.tensor(allowed or sorted(eos), device=x_RV.device)
            x_RV[r] = torch.full_like(x_RV[r], -math.inf).index_copy(0, keep, x_RV[r, keep])
        kept_R[r] = max(float(raw_RV[r].logsumexp(0) - x_RV[r].logsumexp(0)), 0.0)
    return x_RV, kept_R


def refuse_empty(left: Candidates, raw_RV: Tensor, rows: Sequence[Row]) -> None:
    """A row with no finite logit, or a NaN, ends; drawing from it would mean nothing. Stage: whose fault it is."""
    best_R = left.best_R()
    for r in (~torch.isfinite(best_R)).nonzero()[:, 0].tolist():
        if rows[r].reason is None:
            what = "NaN or +inf" if math.isnan(float(best_R[r])) or best_R[r] > 0 else "no token left"
            stage = "sampler" if bool(torch.isfinite(raw_RV[r].amax())) else "model"
            rows[r].fail(stage, RowError(stage, "BadLogits", f"{what} at output index {rows[r].t}"))


def token_facts(raw_RV: Tensor, rows: Sequence[Row], token_R: Tensor) -> list[dict]:
    """logp, top, entropy: of the raw model, for the rows that want them (`logprobs`, or a monitor's needs)."""
    facts: list[dict] = [{} for _ in rows]
    want = [r for r, row in enumerate(rows) if row.reason is None and _wants_facts(row.needs)]
    if want:
        x_WV = raw_RV[want]
        lse_W1 = normaliser(x_WV).to(x_WV.dtype)[:, None]  # one way for all: bits must not follow what mates want
        curious = any(rows[r].needs.entropy for r in want)
        entropies = normaliser_and_entropy(x_WV)[1].tolist() if curious else [None] * len(want)
        logp_W = (x_WV.gather(1, token_R[want][:, None].to(x_WV.device)) - lse_W1)[:, 0].tolist()
        width = min(max(rows[r].needs.top_k for r in want), x_WV.shape[1])
        top_WK = (x_WV - lse_W1).topk(width, dim=1) if width else None
        for w, r in enumerate(want):
            k = rows[r].needs.top_k
            top = (
                tuple(zip(top_WK.indices[w, :k].tolist(), top_WK.values[w, :k].tolist(), strict=True)) if top_WK else ()
            )
            facts[r] = {"logp": logp_W[w], "top": top, "entropy": entropies[w] if rows[r].needs.entropy else None}
    return facts


def _wants_facts(needs: Needs) -> bool:
    return needs.logp or needs.entropy or needs.top_k > 0


def _take(visit: Visit, event: TokenEvent, methods: Methods, host: ServiceHost, events: list[Event]) -> bool:
    """Make the token part of the row. True if the walk goes on at a drafted child."""
    row, spec, token = visit.row, visit.row.spec, event.token
    if event.t >= len(row.replay):
        events.append(event)
    row.append(token)
    visit.path.append(visit.node)
    visit.emitted.append(token)
    if spec.logprobs is not None and event.logp is not None:
        row.logprobs.append((event.logp, event.top[: spec.logprobs]))
    ends = token in spec.stop_tokens or (token in host.eos and not spec.ignore_eos)
    if not ends:
        row.text += event.bytes
    try:
        row.monitor_state = [
            methods.monitors(c.name).observe(s, event) for c, s in zip(spec.monitors, row.monitor_state, strict=True)
        ]
        verdicts = [methods.monitors(c.name).verdict(s) for c, s in zip(spec.monitors, row.monitor_state, strict=True)]
    except Exception as error:
        row.fail("monitor", error)
        return False
    halt = next(((c.name, v) for c, v in zip(spec.monitors, verdicts, strict=True) if isinstance(v, Stop)), None)
    cut = first_stop(row.text, len(event.bytes), spec.stop) if spec.stop and not ends else -1
    if ends and token not in spec.stop_tokens:
        row.reason = "eos"
    elif ends:
        row.reason, row.cause = "stop", f"token {token}"
    elif cut >= 0:
        row.reason, row.cause, row.text = "stop", named(row.text, cut, spec.stop), row.text[:cut]
    elif halt:
        name, verdict = halt
        row.reason, row.cause = "monitor", f"{name}: {verdict.reason}"
        row.text = row.text[: max(len(row.text) - verdict.cut_bytes, 0)]
    elif row.t >= row.limit:
        row.reason = "length"
    if row.reason:
        return False
    child = visit.tree.child(visit.node, token)
    if child is None:
        return False
    visit.node = child
    return True
