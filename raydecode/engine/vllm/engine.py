"""The `vllm` engine: vLLM's own scheduler, kernels and samplers behind `contracts.Engine`.

A request becomes n vLLM requests of token ids (they share the prompt by prefix caching). Rows wait here and are handed
over when a slot is free, so that queueing time, deadlines and cancelling are exact; vLLM refills no sooner itself.
EOS, stop tokens and limits are given to vLLM as ids and counts; stop strings are found here, in bytes, after each step.

Promise: weaker than the torch engine's, `near-ties only`. Greedy text equals the torch engine's up to near-ties, and so
does every sampled text: all rows that are not plainly greedy run our chain and noise (`own.py`), also where vLLM's own
parameters would express their chain. A text does not depend on who drafted: where vLLM speculates, by a row's own
drafter (`drafts`, `draft.py`) or by its method (options.speculative_config, for all rows), drafts are verified by them
(`verifier.py`). A row can be resumed, its delivered ids becoming prompt, unless the state of its sampler
needs past log-probabilities.

With options.draws: vllm (`draws.py`) chains that vLLM's parameters express draw from vLLM's generator of the request,
seeded by the row's noise key: a text repeats with the same vLLM, device and batch arithmetic, but is another one than
the torch engine's and than the same job's with a drafter, and its row cannot be resumed.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydecode import registry
from raydecode.engine.admission import fit_prompt
from raydecode.engine.dtype import fast_dtype
from raydecode.engine.ending import settled
from raydecode.engine.vllm import draft
from raydecode.engine.vllm.draws import own_draws
from raydecode.engine.vllm.own import wire
from raydecode.engine.vllm.params import DRAFTER, decided, plan, refuse, row_seed
from raydecode.engine.vllm.rows import Row, facts
from raydecode.engine.vllm.speculation import drafts_for, speculation
from raydecode.engine.vllm.start import start
from raydecode.errors import Refused, RowError, UserError
from raydecode.events import Event, Fault, OutcomeEvent, RowStats, StepEvent
from raydecode.models.card import read_card
from raydecode.models.errors import ModelError
from raydecode.models.vocabulary import Vocabulary
from raydecode.request import DecodingSpec, Ids, Messages, Prompt, Request, RowId, Text
from raydecode.tree import TokenTree

PAUSE_S = 0.001
"""Sleep after a step that returned nothing: vLLM's step comes back at once while a grammar compiles in a thread."""

OWN = "sampled rows draw the torch engine's noise, whoever drafts"
THEIRS = "sampled rows draw from vLLM's generators where its parameters express a chain, else the torch engine's noise"
"""What holds, in words: in the log and the report."""


