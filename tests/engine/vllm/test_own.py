"""Our chains inside vLLM's batch: whatever the batch does, a row's tokens and states are those of the row alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Columns, Needs, SamplerRows
from raydecode.engine.vllm.own import Kept, OwnRows
from raydecode.request import Card
from tests.engine.vllm.batch import CHAINS, LENGTH, V, alone, asked, logits, prompt


class ByArrival(OwnRows):
    """A broken twin: state is what the last call left, a row that comes back is a new one."""

    def open(self, asked: dict, prompt: Sequence[int]) -> Kept:
        self._rows.pop(asked["id"], None)
        return super().open(asked, prompt)

    def _follow(self, kept: Kept, output: Sequence[int]) -> None:
        kept.states.setdefault(0, tuple(kept.row.sampler_state))
        kept.states[len(output)] = tuple(kept.row.sampler_state)
        kept.drawn.clear()
        super()._follow(kept, output)


def storm(make: Callable[[int], OwnRows], seed: int) -> tuple[dict[str, list[int]], dict[str, Kept]]:
    """All rows through one batch whose order changes, whose rows come late, are pre-empted, sampled at chunk ends and
    set back by a token."""
    dice, rows = random.Random(seed), make(64)
    outputs: dict[str, list[int]] = {name: [] for name in CHAINS}
    batch: dict[str, Kept] = {}
    while any(len(output) < LENGTH for output in outputs.values()):
        for name, output in outputs.items():
            if name in batch and (dice.random() < 0.15 or len(output) == LENGTH):
                rows.release(batch.pop(name))
            elif name not in batch and len(output) < LENGTH and dice.random() < 0.5:
                batch[name] = rows.open(asked(name, CHAINS[name]), prompt(name))
                if output and dice.random() < 0.3:
                    output.pop()
        order = dice.sample(sorted(batch), len(batch))
        if not order:
            continue
        reading = {name for name in order if dice.random() < 0.2}
        x_RV = torch.stack([torch.randn(V) if n in reading else logits(prompt(n) + outputs[n]) for n in order])
        tokens = rows.choose(x_RV, [batch[name] for name in order], [outputs[name] for name in order])
        for name, token in zip(order, tokens, strict=True):
            assert token is not None, batch[name].row.fault
            if name not in reading:
                outputs[name].append(token)
    return outputs, {name: rows.open(asked(name, CHAINS[name]), prompt(name)) for name in CHAINS}


@pytest.mark.parametrize("seed", range(3))
def test_a_row_in_a_storm_is_the_row_alone(seed: int) -> None:
    outputs, kept = storm(OwnRows, seed)
    for name, chain in CHAINS.items():
        tokens, own = alone(name, chain)
        assert outputs[name] == tokens, name
        assert kept[name].states == own.states, name
    assert {name for name in CHAINS if len(kept[name].states) > LENGTH} == {"mirostat1", "mirostat2", "coins"}


def test_state_by_arrival_does_not_survive_the_storm() -> None:
    outputs, _ = storm(ByArrival, 0)
    same = {name for name, chain in CHAINS.items() if outputs[name] == alone(name, chain)[0]}
    assert same >= {"order", "penalty", "dry"}
    assert not same & {"mirostat2", "mirostat1"}


@pytest.mark.parametrize("name", ["dry", "order", "penalty"])
def test_a_row_without_state_is_resumed_at_every_cut(name: str) -> None:
    tokens, _ = alone(name, CHAINS[name])
    for cut in range(1, LENGTH):
        rows, output = OwnRows(0), []
        kept = rows.open(asked(name, CHAINS[name], cut), prompt(name) + tokens[:cut])
        while cut + len(output) < LENGTH:
            output += rows.choose(logits(prompt(name) + tokens[:cut] + output)[None], [kept], [output])
        assert tokens[:cut] + output == tokens


class Counted:
    """Cools by the number of tokens chosen: a state that tokens alone determine."""

    needs = Needs()
    columns = {"count": lambda _: 0.0}

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        return x_RC * (1 + rows.state("count").float()[:, None] / 4)

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        assert [int(t) for t in rows.state("count")] == rows.t_R
        return {"count": rows.state("count") + 1}

    def report(self, options: dict, state: dict, count: int) -> dict:
        return {"count": state["count"]}


def test_state_that_tokens_determine_is_replayed_and_other_state_is_missed() -> None:
    with registry.guests():
        registry.register("samplers")(Counted)
        chain = (Card("counted"), Card("top_p", {"p": 0.9}))
        tokens, own = alone("r", chain)
        rows = OwnRows(0)
        kept = rows.open(asked("r", chain, 9), prompt("r") + tokens[:9])
        assert rows.choose(logits(prompt("r") + tokens[:9])[None], [kept], [[]]) == [tokens[9]]
        assert kept.states == {t: own.states[t] for t in range(11)}
        assert rows.close("r", 10) == [{"sampler": "counted", "count": 10.0}]
        assert rows.close("r", 10) == []
    tokens, _ = alone("mirostat2", CHAINS["mirostat2"])
    kept = rows.open(asked("mirostat2", CHAINS["mirostat2"], 2), prompt("mirostat2") + tokens[:2])
    assert rows.choose(torch.zeros(1, V), [kept], [[]]) == [None]
    assert rows.faults()["mirostat2"][:3] == (2, "sampler", "StateLost")


def test_a_bad_row_ends_alone_and_is_told_once() -> None:
    rows, names = OwnRows(0), ["nan", "order", "other"]
    kept = [rows.open(asked(name, CHAINS["mirostat2"]), prompt(name)) for name in names]
    x_RV = torch.stack([logits(prompt(name)) for name in names])
    x_RV[0, 3] = float("nan")
    first = rows.choose(x_RV, kept, [[], [], []])
    assert first[0] is None
    assert first[1:] == [alone(name, CHAINS["mirostat2"], 1)[0][0] for name in names[1:]]
    assert {id: fault[:3] for id, fault in rows.faults().items()} == {"nan": (0, "model", "BadLogits")}
    wrong = [[5], [first[1]], [(first[2] or 0) + 1]]
    x_RV = torch.stack([logits(prompt(name) + output) for name, output in zip(names, wrong, strict=True)])
    second = rows.choose(x_RV, kept, wrong)
    assert second == [None, alone("order", CHAINS["mirostat2"], 2)[0][1], None]
    ((id, (t, stage, kind, message)),) = rows.faults().items()
    assert (id, t, stage, kind) == ("other", 0, "engine", "NotDrawn")
    assert f"drew {first[2]}" in message
    assert rows.faults() == {}


def test_of_rows_out_of_the_batch_the_latest_are_kept() -> None:
    rows = OwnRows(2)
    kept = {name: rows.open(asked(name, CHAINS["order"]), prompt(name)) for name in "abcd"}
    for name in "abc":
        rows.release(kept[name])
    again = {name: rows.open(asked(name, CHAINS["order"]), prompt(name)) for name in "abcd"}
    assert [name for name in "abcd" if again[name] is not kept[name]] == ["a"]


class Credulous(OwnRows):
    """A broken twin: every drafted token is accepted."""

    def verify(self, x_MV, first, kept, outputs, drafts):  # type: ignore[no-untyped-def]
        chosen = super().verify(x_MV, first, kept, outputs, drafts)
        for one in kept:
            one.drawn.clear()
        return [[*draft, found[-1]] if draft else found for draft, found in zip(drafts, chosen, strict=True)]


def drafted(
    make: Callable[[int], OwnRows], seed: int, names: Sequence[str] = tuple(CHAINS)
) -> tuple[dict[str, list[int]], int]:
    """All rows side by side, with drafts that are right for a while, wrong, or missing; and how many were accepted."""
    dice, rows, accepted = random.Random(seed), make(64), 0
    truth = {name: alone(name, CHAINS[name], LENGTH + 8)[0] for name in names}
    kept = {name: rows.open(asked(name, CHAINS[name]), prompt(name)) for name in names}
    outputs: dict[str, list[int]] = {name: [] for name in names}
    while any(len(output) < LENGTH for output in outputs.values()):
        order = dice.sample(sorted(names), dice.randint(1, len(names)))
        drafts, first, x_MV = [], [], []
        for name in order:
            t = len(outputs[name])
            draft = truth[name][t : t + dice.randint(0, 4)]
            if draft and dice.random() < 0.5:
                draft[dice.randrange(len(draft))] = dice.randrange(V)
            drafts.append(draft)
            first.append(len(x_MV))
            x_MV += [logits(prompt(name) + outputs[name] + draft[:i]) for i in range(len(draft) + 1)]
        chosen = rows.verify(torch.stack(x_MV), first, [kept[n] for n in order], [outputs[n] for n in order], drafts)
        for name, tokens in zip(order, chosen, strict=True):
            assert kept[name].row.reason is None
            accepted += len(tokens) - 1
            outputs[name] += tokens
            del outputs[name][LENGTH:]
    return outputs, accepted


@pytest.mark.parametrize("seed", range(3))
def test_drafts_leave_a_row_its_tokens(seed: int) -> None:
    outputs, accepted = drafted(OwnRows, seed)
    for name, chain in CHAINS.items():
        assert outputs[name] == alone(name, chain)[0], name
    assert accepted > LENGTH


def test_accepting_every_draft_is_found_out() -> None:
    outputs, _ = drafted(Credulous, 0, ("dry", "order", "penalty"))
    assert not any(output == alone(name, CHAINS[name])[0] for name, output in outputs.items())
