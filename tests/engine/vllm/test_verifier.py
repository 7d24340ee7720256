"""Verification where vLLM speculates, on vLLM's own classes: drafts, strangers beside ours, log-probabilities."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raydecode.engine.vllm import VllmEngine
from raydecode.engine.vllm.draft import wire
from tests.engine.vllm.batch import CHAINS, LENGTH, V, alone, asked, logits, prompt

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]
NAMES = sorted(CHAINS)


def greedy(length: int) -> list[int]:
    """What vLLM itself writes for the stranger."""
    output: list[int] = []
    for _ in range(length):
        output.append(int(logits(prompt("stranger") + output).argmax()))
    return output


def batch_of(processor: Any, logprobs: int | None) -> tuple[Any, dict[str, Any]]:
    """vLLM's batch with all our chains and one row that vLLM decodes greedily."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    names = [*NAMES, "stranger"]
    batch = InputBatch(len(names), 64, 64, torch.device("cpu"), V, [16], [4], logitsprocs=LogitsProcessors([processor]))
    states = {}
    for name in names:
        extra = {"raydecode.row": wire(name, None, 3, 99)}
        if name in CHAINS:
            extra["raydecode"] = asked(name, CHAINS[name])
        params = SamplingParams(temperature=0.0, logprobs=logprobs, extra_args=extra)
        states[name] = CachedRequestState(name, prompt(name), [], params, None, ([],), 0, [])
        batch.add_request(states[name])
    batch.refresh_metadata()
    return batch, states


def metadata_of(drafts: list[list[int]]) -> Any:
    """As the runner makes it: per row its drafted positions, then the one behind them."""
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    made, at = SpecDecodeMetadata.make_dummy(drafts, torch.device("cpu")), 0
    targets, bonus = [], []
    for draft in drafts:
        targets += range(at, at + len(draft))
        bonus.append(at + len(draft))
        at += len(draft) + 1
    made.target_logits_indices, made.bonus_logits_indices = (
        torch.tensor(targets, dtype=torch.int32),
        torch.tensor(bonus),
    )
    return made


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("logprobs", [None, 2])
def test_vllm_accepts_the_path_of_the_walk(vllm_engine: VllmEngine, seed: int, logprobs: int | None) -> None:
    """The engine is only there because vLLM's modules want its start."""
    from vllm.v1.sample.sampler import Sampler

    from raydecode.engine.vllm.processor import Processor
    from raydecode.engine.vllm.verifier import Verifier

    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=8))
    processor, dice = Processor(config, torch.device("cpu"), False), random.Random(seed)
    batch, states = batch_of(processor, logprobs)
    runner = SimpleNamespace(
        sampler=Sampler(), speculative_config=None, device=torch.device("cpu"), requests=states, input_batch=batch
    )
    verifier = Verifier(runner, processor)
    truth = {name: alone(name, CHAINS[name], LENGTH + 5)[0] for name in NAMES} | {"stranger": greedy(LENGTH + 5)}
    counted = dict.fromkeys(states, 0)
    while any(len(state.output_token_ids) < LENGTH for state in states.values()):
        drafts, rows = [], []
        for name in batch.req_ids:
            t = len(states[name].output_token_ids)
            draft = truth[name][t : t + dice.randint(0, 4)] if t < LENGTH else []
            if draft and dice.random() < 0.5:
                draft[-1] = dice.randrange(V)
            counted[name] += len(draft)
            drafts.append(draft)
            ids = prompt(name) + states[name].output_token_ids
            rows += [logits(ids + draft[:i]) for i in range(len(draft) + 1)]
        if not any(drafts):
            continue  # vLLM verifies nothing then
        raw_MV = torch.stack(rows)
        metadata = metadata_of(drafts)
        out = verifier(metadata, None, raw_MV.clone(), batch.sampling_metadata)
        tokens, facts = Verifier.parse_output(out.sampled_token_ids, V, logprobs_tensors=out.logprobs_tensors)
        at = 0
        for slot, (name, emitted, draft) in enumerate(zip(batch.req_ids, tokens, drafts, strict=True)):
            t = len(states[name].output_token_ids)
            assert emitted == truth[name][t : t + len(emitted)], name
            right = next((i for i, (a, b) in enumerate(zip(draft, emitted, strict=False)) if a != b), len(draft))
            assert len(emitted) == right + 1
            if facts:
                mine = facts.slice_request(slot, len(emitted))
                want = raw_MV.log_softmax(1)[range(at, at + len(emitted)), emitted]
                assert [row[0] for row in mine.logprobs] == pytest.approx(want.tolist(), abs=1e-5)
            at += len(draft) + 1
            states[name].output_token_ids.extend(emitted)
    assert all(states[name].output_token_ids[:LENGTH] == truth[name][:LENGTH] for name in states)
    assert verifier.drafted == counted
