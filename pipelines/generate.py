"""A corpus through a model: `run(job)`.

    plan (driver)     log -> what is done -> units that are left
    Ray Data          read, parse, render, shard into blocks                      pipelines/blocks.py
    ledger (1 actor)  who runs what; blame; the log                               actors/ledger.py
    generation actors pull blocks, generate, write parts                          actors/generation.py
    this process      keeps the pool alive, watches, reports                      actors/pool.py

The same call again goes on where the last one ended, whatever ended it. A finished job is answered from the log,
without Ray. A run that is killed anywhere loses no row and doubles none: specs in raydecode/corpus.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from actors.generation import GenerationActor
from actors.ledger import Block, LedgerActor, Opened, Remote
from actors.pool import Pool
from actors.prepare import Prepare, read_ready
from actors.rows import output_columns
from pipelines.lone_node import dead_here, is_lone
from pipelines.session import cpus_of, free, ray_session, resources
from raydecode.config import JobConfig
from raydecode.corpus.history import finished, replay
from raydecode.corpus.inputs import (
    Corpus,
    InputFile,
    discover,
    group_reads,
    index_occurrences,
    needs_index,
    needs_staging,
    open_corpus,
    plan_units,
    stage,
)
from raydecode.corpus.intervals import Span
from raydecode.corpus.log import Fenced
from raydecode.corpus.messages import Limits, Progress
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import State, schema_from_text, schema_to_text
from raydecode.corpus.rows import OutputSchema
from raydecode.corpus.storage import Storage, open_storage, prepare
from raydecode.corpus.templates import Renderer, with_file
from raydecode.errors import JobError

POLL_S = 1.0  # between looks while no worker starts, leaves or dies; a look every 0.25 s took 7 % of a core
PATIENCE_S = 30.0  # after the end, for actors that still write what they hold
RESTARTS = 3  # of the ledger, without a row committed in between
READ_CPUS = 0.5
AHEAD_BYTES = 256 << 20
"""Blocks being read or waiting, together; a quarter of the object store where that is less."""


@dataclass(frozen=True, slots=True)
class View:
    """What a progress line shows. elapsed_s: of this run; ledger: None until the first actor was told to start."""

    phase: str  # "starting", "running", "reporting"
    elapsed_s: float
    ledger: Progress | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """How a job stands after `run`.

    output:          url of the output folder
    rows, errors:    in the output, of all runs together; errors are among the rows
    rows_before:     rows that were there when this run began; all of them when `already_finished`
    seconds:         of this run
    rows_rerun:      rows generated more than once, because something died before they were committed
    workers:         what each engine of this run said of itself, by name
    """

    output: str
    rows: int
    samples: int
    tokens: int
    errors: int
    parts: int
    rows_before: int
    rows_rerun: int
    deaths: int
    seconds: float
    attempt: int
    already_finished: bool = False
    workers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run(
    job: JobConfig, *, overwrite: bool = False, takeover: bool = False, progress: Callable[[View], None] | None = None
) -> Summary:
    """Generate every row of the job that its output does not hold yet.

    overwrite: void what an output of another configuration holds;  takeover: even if another run looks alive
    Raises UserError before anything is computed when the job cannot work, JobError when it cannot go on; what is
    committed stays, and the same call goes on from there.
    """
    began = time.monotonic()
    tell = progress or (lambda view: None)
    storage = open_storage(job.output.path)
    there = _state(storage)
    state = State() if overwrite else there
    job = _pinned(job, state)
    format = None if job.input.format == "auto" else job.input.format
    files = discover(job.input.path, format=format, known=state.inputs, done=state.done, output=storage.url)
    if not overwrite and finished(storage, job=job.identity(), inputs=files):
        return _summary(storage, began, state.rows, already_finished=True)
    with contextlib.ExitStack() as stack:
        session = functools.cache(lambda: stack.enter_context(ray_session()))
        corpus = _checked(job, storage, files, state, session)
        tell(View("starting", 0.0))
        ray = session()
        barren, rows = 0, state.rows
        while True:
            try:
                workers, opened = _attempt(ray, job, storage, corpus, began, tell, takeover, overwrite)
                break
            except ray.exceptions.RayActorError as error:  # the ledger died; the log knows everything it knew
                if error.actor_init_failed:
                    raise JobError(f"the ledger does not start: {error}") from error
                now = replay(storage)
                barren, rows = (0 if now.rows > rows else barren + 1), now.rows
                if barren >= RESTARTS:
                    raise JobError(f"the ledger died {barren} times without a commit; the last: {error}") from error
                overwrite = overwrite and now.attempt == there.attempt
    tell(View("reporting", time.monotonic() - began))
    return _summary(storage, began, opened.rows, workers=workers)


def _attempt(
    ray: Any, job: JobConfig, storage: Storage, corpus: Corpus, began: float, tell: Callable[[View], None],
    takeover: bool, overwrite: bool,
) -> tuple[Mapping[str, Any], Opened]:  # fmt: skip
    """One ledger's life. Raises RayActorError when it dies."""
    size, least = job.actors.max, job.actors.min
    render = Prepare(with_file(job.prompt.section(corpus.format)), corpus.schema.names)
    with _ledger(ray, job, storage, corpus, render) as ledger:
        schema, owner = schema_to_text(corpus.schema), Owner.me()
        asked = (job.identity(), schema, owner)
        opened = ledger("open", *asked, takeover=takeover, overwrite=overwrite)
        placed, threads = resources(ray, job.actors, cpu_only=job.engine.name in ("toy", "torch"))
        worker = ray.remote(GenerationActor).options(max_restarts=0, max_concurrency=3, **placed)
        shared = (_absolute(job, job.engine.threads or threads), corpus, storage.url, opened.attempt)

        def spawn(name: str, spare: bool) -> Any:
            return worker.remote(
                name, *shared, prepare=render, build=_build, ledger=Remote(ledger.handle), fetch=_fetch, spare=spare
            )

        pool = Pool(spawn, min(size, max(least, opened.units)), least, ledger, prefix=f"{opened.attempt}.")
        try:
            show = lambda progress: tell(View("running", time.monotonic() - began, progress))  # noqa: E731
            ended = _watch(ledger, pool, show, job.limits.storage_s)
        except ray.exceptions.RayActorError:
            _raise_if_fenced(storage, opened)
            raise
        finally:
            pool.close()
    if ended == "fenced":
        raise Fenced(f"{storage.url}: another run took over; this one stops")
    if ended != "finished":
        room = f"\nno worker found a place: each asks for {placed}, free are {free(ray)}" if not pool.came_up else ""
        raise JobError(ended + room)
    return pool.about, opened


