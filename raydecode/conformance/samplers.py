"""Laws of samplers: what lets one object shape many rows without any row noticing the others.

x_RV: float32 logits, R rows, V tokens.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raydecode.conformance.bench import BenchRows, bench
from raydecode.conformance.law import require, same_bits
from raydecode.contracts import Sampler
from raydecode.numerics import within
from raydecode.randomness import draw
from raydecode.registry import Method

WIDE = 40_009
"""Tokens in the laws on bits: above the 32,768 elements from which torch divides one row's reduction among threads."""


def declared(method: Method) -> None:
    """The card is complete: a summary, a description for every option, bounds that the default itself keeps."""
    require(len(method.summary) > 10, method, "declared", "the class docstring's first line says what the method does")
    for name, field in method.schema().get("properties", {}).items():
        require(bool(field.get("description")), method, "declared", f"option '{name}' has no description")
    fields = method.options.model_fields
    defaults = {name: f.get_default(call_default_factory=True) for name, f in fields.items() if not f.is_required()}
    missing = {name for name, f in fields.items() if f.is_required()}
    if not missing:
        method.options.model_validate(defaults)
    sampler = method.factory()
    require(hasattr(sampler, "needs"), method, "declared", "no `needs`")
    require(hasattr(sampler, "columns"), method, "declared", "no `columns`; a stateless method says columns = {}")
    require(not sampler.columns or hasattr(sampler, "observe"), method, "declared", "has state, but no `observe`")


def pure(method: Method) -> None:
    """`shape` changes neither its input nor anything else, draws no random number, and says the same twice."""
    x_RV, rows = bench(method)
    sampler, before, seen = method.factory(), x_RV.clone(), copy.deepcopy(rows)
    random = torch.get_rng_state()
    first = sampler.shape(x_RV, rows).clone()
    require(same_bits(x_RV, before), method, "pure", "`shape` wrote into its input")
    require(same_bits(first, sampler.shape(x_RV, rows)), method, "pure", "a second call gives other logits")
    require(same_bits(first, method.factory().shape(x_RV, rows)), method, "pure", "a fresh object gives other logits")
    require(torch.equal(random, torch.get_rng_state()), method, "pure", "it drew from torch's global generator")
    same = all(torch.equal(a, b) for a, b in zip(seen.history_R, rows.history_R, strict=True))
    require(same and seen.states == rows.states, method, "pure", "`shape` wrote into histories or states")


class _Strict(BenchRows):
    """Rows that refuse what the engine refuses: a history that was not declared."""

    @property
    def history_R(self) -> Sequence[Tensor]:  # type: ignore[override]
        raise AttributeError("history")

    @history_R.setter
    def history_R(self, value: Sequence[Tensor]) -> None: ...

    @property
    def t_R(self) -> list[int]:
        return [3] * len(self.options)


def declares_what_it_reads(method: Method) -> None:
    """Histories only with `needs.history`: the engine keeps none for methods that do not ask."""
    x_RV, rows = bench(method)
    strict = _Strict(rows.options, rows.states, (), rows.prompt_len_R, rows.keys_R, rows.size)
    try:
        method.factory().shape(x_RV, strict)
        reads = False
    except AttributeError as error:
        reads = str(error) == "history"
    says = method.factory().needs.history
    require(reads <= says, method, "declares_what_it_reads", "it reads `history_R` and does not say needs.history")
    require(says <= reads, method, "declares_what_it_reads", "it says needs.history and does not read `history_R`")


def keeps_shape(method: Method) -> None:
    """float32 [R, V] in, float32 [R, V] out, for one row and for many."""
    for count in (1, 5):
        x_RV, rows = bench(method, rows=count)
        y_RV = method.factory().shape(x_RV, rows)
        found = f"{y_RV.dtype} {list(y_RV.shape)} from {x_RV.dtype} {list(x_RV.shape)}"
        require(y_RV.shape == x_RV.shape and y_RV.dtype == x_RV.dtype, method, "keeps_shape", found)


