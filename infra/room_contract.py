"""An import-linter contract that reads like the table "Who may import whom" in docs/architecture.md.

import-linter's own contracts say what is forbidden. The table says what is allowed, and a list of the forbidden rest
would have to grow in twelve places with every new room. Each line of `table` is `rooms: what they may import`:

    samplers: hall contracts registry
    assemble conformance: library
    pipelines: library actors ray

A room is a module or package of `raydecode`, or one of the other top-level packages. `hall` is the group of modules
given by the option of that name; `library` stands for every room under `raydecode` but `cli`. A room may always import
itself; the rooms of one line may not import each other unless it names them. Packages from outside are free, except the
`guarded` ones: a line must name these. A line with the word `only` may import nothing else from outside than what it
names and the standard library.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

LIBRARY = "raydecode"


@dataclass(frozen=True)
class Rule:
    """What one room may import. `closed`: nothing from outside either, but `outside` and the standard library."""

    inside: frozenset[str]
    outside: frozenset[str]
    closed: bool


def room_of(module: str, groups: dict[str, str]) -> str | None:
    """The room a module lives in; None for the bare package `raydecode` and for packages from outside."""
    parts = module.split(".")
    if parts[0] != LIBRARY:
        return None
    return groups.get(parts[1], parts[1]) if len(parts) > 1 else None


def read_table(lines: list[str], tops: list[str]) -> dict[str, Rule]:
    """The rule of each room. Raises ValueError for a line without a colon or a room that stands twice."""
    split = [line.split(":", 1) for line in lines]
    if any(len(pair) != 2 for pair in split):
        raise ValueError(f"each line of `table` is 'rooms: what they may import', got {lines}")
    rooms = [room for left, _ in split for room in left.split()]
    twice = {room for room in rooms if rooms.count(room) > 1}
    if twice:
        raise ValueError(f"rooms that stand twice in `table`: {sorted(twice)}")
    library = frozenset(rooms) - set(tops) - {"cli"}
    rules = {}
    for left, right in split:
        names = set(right.split())
        inside = {name for name in names if name in rooms}
        if "library" in names:
            inside |= library
        outside = names - set(rooms) - {"library", "only"}
        for room in left.split():
            rules[room] = Rule(frozenset(inside), frozenset(outside), "only" in names)
    return rules


class RoomContract(Contract):
    """`type = "room"` in pyproject.toml."""

    type_name = "room"

    table = fields.ListField(subfield=fields.StringField())
    hall = fields.ListField(subfield=fields.StringField())
    guarded = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        groups = dict.fromkeys(self.hall, "hall")
        tops = [name for name in self.session_options["root_packages"] if name != LIBRARY]
        rules = read_table(list(self.table), tops)
        broken: list[dict[str, Any]] = []
        for module in sorted(graph.modules):
            if graph.is_module_squashed(module):
                continue  # a package from outside
            own = module.split(".")[0]
            room = own if own in tops else room_of(module, groups)
            if room is None:
                continue
            if room not in rules:
                broken.append({"importer": module, "imported": "", "why": f"room '{room}' has no line in the table"})
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                why = self._refusal(room, rules[room], imported, tops, groups)
                if why:
                    broken.append({"importer": module, "imported": imported, "why": why})
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def _refusal(self, room: str, rule: Rule, imported: str, tops: list[str], groups: dict[str, str]) -> str | None:
        top = imported.split(".")[0]
        if top == LIBRARY or top in tops:
            target = top if top in tops else room_of(imported, groups)
            allowed = target is None or target == room or target in rule.inside
            return None if allowed else f"{room} may import {', '.join(sorted(rule.inside)) or 'no room'}, not {target}"
        if top in rule.outside or top in sys.stdlib_module_names:
            return None
        if rule.closed:
            return f"{room} may import only {', '.join(sorted(rule.outside))} from outside, not {top}"
        return f"{room} may not import {top}" if top in set(self.guarded) else None

    def render_broken_contract(self, check: ContractCheck) -> None:
        for entry in check.metadata["broken"]:
            arrow = f" -> {entry['imported']}" if entry["imported"] else ""
            output.print_error(f"{entry['importer']}{arrow}: {entry['why']}")
