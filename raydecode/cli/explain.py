"""`raydecode explain`: one row again, from its seed, every step shown; is it equal to what is stored?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from raydecode.cli.terminal import out, print_json
from raydecode.errors import JobError, UserError, nearest
from raydecode.events import Event, OutcomeEvent, StepEvent, TokenEvent
from raydecode.request import Request

ALTERNATIVES = 5


def command(
    output: Annotated[str, typer.Argument(help="the folder named by output.path")],
    id: Annotated[str, typer.Option("--id", help="the row's id")],
    sample: Annotated[int, typer.Option("--sample", help="which of its samples")] = 0,
    model: Annotated[str | None, typer.Option("--model", help="where the model lies now, if it moved")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for pipes")] = False,
) -> int:
    """Regenerate one row of OUTPUT and trace it. Exit code 1 when the text differs from what is stored."""
    found = trace(output, id, sample, model)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0 if found["equal"] else 1


def trace(output: str, id: str, sample: int = 0, model: str | None = None) -> dict[str, Any]:
    """The stored row, the request it was made from, one entry per token, and the verdict.

    `trace` is what a stream of the server carries with `trace: true`: the playground draws the row from it.
    """
    from raydecode.config import decoding_json
    from raydecode.corpus.history import replay
    from raydecode.corpus.storage import open_storage

    storage = open_storage(output)
    job = _job_of(storage, model)
    table = _find(storage, id, sample)
    row = table.to_pylist()[0]
    if row["error"]:
        raise UserError(f"this row has no text, it failed: {row['error']['message']}", field="--id", value=id)
    request = _request(job, table, {file.format for file in replay(storage).inputs})
    shown = dataclasses.replace(request.decoding, logprobs=max(request.decoding.logprobs or 0, ALTERNATIVES))
    steps, outcome, why, seen = _run(job, dataclasses.replace(request, decoding=shown), sample)
    text = outcome.text.decode("utf-8", "replace")
    return {
        "id": id,
        "sample": sample,
        "noise_id": request.noise_id,
        "seed": request.decoding.seed,
        "engine": job.engine.name,
        "prompt": getattr(request.prompt, "text", None) or list(getattr(request.prompt, "messages", ())),
        "decoding": decoding_json(request.decoding),
        "steps": steps,
        "trace": seen,
        "drafting": {name: dataclasses.asdict(one) for name, one in outcome.stats.drafting.items()},
        "drafting_why": why,
        "finish_reason": outcome.reason,
        "text": text,
        "stored_text": row["text"],
        "equal": text == row["text"] and outcome.reason == row["finish_reason"],
        "first_difference": _first_difference(text, row["text"] or ""),
    }


def _job_of(storage: Any, model: str | None) -> Any:
    """The job that made the rows: from the report, else from the log; on the engine that ran it."""
    import json

    from raydecode.config import JobConfig
    from raydecode.corpus.history import made

    try:
        facts = json.loads(storage.read("report.json"))["facts"]
    except FileNotFoundError:
        facts = {}
    logged: Any = made(storage).job
    stored = facts.get("job") or logged
    prompt = {name: value for name, value in stored["prompt"].items() if name != "file_sha256"}
    stored = stored | {"prompt": prompt, "output": {"path": storage.url} | stored["output"]}
    if model:
        stored["model"]["source"] = model
    decided = {"name": logged["engine"]["name"], "dtype": logged["engine"]["dtype"]}  # the report may say auto
    stored["engine"] |= decided | {"slots": max(1, stored["decoding"]["n"])}
    return JobConfig.model_validate(stored)


def _find(storage: Any, id: str, sample: int) -> Any:
    """The row as a table of one row, by a filter over each part; the nearest id when there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from raydecode.corpus.history import parts_of, replay

    beside: list[str] = []
    for part in parts_of(storage, replay(storage).job_at):
        if not part.rows:
            continue
        table = pq.read_table(pa.BufferReader(storage.read(part.name)))
        rows = table.filter(pc.equal(table["id"], id))
        found = rows.filter(pc.equal(rows["sample"], sample))
        if found.num_rows:
            return found.slice(0, 1)
        if rows.num_rows:
            last = f"0 to {rows.num_rows - 1}"
            raise UserError(f"row {id!r} has samples {last}", field="--sample", value=sample)
        beside += table["id"].slice(0, max(0, 20_000 - len(beside))).to_pylist()
    raise UserError(f"no row {id!r}", field="--id", value=id, nearest=nearest(id, beside), hint="see the column `id`")


