"""The import table is enforced: allowed edges pass, each kind of broken edge is named."""

import pytest
from grimp import ImportGraph
from importlinter import Contract

from infra.room_contract import RoomContract, read_table

TABLE = [
    "hall: only numpy",
    "samplers monitors: hall",
    "assemble: library",
    "cli: library cli actors ray",
    "actors: library ray",
]


def contract(table: list[str] = TABLE) -> Contract:
    session = {"root_packages": ["raydecode", "actors"], "include_external_packages": "True"}
    options = {"table": table, "hall": ["tree", "errors"], "guarded": ["ray"]}
    return RoomContract("rooms", session, options)


def broken(*edges: tuple[str, str]) -> list[str]:
    graph = ImportGraph()
    for importer, imported in edges:
        for module in (importer, imported):
            if module not in graph.modules:
                graph.add_module(module, is_squashed=module.split(".")[0] not in ("raydecode", "actors"))
        graph.add_import(importer=importer, imported=imported)
    return [entry["why"] for entry in contract().check(graph, verbose=False).metadata["broken"]]


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("raydecode.samplers.greedy", "raydecode.tree"),
        ("raydecode.samplers.greedy", "raydecode.samplers.chain"),
        ("raydecode.samplers.greedy", "raydecode"),
        ("raydecode.samplers.greedy", "scipy"),
        ("raydecode.tree", "numpy"),
        ("raydecode.tree", "dataclasses"),
        ("raydecode.tree", "raydecode.errors"),
        ("raydecode.assemble", "raydecode.monitors.entropy"),
        ("raydecode.cli", "actors.generation"),
        ("actors.generation", "ray"),
    ],
)
def test_allowed(importer: str, imported: str) -> None:
    assert broken((importer, imported)) == []


@pytest.mark.parametrize(
    ("importer", "imported", "why"),
    [
        ("raydecode.samplers.greedy", "raydecode.monitors.entropy", "samplers may import hall, not monitors"),
        ("raydecode.tree", "raydecode.samplers.greedy", "hall may import no room, not samplers"),
        ("raydecode.tree", "scipy", "hall may import only numpy from outside, not scipy"),
        ("raydecode.assemble", "ray", "assemble may not import ray"),
        ("raydecode.assemble", "actors.generation", "not actors"),
        ("raydecode.assemble", "raydecode.cli", "not cli"),
        ("actors.generation", "raydecode.cli", "not cli"),
        ("raydecode.novelty", "raydecode.tree", "room 'novelty' has no line"),
    ],
)
def test_refused(importer: str, imported: str, why: str) -> None:
    assert any(why in found for found in broken((importer, imported)))


def test_a_room_that_stands_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"stand twice.*samplers"):
        read_table(["samplers: hall", "samplers monitors: hall", "hall:"], [])


def test_a_line_without_a_colon_is_an_error() -> None:
    with pytest.raises(ValueError, match="rooms: what they may import"):
        read_table(["samplers hall"], [])
