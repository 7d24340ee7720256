"""Rows whose chain vLLM's parameters cannot express: from raw logits to the row's token. Imports no vLLM.

The whole chain and the draw are ours, by the code that the torch engine's walk runs (`engine/chain.py`, keyed noise),
so one seed gives one text up to near-ties of the two engines' logits.

vLLM moves rows between slots, pre-empts them, reads their prompt in chunks and samples at chunk ends what it then
throws away. So nothing is kept by slot and nothing is appended blindly: a row is found by its id, its output is what
vLLM says it is, and sampler state is kept by output index: the state before token t is `states[t]`, whoever asks and
however often. Where it is not kept (the row comes from another engine), it is replayed from the tokens; a state that
also needs their log-probabilities (Mirostat's mu) cannot be, and such a row ends with an error rather than with another
text.

Legend: R rows, V vocabulary. Cost: docs/log.md, "Samplers inside vLLM".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Sampler
from raydecode.engine import chain
from raydecode.engine.rows import Row
from raydecode.engine.walk import refuse_empty
from raydecode.errors import RowError
from raydecode.request import Card, DecodingSpec, Ids, Request, RowId

State = tuple[dict[str, float], ...]
"""Of one row: the state columns of every stage."""


@dataclass(slots=True, eq=False)
class Kept:
    """A row and what is remembered of it.

    first:  output ids that came with the prompt (a resumed row)
    states: output index -> state before that token is chosen; only of rows with state
    drawn:  output index -> token that was chosen there
    """

    row: Row
    first: tuple[int, ...] = ()
    states: dict[int, State] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    told: bool = False

    def follows(self, token: int) -> bool:
        """Whether `token`, drafted behind all that the row has, is the one that was drawn there."""
        return self.row.reason is None and self.drawn.get(self.row.t) == token


def card(one: Any) -> Card:
    """A card from its JSON: a name, or a mapping with the name among the options."""
    return Card(one) if isinstance(one, str) else Card(one["name"], {k: v for k, v in one.items() if k != "name"})


def wire(id: str, sampler: Sequence[Card], key: int, resumed: int = 0) -> dict[str, Any]:
    """What travels in `SamplingParams.extra_args`: JSON-able. resumed: how many of the prompt's last ids are output."""
    return {"id": id, "sampler": [card.to_json() for card in sampler], "key": key, "resumed": resumed}


