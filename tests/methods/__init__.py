"""Methods that exist to try the contracts: honest ones that the product does not ship yet, and broken twins.

They are plain classes; `visiting()` registers them and forgets them again, so that no list of the product shows them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from raydecode import registry
from tests.methods import drafters, interventions, monitors, samplers


@contextlib.contextmanager
def visiting(*, honest_only: bool = False) -> Iterator[None]:
    """The test methods in the registry. honest_only: without twins, so that laws over all methods hold."""
    with registry.guests():
        rooms = {"samplers": samplers, "monitors": monitors, "drafters": drafters, "interventions": interventions}
        for room, module in rooms.items():
            for cls in module.HONEST + (() if honest_only else module.TWINS):
                registry.register(room, engines=("toy", "torch"))(cls)
        yield
