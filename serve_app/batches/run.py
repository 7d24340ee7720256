"""One batch, from the file to its results: validating -> in progress -> finalizing -> an end.

    survey the file       input.survey            record `started`, or `ended` as failed
    generate              LedgerActor + GenerationActor (actors/), rows and commit log in rows/<id>/
    write the results     results.write           record `finalizing`, then `ended`

Each step may be interrupted anywhere and is done again from the records and the log: a line that was committed is not
run again, and the result files keep their names.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from actors.generation import GenerationActor
from actors.ledger import Block, LedgerActor
from actors.prepare import read_ready
from raydecode.config import JobConfig
from raydecode.corpus.history import replay
from raydecode.corpus.inputs import Corpus, discover, group_reads, open_corpus, plan_units
from raydecode.corpus.intervals import Span
from raydecode.corpus.messages import Limits
from raydecode.corpus.owner import Owner
from raydecode.corpus.records import State, schema_from_text, schema_to_text
from raydecode.corpus.storage import Storage, open_storage
from raydecode.errors import JobError, RowError
from serve_app.batches import results
from serve_app.batches.files import FileStore, new_file_id
from serve_app.batches.input import BatchLine, Ready, Survey, survey
from serve_app.batches.proxy import Answered, GatewayEngine
from serve_app.batches.records import Batch, BatchStore

NEVER = 10 * 365 * 86400.0
PATIENT = Limits(stall_s=NEVER, first_step_s=NEVER, idle_s=NEVER, start_s=NEVER)
"""A batch that waits for interactive requests is no stall; its completion window bounds it."""

ENDS = ("cancelled", "expired", "shutdown")
"""Why a batch is ended from outside; the last leaves it for the next start."""

AnswerOf = Callable[[Batch, BatchLine], Awaitable[Answered]]
"""Answers a line of a batch as its endpoint would."""


@dataclass(frozen=True, slots=True)
class Settings:
    """slots: lines of a batch that are asked at once;  lines: most of a file;  flush_s: between commits;
    keep_rows: the Parquet rows and the log stay behind the end;  keep_s: how long files stay;
    body_bytes: most of a line's body"""

    slots: int = 64
    lines: int = 50_000
    flush_s: float = 10.0
    keep_rows: bool = False
    keep_s: int | None = None
    body_bytes: int | None = None


