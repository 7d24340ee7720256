"""What passes between a ledger, its workers and its keeper: plain frozen values, cheap to pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raydecode.corpus.eta import Eta
from raydecode.corpus.intervals import Span
from raydecode.corpus.rows import RowFault

Cause = Literal["crash", "watchdog", "node_loss", "drain", "memory"]
BLAMING: frozenset[str] = frozenset({"crash", "watchdog"})  # the others say nothing about the rows


@dataclass(frozen=True, slots=True)
class Lease:
    """A unit to run. `ref` is the offered block, or None: then read `unit` yourself (`inputs.read_unit`).

    id:   the ledger's number of this lease, for traces
    todo: the spans of the unit that are this lease's rows. Drop rows whose span is outside; positions of `todo`
          that belong to no row (blank lines, the tail of an earlier line) are committed as cover all the same:
          `PartBuilder.lease(lease, table)` does both.
    """

    id: int
    unit: Span
    ref: object | None
    todo: tuple[Span, ...]
    fault: RowFault | None = None  # a verdict: do not run these rows, write them with this error (the builder does)


@dataclass(frozen=True, slots=True)
class Suspects:
    """Rows that were in slots when an engine died. Finish everything else, flush, then run these together, alone.

    Read each with `inputs.read_unit(span)`. When `probe` is set, first run a known good prompt and call
    `probed(worker, group)`: only a death after that is a verdict. Commit them in parts of their own.
    """

    group: int
    rows: tuple[Span, ...]
    probe: bool
    tries: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing now; ask again after `seconds`, or go on with what runs."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Commit what you hold, then leave. `reason`: "finished", "fenced", "drain", "dead", or the cause of the end."""

    reason: str


Reply = Lease | Suspects | Wait | Stop


@dataclass(frozen=True, slots=True)
class Orders:
    """Answer to `beat`: rows that should go back to idle actors (`returned`), and whether to stop."""

    give_back: int = 0
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """The part is in the log and visible. Also the answer to the same part sent again."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The part is not in the log: delete it. Its rows are run again elsewhere."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Watchdog: dump the worker's stacks, kill it, then call `on_death(worker, "watchdog")`."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The job ends with this cause (what is committed stays)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """max_error_rate: share of error rows, 0..1, above which the job ends; None = no limit."""

    max_error_rate: float | None = None
    stall_s: float = 60.0  # no token for max(stall_s, stall_steps x median step): the worker is killed
    stall_steps: float = 20.0
    first_step_s: float = 300.0  # the same before a worker's first step is over: compilation, long prompts
    idle_s: float = 180.0  # no token, commit or lease anywhere: the job ends
    storage_s: float = 300.0  # the storage lets a call wait for this long: the job ends (actors/ledger.py looks)
    start_s: float = 900.0  # the same while no worker is there, or nothing was read yet
    barren_deaths: int = 3  # deaths without a commit between, outside a hunt
    start_failures: int = 2
    max_tokens: int | None = None  # of the job, for the ETA
    queue: int = 4  # offered units held (or one per worker, if that is more)
    queue_bytes: int = 64 << 20  # of them together, beyond the first
    error_rows: int = 100  # rows before max_error_rate is looked at (and at the end)


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress line shows. `rows` includes error rows; positions are rows (Parquet) or bytes."""

    rows: int
    errors: int
    tokens: int
    parts: int
    rows_rerun: int
    deaths: int
    suspects: int
    positions_done: int
    positions_planned: int
    workers: int
    in_flight: int  # started, not committed
    ended: str | None  # "finished", or the cause
    ready: int = 0  # rows finished, not committed
    ready_positions: int = 0
    generated: int = 0  # tokens of all workers since this run began, as their beats say
    eta: Eta | None = None  # None until rows finish
