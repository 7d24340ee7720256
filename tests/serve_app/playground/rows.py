"""A finished job of the toy engine, and one of its rows as `raydecode explain --json` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.report import write_report
from raydecode.cli.explain import trace
from raydecode.corpus.storage import open_storage
from tests.actors.local import LocalJob, job_of

DECODING = {
    "max_tokens": 30,
    "seed": 9,
    "ignore_eos": True,
    "sampler": [{"name": "temperature", "value": 0.8}],
    "drafter": "token_recycling",
}


def explained(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file, and what is in it."""
    rows = [{"name": f"r{i}", "prompt": "ab(a)" * (i + 1)} for i in range(3)]
    job = job_of(folder, rows, decoding=DECODING)
    LocalJob(job).run(1)
    write_report(open_storage(job.output.path), {"job": job.to_json()})
    found = trace(job.output.path, "r1")
    file = folder / "row.json"
    file.write_text(json.dumps(found))
    return file, found