class Run:
    """Call it in a thread of its own; `end` from any other."""

    def __init__(
        self, batch: Batch, files: FileStore, batches: BatchStore, answer: AnswerOf,
        loop: asyncio.AbstractEventLoop, settings: Settings,
    ) -> None:  # fmt: skip
        self.batch, self._files, self._batches = batch, files, batches
        self._answer, self._loop, self._settings = answer, loop, settings
        self._lock = threading.Lock()
        self._why: str | None = None
        self._ledger: LedgerActor | None = None
        self._proxy: GatewayEngine | None = None

    def end(self, why: str) -> None:
        """Let go of what runs and keep what is finished. why: one of ENDS."""
        with self._lock:
            self._why = self._why or why
            if self._ledger is not None:
                self._ledger.end(self._why)
            if self._proxy is not None:
                self._proxy.close()

    def __call__(self) -> None:
        """Raises what kept it from going on: UserError when another server has this batch, JobError and OSError of the
        storage."""
        now = self._batches.get(self.batch.id)  # another server may have come first since this one looked
        if now is None or now.ended is not None:
            return None
        if now.finalizing is None:
            if self._files.get(self.batch.created["input_file_id"], expired=True) is None:
                return self._fail("file_not_found", "the input file is gone", param="input_file_id")
            try:
                found = survey(self._path, self._settings.lines)
            except RowError as error:
                return self._fail(error.kind, error.message, line=self._settings.lines + 1)
            if not found.total:
                return self._fail("empty_file", "the input file has no line", param="input_file_id")
            self._batches.put(self.batch.id, "started", total=found.total, model=found.model)
            why = self._generate(found)
            if why == "shutdown":
                return None
            self._batches.put(
                self.batch.id, "finalizing", why=why, output_file_id=new_file_id(), error_file_id=new_file_id()
            )
        self._finalize()
        return None

    @property
    def _path(self) -> str:
        return self._files.path(self.batch.created["input_file_id"])

    def _generate(self, found: Survey) -> str:
        """Run what the log does not have yet. Returns "completed", or why it was ended."""
        storage = open_storage(self._batches.rows(self.batch.id))
        state = replay(storage)
        if state.summary is not None:
            return "completed"
        files = discover(self._path, format="text", known=state.inputs, done=state.done)
        schema = schema_from_text(state.schema) if state.schema else None
        corpus = open_corpus(files, root=storage.url, schema=schema)
        ready = Ready(self.batch.created["endpoint"], found.repeats, self._settings.body_bytes)
        proxy = GatewayEngine(self.batch.created["endpoint"], partial(self._answer, self.batch), self._loop)
        ledger = LedgerActor(storage.url, corpus, partial(_blocks, ready), _units, PATIENT, exit=_stay)
        opened = ledger.open({"batch": self.batch.id, "format": 1}, schema_to_text(corpus.schema), Owner.me())
        if (now := self._batches.get(self.batch.id)) is None or now.finalizing is not None:
            ledger.close()  # another server was done meanwhile, and may have taken the old log away
            if now is None or now.ended is not None:
                self._clear(storage)
            return "completed"
        worker = GenerationActor(
            f"{opened.attempt}.1", self._job(storage.url).to_json(), corpus, storage.url, opened.attempt, prepare=ready,
            build=lambda job: proxy, ledger=lambda method, *said: getattr(ledger, method)(*said), fetch=_same,
        )  # fmt: skip
        try:
            with self._lock:
                self._ledger, self._proxy = ledger, proxy
                if self._why is not None:
                    ledger.end(self._why)
            ledger.introduce(worker.start())
            reason = worker.run()
        finally:
            with self._lock:
                self._ledger = self._proxy = None
            proxy.close()
            worker.close()
            with contextlib.suppress(Exception):  # fenced, or a dead storage: nothing to close
                ledger.close()
        if reason not in ("finished", *ENDS):
            raise JobError(f"{storage.url}: {reason}")
        return "completed" if reason == "finished" else reason

    def _job(self, url: str) -> JobConfig:
        """What a generation actor asks of a job."""
        return JobConfig.model_validate(
            {
                "model": "gateway",
                "engine": {"slots": self._settings.slots},
                "input": {"path": self._path, "format": "text"},
                "output": {"path": url, "columns": ["text", "output_tokens", "finished_at"],
                           "flush_s": self._settings.flush_s},
            }
        )  # fmt: skip

    def _finalize(self) -> None:
        """Any number of servers may do this at once: names and contents are the same, the first records hold."""
        now = self._batches.get(self.batch.id)
        assert now is not None
        assert now.finalizing is not None
        if self._over():
            return
        said, rows = now.finalizing, open_storage(self._batches.rows(self.batch.id))
        ids = {False: said["output_file_id"], True: said["error_file_id"]}
        expires = now.created.get("output_expires_after_s") or self._settings.keep_s
        try:
            tally, output, errors = results.write(
                self._files, self.batch.id, self._path, rows, said["why"], ids=ids, owner=now.created["owner"],
                at=said["at"], expires_after_s=expires, over=self._over,
            )  # fmt: skip
        except Exception:
            if self._over():  # rows went while they were read: the other's files have them
                return
            raise
        self._batches.put(
            self.batch.id, "ended", status=said["why"], output_file_id=output, error_file_id=errors,
            counts=tally.counts(), usage=tally.usage_json(),
        )  # fmt: skip
        self._clear(rows)

    def _clear(self, rows: Storage) -> None:
        if not self._settings.keep_rows:
            with contextlib.suppress(OSError):  # the results have them
                for path in rows.list(""):
                    rows.remove(path)

    def _over(self) -> bool:
        now = self._batches.get(self.batch.id)
        return now is None or now.ended is not None

    def _fail(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        errors = [{"code": code, "message": message, "line": line, "param": param}]
        self._batches.put(self.batch.id, "ended", status="failed", errors=errors)


def _units(corpus: Corpus, state: State) -> list[Span]:
    return plan_units(corpus, state.done)


def _blocks(ready: Ready, corpus: Corpus, units: Sequence[Span]) -> Iterator[Block]:
    """The reading side, in the ledger's own thread: a file of a batch is small."""
    for lot in group_reads(corpus, units):
        for unit, block in read_ready(corpus, lot):
            yield Block(ready(block), [unit], block.nbytes)


def _same(block: Any) -> Any:
    return block


def _stay(code: int) -> None:
    """A ledger that was fenced off ends its process; this one has other work."""