class VllmEngine:
    """One per process.

    folder:     a local Hugging Face folder
    slots:      rows that run at once (vLLM's max_num_seqs)
    max_length: prompt + output of a row; None = the model's context
    threads:    CPU only; None = torch's own (OMP_NUM_THREADS)
    drafts:     most tokens per row and step that a row's drafter may propose; 0 = rows have no drafters
    options:    draws (`draws.py`), and further fields of vllm.EngineArgs, for example speculative_config, quantization
    stream:     also send TextEvent and StepEvent
    """

    name = "vllm"
    promise = "near-ties only"
    detail = "vLLM's kernels are its own; the noise between its batches was not measured"

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = "auto",
        slots: int = 32,
        max_length: int | None = None,
        threads: int | None = None,
        drafts: int = 0,
        options: Mapping[str, Any] | None = None,
        stream: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        card = read_card(folder)
        if card.encoder_decoder:
            raise ModelError(
                f"{folder} holds a {card.architecture}, an encoder-decoder: vLLM does not run it here", field="model",
                value=str(folder), hint="engine.name=torch runs T5, BART and Marian",
            )  # fmt: skip
        if max_length is not None and not 2 <= max_length <= card.context:
            raise UserError(
                f"rows of {max_length} tokens: the model's context is {card.context}", field="engine.max_length",
                value=max_length, nearest=str(min(max(max_length, 2), card.context)),
            )  # fmt: skip
        self.slots, self.context, self.stream, self.clock = slots, max_length or card.context, stream, clock
        import torch

        given = dict(options or {})
        self._options, self._drafts, self._speculates = given, drafts, bool(drafts or speculation(given))
        self._own = self._speculates or own_draws(given)
        self.detail = f"{self.detail}; {OWN if self._own else THEIRS}"
        self.vocabulary = Vocabulary.of(folder, trust_remote_code=bool(given.get("trust_remote_code")))
        self._vllm = start(
            Path(folder),
            card,
            dtype=fast_dtype(dtype, gpu=torch.cuda.is_available()),
            slots=slots,
            max_length=self.context,
            threads=threads,
            drafts=drafts,
            options=given,
        )
        from vllm.exceptions import VLLMClientError

        self._rejections = (VLLMClientError, ValueError, TypeError)
        self.dtype = str(self._vllm.model_config.dtype).removeprefix("torch.")
        self.device = str(self._vllm.vllm_config.device_config.device_type)
        self._waiting: deque[Row] = deque()
        self._running: dict[str, Row] = {}
        self._outbox: list[Event] = []
        self._faults: dict[str, tuple[Any, ...]] = {}
        self._handed = 0
        self._idle = False
        self.steps = 0

    # ------------------------------------------------------------------ the contract
    def refuse(self, spec: DecodingSpec) -> Refused | None:
        return refuse(spec, self._options) or self._refuse_drafter(decided(spec))

    def submit(self, request: Request) -> None:
        try:
            self._waiting.extend(self._rows_of(request))
        except Exception as error:  # whatever is wrong with this row ends this row
            kind, message = getattr(error, "kind", type(error).__name__), getattr(error, "message", str(error))
            fault = Fault(getattr(error, "stage", "request"), kind, message)
            rows = (RowId(request.id, sample) for sample in range(max(1, request.decoding.n)))
            self._outbox += [OutcomeEvent(row, "error", (), b"", fault, stats=RowStats()) for row in rows]

    def step(self) -> list[Event]:
        events, self._outbox = self._outbox, []
        self._admit(events)
        if self._running:
            outputs = self._vllm.step()
            if any(row.mapped.own is not None for row in self._running.values()):
                for found in self._ask("raydecode_faults"):
                    self._faults |= found
            for output in outputs:
                row = self._running.get(output.request_id)
                if row is not None:
                    self._take(output.request_id, row, output, events)
            self.steps += 1
        self._expire(events)
        self._idle = not events
        return events

    def cancel(self, id: str) -> None:
        for row in [row for row in self._waiting if row.id.request == id]:
            self._waiting.remove(row)
            row.reason = "cancelled"
            self._outbox.append(row.outcome(self.clock()))
        for key, row in list(self._running.items()):
            if row.id.request == id:
                row.reason = "cancelled"
                self._end(key, row, self._outbox)

    def wait(self, timeout_s: float) -> bool:
        if self._idle and not self._outbox:
            time.sleep(min(PAUSE_S, timeout_s))
        return True

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._outbox)

    # ------------------------------------------------------------------ what callers may look at
    @property
    def waiting(self) -> int:
        """Rows without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[RowId, ...]:
        """Rows that hold a slot."""
        return tuple(row.id for row in self._running.values())

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """Token id -> its bytes; empty for special ones."""
        return self.vocabulary.token_bytes

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's ids. Raises RowError for one that cannot be read; may be asked from any thread."""
        match prompt:
            case Ids(ids):
                return list(ids)
            case Text(text):
                return self.vocabulary.encode(text)
            case Messages(messages):
                return self.vocabulary.render_chat([dict(message) for message in messages])

    def close(self) -> None:
        """Give vLLM's memory and processes back; the engine is of no use afterwards."""
        self._vllm.engine_core.shutdown()

    # ------------------------------------------------------------------ the parts of a step
    def _rows_of(self, request: Request) -> list[Row]:
        spec = decided(request.decoding)
        refused = self.refuse(spec)
        if refused:
            raise RowError("request", "Refused", str(refused))
        mapped = plan(spec.sampler, own=self._own)
        if spec.drafter:
            spec = replace(spec, drafter=registry.get("drafters", spec.drafter.name).parse(spec.drafter, DRAFTER))
        drafter = drafts_for(spec, self._options)
        ids = self.encode(request.prompt)
        given = itertools.chain(ids, *request.resume)
        wrong = next((i for i in given if not 0 <= i < self.vocabulary.size), None)
        if wrong is not None:
            raise RowError("request", "BadToken", f"token {wrong}: ids are 0 to {self.vocabulary.size - 1}")
        fit = fit_prompt(len(ids), spec.max_tokens, self.context, request.overflow)
        if isinstance(fit, Fault):
            raise RowError(fit.stage, fit.kind, fit.message)
        if any(request.resume):
            self._check_resume(request, fit.max_tokens, mapped.replayable)
        return [
            Row(
                RowId(request.id, sample), spec, mapped, fit.cut(ids), fit.max_tokens,
                request.noise_key(sample), request.resumed(sample), drafter=drafter, submitted_at=self.clock(),
            )
            for sample in range(spec.n)
        ]  # fmt: skip

    def _refuse_drafter(self, spec: DecodingSpec) -> Refused | None:
        """vLLM learns at its start whether rows will have drafts."""
        if spec.drafter is None or self._drafts:
            return None
        return Refused(
            f"this vllm engine was started without drafters, and the row asks for '{spec.drafter.name}'",
            field=DRAFTER, value=spec.drafter.name,
            hint="name it in the job: decoding.drafter, or decoding.roster.drafters",
        )  # fmt: skip

    def _check_resume(self, request: Request, limit: int, replayable: bool) -> None:
        wrong = request.bad_resume(limit)
        if wrong:
            raise RowError("request", "BadResume", wrong)
        if not replayable:
            raise RowError(
                "request", "BadResume",
                "engine vllm cannot resume a row whose sampler keeps state of past log-probabilities, nor, with "
                "draws: vllm, one that vLLM shapes; use engine torch, or decode the row from its start",
            )  # fmt: skip

    def _admit(self, events: list[Event]) -> None:
        while self._waiting and len(self._running) < self.slots:
            row = self._waiting.popleft()
            row.admitted_at = self.clock()
            for token in row.resumed:
                if row.reason is None:
                    row.take(token, self.vocabulary.token_bytes, self.vocabulary.eos_ids, None, ())
            row.shown = len(row.text) if row.reason else settled(row.text, row.spec.stop)
            if row.reason is None or (row.resumed and row.spec.logprobs is not None):
                key = str(self._handed)
                self._handed += 1
                try:
                    self._vllm.add_request(key, _prompt(row), self._params(key, row))
                    self._running[key] = row
                    continue
                except self._rejections as error:  # this request only
                    row.fail("engine", type(error).__name__, str(error))
            events.append(row.outcome(self.clock()))

    def _params(self, key: str, row: Row) -> Any:
        """vLLM's SamplingParams. EOS is given as stop ids: a chat model often ends by more ids than vLLM knows."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        spec, ends, own = row.spec, self.vocabulary.eos_ids, row.mapped.own
        extra = {} if own is None else {"raydecode": wire(key, own, row.key, len(row.resumed))}
        if self._speculates:
            extra["raydecode.row"] = draft.wire(key, spec.drafter, len(row.prompt), row.limit)
        return SamplingParams(
            **row.mapped.fields,
            seed=None if row.mapped.greedy or own is not None else row_seed(row.key),
            extra_args=extra or None,
            max_tokens=max(row.limit - len(row.resumed), 1),
            stop_token_ids=sorted({*spec.stop_tokens, *(() if spec.ignore_eos else ends)}),
            ignore_eos=True,
            logprobs=spec.logprobs,
            prompt_logprobs=spec.logprobs if row.resumed else None,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )

    def _take(self, key: str, row: Row, output: Any, events: list[Event]) -> None:
        """Fold one step's output into its row; several tokens if vLLM speculates."""
        completion = output.outputs[0]
        at, *fault = self._faults.get(key, (None,))  # a worker may be a step ahead
        if not row.forwards:
            row.first_token_at, row.cached = self.clock(), output.num_cached_tokens or 0
            if row.resumed and row.spec.logprobs is not None:
                tail = output.prompt_logprobs[-len(row.resumed) :]
                row.logprobs = [
                    facts(entry, token, row.spec.logprobs) for entry, token in zip(tail, row.resumed, strict=True)
                ]
        row.forwards += 1
        pending, t0 = (*row.prompt, *row.output)[-1] if self.stream else 0, len(row.output)
        for i, token in enumerate(completion.token_ids):
            if row.reason or (at is not None and at <= len(row.output)):
                break
            logp, top = (
                (None, ()) if row.spec.logprobs is None else facts(completion.logprobs[i], token, row.spec.logprobs)
            )
            events.append(row.take(token, self.vocabulary.token_bytes, self.vocabulary.eos_ids, logp, top))
        if row.reason is None and at is not None and at <= len(row.output):
            row.fail(*fault)
        if row.reason is None and completion.finish_reason:
            what = f"vLLM ended the row: {completion.finish_reason}, {completion.stop_reason}"
            row.fail("engine", "VllmFinish", what)
        emitted = tuple(row.output[t0:])
        row.accepted += max(len(emitted) - 1, 0)
        if self.stream and emitted:
            tree, path = TokenTree.chain((pending, *emitted[:-1])), tuple(range(len(emitted)))
            events.append(StepEvent(row.id, t0, tree, path, emitted, row.drafter if len(emitted) > 1 else None))
            events.extend(filter(None, [row.news()]))
        if row.reason:
            self._end(key, row, events, finished=bool(completion.finish_reason))

    def _expire(self, events: list[Event]) -> None:
        for key, row in list(self._running.items()):
            limit = row.spec.deadline_s
            if limit is not None and self.clock() - row.admitted_at > limit:
                row.fail("engine", "Deadline", f"held its slot for more than {limit} s")
                self._end(key, row, events)

    def _end(self, key: str, row: Row, events: list[Event], *, finished: bool = False) -> None:
        """Free the row's slot at once, in vLLM too."""
        del self._running[key]
        self._faults.pop(key, None)
        if not finished:
            self._vllm.abort_request([key])
        if row.mapped.own is not None:  # the same state on all workers that sample: the first one's word is enough
            row.reports = next(
                (tuple(found) for found in self._ask("raydecode_close", key, len(row.output)) if found), ()
            )
        if self._speculates:
            found = next(filter(None, self._ask("raydecode_drafted", key)))
            row.drafted, row.draft_steps = found["drafted"], found["steps"]
            row.draft_failures = found.get("failures", 0)
            row.drafter_bytes, row.draft_s = found.get("bytes", 0), found.get("seconds", 0.0)
        events.append(row.outcome(self.clock()))

    def _ask(self, what: str, *args: Any) -> list[Any]:
        """A method of `processor.Extension`, on every worker."""
        return self._vllm.collective_rpc(what, args=args)


def _prompt(row: Row) -> dict[str, Any]:
    """vLLM's TokensInput: no tokenizer of its own comes in between."""
    return {"type": "token", "prompt_token_ids": [*row.prompt, *row.resumed]}