def _watch(ledger: Remote, pool: Pool, tell: Callable[[Progress], None], storage_s: float) -> str:
    """Keep the pool alive until the ledger has an end; returns it, with every worker gone that goes in peace."""
    while True:
        look = ledger("look")
        tell(look.progress)
        if look.storage_s > storage_s:
            return f"the output does not answer: a call waits since {look.storage_s:.0f} s"
        if look.progress.ended:
            pool.wait(PATIENCE_S)
            return look.progress.ended
        for kill in look.kills:
            pool.kill(kill.worker, kill.reason)
        pool.poll(POLL_S)


@contextlib.contextmanager
def _ledger(ray: Any, job: JobConfig, storage: Storage, corpus: Corpus, render: Prepare) -> Iterator[Remote]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    size = job.actors.max
    ahead_bytes = min(AHEAD_BYTES, int(ray.cluster_resources().get("object_store_memory", AHEAD_BYTES) / 4))
    ahead = size + 2 * cpus_of(ray)
    blocks = partial(_blocks, render=render, ahead=ahead, ahead_bytes=ahead_bytes, lone=is_lone(ray))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # lives as long as we do
    actor = ray.remote(LedgerActor).options(
        num_cpus=0, max_concurrency=2 * size + 8, max_restarts=0, scheduling_strategy=here
    )
    handle = actor.remote(storage.url, corpus, blocks, partial(_units, actors=size), _limits(job))
    try:
        yield Remote(handle, partial(_some_node, ray))
    finally:
        with contextlib.suppress(Exception):  # it is gone, fenced, or waits for a dead storage: nothing to close
            if not dead_here(ray):
                ray.get(handle.close.remote(), timeout=10)
        ray.kill(handle, no_restart=True)


def _some_node(ray: Any) -> None:
    """Raises JobError when no node is left: Ray then lets a new ledger wait for one for ever. A driver outlives the
    raylet beside it."""
    if dead_here(ray) or not any(node["Alive"] for node in ray.nodes()):
        raise JobError(
            "Ray has no node left: its processes on this machine are gone. The same command goes on from here"
        )


# ---------------------------------------------------------------------- before Ray
def _state(storage: Storage) -> State:
    try:
        return replay(storage)
    except OSError:  # a folder that cannot be read can hardly be written: say which, and what to do
        prepare(storage)
        raise


def _pinned(job: JobConfig, state: State) -> JobConfig:
    """The job with its engine and dtype decided: as the output was begun, else as this machine can.

    `auto` must not mean one thing for the first half of a corpus and another for the rest.
    """
    begun = (state.job or {}).get("engine", {})
    engine = job.engine
    if begun and engine.name == "auto":
        engine = engine.model_copy(update={"name": begun["name"]})
    if begun and engine.dtype == "auto":
        engine = engine.model_copy(update={"dtype": begun["dtype"]})
    job = job.model_copy(update={"engine": engine})
    if engine.name != "auto" and engine.dtype != "auto":
        return job
    from raydecode.assemble import choose

    choice = choose(job)
    return job.model_copy(update={"engine": engine.model_copy(update={"name": choice.name, "dtype": choice.dtype})})


