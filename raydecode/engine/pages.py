"""Who holds which page of a lane's cache: tables per slot, users per page, prefixes that may be shared. No tensors.

A page holds `size` neighbouring tokens of one text. A slot's table names its pages in order; several slots may hold
one page. A page that is written to has one user and no name (copy on write). A whole page of committed tokens may be
published under the name (the page before it, its ids): exact, so two texts share a page if and only if they are equal
up to its end. Published pages that nobody uses stay, least recently used first to go, while there are at most `retain`
of them and no better use.

Sources: paged cache, copy on write: Kwon et al., arXiv:2309.06180; prefixes as a tree of pages: Zheng et al.,
arXiv:2312.07104. Cost: O(pages touched) per call; nothing is done per token.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence

Name = tuple[int | str, tuple[int, ...]]
"""(the page before, or the salt of a text's first page; the ids)."""


class Pages:
    """slots: tables; count: pages there are; size: tokens per page; retain: most pages kept that nobody uses."""

    def __init__(self, slots: int, count: int, size: int, retain: int = 0) -> None:
        self.count, self.size, self.retain = count, size, retain
        self.tables: list[list[int]] = [[] for _ in range(slots)]
        self.touched = 0
        """Pages 0..touched have been in use at some time; the others were never handed out."""
        self._returned: list[int] = []
        self._users: dict[int, int] = {}
        self._known: dict[Name, int] = {}
        self._name: dict[int, Name] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._salt: list[str | None] = [None] * slots
        self._published = [0] * slots

    @property
    def room(self) -> int:
        """Pages that can be had now, forgetting retained ones."""
        return self.count - self.touched + len(self._returned) + len(self._idle)

    @property
    def retained(self) -> int:
        """Pages kept that nobody uses."""
        return len(self._idle)

    def reserve(self, slot: int, start: int, length: int) -> list[tuple[int, int]] | None:
        """Let `slot` write columns start..length: (from, to) pages to copy first, or None and no change: no room."""
        table = self.tables[slot]
        own = range(start // self.size, len(table))
        shared = [i for i in own if self._users[table[i]] > 1 or table[i] in self._name]
        missing = max(-(-length // self.size) - len(table), 0)
        if len(shared) + missing > self.room:
            return None
        copies = []
        for i in shared:
            page = self._take()
            copies.append((table[i], page))
            self._drop(table[i])
            table[i] = page
        table += [self._take() for _ in range(missing)]
        return copies

    def adopt(self, slot: int, start: int, ids: Sequence[int], salt: str = "") -> int:
        """Hold published pages from column `start` on instead of own ones, while they hold `ids`; columns held then.

        salt: whatever else the keys and values depend on. From now on the slot's own pages may be published.
        """
        table, self._salt[slot] = self.tables[slot], salt
        if start % self.size or start != self.size * self._published[slot]:
            return start
        for i in range(start // self.size, len(ids) // self.size):
            page = self._known.get(self._named(slot, i, ids))
            if page is None:
                break
            self._use(page)
            if i < len(table):
                self._drop(table[i])
                table[i] = page
            else:
                table.append(page)
            self._published[slot] = i + 1
        return self.size * self._published[slot]

    def publish(self, slot: int, ids: Sequence[int]) -> None:
        """The slot's first columns hold `ids` for good. A page published before takes the own one's place."""
        if self._salt[slot] is None:
            return
        table = self.tables[slot]
        for i in range(self._published[slot], len(ids) // self.size):
            name = self._named(slot, i, ids)
            page = self._known.setdefault(name, table[i])
            if page == table[i]:
                self._name[page] = name
            else:
                self._use(page)
                self._drop(table[i])
                table[i] = page
            self._published[slot] = i + 1

    def fork(self, source: int, target: int, length: int) -> None:
        """Let `target` hold the pages of `source` up to `length`; the last one is copied by who writes to it first."""
        self.release(target)
        table = self.tables[source][: -(-length // self.size)]
        for page in table:
            self._use(page)
        self.tables[target] = table
        self._salt[target] = self._salt[source]
        self._published[target] = min(self._published[source], length // self.size)

    def release(self, slot: int) -> None:
        """A text's later pages go first, so that no page outlives the one before it."""
        table, self.tables[slot] = self.tables[slot], []
        self._salt[slot], self._published[slot] = None, 0
        for page in reversed(table):
            self._drop(page)

    def check(self, held: Sequence[int]) -> None:
        """Invariants, for tests. held: slots that rows hold; the others have no page."""
        users: dict[int, int] = {}
        for slot, table in enumerate(self.tables):
            assert not table or slot in held, f"slot {slot} is free and holds pages {table}"
            assert len(set(table)) == len(table), f"slot {slot} holds a page twice: {table}"
            for page in table:
                users[page] = users.get(page, 0) + 1
        assert users == self._users, (users, self._users)
        kinds = (set(users), set(self._returned), set(self._idle))
        assert set.union(*kinds) == set(range(self.touched)), "a page leaked"
        assert sum(map(len, kinds)) == self.touched == len(set(self._returned)) + len(users) + len(self._idle)
        assert self._known == {name: page for page, name in self._name.items()}
        assert set(self._idle) <= set(self._name) <= set(users) | set(self._idle)
        parents = {name[0] for name in self._known if isinstance(name[0], int)}
        assert parents <= set(self._name), "a page outlived the one before it"
        assert len(self._idle) <= self.retain

    # ------------------------------------------------------------------ one page
    def _named(self, slot: int, i: int, ids: Sequence[int]) -> Name:
        before = self.tables[slot][i - 1] if i else self._salt[slot]
        assert before is not None
        return before, tuple(ids[i * self.size : (i + 1) * self.size])

    def _take(self) -> int:
        """The lowest page that was in use before: rows' pages stay close together, and memory grows late."""
        if self._returned:
            page = heapq.heappop(self._returned)
        elif self.touched < self.count:
            page, self.touched = self.touched, self.touched + 1
        else:
            self._forget()
            page = heapq.heappop(self._returned)
        self._users[page] = 1
        return page

    def _use(self, page: int) -> None:
        self._users[page] = self._users.get(page, 0) + 1
        self._idle.pop(page, None)

    def _drop(self, page: int) -> None:
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page not in self._name:
            heapq.heappush(self._returned, page)
            return
        self._idle[page] = None
        if len(self._idle) > self.retain:
            self._forget()

    def _forget(self) -> None:
        """The retained page that was used longest ago."""
        page, _ = self._idle.popitem(last=False)
        del self._known[self._name.pop(page)]
        heapq.heappush(self._returned, page)
