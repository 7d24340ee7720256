"""One Protocol per room. Read this first.

Requests go in, events come out, nobody calls upward: the engine is the only caller of methods, methods return data
(or are generators that yield wishes). Methods see rows and a fold over events, never batch geometry, never a clock.

One step of an engine, the order inside the walk being the same in plain decoding, under drafts and in replay:

    admit rows -> drafters propose token trees (their own forwards merged, round by round) -> one ragged forward
    -> the walk, by depth, batched over rows:
    constrain -> mask -> chain -> draw -> sampler.observe -> TokenEvent -> monitors.observe -> verdict -> stop or limit
    -> is the token a drafted child? -> the cache keeps the accepted path -> drafters observe

Legend: R rows, V vocabulary, C candidates (= V at full width), M flat nodes of all rows, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from raydecode.constraint import Constraint, Pending, Verdict
from raydecode.errors import Refused
from raydecode.events import Event, OutcomeEvent, TokenEvent
from raydecode.request import DecodingSpec, Request, RowId
from raydecode.tree import TokenTree

if TYPE_CHECKING:
    from torch import Tensor

Options = Mapping[str, Any]
Columns = Mapping[str, "Tensor"]
StateColumns = Mapping[str, Callable[[Options], float]]
"""Names of a sampler's state columns, with their start value from the options."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method wants computed. United by `|`; nothing is computed that no row asked for.

    top_k:    candidates of the raw model per node;  top_k_nodes: on the accepted path or on all verified nodes
    prompt:   (drafters) `top_k` behind the tokens of the prompt as well, in records whose tree is a part of it, a
              chain, and which have no path: while it is read, so not what another row read before, nor what is read
              again after pre-emption
    hidden:   named sites of the model (`Lane.sites`): TokenEvent.hidden, SamplerRows.hidden, StepRecord.hidden; or
              attention weights of a layer, "attention.0" and on, where the engine's lane can read them
    hidden_nodes: (drafters) the tail (node that produced the pending token), accepted, or all
    logp:     the token's log-probability under the raw model
    entropy:  of the raw model, nats
    own_logp: (samplers) the token's log-probability at this stage's own input; NaN for who does not ask
    history:  (samplers) ids of prompt and output so far, the drafted path included; refused to who does not ask
    lanes:    (drafters) lanes that its `Forward` wishes name: "self", or models that the engine loads beside its own
    grad:     (samplers) gradients through the model: SamplerRows.slope; refused to who does not ask

    `needs` of a class are what it needs under all options. What depends on options or on the model a class says by

        @staticmethod
        def needs_of(options: Options, sites: Sequence[str]) -> Needs       # sites: the lane's, from the inside out

    but own_logp, history and grad, which say what kind of method it is, by `needs` alone. A drafter that loads models
    is also asked with no sites, before anything is loaded.
    """

    top_k: int = 0
    top_k_nodes: Literal["accepted", "all"] = "accepted"
    prompt: bool = False
    hidden: tuple[str, ...] = ()
    hidden_nodes: Literal["tail", "accepted", "all"] = "tail"
    logp: bool = False
    entropy: bool = False
    own_logp: bool = False
    history: bool = False
    lanes: tuple[str, ...] = ()
    grad: bool = False

    def __or__(self, other: Needs) -> Needs:
        nodes = ("accepted", "all")
        places = ("tail", "accepted", "all")
        return Needs(
            top_k=max(self.top_k, other.top_k),
            top_k_nodes=max(self.top_k_nodes, other.top_k_nodes, key=nodes.index),
            prompt=self.prompt or other.prompt,
            hidden=tuple(sorted({*self.hidden, *other.hidden})),
            hidden_nodes=max(self.hidden_nodes, other.hidden_nodes, key=places.index),
            logp=self.logp or other.logp,
            entropy=self.entropy or other.entropy,
            own_logp=self.own_logp or other.own_logp,
            history=self.history or other.history,
            lanes=tuple(sorted({*self.lanes, *other.lanes})),
            grad=self.grad or other.grad,
        )


@dataclass(frozen=True, slots=True)
class Effects:
    """What a method may do to the text; `doctor`, docs and provenance read it.

    exact: the text's law is that of plain decoding with the row's sampler (a drafter's is; top-p's is not)
    pure:  a function of the text alone; False (wall clock, HTTP) exempts the row from the certificate
    """

    exact: bool = False
    pure: bool = True


class Engine(Protocol):
    """A synchronous core; asyncio, Ray and HTTP are thin skins that decide nothing."""

    def refuse(self, spec: DecodingSpec) -> Refused | None:
        """Why this engine cannot host `spec` (pairs, not flags); asked by `assemble` and again per row."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request. Never raises for a row's fault: each sample then ends with OutcomeEvent(reason="error")."""
        ...

    def step(self) -> list[Event]:
        """Advance all running rows by at least one token where possible; returns what happened, in order per row."""
        ...

    def cancel(self, id: str) -> None:
        """End all samples and children of a request; their slots are free before the next step."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Sleep while every row is parked on a service; True when a step may make progress."""
        ...

    @property
    def busy(self) -> bool:
        """Rows are queued or running."""
        ...


