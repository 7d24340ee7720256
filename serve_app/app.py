"""The Ray Serve application: an ingress that speaks HTTP, and a deployment per model.

applications: [{import_path: serve_app:build, args: {models: [...]}}]      # configs/serve.yaml
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve

from raydecode.config import ServeConfig, check_serve
from serve_app.deploy import replicas_of
from serve_app.ingress import create_app
from serve_app.remote import RemoteGateway

INGRESS_ONGOING = 100_000
"""Ray Serve's own limit for the ingress: out of the way, the replicas' queues are the limit."""
INGRESS_DRAIN_S = 30.0


@serve.ingress()
class Ingress:
    """config: `ServeConfig` as JSON; handles: of the models' deployments, in their order"""

    def __init__(self, config: Mapping[str, Any], *handles: Any) -> None:
        self._config = ServeConfig.model_validate(config)
        names = [one.name for one in self._config.models]
        self._gateway = RemoteGateway(self._config, dict(zip(names, handles, strict=True)))

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._gateway, self._config)


def build(args: Mapping[str, Any]) -> Any:
    """Ray Serve's application of a configuration. Raises UserError."""
    import ray

    config = check_serve(args)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    models = [replicas_of(model, config, nodes) for model in config.models]
    drain = max([INGRESS_DRAIN_S, *(one.scaling.drain_s for one in config.models)])
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=INGRESS_ONGOING,
        graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(config.to_json(), *models)
