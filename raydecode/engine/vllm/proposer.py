"""The drafter that vLLM is given: its method `custom_class`, which asks us for every row's next draft.

It relies on, in vLLM 0.32's V1 runner (`vllm/v1/worker/gpu_model_runner.py`; V2 has no such hook):

    speculative_config = {"method": "custom_class", "model": <this class>, "num_speculative_tokens": n}
    Proposer(vllm_config), .load_model(model)
    .propose(sampled_token_ids, num_tokens_no_spec, token_ids_cpu, slot_mappings=...) -> a list of ids per row

vLLM calls this interface experimental. It names no rows; which request sits in which slot is read from the runner,
which `attach` hands over once vLLM has started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydecode.engine.vllm.draft import Drafted, DraftRows

FIELD = "raydecode.row"
"""Our key in `SamplingParams.extra_args`; `draft.wire` is what it holds."""

KEPT_PER_SLOT = 16
"""Rows that are remembered, per slot: pre-empted ones come back."""


class Proposer:
    def __init__(self, vllm_config: Any) -> None:
        budget = vllm_config.speculative_config.num_speculative_tokens
        slots = vllm_config.scheduler_config.max_num_seqs
        self.rows = DraftRows(budget, vllm_config.model_config.get_vocab_size(), KEPT_PER_SLOT * slots)
        self._runner: Any = None

    def load_model(self, *_: Any, **__: Any) -> None:
        """vLLM asks; there is none."""

    def attach(self, runner: Any) -> None:
        """vLLM drops all drafts of a step in which some row could outgrow the context by a whole draft. Ours stop at
        their row's limit, which lies inside it."""
        self._runner = runner
        runner.effective_drafter_max_model_len = 1 << 62

    def propose(
        self, sampled_token_ids: Sequence[Sequence[int]], num_tokens_no_spec: Any, token_ids_cpu: Any, **_: Any
    ) -> list[list[int]]:
        """token_ids_cpu [slots, context]: the first num_tokens_no_spec of a row are its prompt and output, the tokens
        just sampled included; a row without any still reads its prompt."""
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        if self._runner is None:  # vLLM tries its own start out
            return drafts
        at, asked, ids, ends = [], [], [], []
        for slot, sampled in enumerate(sampled_token_ids):
            params = self._runner.requests[self._runner.input_batch.req_ids[slot]].sampling_params
            one = (params.extra_args or {}).get(FIELD) or {}
            if sampled and one.get("drafter"):
                at.append(slot)
                asked.append(one)
                ids.append(token_ids_cpu[slot, : num_tokens_no_spec[slot]].tolist())
                ends.append(params.stop_token_ids or ())
        for slot, draft in zip(at, self.rows.propose(asked, ids, ends), strict=True):
            drafts[slot] = draft
        return drafts

    def close(self, id: str) -> Drafted:
        return self.rows.close(id)