def _checked(
    job: JobConfig, storage: Storage, files: Sequence[InputFile], state: State, session: Callable[[], Any]
) -> Corpus:
    """Everything that can be refused before weights are read; before Ray starts, too, unless it is to copy inputs."""
    from raydecode.assemble import choose

    choose(job)
    prepare(storage)
    lost = {one.number for one in files if one.staged and not state.done.covers(one.span)}  # perhaps; `stage` looks
    staged = _staged(files, {one.number for one in files if needs_staging(one)} | lost, storage.url, session)
    schema = schema_from_text(state.schema) if state.schema else None
    corpus = open_corpus(staged, id=job.input.id, root=storage.url, schema=schema)
    Renderer(job.prompt.section(corpus.format), corpus.schema.names)
    OutputSchema(corpus.schema, output_columns(job), corpus.id)
    return corpus


def _staged(
    files: Sequence[InputFile], todo: Collection[int], root: str, session: Callable[[], Any]
) -> list[InputFile]:
    """The files, those whose number is in `todo` with their copy: one here, several at once as Ray tasks."""
    if len(todo) < 2:
        return [stage(one, root) if one.number in todo else one for one in files]
    ray = session()
    task = ray.remote(stage).options(num_cpus=READ_CPUS)
    copies = {one.number: task.remote(one, root) for one in files if one.number in todo}
    try:
        made = dict(zip(copies, ray.get(list(copies.values())), strict=True))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return [made.get(one.number, one) for one in files]


def _absolute(job: JobConfig, threads: int) -> dict[str, Any]:
    """The job for processes that run in other folders."""
    out = job.to_json()
    out["engine"]["threads"] = threads
    if os.path.exists(out["model"]["source"]):
        out["model"]["source"] = os.path.abspath(out["model"]["source"])
    return out


def _limits(job: JobConfig) -> Limits:
    return Limits(**job.limits.model_dump(), max_tokens=job.spec.n * job.spec.max_tokens)


# ---------------------------------------------------------------------- the reading side; runs in the ledger's process
def _units(corpus: Corpus, state: State, actors: int) -> list[Span]:
    return plan_units(corpus, state.done, max_actors=actors)


def _blocks(
    corpus: Corpus, units: Sequence[Span], *, render: Prepare, ahead: int, ahead_bytes: int, lone: bool
) -> Iterator[Block]:
    from pipelines.blocks import stream

    lots = group_reads(corpus, units)
    indexes = _indexes(corpus, dict.fromkeys(lot[0].input for lot in lots))
    reads = [partial(_read, corpus.only(lot[0].input), lot, indexes.get(lot[0].input, ())) for lot in lots]
    return stream(lots, reads, render, ahead=ahead, ahead_bytes=ahead_bytes, cpus=READ_CPUS, lone=lone)


def _indexes(corpus: Corpus, numbers: Iterable[int]) -> dict[int, list[Any]]:
    """A task for each file that needs an index of its repeated rows; else every reader of a large file would make its
    own at the same time. In lists, so that Ray hands the reference on and not the value."""
    import ray

    task = ray.remote(index_occurrences).options(num_cpus=READ_CPUS)
    return {n: [task.remote(corpus.only(n), n)] for n in numbers if needs_index(corpus, n)}


def _read(corpus: Corpus, lot: Sequence[Span], index: Sequence[Any]) -> Iterator[tuple[Span, Any]]:
    """In a reading task: the lot's blocks, once its file's index is made. Ray lends the CPU out while this waits."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError):  # it failed: `read_ready` makes it here, or says why not
        ray.get(list(index))
    yield from read_ready(corpus, lot)


# ---------------------------------------------------------------------- in the actors
def _build(job: JobConfig) -> Any:
    from raydecode.assemble import build_engine

    return build_engine(job)


def _fetch(ref: Any) -> Any:
    import ray

    return ray.get(ref, timeout=60)


# ---------------------------------------------------------------------- the end
def _raise_if_fenced(storage: Storage, opened: Opened) -> None:
    now = replay(storage).attempt
    if now > opened.attempt:
        raise Fenced(f"{storage.url}: attempt {now} took over from this run (attempt {opened.attempt}), which stops")


def _summary(
    storage: Storage, began: float, before: int, *,
    already_finished: bool = False, workers: Mapping[str, Any] | None = None,
) -> Summary:  # fmt: skip
    state = replay(storage)
    return Summary(
        output=storage.url,
        rows=state.rows,
        samples=state.samples,
        tokens=state.tokens,
        errors=state.errors,
        parts=state.parts,
        rows_before=before,
        rows_rerun=state.rerun,
        deaths=state.deaths,
        seconds=round(time.monotonic() - began, 3),
        attempt=state.attempt,
        already_finished=already_finished,
        workers=dict(workers or {}),
    )