def never_allows_again(method: Method) -> None:
    """What a constraint or an earlier stage forbade (-inf) stays forbidden."""
    x_RV, rows = bench(method)
    y_RV = method.factory().shape(x_RV, rows)
    back = (torch.isneginf(x_RV) & ~torch.isneginf(y_RV)).nonzero()
    where = f"row {back[0, 0]}, token {back[0, 1]}" if len(back) else ""
    require(not len(back), method, "never_allows_again", f"-inf became finite at {where}")


def keeps_a_token(method: Method) -> None:
    """Every row has a finite logit left, no NaN and no +inf, at every valid option."""
    x_RV, rows = bench(method, rows=64)
    y_RV = method.factory().shape(x_RV, rows)
    bad = (~torch.isfinite(y_RV.amax(1))).nonzero()[:, 0].tolist()
    found = f"row {bad[0]} with options {dict(rows.options[bad[0]])}" if bad else ""
    require(not bad, method, "keeps_a_token", f"no token to draw in {found}")


def rows_do_not_see_each_other(method: Method) -> None:
    """A row's bits are the same alone, in any order, beside 31 others, and with one or two threads."""
    _independent(method, *bench(method, rows=32))
    _independent(method, *bench(method, rows=8, size=WIDE))


def _independent(method: Method, x_RV: Tensor, rows: BenchRows) -> None:
    sampler, everyone = method.factory(), list(range(len(rows.options)))
    with threads(1):
        together = sampler.shape(x_RV, rows).clone()
    shuffled = everyone[::-2] + everyone[-2::-2]
    for count in (1, 2):
        with threads(count):
            again = sampler.shape(x_RV, rows)
            where = _differs(again, together)
            require(where is None, method, "rows_do_not_see_each_other", f"row {where} differs with {count} threads")
            moved = sampler.shape(x_RV[shuffled], rows.pick(shuffled))
            where = _differs(moved, together[shuffled])
            require(where is None, method, "rows_do_not_see_each_other", f"row {where} differs in another order")
            for r in everyone:
                alone = sampler.shape(x_RV[r : r + 1], rows.pick([r]))
                found = f"row {r} with options {dict(rows.options[r])} differs alone and in a batch ({count} threads)"
                require(same_bits(alone, together[r : r + 1]), method, "rows_do_not_see_each_other", found)


def state_is_a_fold_of_the_row(method: Method) -> None:
    """State columns start and stay finite, and a row's are the same alone as in a batch, bit for bit."""
    if not method.factory().columns:
        return
    x_RV, rows = bench(method, rows=16)
    together = fold(method.factory(), x_RV, rows, steps=12)
    for r in range(len(rows.options)):
        alone = fold(method.factory(), x_RV[r : r + 1], rows.pick([r]), steps=12)
        found = f"row {r}: {alone[0]} alone, {together[r]} in a batch"
        require(alone[0] == together[r], method, "state_is_a_fold_of_the_row", found)
        finite = all(torch.isfinite(torch.tensor(list(state.values()))).all() for state in together[r])
        require(bool(finite), method, "state_is_a_fold_of_the_row", f"row {r}: {together[r]}")


def identity_changes_nothing(method: Method) -> None:
    """At the options it calls its identity, the output is the input, bit for bit."""
    identity = getattr(method.factory(), "identity", None)
    if identity is None:
        return
    x_RV, rows = bench(method)
    parsed = method.options.model_validate(identity).model_dump()
    states = [{name: float(start(parsed)) for name, start in method.factory().columns.items()} for _ in rows.options]
    rows.options, rows.states = [parsed] * len(rows.options), states
    where = _differs(method.factory().shape(x_RV, rows), x_RV)
    require(where is None, method, "identity_changes_nothing", f"row {where} changed at {dict(identity)}")


def keeps_the_likeliest(method: Method) -> None:
    """What says `keeps_best` leaves the likeliest token the likeliest; what says `settles` leaves no other."""
    sampler = method.factory()
    x_RV, rows = bench(method)
    shaped_RV, best_R = sampler.shape(x_RV, rows), x_RV.argmax(1)
    for r, token in enumerate(best_R.tolist()):
        found = f"row {r}: token {token} is no longer the likeliest with options {dict(rows.options[r])}"
        kept = bool(shaped_RV[r, token] == shaped_RV[r].max())
        require(kept or not getattr(sampler, "keeps_best", False), method, "keeps_the_likeliest", found)
        left = int(torch.isfinite(shaped_RV[r]).sum())
        alone = left == 1 or not getattr(sampler, "settles", False)
        require(alone, method, "keeps_the_likeliest", f"row {r}: {left} tokens are left")


