"""DoLa on a tiny Llama: against transformers' hidden states, and beside other chains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers as hf

from raydecode.engine.torch.lane import TorchLane
from raydecode.request import Card
from tests.engine.torch.recorder import Decoder, Memory, Recorder, ask, drain
from tests.engine.torch.test_families import GROUPED
from tests.samplers.test_dola import reference


def test_a_tiny_llama_beside_other_chains(tiny_folder: Callable[..., Path]) -> None:
    """A row's text and bits are its own beside other chains."""
    folder = tiny_folder(hf.LlamaConfig(**GROUPED))
    lane = TorchLane(folder, dtype="float32", slots=4, context=100)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = [[(37 * i + 11 * r) % 300 + 5 for i in range(n)] for r, n in enumerate((9, 14))]
    chains = [(Card("dola", {"layers": [0, 1, 2], "norm": norm}), Card("greedy")) for norm in (False, True)]
    rows = [
        ask(f"r{p}{c}", prompt, sampler=chain, max_tokens=10, ignore_eos=True)
        for p, prompt in enumerate(prompts)
        for c, chain in enumerate(chains)
    ]
    others = [ask("sampled", prompts[0], max_tokens=10, ignore_eos=True)]
    memory = Memory()
    alone = {
        key: one for row in [*rows, *others] for key, one in drain(Decoder(Recorder(lane, 1, memory)), [row]).items()
    }
    assert drain(Decoder(Recorder(lane, 4, memory), chunk=8), [*others, *rows]) == alone
    assert not memory.conflicts
    for row in rows:
        norm, ids = row.decoding.sampler[0].options["norm"], list(row.prompt.ids)
        for token in alone[row.id, 0].tokens:
            with torch.inference_mode():
                out = model(torch.tensor([ids]), output_hidden_states=True)
                states = [state[0, -1] for state in out.hidden_states[:3]]
                early = {j: model.lm_head(model.model.norm(x) if norm else x).numpy() for j, x in enumerate(states)}
            size = len(lane.token_bytes)
            scores, _ = reference(out.logits[0, -1, :size].numpy(), {j: x[:size] for j, x in early.items()}, 0.1)
            best = np.sort(scores)[-2:]
            assert token == int(np.argmax(scores)) or best[1] - best[0] < 1e-4
            ids.append(token)
