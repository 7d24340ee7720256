"""The Ray Serve application: an ingress that speaks HTTP, and a deployment per model.

applications: [{import_path: serve_app:build, args: {models: [...]}}]      # configs/serve.yaml
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from ray import serve

from raydecode.config import ServeConfig, check_serve
from serve_app.batches.desk import Desk
from serve_app.deploy import replicas_of
from serve_app.gateway import Unavailable
from serve_app.ingress import create_app
from serve_app.observe.logs import configure
from serve_app.observe.metrics import Snapshot
from serve_app.observe.telling import Telling
from serve_app.remote import RemoteGateway
from serve_app.single import NAME, Single

INGRESS_ONGOING = 100_000
"""Ray Serve's own limit for the ingress: out of the way, the replicas' queues are the limit."""
INGRESS_DRAIN_S = 30.0
SINGLE_ONGOING = 1000


@serve.ingress()
class Ingress:
    """config: `ServeConfig` as JSON; single: of the deployment of that name; handles: of the models', in their order"""

    def __init__(self, config: Mapping[str, Any], single: Any, *handles: Any) -> None:
        self._config = ServeConfig.model_validate(config)
        names = [one.name for one in self._config.models]
        self._gateway = RemoteGateway(self._config, dict(zip(names, handles, strict=True)))

        self._single = single
        configure(self._config.logging.level, self._config.logging.format)

    def __serve_build_asgi_app__(self) -> Any:
        me, batches = uuid.uuid4().hex, self._config.batches
        telling = Telling.of(self._config)

        async def others() -> list[Snapshot]:
            try:
                return await self._single.read.remote(me)
            except Exception as error:  # a sum that lacks some would look like counters that began anew
                raise Unavailable(f"the counts of other processes cannot be read: {type(error).__name__}") from error

        async def push(snapshot: Snapshot) -> None:
            await self._single.push.remote(me, snapshot)

        async def poke() -> None:
            await self._single.poke.remote()

        telling.others, telling.push = others, push
        desk = Desk(batches, poke) if batches.path is not None else None
        return create_app(self._gateway, self._config, desk=desk, telling=telling)


def build(args: Mapping[str, Any]) -> Any:
    """Ray Serve's application of a configuration. Raises UserError."""
    import ray

    config = check_serve(args)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    models = [replicas_of(model, config, nodes) for model in config.models]
    drain = max([INGRESS_DRAIN_S, *(one.scaling.drain_s for one in config.models)])
    single = serve.deployment(Single).options(
        name=NAME, num_replicas=1, max_ongoing_requests=SINGLE_ONGOING, ray_actor_options={"num_cpus": 0}
    )
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        num_replicas=config.http.replicas,
        max_ongoing_requests=INGRESS_ONGOING,
        graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(config.to_json(), single.bind(config.to_json(), *models), *models)
