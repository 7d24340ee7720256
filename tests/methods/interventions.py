"""Interventions for tests: honest ones, and twins that break one law each."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from raydecode import registry
from raydecode.contracts import Needs, Nodes, Options
from raydecode.randomness import derive


class Push:
    """Add a fixed vector at a site, at positions from `start` on."""

    class Options(registry.Options):
        site: str = Field(default="layer.1", description="where", examples=["layer.0", "layer.1", "final"])
        strength: float = Field(default=1.0, description="how far", examples=[0.0, 0.5, -2.0])
        start: int = Field(default=0, ge=0, description="first position that is pushed", examples=[0, 3])

    needs = Needs()
    identity = {"strength": 0.0}

    def site(self, options: Options) -> str:
        return options["site"]

    def horizon(self, options: Options) -> int | None:
        return None

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        if not options["strength"]:
            return x_MD
        push_D = torch.linspace(-1, 1, x_MD.shape[1], dtype=x_MD.dtype) * options["strength"]
        late_M = torch.tensor([position >= options["start"] for position in nodes.position])
        return torch.where(late_M[:, None], x_MD + push_D, x_MD)


class ByPath(Push):
    """Add numbers drawn from the ids that lead to the node; at most two tokens verified at once."""

    class Options(registry.Options):
        site: str = Field(default="layer.0", description="where", examples=["input", "embedding", "layer.0"])

    identity = None  # type: ignore[assignment]

    def horizon(self, options: Options) -> int | None:
        return 2

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        push_M = torch.tensor([derive(3, *path) % 1000 / 500 - 1 for path in nodes.path], dtype=x_MD.dtype)
        return x_MD + push_M[:, None]


class BatchCentred(Push):
    """Twin: subtracts the mean over all rows."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        return x_MD - x_MD.mean(0)


class Widening(Push):
    """Twin: returns another shape."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        return torch.cat([x_MD, x_MD], 1)


class Scribbling(Push):
    """Twin: writes into its input."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        return x_MD.mul_(2)


class Counting(Push):
    """Twin: does more at every call: a step number by another name."""

    def __init__(self) -> None:
        self.calls = 0

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        self.calls += 1
        return x_MD + self.calls / 8


class Partial(Push):
    """Twin: its identity rounds."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        return x_MD * (1 + options["strength"]) + 1e-4


class Named(Push):
    """Twin: depends on which row it is, so samples could not share a prompt."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        return x_MD + torch.tensor([float(len(row.request) + row.sample) for row in nodes.rows])[:, None]


class Raising(Push):
    """Raises for prompts that begin with token 3; harmless for the others."""

    def apply(self, x_MD: Tensor, nodes: Nodes, options: Options) -> Tensor:
        if any(nodes.path[i][0] == 3 for i in range(len(nodes))):
            raise RuntimeError("boom")
        return super().apply(x_MD, nodes, options)


HONEST = (Push, ByPath)
TWINS = (BatchCentred, Widening, Scribbling, Counting, Partial, Named, Raising)
