"""The corpus as a stream of block references: Ray Data reads, parses and renders; nobody pulls a row here.

    lots of units -> read_datasource(Lots) -> map_batches(prepare) -> Block (reference, units, bytes), as they complete

A block is transport, not a barrier: a lot, up to 8,192 rows and 8 MiB of one file, read and rendered by one task. Its
units (a thousand rows, single ones at the end of a job) are leased one by one, each with the reference to the whole.
Which lot a block is travels in its Arrow schema, which Ray hands on with the reference: the bytes stay where they are.

Bounded: what is being read or lies unclaimed is at most `ahead` blocks and about `ahead_bytes`, whatever the size of
the corpus. (Ray's own limits are shares of the object store: 100,000s of small rows before the readers stop.) A lot's
bytes are foreseen from heads and footers; one that turns out larger is cut at `MOST_BYTES`: the units beyond are not
in its block, and the actors that lease them read them, each its own.
Cost [2 cores, Ray 2.60]: 2-4 s from nothing to the first block; then 68 us a row with an engine that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actors.ledger import Block
from pipelines.lone_node import lean_data
from raydecode.corpus.inputs import TASK_BYTES
from raydecode.corpus.intervals import Span

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset

LOT = b"raydecode.lot"
MOST_BYTES = 4 * TASK_BYTES


Read = Callable[[], Iterator[tuple[Span, pa.Table]]]


def stream(
    lots: Sequence[Sequence[Span]],
    reads: Sequence[Read],
    prepare: Callable[[pa.Table], pa.Table],
    *,
    ahead: int,
    ahead_bytes: int,
    cpus: float = 0.5,
    lone: bool = False,
) -> Iterator[Block]:
    """Read `lots` anywhere in the cluster; yield each one's block as it becomes ready.

    reads:          one per lot, picklable and small, for each travels with its own task
    reads, prepare: they turn what a file holds into rows and errors, and never raise for it
    ahead, ahead_bytes: blocks, and their bytes, in work or waiting for a taker; the readers stop beyond
    cpus:           CPUs per task; a half, so that one- and two-core machines read while something else runs
    lone:           on a local Ray: start nothing that only a cluster needs (lone_node.py)
    Raises what Ray Data raises when a task is lost for good: the caller goes on without references.
    """
    if not lots:
        return
    import ray
    from ray.data import read_datasource

    with lean_data(ray) if lone else nullcontext():
        rows = read_datasource(_lots(reads), override_num_blocks=len(lots), num_cpus=cpus)
        dataset = rows.map_batches(_keeping_label(prepare), batch_size=None, batch_format="pyarrow", num_cpus=cpus)
        for ref, number, size_bytes in _references(dataset, ahead, ahead_bytes):
            yield Block(ref, lots[number], size_bytes)


def label(block: pa.Table, lot: int) -> pa.Table:
    """The block with its lot's number written into the schema."""
    return block.replace_schema_metadata({**(block.schema.metadata or {}), LOT: str(lot).encode()})


def lot_of(schema: pa.Schema) -> int | None:
    """The number that `label` wrote, or None."""
    text = (schema.metadata or {}).get(LOT)
    return int(text) if text else None


def _lots(reads: Sequence[Read]) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def task(number: int, read: Read) -> ReadTask:
        def block() -> list[pa.Table]:
            return [label(pa.concat_tables(_bounded(read())), number)]

        return ReadTask(block, BlockMetadata(None, None, None, None))

    class Lots(Datasource):
        """One read task per lot."""

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return [task(*one) for one in enumerate(reads)]

    return Lots()


def _bounded(units: Iterator[tuple[Span, pa.Table]]) -> Iterator[pa.Table]:
    """The units' tables, up to the one that makes MOST_BYTES full."""
    size = 0
    for _, table in units:
        yield table
        size += table.nbytes
        if size >= MOST_BYTES:
            return


def _keeping_label(prepare: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    def prepare_block(block: pa.Table) -> pa.Table:
        lot = lot_of(block.schema)
        return prepare(block) if lot is None else label(prepare(block), lot)

    return prepare_block


def _references(dataset: Dataset, ahead: int, ahead_bytes: int) -> Iterator[tuple[ObjectRef, int, int]]:
    """(reference, lot, bytes). With lone_node.py the one place that touches Ray Data's internals;
    tests/pipelines/test_blocks.py is the contract of both.

    Uses `iter_internal_ref_bundles` (references without bytes), the bundles' schemas and sizes, block splitting (off:
    a lot stays one block) and a back-pressure policy that counts blocks and bytes.
    """
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy as policies

    class Ahead(policies.BackpressurePolicy):
        """No new task while `ahead` blocks, or `ahead_bytes`, are in work or waiting. A task in work counts as the
        mean block so far, before the first as the most that a lot should be."""

        def can_add_input(self, op: Any) -> bool:
            queue, tasks = self._topology[op].output_queue, op.num_active_tasks()
            each = op.metrics.average_bytes_per_output or TASK_BYTES
            blocks, size_bytes = tasks + queue.num_blocks, tasks * each + queue.memory_usage
            return blocks == 0 or (blocks < ahead and size_bytes + each <= ahead_bytes)

    context: DataContext = dataset.context
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    enabled = [*policies.ENABLED_BACKPRESSURE_POLICIES, Ahead]
    context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, enabled)
    for bundle in dataset.iter_internal_ref_bundles():
        lot = lot_of(bundle.schema) if isinstance(bundle.schema, pa.Schema) else None
        if lot is not None and len(bundle.blocks) == 1:
            yield bundle.blocks[0].ref, lot, bundle.size_bytes() or 0
        # what comes without its number is leased again without a reference
