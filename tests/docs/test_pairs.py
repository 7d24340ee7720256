"""The page of pairs: complete, and what it says of the toy engine is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raydecode import registry
from raydecode.conformance.drive import drive
from raydecode.conformance.options import option_sets
from raydecode.engine.toy import ToyEngine
from raydecode.request import Card, DecodingSpec, Ids, Request

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pairs.md"


def own(room: str) -> list[registry.Method]:
    return [one for one in registry.cards(room) if one.origin.startswith("raydecode.")]


def page() -> dict[tuple[str, str], str]:
    """(sampler or monitor, drafter) -> marks."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line[:1] == "|"
    ]
    head, _, *body = rows
    return {(row[0], name): mark for row in body for name, mark in zip(head[1:], row[1:], strict=True)}


def test_the_page_has_every_pair():
    watched = [one.name for room in ("samplers", "monitors") for one in own(room)]
    assert set(page()) == {
        (name, drafter) for name in watched for drafter in ["none", *(one.name for one in own("drafters"))]
    }
    assert all(re.fullmatch("t?y?v?|-", mark) for mark in page().values())


def test_marks_are_the_engines_of_both_cards():
    """Torch and toy host what both cards list; what only vLLM can say is its own tests' matter."""
    methods = {one.name: one for room in ("samplers", "monitors", "drafters") for one in own(room)}
    for (one, drafter), marks in page().items():
        both = set(methods[one].engines) & set(methods[drafter].engines if drafter != "none" else methods[one].engines)
        assert {"t": "torch", "y": "toy"}.keys() & set(marks) == {
            name[0] if name == "torch" else "y" for name in both - {"vllm"}
        }


@pytest.mark.parametrize("drafter", own("drafters"), ids=lambda one: one.name)
def test_pairs_of_the_toy_engine_run_and_are_plain(drafter):
    """One row per sampler that the page names, beside each other in one batch."""
    names = [one for one in own("samplers") if "y" in page()[one.name, drafter.name]]
    assert names
    found = []
    for card in (None, Card(drafter.name, option_sets(drafter)[0])):
        specs = [
            DecodingSpec(max_tokens=20, seed=5, sampler=(Card(one.name, option_sets(one)[0]),), drafter=card)
            for one in names
        ]
        found.append(
            drive(ToyEngine(), [Request(str(i), str(i), Ids((0, 1, 0, 1)), spec) for i, spec in enumerate(specs)])
        )
    assert found[0].difference(found[1]) is None
    assert all(one.error is None and not one.stats.draft_failures for one in found[1].outcomes.values())