@runtime_checkable
class Host(Protocol):
    """What a monitor may know of its surroundings: the vocabulary and services, not the engine."""

    token_bytes: Sequence[bytes]
    eos: frozenset[int]

    def ask(self, service: str, payload: Any) -> Any | Pending:
        """An answer, or Pending; answers are kept by payload, so asking again is free and pure."""
        ...


@dataclass(frozen=True, slots=True)
class Slope:
    """f(logits), the logits, and the gradient of f with respect to a hidden state [D]."""

    value: float
    logits_V: Tensor
    gradient_D: Tensor


class SamplerRows(Protocol):
    """The rows that one stage of the chain shapes at once."""

    @property
    def t_R(self) -> Sequence[int]:
        """Output index of each row's next token."""
        ...

    @property
    def keys_R(self) -> Sequence[int]:
        """Noise keys, for samplers that toss coins."""
        ...

    @property
    def prompt_len_R(self) -> Sequence[int]: ...

    @property
    def history_R(self) -> Sequence[Tensor]:
        """int64 ids of prompt, output and drafted path of each row; made on first use, so ask only if you need it."""
        ...

    def given(self, name: str) -> Sequence[Any]:
        """The option of each row as it was given: lists, mappings, text."""
        ...

    def option(self, name: str) -> Tensor:
        """float32 [R], the option of each row; numbers only."""
        ...

    def state(self, name: str) -> Tensor:
        """float64 [R], the state column of each row."""
        ...

    def normaliser(self, x_RC: Tensor) -> Tensor:
        """float64 [R]: ln sum exp(x) of this stage's input; `own_logp` is made from the same."""
        ...

    @property
    def sites(self) -> Sequence[str]:
        """The model's sites, from the inside out."""
        ...

    def hidden(self, site: str) -> Tensor:
        """[R, D] at the node whose next token is chosen; only sites that this method's needs name."""
        ...

    def early_logits(self, site: str, index: Sequence[int], norm: bool) -> Tensor:
        """float32 [len(index), V]: the output layer on `site` of some of these rows, computed now, for them alone.

        norm: behind the model's final norm.
        """
        ...

    def slope(self, r: int, site: str, loss: Callable[[Tensor], Tensor], shift_D: Tensor | None = None) -> Slope:
        """loss(raw logits [V]), a number, at row r's node, and its gradient with respect to the node's state at `site`.

        shift_D: added to that state first; the logits are then those of the shifted state. The row's path is run again
        for every call. Only with `needs.grad`.
        """
        ...


