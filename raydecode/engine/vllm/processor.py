"""The logits processor that vLLM is given: it finds our rows among vLLM's and lets `OwnRows` choose their tokens.

vLLM has two model runners, each with an interface of its own for processors, and one list of classes for both; which
runner it takes is decided after the list is read (V2 where Triton is, V1 elsewhere). So one class answers to both:

    V1   update_state(batch_update)   rows come, go and move between slots; apply(logits)
    V2   add_request(slot, params)    slots are stable, ids lie on the device; apply(logits, context)

V1 is tested with vLLM on CPU; of V2 only the interface is (this project's machines have no Triton).

A row's own token is made vLLM's by leaving it the only finite logit: vLLM takes it at temperature 0 and at any other.
Log-probabilities are computed before processors run, so they stay the raw model's. Chain and draw run where the logits
are.

For `vllm serve` and other engines that raydecode does not start, the class is registered as vLLM's plug-in; a request
asks for it by `extra_args` (over HTTP `vllm_xargs`):  {"raydecode": '{"sampler": [{"name": "mirostat2"}], "seed": 7}'}
"""

from __future__ import annotations

import dataclasses
import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Processor
from vllm.v1.sample.logits_processor import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2Processor

from raydecode.engine.vllm.own import Kept, OwnRows, card, wire
from raydecode.engine.vllm.params import own_chain
from raydecode.errors import UserError
from raydecode.request import DecodingSpec, Request, Text

FIELD = "raydecode"
"""Our key in `SamplingParams.extra_args`."""

ASKED = ("sampler", "seed", "noise_id")
"""What a request that does not come from raydecode's engine may say."""

NAME = "raydecode.engine.vllm.processor:Processor"
"""How raydecode's engine names it to vLLM."""

KEPT_PER_SLOT = 16
"""Rows out of the batch that are remembered, per slot: pre-empted, or ended on an engine that does not say so."""

log = logging.getLogger("raydecode.vllm")


@dataclass(slots=True)
class Seat:
    """A row of ours in the batch. output: V1: vLLM's own growing list. V2: ids read so far, put together here."""

    kept: Kept
    output: list[int]


