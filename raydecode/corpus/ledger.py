"""Who runs which rows: leases, blame, watchdog. A pure state machine over a clock, a `Log` and offered blocks.

The Ray actor of the same name is a thin skin: every decision lies here, every method is synchronous, fast and
takes or returns plain values. Call it from one thread at a time.

    feeder   while ledger.hungry(): ledger.offer(ref, unit)   ...   ledger.end_of_input()
    actor    next -> Lease | Suspects | Wait | Stop;  started, finished (rows enter, leave a slot), beat, commit(part)
    keeper   on_death, on_start_failure;  tick -> Kill | End

What the feeder fails to deliver is leased again as a unit without a reference: `planned` is the truth, blocks are
transport. Blame falls on rows *in slots* alone (`started` and not `finished`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raydecode.corpus.intervals import Cover, Span

if TYPE_CHECKING:
    from raydecode.corpus.log import Log
    from raydecode.corpus.parts import PartMeta

Cause = Literal["crash", "watchdog", "node_loss", "drain", "memory"]
BLAMING: frozenset[str] = frozenset({"crash", "watchdog"})  # the others say nothing about the rows


@dataclass(frozen=True, slots=True)
class Lease:
    """A unit to run. `ref` is the offered block, or None: then read `unit` yourself (`inputs.read_unit`).

    todo: the spans of the unit that are this lease's rows. Drop rows whose span is outside; positions of `todo`
          that belong to no row (blank lines, the tail of an earlier line) are committed as cover all the same:
          `PartBuilder.lease(lease, table)` does both.
    """

    id: int
    unit: Span
    ref: object | None
    todo: tuple[Span, ...]


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
    idle_s: float = 180.0  # no token, commit or lease anywhere: the job ends
    barren_deaths: int = 3  # deaths without a commit between, outside a hunt
    start_failures: int = 2
    queue: int = 4  # offered blocks held


@dataclass(frozen=True, slots=True)
class Progress:
    """What the progress line shows. `rows` includes error rows; positions are rows (Parquet) or bytes."""

    rows: int
    errors: int
    tokens: int
    rows_rerun: int
    deaths: int
    suspects: int
    positions_done: int
    positions_planned: int
    workers: int
    finished: bool


class Ledger:
    """See the module. `planned`: every unit of the job that was not covered when it started."""

    def __init__(self, log: Log, planned: Sequence[Span], clock: Callable[[], float], limits: Limits = Limits()) -> None:
        raise NotImplementedError

    # feeder
    def hungry(self) -> bool: ...
    def offer(self, ref: object, unit: Span) -> None: ...
    def end_of_input(self, failed: str | None = None) -> None: ...

    # worker; `ticket` counts a worker's calls of next: the same ticket gets the same reply (a doubled message)
    def next(self, worker: str, ticket: int) -> Reply: ...
    def started(self, worker: str, rows: Iterable[Span]) -> None: ...
    def finished(self, worker: str, rows: Iterable[Span]) -> None: ...
    def beat(self, worker: str, tokens: int, waiting: int, step_s: float | None = None) -> Orders: ...
    def returned(self, worker: str, rows: Iterable[Span]) -> None: ...
    def probed(self, worker: str, group: int) -> None: ...
    def commit(self, worker: str, parts: Sequence[PartMeta]) -> Committed | Refused: ...
    def leave(self, worker: str) -> None: ...

    # keeper
    def drain(self, worker: str) -> None: ...
    def on_death(self, worker: str, cause: Cause, message: str = "") -> None: ...
    def on_start_failure(self, message: str) -> None: ...
    def tick(self) -> list[Kill | End]: ...
    def progress(self) -> Progress: ...