class Sampler(Protocol):
    """One object per method and engine; options and state of rows are columns, so a batch is one call.

    columns: state columns and their start value from the options (empty = stateless)

    A class may also say `identity: Options`, options at which `shape` returns its input bit for bit (a law);
    `keeps_best = True`, the likeliest token stays the likeliest (a law); `settles = True`, one token is left;
    `band(x_RC, rows) -> (low_R, high_R or None)`, what `shape` keeps: the logits from low to high, as they are, and no
    others (a law); the engine then drops the rest without writing them down;
    `any_width = True`, it looks at logits and not at which columns they stand in: C may be the few candidates that are
    left, in ascending order of their ids, and it keeps the same with the same bits (a law; sums as in `numerics`);
    and `report(options, state, count) -> Mapping`, JSON-able: what its state columns say after `count` tokens. Reports
    of a row's samplers stand behind those of its monitors, each under the sampler's name.
    """

    needs: Needs
    columns: StateColumns

    def shape(self, x_RC: Tensor, rows: SamplerRows) -> Tensor:
        """New logits, float32 [R, C]. Pure; -inf stays -inf; keeps >= 1 token; row r depends on row r alone."""
        ...

    def observe(self, rows: SamplerRows, token_R: Tensor, own_logp_R: Tensor) -> Columns:
        """New state columns after the draw; own_logp_R [nats] at this stage's own input. Only called with `columns`."""
        ...


@dataclass(frozen=True, slots=True)
class RowView:
    """A running row as a drafter sees it. context ends with `pending`; hidden: site -> [D] of the node that chose it.

    `hidden` is empty before the row's first token. ends: ids that end a text; nothing may hang below them.
    blocks: parts of the row's own model that a `Forward` may skip, from the inside out: "attention.0", "mlp.0", ...
    """

    id: RowId
    t: int
    context: tuple[int, ...]
    pending: int
    prompt_len: int
    state: Any
    max_new: int
    hidden: Mapping[str, Any] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    blocks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class NodeOut:
    """What a drafter's forward gives back for one item, in the row's own token ids.

    top_ids, top_logp: of the lane's raw model, likeliest first, nats
    choice: what the row itself would choose here, were these its model's logits; empty where nothing can be chosen
    window: the outputs that predict the last committed tokens, the pending one last; as many as asked for and there are
    """

    top_ids: tuple[int, ...]
    top_logp: tuple[float, ...]
    hidden: Mapping[str, Any] = field(default_factory=dict)
    choice: tuple[int, ...] = ()
    window: tuple[NodeOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Forward:
    """A drafter's wish for one round on one lane; the engine owns the lane's cache and merges wishes.

    The answer is one NodeOut per item, in order. A drafter that wishes what it may not (a lane it does not declare, a
    block that is not there, another's row, more rounds than the engine allows) makes no draft in this step, which is
    counted as its failure. Items of a row for which memory is short are answered by empty NodeOuts.

    lane:   "self", the row's own model and cache, or one of `Needs.lanes`
    items:  (row, drafted path after the pending token). Paths of one row are fed as one tree; what was fed in an
            earlier round of the step is not fed again if it leads to all of them
    skip:   blocks of the lane "self" (`RowView.blocks`) to leave out: the residual stream passes them by. What is
            computed so is written behind the committed tokens, and verification never reads it
    choose: how many ids the row's own constraint, chain and noise would pick on this lane's logits: the one drawn, then
            those that would be drawn without the ones before (drafter-invariant coupling)
    hidden: sites of the lane "self" to give back
    window: > 0 asks the lane "self" for its outputs before the last `window` committed tokens, teacher-forced, `skip`
            applied: how often the reduced model would have said what was said
    """

    lane: str
    items: tuple[tuple[RowId, tuple[int, ...]], ...]
    skip: frozenset[str] = frozenset()
    top_k: int = 1
    choose: int = 0
    hidden: tuple[str, ...] = ()
    window: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What verification found for one row: every verified node, reached or not.

    path: accepted nodes, the root first; emitted: tokens chosen at them; top_ids, hidden: by node, if needed. Both are
            empty where the tree is a part of the prompt (`Needs.prompt`)
    hidden: node -> {site: [D]}, for the nodes that `Needs.hidden_nodes` says
    """

    row: RowId
    state: Any
    tree: TokenTree
    path: tuple[int, ...]
    emitted: tuple[int, ...]
    top_ids: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    hidden: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


class Drafter(Protocol):
    """A cache: it may be lost, may fail, and never changes text.

    scope: who shares `shared`: the rows of one engine ("namespace"), or nobody ("row")

    A class may also say `size(state, shared, options) -> int`: the bytes it keeps for a row, what rows share included;
    `widest: Options`, those under which it proposes as much as can be of use: a choice among drafters asks with them,
    cuts the trees to what pays, and records what was verified, which may be another drafter's tree, or none; and
    `among(options) -> Sequence[Card]`: it proposes nothing itself, the engine chooses row by row among these cards
    (none: all that the engine hosts, that are exact and that load nothing).
    """

    needs: Needs
    scope: Literal["row", "namespace"]

    def open_shared(self) -> Any: ...

    def open(self, row: RowView, options: Options) -> Any: ...

    def propose(
        self, rows: Sequence[RowView], budgets: Sequence[int], shared: Any, options: Options
    ) -> Generator[Forward, list[NodeOut], list[TokenTree]]:
        """One tree per row, rooted at its pending token, of at most `budget` nodes besides the root."""
        ...

    def observe(self, records: Sequence[StepRecord], shared: Any, options: Options) -> list[Any]:
        """New state per row."""
        ...


class Monitor(Protocol):
    """A fold over one row's events. State is an immutable value, compared with ==: a fork shares it, a rollback keeps
    the old one, a replay makes an equal one. `host` is no part of it: an engine has one object per method and one host,
    so `open` keeps it on the object. A class may say `rehearsal`, service name -> function: stand-ins for the laws.
    """

    needs: Needs
    effects: Effects

    def open(self, request: Request, host: Host, options: Options) -> Any: ...

    def observe(self, state: Any, event: TokenEvent) -> Any: ...

    def constrain(self, state: Any) -> Constraint | Pending | None: ...

    def verdict(self, state: Any) -> Verdict: ...

    def score(self, state: Any) -> float | None: ...

    def close(self, state: Any, outcome: OutcomeEvent) -> Any:
        """The report: JSON-able."""
        ...


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes an intervention sees: row, absolute position, ids on the path from the row's first token to the node.

    rows only tells whose nodes belong together: samples share their prompt's cache, so nothing may depend on which row
    it is. path is made on access: a prompt's nodes would hold its length squared in ids.
    """

    rows: Sequence[RowId]
    position: Sequence[int]
    path: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.rows)