class Processor(V1Processor, V2Processor):
    """(vllm_config, device, is_pin_memory) from the V1 runner, (vllm_config, request states) from V2."""

    def __init__(self, vllm_config: Any, *where: Any) -> None:
        self._state: Any = where[0] if len(where) == 1 else None
        slots = vllm_config.scheduler_config.max_num_seqs
        self.rows = OwnRows(KEPT_PER_SLOT * slots)
        self._seats: dict[int, Seat] = {}
        self._new: dict[int, Mapping[str, Any]] = {}
        self._settled: Sequence[tuple[int, int]] | None = None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Check a request's chain where it comes in, and fill in what the worker needs. ValueError is HTTP 400."""
        extra = sampling_params.extra_args or {}
        asked = extra.get(FIELD)
        if asked is None or (isinstance(asked, Mapping) and "id" in asked):
            return
        try:
            if sampling_params.n > 1:
                raise UserError("one sample per request here", field="n", value=sampling_params.n, nearest="1")
            extra[FIELD] = _parsed(asked)
        except UserError as error:
            raise ValueError(str(error)) from None

    def is_argmax_invariant(self) -> bool:
        return False

    # ------------------------------------------------------------------ V1
    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        seats = self._seats
        left = [seats.pop(slot, None) for slot in batch_update.removed]
        left += [seats.pop(slot, None) for slot, *_ in batch_update.added]
        for slot, params, prompt, output in batch_update.added:
            asked = (params.extra_args or {}).get(FIELD)
            if asked is not None:
                seats[slot] = Seat(self.rows.open(asked, prompt or ()), output)
        for from_, to, direction in batch_update.moved:
            moving, other = seats.pop(from_, None), seats.pop(to, None)
            if moving:
                seats[to] = moving
            if other and direction == MoveDirectionality.SWAP:
                seats[from_] = other
            else:
                left.append(other)  # it had left, and vLLM filled its slot in the same breath
        here = {id(seat.kept) for seat in seats.values()}  # a row may leave and come back in one update
        for seat in left:
            if seat and id(seat.kept) not in here:
                self.rows.release(seat.kept)

    # ------------------------------------------------------------------ V2
    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        self._leave(req_idx)
        self._new.pop(req_idx, None)
        asked = (sampling_params.extra_args or {}).get(FIELD)
        if asked is not None:
            self._new[req_idx] = asked  # its ids are on the device once the staged writes are applied
        return asked is not None

    # ------------------------------------------------------------------ both
    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        if self._settled is not None:
            leave_only(logits, self._settled)
            return logits
        if not (self._seats or self._new):
            return logits
        groups: Iterable[tuple[Sequence[int], Sequence[Seat]]]
        groups = self._by_depth(ctx) if ctx is not None else [([*self.seats()], [*self.seats().values()])]
        for at, seats in groups:
            if at:
                self._put(logits, at, seats)
        return logits

    @contextmanager
    def settled(self, chosen: Sequence[tuple[int, int]]) -> Iterator[None]:
        """V1, inside: `apply` chooses nothing; (slot, token) were chosen by a walk over drafts (`verifier.py`)."""
        self._settled = chosen
        try:
            yield
        finally:
            self._settled = None

    def seats(self) -> dict[int, Seat]:
        """V1: our rows, by slot."""
        return dict(sorted(self._seats.items()))

    def _put(self, logits: Tensor, at: Sequence[int], seats: Sequence[Seat]) -> None:
        """Leave the rows at `at` their chosen token only."""
        every = len(at) == len(logits) and list(at) == list(range(len(logits)))
        x_RV = (logits if every else logits[list(at)]).to(torch.float32)
        tokens = self.rows.choose(x_RV, [seat.kept for seat in seats], [seat.output for seat in seats])
        leave_only(logits, [(row, token) for row, token in zip(at, tokens, strict=True) if token is not None])

    def _by_depth(self, ctx: Any) -> Iterator[tuple[list[int], list[Seat]]]:
        """V2: rows of logits and their seats, one group per depth. Where vLLM speculates, a request has a row per
        drafted token; one that follows a token other than the drawn one is left alone, for vLLM will not read it."""
        slots, depths = ctx.expanded_idx_mapping.tolist(), ctx.expanded_local_pos.tolist()
        lengths, fed = (ctx.pos + 1).tolist(), ctx.input_ids.tolist()
        drafts: dict[int, list[int]] = {}
        for depth in range(max(depths, default=-1) + 1):
            at, seats = [], []
            for row, slot in enumerate(slots):
                if depths[row] != depth or (slot not in self._new and slot not in self._seats):
                    continue
                if depth == 0:
                    if lengths[row] < int(self._state.prefill_len.np[slot]):
                        continue  # it still reads: vLLM throws this sample away
                    seat, drafts[slot] = self._caught_up(slot, lengths[row], fed[row]), []
                elif slot in drafts and self._seats[slot].kept.follows(fed[row]):
                    drafts[slot].append(fed[row])
                    seat = Seat(self._seats[slot].kept, [*self._seats[slot].output, *drafts[slot]])
                else:
                    drafts.pop(slot, None)
                    continue
                at.append(row)
                seats.append(seat)
            if at:
                yield at, seats

    def _caught_up(self, slot: int, length: int, last: int) -> Seat:
        """V2: the slot's seat with all its ids; `last` is the newest, the others are on the device."""
        count = int(self._state.prompt_len.np[slot])
        asked = self._new.pop(slot, None)
        if asked is not None:
            self._seats[slot] = Seat(self.rows.open(asked, self._ids(slot, 0, count)), [])
        seat = self._seats[slot]
        if count + len(seat.output) + 1 == length:
            seat.output.append(last)
        elif count + len(seat.output) != length:
            seat.output[:] = self._ids(slot, count, length)
        return seat

    def _ids(self, slot: int, start: int, end: int) -> list[int]:
        return self._state.all_token_ids.gpu[slot, start:end].tolist()

    def _leave(self, slot: int) -> None:
        seat = self._seats.pop(slot, None)
        if seat and not any(other.kept is seat.kept for other in self._seats.values()):  # it may sit elsewhere by now
            self.rows.release(seat.kept)