def _request(job: Any, row: Any, formats: set[str]) -> Any:
    """The request of the row: its input columns are all in the output, so the input file is not needed."""
    import pyarrow as pa

    from actors.prepare import Prepare
    from actors.rows import Requests, output_columns
    from raydecode.corpus.rows import BLOCK_FIELDS

    at = row.select(["id", "_input", "_key"]).to_pylist()[0]
    made = {"id", "sample", "error", "_input", "_key", *output_columns(job)}
    names = {name: name for name in row.column_names if name not in made}
    names |= {name: own for name in names if (own := name.removeprefix("input_")) in made and own != name}
    if job.input.id == "id":
        names["id"] = "id"
    internal = {"_input": at["_input"], "_key": at["_key"], "_end": at["_key"] + 1, "_id": at["id"], "_error": None}
    fields = [*BLOCK_FIELDS, *(row.schema.field(name).with_name(own) for name, own in names.items())]
    values = [pa.array([internal[field.name]], field.type) for field in BLOCK_FIELDS]
    block = pa.table([*values, *(row[name] for name in names)], schema=pa.schema(fields))
    section = job.prompt.section(formats.pop() if len(formats) == 1 else "auto")
    prepared = Prepare(section, list(names.values()))(block)
    ((_, request),) = Requests(job).of(prepared)
    if not isinstance(request, Request):
        raise UserError(f"the row does not render any more: {request.message}", field="--id", value=at["id"])
    return request


def _run(
    job: Any, request: Any, sample: int
) -> tuple[list[dict[str, Any]], OutcomeEvent, str | None, dict[str, Any]]:
    """The steps, the outcome, why drafters were chosen in this run, and the trace."""
    from raydecode.assemble import build_engine
    from serve_app.fold import Sample, named

    engine: Any = build_engine(job, stream=True)
    refused = engine.refuse(request.decoding)
    if refused:
        raise refused
    engine.submit(request)
    spell = _spelling(engine)
    steps: list[dict[str, Any]] = []
    own: list[Event] = []
    forwards = 0
    while engine.busy:
        engine.wait(1.0)
        for event in engine.step():
            own += [event] if event.row.sample == sample else []
            match event:
                case TokenEvent() if event.row.sample == sample:
                    steps.append({
                        "t": event.t,
                        "token": event.token,
                        "text": event.bytes.decode("utf-8", "backslashreplace"),
                        "logp": event.logp,
                        "source": event.source,
                        "kept_nats": event.kept,
                        "alternatives": [{"token": id, "text": spell(id), "logp": logp} for id, logp in event.top],
                    })  # fmt: skip
                case StepEvent() if event.row.sample == sample and event.emitted:
                    forwards += 1
                    for depth, step in enumerate(steps[event.t0 :]):
                        accepted = depth < len(event.path) - 1  # the last token of a step is the model's own
                        step |= {"forward": forwards, "drafted_by": event.drafter if accepted else None}
                case OutcomeEvent() if event.row.sample == sample:
                    if event.error:
                        raise UserError(
                            f"the row fails now: {event.error.message}", field="--id", value=request.noise_id
                        )
                    seen = Sample(scored=False, trace=True).take(own).trace or {"tokens": (), "steps": ()}
                    return steps, event, getattr(engine, "drafting", None), named(seen, engine.token_bytes)
    raise JobError("the engine stopped without an outcome")


def _spelling(engine: Any) -> Any:
    """id -> text, where the engine says its vocabulary."""
    vocabulary = getattr(getattr(engine, "lane", None), "token_bytes", None)
    if vocabulary is None:
        return lambda id: None
    return lambda id: vocabulary[id].decode("utf-8", "backslashreplace") if id < len(vocabulary) else None


def _first_difference(a: str, b: str) -> int | None:
    if a == b:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _show(found: Mapping[str, Any]) -> None:
    out.print(f"seed {found['seed']}, noise of row {found['noise_id']!r}, sample {found['sample']}", markup=False)
    out.print(f"   t  {'token':<16}  {'logp':>8}  source   the {ALTERNATIVES} likeliest of the raw model", style="dim")
    for step in found["steps"]:
        logp = "" if step["logp"] is None else f"{step['logp']:.3f}"
        others = "  ".join(f"{_quoted(o['text'], o['token'])} {o['logp']:.2f}" for o in step["alternatives"])
        own = f"{step['t']:>4}  {_quoted(step['text'], step['token']):<16}  {logp:>8}  {step['source']:<8} "
        out.print(own, markup=False, end="")
        out.print(others, style="dim", markup=False)
    for name, one in found["drafting"].items():
        if one["forwards"]:
            kept = f", {one['accepted']} of {one['drafted']} drafted kept" if one["drafted"] else ""
            out.print(f"drafter {name}: {one['tokens']} tokens in {one['forwards']} forwards{kept}", style="dim")
    if found["drafting_why"]:
        out.print(found["drafting_why"], style="dim", markup=False)
    out.print(f"\n{found['text']}\n", markup=False)
    if found["equal"]:
        out.print("[green]equal to the stored text[/green]")
    else:
        out.print(f"[red]differs from the stored text[/red] at character {found['first_difference']}; stored:")
        out.print(str(found["stored_text"]), markup=False)


def _quoted(text: str | None, token: int) -> str:
    return repr(text) if text else f"<{token}>"