class Intervention(Protocol):
    """Tensor to tensor at a named site of the model; it knows row, path and position, never a step number.

    One object per engine; rows with equal options share a call. It is asked at every node of its rows, the prompt's
    included, and again when a cache is rebuilt: a node's result depends on that node's own x, position and path.
    A class may say `identity: Options`, options at which it returns its input bit for bit.
    """

    needs: Needs

    def site(self, options: Options) -> str:
        """Where: one of the lane's sites."""
        ...

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        """New [M, D], same dtype."""
        ...

    def horizon(self, options: Options) -> int | None:
        """How many tokens may be verified before the effect changes; None = any number."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """A hypothesis, as a value and not a handle: the KV behind it is a cache that may be dropped and rebuilt."""

    tokens: tuple[int, ...]
    key: int
    logp: float = 0.0
    scores: tuple[float, ...] = ()
    finished: str | None = None


@dataclass(frozen=True, slots=True)
class Expand:
    """Wish: the `top_k` children of each branch, masked by the row's monitors, ranked by raw logp."""

    branches: tuple[Branch, ...]
    top_k: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Wish: n completions of each branch by the row's own sampler."""

    branches: tuple[Branch, ...]
    n: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """Wish: log-probabilities of given continuations."""

    branches: tuple[Branch, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Wish: answers of a service, in the order of the payloads."""

    service: str
    payloads: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Wish without an answer: these tokens are final and may be streamed."""

    branch: Branch


Wish = Expand | Complete | Score | Call | Commit


class Search(Protocol):
    """Several hypotheses of one request: a generator that yields wishes and returns branches, the best first."""

    def run(self, start: Branch, options: Options) -> Generator[Wish, Any, list[Branch]]: ...


class Reward(Protocol):
    """(prompt, text) to a number."""

    range: tuple[float, float]
    pure: bool

    def __call__(self, items: Sequence[tuple[str, str]]) -> list[float]: ...
