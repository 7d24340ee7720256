"""`raydecode plan`: a minute of calibration on a sample of the rows; then time, memory, cost and rows that will fail.

The sample is spread over the input. Its rows are rendered and checked; those that can run go through one engine in
this process until CALIBRATE_S are over. A row that still runs then has a length between its age and its limit. The
plan is kept beside the output, and the job's report states plan against fact.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raydecode.cli.terminal import count, err, out, print_json, span
from raydecode.errors import UserError
from raydecode.events import OutcomeEvent, TokenEvent
from raydecode.request import Request

CALIBRATE_S = 45.0
SAMPLE_ROWS = 256
RAY_START_S = 6.0
"""Ray's start to the first block: 2 to 10 s, measured on two cores."""
STRETCHES = 4


def command(
    job: Annotated[Path, typer.Argument(help="the job file")],
    overrides: Annotated[list[str] | None, typer.Argument(help="changes by dots")] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="most time for the calibration run", min=1)] = CALIBRATE_S,
    as_json: Annotated[bool, typer.Option("--json", help="for pipes")] = False,
) -> None:
    """Calibrate, then forecast time, memory, cost and failing rows of JOB."""
    from raydecode.config import load_job

    config = load_job(job, overrides or ())
    try:
        plan = make(config, seconds)
    except UserError as error:
        raise config.locate(error) from error
    if as_json:
        print_json(plan)
    else:
        _show(plan, config)


def make(job: Any, seconds: float = CALIBRATE_S) -> dict[str, Any]:
    """The plan as JSON values, also written beside the output."""
    from raydecode.assemble import build_engine, choose
    from raydecode.corpus.storage import open_storage, prepare
    from raydecode.metrics import forecast
    from raydecode.models.memory import peak_bytes

    choice = choose(job)
    job = job.model_copy(update={"engine": job.engine.model_copy(update={"name": choice.name, "dtype": choice.dtype})})
    storage = open_storage(job.output.path)
    prepare(storage)
    total, requests, faults = sample(job)
    if not requests:
        (kind, n), *_ = Counter(faults).most_common(1)
        raise UserError(f"all {n} sampled rows fail: {kind}", field="input.path", value=list(job.input.path))
    err.print(f"calibrating on {len(requests)} rows, at most {seconds:.0f} s", style="dim")
    began = time.monotonic()
    engine = build_engine(job)
    startup_s = time.monotonic() - began + RAY_START_S
    lengths, rates, failed = calibrate(engine, requests, seconds, job.engine.slots)
    if not lengths:
        raise UserError(f"no token in {seconds:.0f} s", field="--seconds", value=seconds, hint="allow more time")
    faults += failed
    shares = Counter(faults)
    sampled = len(requests) + len(faults) - len(failed)
    plan = forecast(
        rows=round(total),
        failing_share=len(faults) / sampled,
        lengths=lengths,
        rates=rates,
        startup_s=startup_s,
        memory_bytes=peak_bytes(),
        limit=max(request.decoding.n * request.decoding.max_tokens for request in requests),
        actors=job.actors.max,
        price=job.price.model_dump() if job.price else None,
    ).to_json()
    plan["failing_kinds"] = {kind: round(total * n / sampled) for kind, n in shares.most_common(10)}
    plan["engine"] = choice.name
    plan["drafting"] = getattr(engine, "drafting", None)
    data = json.dumps({"plan": plan, "job": job.identity()}, indent=1).encode()
    storage.remove("_plan.json")
    storage.write("_plan.json", data)
    return plan


def sample(job: Any, rows: int = SAMPLE_ROWS) -> tuple[float, list[Request], list[str]]:
    """(rows of the corpus, requests of a sample, kinds of error of sampled rows that never reach an engine)."""
    from actors.prepare import Prepare, read_ready
    from actors.rows import Requests
    from raydecode.corpus.inputs import discover, needs_staging, open_corpus, plan_units, stage
    from raydecode.corpus.intervals import Cover
    from raydecode.corpus.rows import block_errors

    format = None if job.input.format == "auto" else job.input.format
    files = discover(job.input.path, format=format, output=job.output.path)
    with tempfile.TemporaryDirectory(prefix="raydecode-plan-") as folder:
        staged = [stage(one, folder) if needs_staging(one) else one for one in files]
        corpus = open_corpus(staged, id=job.input.id, root=folder)
        total = sum(corpus.rows_in(file.span) for file in corpus.files)
        units = plan_units(corpus, Cover(), block_rows=max(1, min(8, round(total / 32) or 1)))
        prepare, make_requests = Prepare(job.prompt.section(corpus.format), corpus.schema.names), Requests(job)
        requests: list[Request] = []
        faults: list[str] = []
        for unit in _spread(units, rows):
            block = prepare(next(table for _, table in read_ready(corpus, [unit])))
            errors = block_errors(block)
            for error, (_, made) in zip(errors, make_requests.of(block), strict=True):
                if error is not None:
                    faults.append(f"{error.stage}: {error.type}")
                elif isinstance(made, Request):
                    requests.append(made)
                else:
                    faults.append(f"{made.stage}: {made.type}")
            if len(requests) + len(faults) >= rows:
                break
    return total, requests, faults


