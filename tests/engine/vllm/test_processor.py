"""The processor's two faces, on vLLM's own classes: slots that move (V1), slots with ids on the device (V2)."""

from __future__ import annotations

import importlib
import json
import random
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raydecode.engine.vllm import VllmEngine
from tests.engine.vllm.batch import CHAINS, LENGTH, V, alone, asked, logits, prompt

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]
SLOTS, NAMES = 4, sorted(CHAINS)
CONFIG = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=SLOTS))


@pytest.fixture(scope="module")
def make(vllm_engine: VllmEngine) -> Any:
    """The class; imported when vLLM has started once, which needs its surroundings prepared."""
    from raydecode.engine.vllm.processor import Processor

    return Processor


def params(name: str | None) -> Any:
    return SimpleNamespace(extra_args=None if name is None else {"raydecode": asked(name, CHAINS[name])})


def taken(x_RV: torch.Tensor, row: int) -> int:
    """What vLLM's argmax takes; the row's other logits are gone."""
    assert int(torch.isfinite(x_RV[row]).sum()) == 1
    return int(x_RV[row].argmax())


@pytest.mark.parametrize("seed", range(4))
def test_v1_rows_keep_their_chain_wherever_they_are_moved(make: Any, seed: int) -> None:
    """vLLM's own batch: slots filled, freed, condensed and swapped; strangers sit between our rows; rows that are
    pre-empted come back with their output, in the same step too."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

    device, dice = torch.device("cpu"), random.Random(seed)
    processor = make(CONFIG, device, False)
    processors = LogitsProcessors([processor])
    batch = InputBatch(SLOTS, 64, 64, device, V, [16], [4], logitsprocs=processors)
    states = {
        name: CachedRequestState(
            name, prompt(name), [], SamplingParams(**known), None, ([],), 0, [],
        )
        for name, known in {
            **{name: {"temperature": 0.0, "extra_args": {"raydecode": asked(name, CHAINS[name])}} for name in NAMES},
            "stranger": {"temperature": 0.0}, "other": {"temperature": 1.0},
        }.items()
    }  # fmt: skip
    outputs = {name: states[name].output_token_ids for name in NAMES}
    while any(len(output) < LENGTH for output in outputs.values()):
        for name in [name for name in batch.req_ids if dice.random() < 0.15 or len(outputs.get(name, ())) == LENGTH]:
            batch.remove_request(name)
        for name in dice.sample(sorted(states), len(states)):
            if name not in batch.req_id_to_index and batch.num_reqs < SLOTS and len(outputs.get(name, ())) < LENGTH:
                batch.add_request(states[name])
                if dice.random() < 0.4:
                    break
        batch.condense()
        if batch.num_reqs > 1 and dice.random() < 0.3:
            batch.swap_states(*dice.sample(range(batch.num_reqs), 2))
        batch.refresh_metadata()
        x_RV = torch.stack([logits(prompt(name) + states[name].output_token_ids) for name in batch.req_ids])
        before = x_RV.clone()
        processor.apply(x_RV)
        for slot, name in enumerate(batch.req_ids):
            if name in outputs:
                outputs[name].append(taken(x_RV, slot))
            else:
                assert torch.equal(x_RV[slot], before[slot])
        held = {seat.kept.row.id.request for seat in processor._seats.values()}
        assert held == set(batch.req_ids) & set(outputs)
        assert not held & set(processor.rows._out)
    assert outputs == {name: alone(name, CHAINS[name])[0] for name in NAMES}


class Device:
    """V2's request states: ids by slot, on a device; here all in memory."""

    def __init__(self) -> None:
        self.all_token_ids = SimpleNamespace(gpu=torch.zeros(SLOTS, 64, dtype=torch.int32))
        self.prompt_len = SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32))
        self.prefill_len = SimpleNamespace(np=np.zeros(SLOTS, dtype=np.int32))

    def fill(self, slot: int, ids: list[int], prompt_len: int) -> None:
        self.prompt_len.np[slot], self.prefill_len.np[slot] = prompt_len, len(ids)
        self.commit(slot, ids)

    def commit(self, slot: int, ids: list[int]) -> None:
        self.all_token_ids.gpu[slot, : len(ids)] = torch.tensor(ids)