def band_is_its_shape(method: Method) -> None:
    """What says which `band` it keeps: `shape` leaves that band as it is and drops all else, bit for bit."""
    sampler = method.factory()
    if not hasattr(sampler, "band"):
        return
    for x_RV, rows in (bench(method), bench(method, rows=8, size=WIDE)):
        shaped_RV, kept_RV = sampler.shape(x_RV, rows), within(x_RV, *sampler.band(x_RV, rows))
        where = _differs(kept_RV, shaped_RV)
        require(where is None, method, "band_is_its_shape", f"row {where} is another by its band than by `shape`")


def candidates_are_enough(method: Method) -> None:
    """What says `any_width` keeps the same, with the same bits, when it sees only the columns that are left."""
    sampler = method.factory()
    if not getattr(sampler, "any_width", False):
        return
    for (x_RV, rows), share in itertools.product((bench(method), bench(method, rows=8, size=WIDE)), (0.03, 0.6)):
        generator = torch.Generator().manual_seed(3)
        left_RV = x_RV.where(torch.rand(x_RV.shape, generator=generator) < share, -math.inf)
        best_R1 = x_RV.argmax(1, keepdim=True)
        left_RV.scatter_(1, best_R1, x_RV.gather(1, best_R1))
        columns = [x_V.isfinite().nonzero()[:, 0] for x_V in left_RV]
        few_RC = torch.full((len(columns), max(map(len, columns)) + 3), -math.inf)
        for x_C, x_V, at in zip(few_RC, left_RV, columns, strict=True):
            x_C[: len(at)] = x_V[at]
        whole_RV, some_RC = sampler.shape(left_RV, rows), sampler.shape(few_RC, rows)
        for r, at in enumerate(columns):
            again_V = torch.full_like(whole_RV[r], -math.inf)
            again_V[at] = some_RC[r, : len(at)]
            found = f"row {r} with options {dict(rows.options[r])}: {len(at)} candidates of {len(again_V)} give another"
            require(same_bits(again_V, whole_RV[r]), method, "candidates_are_enough", found)


LAWS = (
    declared,
    pure,
    declares_what_it_reads,
    keeps_shape,
    never_allows_again,
    keeps_a_token,
    keeps_the_likeliest,
    rows_do_not_see_each_other,
    state_is_a_fold_of_the_row,
    identity_changes_nothing,
    band_is_its_shape,
    candidates_are_enough,
)


def fold(sampler: Sampler, x_RV: Tensor, rows: BenchRows, steps: int) -> list[list[dict[str, Any]]]:
    """State traces of `steps` draws, the logits rolled by 17 tokens a step; what the engine's walk does to state."""
    traces: list[list[dict[str, Any]]] = [[] for _ in rows.options]
    states, history = list(rows.states), list(rows.history_R)
    for step in range(steps):
        now = BenchRows(rows.options, states, history, rows.prompt_len_R, rows.keys_R, rows.size)
        x = x_RV.roll(17 * step, dims=1)
        token_R = draw(sampler.shape(x, now), list(now.keys_R), now.t_R)
        own_R = x.double().gather(1, token_R[:, None])[:, 0] - x.double().logsumexp(1)
        columns = {name: column.tolist() for name, column in sampler.observe(now, token_R, own_R).items()}
        states = [{name: column[r] for name, column in columns.items()} for r in range(len(states))]
        history = [torch.cat([past, token[None]]) for past, token in zip(history, token_R, strict=True)]
        for trace, state in zip(traces, states, strict=True):
            trace.append(dict(state))
    return traces


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch with this many threads inside an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _differs(one: Tensor, other: Tensor) -> int | None:
    """The first row whose bits differ."""
    return next((r for r in range(len(other)) if not same_bits(one[r : r + 1], other[r : r + 1])), None)