class OwnRows:
    """keep: rows out of the batch (pre-empted, or ended without a word) that are remembered, the latest ones."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._rows: dict[str, Kept] = {}
        self._out: OrderedDict[str, None] = OrderedDict()
        self._live: dict[str, Sampler] = {}

    # ------------------------------------------------------------------ who is in the batch
    def open(self, asked: Mapping[str, Any], prompt: Sequence[int]) -> Kept:
        """The row of a request that enters the batch, for the first time or again."""
        id = asked["id"]
        self._out.pop(id, None)
        if id not in self._rows:
            cards = tuple(card(one) for one in asked["sampler"])
            spec, cut = DecodingSpec(sampler=cards), len(prompt) - asked["resumed"]
            row = Row(
                RowId(id), Request(id, id, Ids(()), spec), spec, asked["key"], list(prompt[:cut]), cut, limit=1 << 62,
                sampler_state=[dict(columns) for columns in self._start(cards)],
            )  # fmt: skip
            self._rows[id] = Kept(row, tuple(prompt[cut:]))
        return self._rows[id]

    def release(self, kept: Kept) -> None:
        """The row left the batch; whether it comes back is not known."""
        id = kept.row.id.request
        if self._rows.get(id) is kept:
            self._out[id] = None
            if len(self._out) > self._keep:
                del self._rows[self._out.popitem(last=False)[0]]

    # ------------------------------------------------------------------ the step
    def choose(self, x_RV: Tensor, kept: Sequence[Kept], outputs: Sequence[Sequence[int]]) -> list[int | None]:
        """The next token of each row; None for a row that ended in error. x_RV: float32, raw.

        outputs: ids that vLLM has put behind each row's prompt, as of now.
        """
        for one, output in zip(kept, outputs, strict=True):
            if one.row.reason is None:
                self._follow(one, output)
        live = [r for r, one in enumerate(kept) if one.row.reason is None]
        token_of: list[int | None] = [None] * len(kept)
        if not live:
            return token_of
        raw_RV = x_RV if len(live) == len(kept) else x_RV[live]
        rows = [kept[r].row for r in live]
        left, observations = chain.shape(raw_RV, rows, self._sampler)
        refuse_empty(left, raw_RV, rows)
        token_R = left.draw([row.key for row in rows], [row.t for row in rows]).cpu()
        chain.observe(observations, rows, token_R)
        stateful = {r for seen in observations for r in seen.index}
        for i, (r, row) in enumerate(zip(live, rows, strict=True)):
            if row.reason is None:
                token_of[r] = kept[r].drawn[row.t] = int(token_R[i])
                if i in stateful:
                    kept[r].states[row.t + 1] = tuple(row.sampler_state)
        return token_of

    def verify(
        self,
        x_MV: Tensor,
        first: Sequence[int],
        kept: Sequence[Kept],
        outputs: Sequence[Sequence[int]],
        drafts: Sequence[Sequence[int]],
    ) -> list[list[int]]:
        """The walk along each row's drafted chain: at every position the row's own chain and noise choose, and it goes
        on while they choose the drafted token. Tokens chosen, in order; of a row that ends in error those before.

        first: where in the M positions the row's own stand, len(draft) + 1 of them
        """
        chosen: list[list[int]] = [[] for _ in kept]
        live, depth = list(range(len(kept))), 0
        while live:
            x_RV = x_MV[[first[r] + depth for r in live]].to(torch.float32)
            tokens = self.choose(x_RV, [kept[r] for r in live], [[*outputs[r], *chosen[r]] for r in live])
            going = []
            for r, token in zip(live, tokens, strict=True):
                if token is None:
                    continue
                chosen[r].append(token)
                if depth < len(drafts[r]) and drafts[r][depth] == token:
                    going.append(r)
            live, depth = going, depth + 1
        return chosen

    def _follow(self, kept: Kept, output: Sequence[int]) -> None:
        """Make the row's context and state those of its output, ahead of or behind what was seen last."""
        row, t = kept.row, len(kept.first) + len(output)
        if row.t > t:
            del row.context[row.prompt_len + t :]
            row.history = None
        for j in range(row.t, t):
            token = kept.first[j] if j < len(kept.first) else output[j - len(kept.first)]
            if kept.drawn.get(j, token) != token:
                what = f"vLLM has token {token} at output index {j}, the row's chain drew {kept.drawn[j]}"
                return row.fail("engine", RowError("engine", "NotDrawn", what))
            row.append(token)
        if any(row.sampler_state):
            if t not in kept.states:
                try:
                    self._replay(kept, t)
                except Exception as error:
                    return row.fail("sampler", error)
            row.sampler_state = [*kept.states[t]]
        return None

    def _replay(self, kept: Kept, t: int) -> None:
        """Fold the tokens before t again, from the start values; only for states that tokens alone determine."""
        row = kept.row
        cards = row.spec.sampler
        row.sampler_state = [dict(columns) for columns in self._start(cards)]
        kept.states.setdefault(0, tuple(row.sampler_state))
        if t == 0:
            return
        needy = next((c.name for c, state in zip(cards, row.sampler_state, strict=True) if state and self._deep(c)), "")
        if needy:
            what = f"{needy}'s state at output index {t} is not kept, and log-probabilities of past tokens are gone"
            raise RowError("sampler", "StateLost", what)
        tokens = row.context[row.prompt_len :]
        del row.context[row.prompt_len :]
        row.history = None
        nothing_RV = torch.empty(1, 0)
        for j, token in enumerate(tokens):
            stages = enumerate(self._sampler(card.name) for card in cards)
            seen = [chain.Observation(stage, method, [0], nothing_RV) for stage, method in stages if method.columns]
            chain.observe(seen, [row], torch.tensor([token]))
            row.append(token)
            kept.states[j + 1] = tuple(row.sampler_state)

    # ------------------------------------------------------------------ what the engine asks
    def faults(self) -> dict[str, tuple[int, str, str, str]]:
        """New ones: id -> (output index, stage, kind, message)."""
        out = {}
        for id, kept in self._rows.items():
            fault = kept.row.fault
            if fault and not kept.told:
                kept.told = True
                out[id] = (kept.row.t, fault.stage, fault.kind, fault.message)
        return out

    def close(self, id: str, count: int) -> list[dict[str, Any]]:
        """Forget a row that ended after `count` tokens; the reports of its samplers."""
        self._out.pop(id, None)
        kept = self._rows.pop(id, None)
        if kept is None or count not in kept.states or not count:
            return []
        found = []
        for card, state in zip(kept.row.spec.sampler, kept.states[count], strict=True):
            report = getattr(self._sampler(card.name), "report", None)
            if report:
                found.append({"sampler": card.name, **report(card.options, state, count)})
        return found

    # ------------------------------------------------------------------ methods
    def _sampler(self, name: str) -> Sampler:
        if name not in self._live:
            self._live[name] = registry.get("samplers", name).factory()
        return self._live[name]

    def _deep(self, card: Card) -> bool:
        return self._sampler(card.name).needs.own_logp

    def _start(self, cards: Sequence[Card]) -> list[dict[str, float]]:
        columns = ((card, self._sampler(card.name).columns) for card in cards)
        return [{name: float(start(card.options)) for name, start in of.items()} for card, of in columns]