@pytest.mark.parametrize("drafted", [0, 2])
def test_v2_rows_are_followed_through_slots_pre_emption_and_drafts(make: Any, drafted: int) -> None:
    """A row may come back in another slot, read its prompt in pieces, and have drafted tokens, right and wrong ones."""
    dice, device = random.Random(drafted), Device()
    processor = make(CONFIG, device)
    outputs: dict[str, list[int]] = {name: [] for name in NAMES}
    slot_of: dict[str, int] = {}
    reading: dict[str, int] = {}
    while any(len(output) < LENGTH for output in outputs.values()):
        for name in NAMES:
            if name in slot_of and (dice.random() < 0.1 or len(outputs[name]) >= LENGTH):
                del slot_of[name]
            elif name not in slot_of and len(slot_of) < SLOTS and len(outputs[name]) < LENGTH:
                slot = slot_of[name] = dice.choice([s for s in range(SLOTS) if s not in slot_of.values()])
                assert processor.add_request(slot, params(name))
                device.fill(slot, prompt(name) + outputs[name], len(prompt(name)))
                reading[name] = dice.randrange(3)
        rows: list[tuple[str, int, list[int]]] = []  # name, depth, ids up to the row's
        for name in dice.sample(sorted(slot_of), len(slot_of)):
            ids = prompt(name) + outputs[name]
            if reading[name]:
                rows.append((name, 0, ids[: -reading[name]]))
                continue
            right = alone(name, CHAINS[name], LENGTH + 3)[0][len(outputs[name]) :]
            drafts = [token if dice.random() < 0.7 else (token + 1) % V for token in right[:drafted]]
            rows += [(name, depth, ids + drafts[:depth]) for depth in range(drafted + 1)]
        ctx = SimpleNamespace(
            expanded_idx_mapping=torch.tensor([slot_of[name] for name, _, _ in rows], dtype=torch.int32),
            expanded_local_pos=torch.tensor([depth for _, depth, _ in rows], dtype=torch.int32),
            input_ids=torch.tensor([ids[-1] for _, _, ids in rows], dtype=torch.int32),
            pos=torch.tensor([len(ids) - 1 for _, _, ids in rows]),
        )
        if not rows:
            continue
        x_RV = torch.stack([logits(ids) for _, _, ids in rows])
        before = x_RV.clone()
        processor.apply(x_RV, ctx)
        for row, (name, depth, ids) in enumerate(rows):
            known = prompt(name) + outputs[name]
            if reading[name]:
                assert torch.equal(x_RV[row], before[row])
                reading[name] -= 1
            elif ids == known:  # depth 0, or behind a draft that vLLM accepted just now
                outputs[name].append(taken(x_RV, row))
                device.commit(slot_of[name], prompt(name) + outputs[name])
            elif depth:
                assert ids[: len(known)] != known
    for name in NAMES:
        assert outputs[name][:LENGTH] == alone(name, CHAINS[name])[0], name


def test_a_slot_s_next_tenant_is_left_alone(make: Any) -> None:
    device = Device()
    processor = make(CONFIG, device)
    assert processor.add_request(0, params("dry"))
    assert not processor.add_request(0, params(None))
    device.fill(0, [1, 2], 2)
    x_RV = torch.randn(1, V)
    ctx = SimpleNamespace(
        expanded_idx_mapping=torch.tensor([0]), expanded_local_pos=torch.tensor([0]), input_ids=torch.tensor([2]),
        pos=torch.tensor([1]),
    )  # fmt: skip
    assert torch.equal(processor.apply(x_RV.clone(), ctx), x_RV)