def leave_only(x_RV: Tensor, chosen: Sequence[tuple[int, int]]) -> None:
    """Make (row, token) the only finite logit of its row."""
    if chosen:
        row_R, token_R = (torch.tensor(ids, device=x_RV.device) for ids in zip(*chosen, strict=True))
        x_RV.index_fill_(0, row_R, float("-inf"))
        x_RV[row_R, token_R] = 0.0


def _parsed(asked: Any) -> dict[str, Any]:
    """A request's own words (a mapping, or JSON text) in the form that the worker reads."""
    try:
        said = json.loads(asked) if isinstance(asked, str) else dict(asked)
        cards = [card(one) for one in said.get("sampler", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            "a mapping with a list of cards as 'sampler'", field=f"extra_args.{FIELD}", value=asked
        ) from None
    wrong = sorted({*said} - {*ASKED})
    if wrong:
        hint = f"fields: {', '.join(ASKED)}"
        raise UserError(f"no field '{wrong[0]}'", field=f"extra_args.{FIELD}", value=wrong[0], hint=hint)
    chain = own_chain(cards)
    seed, noise_id = said.get("seed"), said.get("noise_id", "")
    if seed is None:
        seed, noise_id = uuid.uuid4().int >> 65, ""
    spec = DecodingSpec(sampler=chain, seed=int(seed))
    return wire(uuid.uuid4().hex, chain, Request("", str(noise_id), Text(""), spec).noise_key(0))


class Plugin(Processor):
    """The processor as vLLM finds it among installed packages. It rests where raydecode's engine named its own.

    Nobody asks this one for faults: a row that fails goes on without its chain, and the log says so. vLLM's V1 runner
    loads no processors at all beside speculation, and tells none of them; do not combine the two.
    """

    def __init__(self, vllm_config: Any, *where: Any) -> None:
        super().__init__(vllm_config, *where)
        self._rests = NAME in (vllm_config.model_config.logits_processors or ())

    def update_state(self, batch_update: Any) -> None:
        if not self._rests:
            super().update_state(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return not self._rests and super().add_request(req_idx, sampling_params)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        out = super().apply(logits, ctx)
        for t, *fault in self.rows.faults().values():
            log.warning("a row goes on without its chain from token %d: %s, %s: %s", t, *fault)
        return out


class Extension:
    """What raydecode's engine asks vLLM's worker, by `collective_rpc`: in this process, or in another."""

    model_runner: Any

    def raydecode_faults(self) -> dict[str, tuple[int, str, str, str]]:
        return {id: fault for one in self._raydecode() for id, fault in one.rows.faults().items()}

    def raydecode_close(self, id: str, count: int) -> list[dict[str, Any]]:
        return [report for one in self._raydecode() for report in one.rows.close(id, count)]

    def raydecode_attach(self) -> None:
        """Where vLLM speculates: our chains, drafters and verification; V1 takes no processors then."""
        from raydecode.engine.vllm.verifier import attach  # it names this module

        attach(self)

    def raydecode_drafted(self, id: str) -> dict[str, Any]:
        """Where vLLM speculates, of a row that ended: tokens verified for it, in how many steps, its drafter's work."""
        runner: Any = self.model_runner
        if not hasattr(runner, "rejection_sampler"):
            return {}
        close = getattr(runner.drafter, "close", None)
        own = dataclasses.asdict(close(id)) if close else {}
        verifier = runner.rejection_sampler
        return {"drafted": verifier.drafted.pop(id, 0), "steps": verifier.steps.pop(id, 0), **own}

    def _raydecode(self) -> list[Processor]:
        """Ours, not vLLM's own nor the plug-in at rest. V1 keeps processors with the batch, V2 with the sampler."""
        runner: Any = self.model_runner
        batch: Any = getattr(runner, "input_batch", None)
        held = batch.logitsprocs.all if hasattr(batch, "logitsprocs") else runner.sampler.logits_processors
        return [one for one in held if isinstance(one, Processor) and not isinstance(one, Plugin)]
