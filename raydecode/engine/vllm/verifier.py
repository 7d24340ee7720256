"""Verification by the row's own chain and keyed noise, where vLLM speculates: one seed, one text, whoever drafts.

vLLM's rejection sampling keeps a row's law, but the text of a seed then depends on what was drafted; and its V1 runner
loads no logits processors beside speculation. Here the walk of the torch engine is put in its place (`OwnRows.verify`).
The chosen token is left as the only finite logit of its position, and vLLM's own greedy verification then accepts the
walk's path. Log-probabilities are taken before that, so they are the raw model's. Rows that vLLM decodes greedily are
verified by vLLM alone.

It relies on, in vLLM 0.32's V1 runner:

    runner.rejection_sampler(metadata, draft_probs, logits, sampling_metadata)    the call: this class takes its place
    RejectionSampler.apply_logits_processors(logits, sampling_metadata, metadata) between raw logits and verification
    runner.input_batch.logitsprocs.non_argmax_invariant                           of steps without drafts, and of the
                                                                                  token behind a whole draft

Cost: the chain runs once per depth of the batch's accepted drafts, over the rows that got there.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Any

from torch import Tensor
from vllm.v1.sample.rejection_sampler import RejectionSampler

from raydecode.engine.vllm.processor import Processor, leave_only
from raydecode.engine.vllm.proposer import FIELD, Proposer


class Verifier(RejectionSampler):
    """By row id (`draft.wire`), so far. drafted: tokens that were verified for it; steps: in how many steps."""

    def __init__(self, runner: Any, processor: Processor) -> None:
        super().__init__(runner.sampler, runner.speculative_config, runner.device)
        self._runner, self._processor = runner, processor
        self._targets: list[tuple[int, int]] = []
        self.drafted: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()

    def forward(self, metadata: Any, draft_probs: Any, logits: Tensor, sampling_metadata: Any) -> Any:
        """One row per slot: its drafted positions, then the one behind them; `metadata` has positions without the last
        ones (targets), slot by slot, and the last ones (bonus)."""
        counts = metadata.num_draft_tokens
        self._count(counts)
        first = list(accumulate(counts, initial=0))
        ids = metadata.draft_token_ids.tolist()
        seats = self._processor.seats()
        chosen = self._processor.rows.verify(
            logits,
            [first[slot] + slot for slot in seats],
            [seat.kept for seat in seats.values()],
            [seat.output for seat in seats.values()],
            [ids[first[slot] : first[slot + 1]] for slot in seats],
        )
        bonus: list[tuple[int, int]] = []
        self._targets = []
        for slot, tokens in zip(seats, chosen, strict=True):
            for depth, token in enumerate(tokens):
                last = depth == counts[slot]
                (bonus if last else self._targets).append((slot if last else first[slot] + depth, token))
        with self._processor.settled(bonus):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)

    def apply_logits_processors(self, logits: Tensor, sampling_metadata: Any, metadata: Any) -> Tensor:
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        leave_only(logits, self._targets)
        return logits

    def _count(self, counts: list[int]) -> None:
        for slot, count in enumerate(counts):
            if count:
                params = self._runner.requests[self._runner.input_batch.req_ids[slot]].sampling_params
                row = (params.extra_args or {}).get(FIELD)
                if row:
                    self.drafted[row["id"]] += count
                    self.steps[row["id"]] += 1


def attach(worker: Any) -> None:
    """Put our processor, verification and drafter into a worker whose vLLM speculates, once it has started."""
    runner = worker.model_runner
    if not hasattr(runner, "rejection_sampler"):  # of a pipeline's workers the last one samples
        return
    processor = Processor(runner.vllm_config, runner.device, False)
    runner.input_batch.logitsprocs.non_argmax_invariant.append(processor)
    runner.rejection_sampler = Verifier(runner, processor)
    if isinstance(runner.drafter, Proposer):
        runner.drafter.attach(runner)