def calibrate(
    engine: Any, requests: Sequence[Request], seconds: float, slots: int
) -> tuple[list[tuple[float, float]], list[float], list[str]]:
    """(output tokens of each row at least and at most, all samples; tokens/s of stretches; kinds of errors)."""
    waiting = list(reversed(requests))
    held: dict[str, tuple[Request, int]] = {}  # running: the request, samples that have not ended
    lengths: Counter[str] = Counter()
    failed: list[str] = []
    begin = time.monotonic()
    marks = [(begin, 0)]
    tokens = 0
    while (waiting or held) and time.monotonic() - begin < seconds:
        while waiting and sum(n for _, n in held.values()) < slots:
            request = waiting.pop()
            held[request.id] = (request, request.decoding.n)
            engine.submit(request)
        engine.wait(0.5)
        for event in engine.step():
            id = event.row.request
            match event:
                case TokenEvent():
                    tokens += 1
                    lengths[id] += 1
                case OutcomeEvent() if id in held:
                    request, left = held.pop(id)
                    if event.error:
                        failed.append(f"{event.error.stage}: {event.error.kind}")
                        del lengths[id]
                    elif left > 1:
                        held[id] = (request, left - 1)
        if (
            waiting or sum(n for _, n in held.values()) >= slots / 2
        ):  # an engine that runs dry says nothing of a full one
            marks.append((time.monotonic(), tokens))
    for id in held:
        engine.cancel(id)
    limits = {id: request.decoding.n * request.decoding.max_tokens for id, (request, _) in held.items()}
    known = [(float(n), float(limits.get(id, n))) for id, n in lengths.items()]
    return known, _rates(marks, tokens, begin), failed


def _rates(marks: Sequence[tuple[float, int]], tokens: int, begin: float) -> list[float]:
    """tokens/s of STRETCHES equal stretches of time, the first tenth (kernels warm up, prompts are read) left out."""
    start, end = marks[0][0], marks[-1][0]
    start += 0.1 * (end - start)
    kept = [mark for mark in marks if mark[0] >= start]
    if len(kept) < 2 * STRETCHES:
        return [tokens / max(time.monotonic() - begin, 1e-9)]
    size = len(kept) // STRETCHES
    cuts = [*kept[::size][:STRETCHES], kept[-1]]
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(cuts) if b[0] > a[0]]
    return [rate for rate in rates if rate > 0] or [tokens / max(time.monotonic() - begin, 1e-9)]


def _spread(units: Sequence[Any], rows: int) -> list[Any]:
    """At most `rows` units, evenly over the input, in a fixed random order, so that an early stop is still spread."""
    step = max(1, len(units) // rows)
    chosen = list(units[::step])
    random.Random(0).shuffle(chosen)
    return chosen


def _show(plan: dict[str, Any], job: Any) -> None:
    def between(low: float, high: float, form: Any) -> str:
        return f"[dim]({form(low)} to {form(high)})[/dim]"

    out.print(
        f"rows      about {count(plan['rows'])}; calibrated on {plan['sampled_rows']} with the {plan['engine']} engine"
    )
    tokens = between(plan["output_tokens_low"], plan["output_tokens_high"], count)
    out.print(f"tokens    {count(plan['output_tokens'])} {tokens}")
    actors = f"{plan['actors']} actor{'s' if plan['actors'] > 1 else ''}"
    out.print(
        f"speed     {count(plan['tokens_per_s'])} tokens/s with {actors}"
        + (" if the machine has room for all" if plan["actors"] > 1 else "")
    )
    out.print(f"time      {span(plan['seconds'])} {between(plan['seconds_low'], plan['seconds_high'], span)}")
    out.print(f"memory    {plan['memory_bytes'] / 2**30:.1f} GiB per actor")
    if plan["cost"] is not None:
        cost = between(plan["cost_low"], plan["cost_high"], lambda x: f"{x:.3g}")
        out.print(f"cost      {plan['cost']:.3g} {plan['currency']} {cost}")
    else:
        out.print("cost      no price given: price.per_hour=1.2 price.currency=EUR", style="dim")
    if plan.get("drafting"):
        out.print(f"drafting  {plan['drafting']}", markup=False)
    if plan["failing_kinds"]:
        out.print(f"failing   about {count(plan['failing_rows'])} rows")
        for kind, n in plan["failing_kinds"].items():
            out.print(f"          {count(n)}  {kind}", markup=False)
    else:
        out.print("failing   none of the sampled rows")
    out.print(f"[dim]intervals hold about 80 %; the report of {job.output.path} will put the fact beside this[/dim]")