def test_the_installed_plug_in_serves_vllm_s_own_engines_and_rests_in_ours(make: Any, root: Path) -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2

    from raydecode.engine.vllm.start import PROCESSOR

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["vllm.logits_processors"]["raydecode"].split(":")
    plugin = getattr(importlib.import_module(module), name)
    assert issubclass(plugin, LogitsProcessor)
    assert issubclass(plugin, V2)
    x_RV, update = torch.randn(1, V), BatchUpdate(1, [], [(0, params("dry"), prompt("dry"), [])], [])
    for named, rests in (((), False), ((PROCESSOR,), True)):
        config = SimpleNamespace(**vars(CONFIG), model_config=SimpleNamespace(logits_processors=named))
        v1, v2 = plugin(config, torch.device("cpu"), False), plugin(config, Device())
        v1.update_state(update)
        assert torch.equal(v1.apply(x_RV.clone()), x_RV) is rests
        assert v2.add_request(0, params("dry")) is not rests


def test_a_row_that_fails_under_the_plug_in_is_logged(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    from vllm.v1.sample.logits_processor import BatchUpdate

    from raydecode.engine.vllm.processor import Plugin

    config = SimpleNamespace(**vars(CONFIG), model_config=SimpleNamespace(logits_processors=None))
    plugin = Plugin(config, torch.device("cpu"), False)
    plugin.update_state(BatchUpdate(1, [], [(0, params("dry"), prompt("dry"), [])], []))
    nan_RV = torch.full((1, V), float("nan"))
    assert bool(plugin.apply(nan_RV).isnan().all())
    assert bool(plugin.apply(nan_RV).isnan().all())
    assert [record.getMessage() for record in caplog.records] == [
        "a row goes on without its chain from token 0: model, BadLogits: NaN or +inf at output index 0"
    ]


def test_a_request_over_http_names_its_chain_in_json(make: Any) -> None:
    from raydecode.request import Card, DecodingSpec, Request, Text

    said = {"sampler": ["mirostat2", {"name": "top_p", "p": 0.9}], "seed": 7, "noise_id": "a"}
    first, second = (SimpleNamespace(n=1, extra_args={"raydecode": form}) for form in (json.dumps(said), said))
    for one in (first, second):
        make.validate_params(one)
        make.validate_params(one)  # again in the worker's process: filled in already
    got = first.extra_args["raydecode"]
    assert got["sampler"] == [{"name": "mirostat2", "tau": 3.0, "eta": 1.0}, {"name": "top_p", "p": 0.9}]
    assert got["key"] == Request("r", "a", Text(""), DecodingSpec(seed=7)).noise_key(0)
    assert {**got, "id": ""} == {**second.extra_args["raydecode"], "id": ""}
    assert got["id"] != second.extra_args["raydecode"]["id"]
    unseeded = [SimpleNamespace(n=1, extra_args={"raydecode": {"sampler": [Card("dry").name]}}) for _ in range(2)]
    for one in unseeded:
        make.validate_params(one)
    assert unseeded[0].extra_args["raydecode"]["key"] != unseeded[1].extra_args["raydecode"]["key"]
    make.validate_params(SimpleNamespace(n=3, extra_args=None))


@pytest.mark.parametrize(
    ("said", "n", "says"),
    [
        ("{", 1, "a list of cards"),
        ({"sampler": [3]}, 1, "a list of cards"),
        ({"sampler": ["dola"]}, 1, "cannot run sampler 'dola'"),
        ({"sampler": ["mirostat"]}, 1, "nearest: mirostat"),
        ({"sampler": [{"name": "top_p", "p": 3}]}, 1, "decoding.sampler[0].p"),
        ({"sampler": [], "sed": 3}, 1, "no field 'sed'"),
        ({"sampler": []}, 2, "one sample"),
    ],
)
def test_a_bad_chain_is_refused_where_it_comes_in(make: Any, said: Any, n: int, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make.validate_params(SimpleNamespace(n=n, extra_args={"raydecode": said}))
    assert says in str(caught.value)
