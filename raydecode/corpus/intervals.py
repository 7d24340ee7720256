"""Sets of positions as sorted, disjoint, half-open intervals.

Resume is arithmetic on these sets: what is planned minus what is committed is what is missing. A set's size in
memory follows its holes, never its rows: ten million committed rows without a hole are two integers.

Law: an `IntervalSet` behaves as a `set` of integers (property test against one).
Cost: `add`, `remove` O(log k + touched) with k intervals; the binary set operations O(k1 + k2).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Positions [start, stop) of one input file. A unit of work is a span; so is one row.

    input: the file's number in the job's log (never reused)
    start: first position: row number (Parquet), or byte offset (JSONL, CSV, text)
    stop:  one past the last; a row of a Parquet file has stop = start + 1, a line reaches up to the next line
    """

    input: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class IntervalSet:
    """A mutable set of integers, stored as maximal half-open intervals."""

    __slots__ = ("_starts", "_stops")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in intervals:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Insert [start, stop), joining what it touches."""
        if stop <= start:
            return
        lo = bisect_left(self._stops, start)  # first interval that ends at or after start
        hi = bisect_right(self._starts, stop)  # first interval that begins after stop
        if lo < hi:
            start = min(start, self._starts[lo])
            stop = max(stop, self._stops[hi - 1])
        self._starts[lo:hi] = [start]
        self._stops[lo:hi] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Delete [start, stop) where present."""
        if stop <= start:
            return
        lo = bisect_right(self._stops, start)  # first interval that ends after start
        hi = bisect_left(self._starts, stop)  # first interval that begins at or after stop
        if lo >= hi:
            return
        keep = []
        if self._starts[lo] < start:
            keep.append((self._starts[lo], start))
        if self._stops[hi - 1] > stop:
            keep.append((stop, self._stops[hi - 1]))
        self._starts[lo:hi] = [a for a, _ in keep]
        self._stops[lo:hi] = [b for _, b in keep]

    def update(self, other: IntervalSet) -> None:
        """Union in place."""
        if len(other._starts) * 4 < len(self._starts):
            for start, stop in other:
                self.add(start, stop)
            return
        merged = _merge(sorted([*self, *other]))
        self._starts, self._stops = [a for a, _ in merged], [b for _, b in merged]

    def subtract(self, other: IntervalSet) -> IntervalSet:
        """A new set: self without other."""
        out = self.copy()
        for start, stop in other:
            out.remove(start, stop)
        return out

    def intersect(self, other: IntervalSet) -> IntervalSet:
        """A new set: what both hold."""
        out = IntervalSet()
        i = j = 0
        while i < len(self._starts) and j < len(other._starts):
            start, stop = max(self._starts[i], other._starts[j]), min(self._stops[i], other._stops[j])
            if start < stop:
                out._starts.append(start)
                out._stops.append(stop)
            if self._stops[i] < other._stops[j]:
                i += 1
            else:
                j += 1
        return out

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The intervals of [start, stop) that are not in this set."""
        out = []
        at = start
        for i in range(bisect_right(self._stops, start), len(self._starts)):
            if self._starts[i] >= stop:
                break
            if self._starts[i] > at:
                out.append((at, self._starts[i]))
            at = max(at, self._stops[i])
        if at < stop:
            out.append((at, stop))
        return out

    def overlaps(self, start: int, stop: int) -> bool:
        """True when any position of [start, stop) is in this set."""
        i = bisect_right(self._stops, start)
        return start < stop and i < len(self._starts) and self._starts[i] < stop

    def covers(self, start: int, stop: int) -> bool:
        """True when every position of [start, stop) is in this set."""
        i = bisect_right(self._stops, start)
        return stop <= start or (i < len(self._starts) and self._starts[i] <= start and self._stops[i] >= stop)

    def copy(self) -> IntervalSet:
        out = IntervalSet()
        out._starts, out._stops = self._starts.copy(), self._stops.copy()
        return out

    @property
    def size(self) -> int:
        """How many positions."""
        return sum(self._stops) - sum(self._starts)

    def __contains__(self, position: int) -> bool:
        return self.overlaps(position, position + 1)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __len__(self) -> int:
        """How many intervals (not positions: that is `size`)."""
        return len(self._starts)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalSet) and self._starts == other._starts and self._stops == other._stops

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IntervalSet({list(self)})"


class Cover:
    """One `IntervalSet` per input: which rows of a corpus."""

    __slots__ = ("_sets",)

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._sets: dict[int, IntervalSet] = {}
        for span in spans:
            self.add(span)

    def add(self, span: Span) -> None:
        if span.start < span.stop:
            self._sets.setdefault(span.input, IntervalSet()).add(span.start, span.stop)

    def remove(self, span: Span) -> None:
        one = self._sets.get(span.input)
        if one is not None:
            one.remove(span.start, span.stop)
            if not one:
                del self._sets[span.input]

    def update(self, other: Cover) -> None:
        for number, one in other._sets.items():
            self._sets.setdefault(number, IntervalSet()).update(one)

    def subtract(self, other: Cover) -> Cover:
        out = Cover()
        for number, one in self._sets.items():
            theirs = other._sets.get(number)
            left = one.copy() if theirs is None else one.subtract(theirs)
            if left:
                out._sets[number] = left
        return out

    def intersect(self, other: Cover) -> Cover:
        out = Cover()
        for number, one in self._sets.items():
            theirs = other._sets.get(number)
            both = one.intersect(theirs) if theirs is not None else None
            if both:
                out._sets[number] = both
        return out

    def missing(self, span: Span) -> list[Span]:
        """The parts of `span` that this cover lacks."""
        one = self._sets.get(span.input)
        if one is None:
            return [span] if span.size > 0 else []
        return [Span(span.input, a, b) for a, b in one.missing(span.start, span.stop)]

    def overlaps(self, span: Span) -> bool:
        one = self._sets.get(span.input)
        return one is not None and one.overlaps(span.start, span.stop)

    def covers(self, span: Span) -> bool:
        one = self._sets.get(span.input)
        return span.size <= 0 or (one is not None and one.covers(span.start, span.stop))

    def spans(self) -> list[Span]:
        """Every maximal interval, by input and position."""
        return [Span(number, a, b) for number in sorted(self._sets) for a, b in self._sets[number]]

    def copy(self) -> Cover:
        out = Cover()
        out._sets = {number: one.copy() for number, one in self._sets.items()}
        return out

    @property
    def size(self) -> int:
        return sum(one.size for one in self._sets.values())

    def __bool__(self) -> bool:
        return any(self._sets.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cover) and self.spans() == other.spans()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cover({self.to_json()})"

    def to_json(self) -> dict[str, list[list[int]]]:
        """{"<input>": [[start, stop], ...]}"""
        return {str(number): [[a, b] for a, b in self._sets[number]] for number in sorted(self._sets)}

    @classmethod
    def from_json(cls, data: dict[str, list[list[int]]]) -> Cover:
        out = cls()
        for number, intervals in data.items():
            out._sets[int(number)] = IntervalSet((a, b) for a, b in intervals)
        return out


def _merge(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for start, stop in intervals:
        if out and start <= out[-1][1]:
            if stop > out[-1][1]:
                out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return out
