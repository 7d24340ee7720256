"""A model of the configuration as a Ray Serve deployment: names, resources, scaling, limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydecode.config import ScalingConfig, ServeConfig, ServedModelConfig, deployment_name
from serve_app.replica import Replica

SMALL_MACHINE_CPUS = 4
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 10.0, 60.0
LOOK_BACK_S = 12.0
"""Over how long Ray Serve averages what runs: as short as it allows, the delays do the damping."""
LANES = 2
TOY = "toy"


def replicas_of(model: ServedModelConfig, config: ServeConfig, nodes: Sequence[dict[str, float]]) -> Any:
    """The bound deployment (a `ray.serve` Application). nodes: resources of the cluster's nodes."""
    from ray import serve

    reserved, threads = resources(model, nodes)
    queue = config.limits.queue
    deployment = serve.deployment(Replica).options(
        name=deployment_name(model.name),
        ray_actor_options=reserved,
        max_ongoing_requests=LANES * queue + model.engine.slots,  # the replica says itself that it is full
        max_queued_requests=queue,  # while there is none, for each process that asks
        graceful_shutdown_timeout_s=model.scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        **scaling(model.scaling, model.engine.slots),
    )
    return deployment.bind(model.to_json(), queue, threads)


def scaling(asked: ScalingConfig, slots: int) -> dict[str, Any]:
    """Ray Serve's options for a number of replicas."""
    if asked.min == asked.max:
        return {"num_replicas": asked.min}
    zero = asked.downscale_delay_s if asked.to_zero_delay_s is None else asked.to_zero_delay_s
    return {
        "autoscaling_config": {
            "min_replicas": asked.min,
            "max_replicas": asked.max,
            "target_ongoing_requests": asked.target or float(slots),
            "upscale_delay_s": asked.upscale_delay_s,
            "downscale_delay_s": asked.downscale_delay_s,
            "downscale_to_zero_delay_s": zero,
            "look_back_period_s": LOOK_BACK_S,
        }
    }


def resources(model: ServedModelConfig, nodes: Sequence[dict[str, float]]) -> tuple[dict[str, float], int]:
    """What Ray sets aside for a replica, and its engine's threads.

    On a small machine a replica takes no CPU: there Ray's own processes and the engines share.
    """
    cpus = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    per_node = max(1, -(-model.scaling.max // max(1, len(nodes))))
    gpus = model.actors.num_gpus
    if gpus is None:
        cpu_only = TOY in (model.engine.name, model.model.source)
        gpus = 1.0 if not cpu_only and any(node.get("GPU") for node in nodes) else 0.0
    own = model.actors.num_cpus
    if own is None:
        own = 0.0 if gpus or cpus <= SMALL_MACHINE_CPUS else float(max(1, (cpus - 1) // per_node))
    return {"num_cpus": own, "num_gpus": gpus}, int(own) or max(1, cpus // per_node)
