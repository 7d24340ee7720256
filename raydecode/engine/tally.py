"""What drafters did for one row, drafter by drafter: the counts behind the columns and the report's plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raydecode.events import Drafting
from raydecode.tree import TokenTree

NONE, KNOWN = "none", "known"
"""The names under which calls without a draft are counted, and those whose tokens were forced, hinted at or
replayed."""


@dataclass(slots=True)
class Tally:
    """The fields of `Drafting`, growing."""

    forwards: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    draft_s: float = 0.0
    verify_s: float = 0.0
    failures: int = 0
    offered: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def step(self, tree: TokenTree, path: tuple[int, ...], tokens: int, verify_s: float) -> None:
        """One call verified `tree`; the accepted path is empty where the row failed or waits."""
        self.forwards += 1
        self.tokens += tokens
        self.drafted += len(tree) - 1
        self.accepted += max(len(path) - 1, 0)
        self.verify_s += verify_s
        for depth, node in enumerate(path):
            if node not in tree.parent:
                break
            if depth == len(self.offered):
                self.offered.append(0)
                self.kept.append(0)
            self.offered[depth] += 1
            self.kept[depth] += depth + 1 < len(path)


def frozen(tallies: Mapping[str, Tally]) -> dict[str, Drafting]:
    """As a row's statistics carry them."""
    return {
        name: Drafting(
            one.forwards, one.tokens, one.drafted, one.accepted, one.draft_s, one.verify_s, one.failures,
            tuple(one.offered), tuple(one.kept),
        )
        for name, one in tallies.items()
    }  # fmt: skip
