"""A whole job in one process: the real ledger actor, generation actors on threads, the toy engine; no cluster."""

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq

from actors.generation import GenerationActor
from actors.ledger import Block, LedgerActor
from actors.prepare import Prepare, read_ready
from raydecode.config import JobConfig
from raydecode.corpus.history import replay
from raydecode.corpus.inputs import discover, group_reads, open_corpus, plan_units
from raydecode.corpus.messages import Limits
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import schema_to_text
from raydecode.corpus.storage import open_storage
from raydecode.engine.toy import ToyEngine

LETTERS = "ab()"


def prompts(n: int) -> list[dict]:
    return [{"name": f"r{i}", "prompt": "".join(LETTERS[(i >> s) & 3] for s in (0, 2, 4, 6))} for i in range(n)]


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def job_of(folder: Path, rows: list[dict] | str, **sections) -> JobConfig:
    path = rows if isinstance(rows, str) else write_jsonl(folder / "in.jsonl", rows)
    job = {
        "model": "toy",
        "engine": {"name": "toy", "dtype": "float32", "slots": 4},
        "input": {"path": path, "id": "name"},
        "decoding": {"max_tokens": 12, "seed": 3},
        "output": {"path": str(folder / "out")},
    }
    for name, keys in sections.items():
        job[name] = {**job[name], **keys} if isinstance(job.get(name), dict) else keys
    return JobConfig.model_validate(job)


def toy(job: JobConfig) -> ToyEngine:
    return ToyEngine(slots=job.engine.slots, **job.engine.options)


def rows_of(job: JobConfig) -> list[dict]:
    """The output, sorted by id and sample."""
    files = sorted(Path(job.output.path).glob("part-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: (row["id"], row["sample"]))


class LocalJob:
    """ledger: the LedgerActor of a new attempt; `worker()` makes generation actors that talk to it."""

    def __init__(self, job: JobConfig, *, limits: Limits | None = None, blocks=None, exit=lambda code: None, actors=1):
        self.job = job
        storage = open_storage(job.output.path)
        state = replay(storage)
        files = discover(job.input.path, known=state.inputs, done=state.done)
        self.corpus = open_corpus(files, id=job.input.id, root=storage.url)
        self.prepare = Prepare(job.prompt.section(self.corpus.format), self.corpus.schema.names)
        self.read: list = []
        plan = lambda corpus, state: plan_units(corpus, state.done, max_actors=actors)  # noqa: E731
        self.ledger = LedgerActor(storage.url, self.corpus, blocks or self.blocks, plan, limits or Limits(), exit)
        self.opened = self.ledger.open(job.identity(), schema_to_text(self.corpus.schema), Owner.me())

    def blocks(self, corpus, units):
        for lot in group_reads(corpus, units):
            for unit, block in read_ready(corpus, lot):
                self.read.append(unit)
                yield Block(self.prepare(block), [unit], block.nbytes)

    def call(self, method, *arguments):
        return getattr(self.ledger, method)(*arguments)

    def worker(self, name: str, *, build=toy, fetch=lambda block: block, spare=False) -> GenerationActor:
        url = open_storage(self.job.output.path).url
        return GenerationActor(
            name, self.job.to_json(), self.corpus, url, self.opened.attempt,
            prepare=self.prepare, build=build, ledger=self.call, fetch=fetch, spare=spare,
        )  # fmt: skip

    def until(self, rows: int, name: str = "w0") -> int:
        """Run one worker until so many rows are committed, then drain it: the order comes with the commit's answer, so
        a busy machine changes nothing. Returns the rows committed when it has left."""
        worker = self.worker(name)

        def call(method, *arguments):
            answer = self.call(method, *arguments)
            if method == "commit" and replay(open_storage(self.job.output.path)).rows >= rows:
                self.ledger.drain(name)
            return answer

        worker._ledger = call
        worker.start()
        assert worker.run() == "drain"
        return replay(open_storage(self.job.output.path)).rows

    def run(self, workers: int = 1, **options) -> list[str]:
        """Reasons the workers left for."""
        reasons: list[str] = []
        team = [self.worker(f"w{i}", **options) for i in range(workers)]
        for one in team:
            one.start()
        threads = [threading.Thread(target=lambda one=one: reasons.append(one.run())) for one in team]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(reasons) == workers, "a worker failed or did not end"
        return reasons
