"""A Ray of one machine for the time of one job: without the processes that only a lasting cluster has a use for.

| left out | who would use it | CPU seconds it takes [2 cores, Ray 2.60] |
|---|---|---|
| autoscaler, log forwarder | nodes that come and go; output goes to files here | 2.3 |
| API server | a dashboard | 3.9 |
| Ray Data's statistics actor | a dashboard | 5.3 |
| Ray Data's autoscaling coordinator | an autoscaler, several datasets at once | 5.8 |

Of 66 CPU seconds of a small job with a toy engine, busy machine. Ray has switches for none of them. All of Ray's
internals that are replaced for this are in this file; each is put back when its block ends. A cluster keeps everything:
nothing here is called for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4


def is_lone(ray: Any) -> bool:
    """This process started the Ray it uses."""
    node = ray._private.worker._global_node
    return node is not None and bool(node.all_processes)


def dead_here(ray: Any) -> list[str]:
    """Names of a local Ray's own processes that have died: raylet, gcs_server. Empty on a cluster.

    Ray itself misses a killed raylet only after 15 to 30 s without a sign of it, and until then every call waits.
    """
    node = ray._private.worker._global_node
    dead = [] if node is None else node.dead_processes()
    return [name for name, _ in dead if name in ("raylet", "gcs_server")]


@contextmanager
def lean_start(ray: Any) -> Iterator[None]:
    """`ray.init` inside of it starts a GCS, a raylet and the raylet's agents, nothing else."""
    parameter, node = ray._private.parameter, ray._private.node.Node

    def no_api_server(self: Any, **_: Any) -> None:
        self._webui_url = ""

    few = partial(parameter.RayParams, no_monitor=True, include_log_monitor=False)
    with _instead(parameter, RayParams=few), _instead(node, start_api_server=no_api_server):
        yield


@contextmanager
def lean_data(ray: Any) -> Iterator[None]:
    """A dataset executed inside of it starts no actors of its own; it may use the whole machine."""
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution import streaming_executor as executor
    from ray.data._internal.execution.interfaces import ExecutionResources
    from ray.data._internal.stats import _StatsManager as statistics

    class Fixed(ClusterAutoscaler):
        def try_trigger_scaling(self) -> None: ...

        def on_executor_shutdown(self) -> None: ...

        def get_total_resources(self) -> ExecutionResources:
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

    def untold(*_: Any, **__: Any) -> None: ...

    told = ("register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics")
    with (
        _instead(executor, create_cluster_autoscaler=lambda *_, **__: Fixed()),
        _instead(statistics, **dict.fromkeys(told, staticmethod(untold))),
        _instead(statistics, gen_dataset_id_from_stats_actor=staticmethod(lambda: uuid4().hex)),
    ):
        yield


@contextmanager
def _instead(owner: Any, **others: Any) -> Iterator[None]:
    """The owner's own attributes replaced; KeyError when this Ray has none of that name."""
    before = {name: vars(owner)[name] for name in others}
    for name, other in others.items():
        setattr(owner, name, other)
    try:
        yield
    finally:
        for name, own in before.items():
            setattr(owner, name, own)
