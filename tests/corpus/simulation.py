"""A simulated cluster around a real `Ledger` and a real `Log` on a disk in memory: one tick = one engine step.

Workers admit rows into slots, run them for their lengths, buffer, commit; messages are delayed, doubled or delivered
after their sender's death; workers die for every cause, rows kill engines, blocks are lost, the feeder breaks, the
whole driver is killed and started again. The simulation itself checks that no row is with two living workers.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from raydecode.corpus.intervals import Cover, Span
from raydecode.corpus.ledger import Ledger
from raydecode.corpus.messages import Kill, Lease, Limits, Refused, Stop, Suspects
from raydecode.corpus.records import InputFile, PartMeta
from raydecode.corpus.storage import LocalStorage
from tests.corpus.power_loss import PowerLossDisk
from tests.corpus.small_job import open_log


@dataclass
class World:
    """rows: length of each row in steps. poison: rows that kill their engine a few steps after they start."""

    rows: list[int]
    slots: int = 4
    workers: int = 2
    unit: int = 8
    poison: frozenset[int] = frozenset()
    poison_at_once: bool = False
    death: float = 0.0  # chance per worker and tick
    delay: int = 0  # longest delay of an answer, in ticks
    double: float = 0.0  # chance that a message comes twice
    lose_block: float = 0.0
    feeder_breaks: float = 0.0
    driver_kill: float = 0.0
    scale: float = 0.0  # chance per tick that a worker is drained or added
    stuck: float = 0.0  # chance that a started row hangs its engine (the watchdog must find it)
    sick_engine: bool = False  # every engine dies at its first step
    flush: int = 6
    start_delay: int = 3
    limits: Limits = field(
        default_factory=lambda: Limits(stall_s=30, first_step_s=30, stall_steps=1, idle_s=2000, start_s=2000)
    )
    max_ticks: int = 60_000


@dataclass
class Worker:
    name: str
    queue: deque = field(default_factory=deque)
    slots: dict = field(default_factory=dict)  # row -> steps left
    age: dict = field(default_factory=dict)
    buffer: list = field(default_factory=list)
    gaps: list = field(default_factory=list)
    ticket: int = 0
    asking: int | None = None  # tick when the answer to `next` arrives
    answer: object = None
    group: Suspects | None = None
    stop: str | None = None
    tokens: int = 0
    hung: bool = False
    errors: list = field(default_factory=list)

    @property
    def holds(self):
        return {*self.queue, *self.slots, *(row for row, _ in self.buffer)}


class Simulation:
    def __init__(self, world: World, seed: int) -> None:
        self.world, self.rng, self.now = world, random.Random(seed), 0.0
        self.disk = PowerLossDisk()
        self.storage = LocalStorage("/out", self.disk)
        self.runs = self.deaths = self.restarts = self.busy = 0
        self.outcome: dict[int, str] = {}
        self.names = 0
        self.unlucky: set[int] = set()  # alone in an engine that died of something else
        self.start()

    def start(self) -> None:
        n = len(self.world.rows)
        self.log = open_log(self.storage, inputs=[InputFile(0, "in", "parquet", 1, "s", n)], now=lambda: self.now)
        missing = self.log.state.done.missing(Span(0, 0, n))
        self.planned = planned = [
            Span(0, a, min(a + self.world.unit, m.stop))
            for m in missing
            for a in range(m.start, m.stop, self.world.unit)
        ]
        self.ledger = Ledger(self.log, planned, lambda: self.now, self.world.limits)
        self.feed = deque(planned)
        self.workers: dict[str, Worker] = {}
        self.starting = [self.now + self.rng.randrange(self.world.start_delay + 1) for _ in range(self.world.workers)]
        self.target = self.world.workers

    def run(self) -> str:
        """Until the ledger says it has ended; its reason."""
        while self.now < self.world.max_ticks:
            self.now += 1
            if self.world.driver_kill and self.rng.random() < self.world.driver_kill and self.restarts < 3:
                self.restarts += 1
                self.disk.crash(self.rng.choice(["kept", "lost", "mixed"]), self.rng)
                self.start()
            self.tick()
            ended = self.ledger.ended
            if ended is not None:
                return ended
        raise AssertionError(f"no end after {self.now} ticks: {self.ledger.progress()}")

    def tick(self) -> None:
        world, rng = self.world, self.rng
        while self.ledger.hungry() and self.feed and rng.random() < 0.9:
            unit = self.feed.popleft()
            if rng.random() >= world.lose_block:
                self.ledger.offer(("block", unit), unit)
                if rng.random() < world.double:
                    self.ledger.offer(("block", unit), unit)
        if not self.feed or rng.random() < world.feeder_breaks:
            self.feed.clear()
            self.ledger.end_of_input()
        for due in [t for t in self.starting if t <= self.now]:
            self.starting.remove(due)
            self.names += 1
            self.workers[f"w{self.names}"] = Worker(f"w{self.names}")
        if world.scale and rng.random() < world.scale:
            if self.target > 1 and rng.random() < 0.5 and self.workers:
                self.target -= 1
                self.ledger.drain(rng.choice(sorted(self.workers)))
            elif self.target < 4:
                self.target += 1
                self.starting.append(self.now + world.start_delay)
        for worker in list(self.workers.values()):
            if worker.name in self.workers:
                self.step(worker)
        for action in self.ledger.tick():
            if isinstance(action, Kill) and action.worker in self.workers:
                self.die(self.workers[action.worker], "watchdog")
        held = [row for worker in self.workers.values() for row in worker.holds]
        assert len(held) == len(set(held)), f"a row is with two workers: {sorted(held)}"

    def step(self, me: Worker) -> None:
        world, rng = self.world, self.rng
        if rng.random() < world.death:
            if len(me.slots) == 1:
                self.unlucky |= me.slots.keys()
            self.die(me, rng.choice(["crash", "crash", "node_loss", "memory"]))
            return
        if me.hung:
            return
        self.receive(me)
        if me.name not in self.workers:
            return
        self.admit(me)
        if world.sick_engine and me.slots:
            self.die(me, "crash")
            return
        for row in me.slots:
            me.age[row] = me.age.get(row, 0) + 1
            if row in world.poison and (world.poison_at_once or me.age[row] > row % 3):
                self.die(me, "crash")
                return
            if world.stuck and rng.random() < world.stuck:
                me.hung = True
                return
        done = []
        for row in list(me.slots):
            me.slots[row] -= 1
            me.tokens += 1
            self.busy += 1
            if me.slots[row] <= 0:
                del me.slots[row]
                me.buffer.append((row, "text"))
                done.append(Span(0, row, row + 1))
        if done:
            self.send(lambda: self.ledger.finished(me.name, done))
        idle = not me.queue and not me.slots
        if len(me.buffer) >= world.flush or (idle and (me.buffer or me.gaps)):
            self.flush(me)
            if me.name not in self.workers:
                return
        orders = self.ledger.beat(me.name, me.tokens, len(me.queue), 1.0)
        if orders.give_back:
            back = [me.queue.pop() for _ in range(min(orders.give_back, len(me.queue)))]
            self.ledger.returned(me.name, [Span(0, row, row + 1) for row in back])
        if idle and not me.buffer and me.stop is not None:
            del self.workers[me.name]
            if me.stop == "drain":
                self.ledger.leave(me.name)
            return
        if me.group is not None and not me.group.rows and idle and not me.buffer:
            me.group = None
        if me.asking is None and me.stop is None and len(me.queue) < world.slots and me.group is None:
            self.ask(me)

    def admit(self, me: Worker) -> None:
        new = []
        if me.group is not None and me.group.rows:
            if me.slots or me.queue:
                self._fill(me, new)
                self._announce(me, new)
                return
            self.flush(me)
            if me.group.probe:
                if self.world.sick_engine:
                    self.die(me, "crash")
                    return
                self.ledger.probed(me.name, me.group.group)
            me.queue.extend(span.start for span in me.group.rows)
            me.group = Suspects(me.group.group, (), me.group.probe, me.group.tries)
        self._fill(me, new)
        self._announce(me, new)

    def _fill(self, me: Worker, new: list) -> None:
        while me.queue and len(me.slots) < self.world.slots:
            row = me.queue.popleft()
            me.slots[row] = self.world.rows[row]
            new.append(row)

    def _announce(self, me: Worker, new: list) -> None:
        if new:
            self.runs += len(new)
            self.send(lambda: self.ledger.started(me.name, [Span(0, row, row + 1) for row in new]))

    def ask(self, me: Worker) -> None:
        me.ticket += 1
        me.answer = self.ledger.next(me.name, me.ticket)
        if self.rng.random() < self.world.double:
            assert self.ledger.next(me.name, me.ticket) == me.answer, "a doubled message got another answer"
        me.asking = int(self.now) + self.rng.randrange(self.world.delay + 1)

    def receive(self, me: Worker) -> None:
        if me.asking is None or me.asking > self.now:
            return
        me.asking = None
        match me.answer:
            case Lease(fault=fault, todo=todo) if fault is not None:
                me.buffer += [(row, "error") for span in todo for row in range(span.start, span.stop)]
                self.send(lambda: None)
            case Lease(todo=todo):
                me.queue.extend(row for span in todo for row in range(span.start, span.stop))
            case Suspects() as group:
                me.group = group
            case Stop(reason):
                me.stop = reason

    def flush(self, me: Worker) -> None:
        rows = sorted(row for row, _ in me.buffer)
        outcome = dict(me.buffer)
        me.buffer = []
        if not rows:
            return
        errors = sum(kind == "error" for kind in outcome.values())
        self.names += 1
        part = PartMeta(
            f"part-{self.log.attempt:06d}-{self.names:06d}.parquet",
            self.log.attempt,
            len(rows),
            len(rows),
            len(rows),
            len(rows),
            errors,
            1,
            "",
            "",
            Cover(Span(0, row, row + 1) for row in rows),
        )
        for source, _ in part.moves():
            self.storage.write(source, b"x")
        answer = self.ledger.commit(me.name, [part])
        if self.rng.random() < self.world.double:
            again = self.ledger.commit(me.name, [part])
            assert again == answer, "a doubled commit got another answer"
        assert not isinstance(answer, Refused), answer
        for row, kind in outcome.items():
            assert row not in self.outcome, f"row {row} was committed twice"
            self.outcome[row] = kind

    def die(self, me: Worker, cause: str) -> None:
        self.deaths += 1
        del self.workers[me.name]
        rows = [Span(0, row, row + 1) for row in me.slots]
        self.ledger.on_death(me.name, cause)
        if self.rng.random() < self.world.double:
            self.ledger.on_death(me.name, cause)
        self.late(me, rows)
        if len(self.workers) + len(self.starting) < self.target:
            self.starting.append(self.now + self.world.start_delay)

    def late(self, me: Worker, rows: list[Span]) -> None:
        """Messages of the dead that were on their way."""
        if self.rng.random() < 0.3:
            self.ledger.started(me.name, rows)
            self.ledger.finished(me.name, rows)
            self.ledger.returned(me.name, rows)
            assert isinstance(self.ledger.next(me.name, me.ticket + 1), Stop)
            if me.buffer:
                cover = Cover(Span(0, row, row + 1) for row, _ in me.buffer)
                part = PartMeta("part-late.parquet", self.log.attempt, len(me.buffer), 1, 1, 1, 0, 1, "", "", cover)
                assert isinstance(self.ledger.commit(me.name, [part]), Refused)

    def send(self, call) -> None:
        call()
        if self.rng.random() < self.world.double:
            call()


def ideal_span(rows: list[int], engines: int, slots: int) -> int:
    """Steps that `engines` need when every row waits at every engine: a free slot always takes the next row."""
    free = [0] * (engines * slots)
    for length in rows:
        at = free.index(min(free))
        free[at] += length
    return max(free)
