"""The corpus as a stream of block references: Ray Data reads, parses and renders; nobody pulls a row here.

    units -> read_datasource(Units) -> map_batches(prepare) -> (reference, unit), in order of completion

A block is transport, not a barrier: one unit of the plan, a few hundred rows at most. Which unit a block carries
travels in its Arrow schema (`UNIT`), which Ray hands on with the reference, so the bytes stay where they are.

Bounded: at most `ahead` blocks are being read or lie unclaimed, whatever the size of the corpus (Ray's own limits
are shares of the object store: about 100,000 small rows here before it stops reading).
Cost [2 cores, Ray 2.60]: 2-4 s from nothing to the first block; then 68 us a row with an engine that costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raydecode.corpus.intervals import Span

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset

UNIT = b"raydecode.unit"


def stream(
    units: Sequence[Span],
    read: Callable[[Span], pa.Table],
    prepare: Callable[[pa.Table], pa.Table],
    *,
    ahead: int,
    cpus: float = 0.5,
) -> Iterator[tuple[ObjectRef, Span]]:
    """Read `units` anywhere in the cluster and yield a reference to each block as it becomes ready.

    read, prepare: picklable; they turn what a file holds into rows and errors, and never raise for it
    ahead:         blocks in work or waiting for a taker; the readers stop beyond it
    cpus:          CPUs per task; a half, so that one- and two-core machines read while something else runs
    Raises what Ray Data raises when a task is lost for good: the caller goes on without references.
    """
    if not units:
        return
    from ray.data import read_datasource

    rows = read_datasource(_units(units, read), override_num_blocks=len(units), num_cpus=cpus)
    dataset = rows.map_batches(_keeping_unit(prepare), batch_size=None, batch_format="pyarrow", num_cpus=cpus)
    yield from _references(dataset, ahead)


def label(table: pa.Table, unit: Span) -> pa.Table:
    """The table with its unit written into the schema."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), UNIT: json.dumps(_triple(unit)).encode()})


def unit_of(schema: pa.Schema) -> Span | None:
    """The unit that `label` wrote, or None."""
    text = (schema.metadata or {}).get(UNIT)
    return Span(*json.loads(text)) if text else None


def _triple(unit: Span) -> list[int]:
    return [unit.input, unit.start, unit.stop]


def _units(units: Sequence[Span], read: Callable[[Span], pa.Table]) -> Any:
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Units(Datasource):
        """One read task per unit of the plan."""

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(None, None, None, None)
            return [ReadTask(lambda unit=unit: [label(read(unit), unit)], unknown) for unit in units]

    return Units()


def _keeping_unit(prepare: Callable[[pa.Table], pa.Table]) -> Callable[[pa.Table], pa.Table]:
    def prepare_block(table: pa.Table) -> pa.Table:
        unit = unit_of(table.schema)
        out = prepare(table)
        return label(out, unit) if unit else out

    return prepare_block


def _references(dataset: Dataset, ahead: int) -> Iterator[tuple[ObjectRef, Span]]:
    """The one place that touches Ray Data's internals; tests/pipelines/test_blocks.py is its contract.

    Uses `iter_internal_ref_bundles` (references without bytes), the bundles' schemas, block splitting (off: a unit
    stays one block) and a back-pressure policy that counts blocks.
    """
    from ray.data import DataContext
    from ray.data._internal.execution import backpressure_policy as policies

    class Ahead(policies.BackpressurePolicy):
        """No new task while `ahead` blocks are in work or waiting."""

        def can_add_input(self, op: Any) -> bool:
            state = self._topology[op]
            return op.num_active_tasks() + state.output_queue.num_blocks < ahead

    context: DataContext = dataset.context
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_options.verbose_progress = False
    context.set_config(policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies.ENABLED_BACKPRESSURE_POLICIES, Ahead])
    for bundle in dataset.iter_internal_ref_bundles():
        unit = unit_of(bundle.schema) if isinstance(bundle.schema, pa.Schema) else None
        if unit is not None and len(bundle.blocks) == 1:
            yield bundle.blocks[0].ref, unit  # what comes without its unit is leased again without a reference
