"""Laws of interventions: what lets rows with them and rows without share a batch, a draft and a rebuilt cache.

x_MD: M nodes of three rows, D numbers each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydecode.conformance.law import require, same_bits
from raydecode.conformance.options import option_sets
from raydecode.contracts import Nodes
from raydecode.registry import Method
from raydecode.request import RowId

PATHS = tuple((10 + row, *range(20, 20 + length)) for row in range(3) for length in range(2 + row))


def bench() -> tuple[Tensor, Nodes]:
    """Nodes of three rows with prompts of two to four tokens."""
    x_MD = torch.randn(len(PATHS), 16, generator=torch.Generator().manual_seed(5))
    rows = [RowId(f"row {path[0]}") for path in PATHS]
    return x_MD, Nodes(rows, [len(path) - 1 for path in PATHS], PATHS)


def declared(method: Method) -> None:
    """A summary, a site, and a horizon that is None or at least 1, under all options."""
    require(len(method.summary) > 10, method, "declared", "the class docstring's first line says what the method does")
    one = method.factory()
    for options in option_sets(method):
        site, horizon = one.site(options), one.horizon(options)
        require(isinstance(site, str) and bool(site), method, "declared", f"options {options}: site {site!r}")
        require(horizon is None or horizon >= 1, method, "declared", f"options {options}: horizon {horizon}")


def keeps_shape(method: Method) -> None:
    """[M, D] in, [M, D] of the same dtype out."""
    x_MD, nodes = bench()
    for options in option_sets(method):
        y_MD = method.factory().apply(x_MD.clone(), nodes, options)
        found = f"options {options}: {y_MD.dtype} {list(y_MD.shape)} from {x_MD.dtype} {list(x_MD.shape)}"
        require(y_MD.shape == x_MD.shape and y_MD.dtype == x_MD.dtype, method, "keeps_shape", found)


def pure(method: Method) -> None:
    """It writes nowhere and says the same twice: there is no step number."""
    x_MD, nodes = bench()
    for options in option_sets(method):
        one, given = method.factory(), x_MD.clone()
        first = one.apply(given, nodes, options).clone()
        require(same_bits(given, x_MD), method, "pure", f"options {options}: it wrote into its input")
        again = one.apply(given, nodes, options)
        require(same_bits(first, again), method, "pure", f"options {options}: the second call differs")


def nodes_do_not_see_each_other(method: Method) -> None:
    """A node's bits are the same alone, in another order, and under another row's name."""
    x_MD, nodes = bench()
    everyone = list(range(len(nodes)))
    for options in option_sets(method):
        one = method.factory()
        whole = one.apply(x_MD.clone(), nodes, options).clone()
        for name, index in [("in another order", everyone[::-1]), *((f"node {m} alone", [m]) for m in everyone)]:
            part = one.apply(x_MD[index], _pick(nodes, index), options)
            require(same_bits(part, whole[index]), method, "nodes_do_not_see_each_other", f"{name}: options {options}")
        renamed = Nodes([RowId("x", m % 2) for m in everyone], nodes.position, nodes.path)
        same = same_bits(one.apply(x_MD.clone(), renamed, options), whole)
        require(same, method, "nodes_do_not_see_each_other", f"options {options}: it depends on the rows' names")


def identity_changes_nothing(method: Method) -> None:
    """At the options it calls its identity, the output is the input, bit for bit."""
    identity = getattr(method.factory(), "identity", None)
    if identity is None:
        return
    x_MD, nodes = bench()
    y_MD = method.factory().apply(x_MD.clone(), nodes, method.options.model_validate(identity).model_dump())
    require(same_bits(y_MD, x_MD), method, "identity_changes_nothing", f"bits changed at {dict(identity)}")


LAWS = (declared, keeps_shape, pure, nodes_do_not_see_each_other, identity_changes_nothing)


def _pick(nodes: Nodes, index: list[int]) -> Nodes:
    return Nodes([nodes.rows[m] for m in index], [nodes.position[m] for m in index], [nodes.path[m] for m in index])
