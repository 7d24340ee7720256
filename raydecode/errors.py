"""Every error that a user can meet.

    RaydecodeError
    |-- UserError            the request, the job or the machine does not fit; says field, value, nearest, next step
    |   `-- Refused          a pair that cannot work together (method x engine), found before weights load
    |-- RowError             ends one row with an `error` record; the batch goes on
    `-- JobError             ends the job: nothing further can be done, what is committed stays

`assert` is for our own bugs and never for input.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self


class RaydecodeError(Exception):
    """Root of the tree."""


class UserError(RaydecodeError):
    """A message for a person: what is wrong, the nearest valid value, what to do next.

    field:   dotted path of what is wrong, e.g. `decoding.sampler[0].name`
    value:   the value found there
    nearest: the closest valid value, or None
    hint:    the next step, e.g. a command that lists what is valid
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.field, self.value, self.nearest, self.hint = message, field, value, nearest, hint
        super().__init__(message)

    def inside(self, where: str) -> Self:
        """The same error where its field lies in the section or card at `where`."""
        return self._at(f"{where}.{self.field}" if self.field else where)

    def moved(self, place: str, to: str) -> Self:
        """The same error where `to` stands in place of `place` at the front of its field."""
        rest = (self.field or "").removeprefix(place)
        return self._at(to + rest) if (self.field or "").startswith(place) else self

    def _at(self, field: str) -> Self:
        return type(self)(self.message, field=field, value=self.value, nearest=self.nearest, hint=self.hint)

    def __str__(self) -> str:
        head = f"{self.field}: {self.message}" if self.field else self.message
        tail = [f"  nearest: {self.nearest}"] if self.nearest else []
        tail += [f"  {self.hint}"] if self.hint else []
        return "\n".join([head, *tail])

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.field, self.value, self.nearest, self.hint)


class Refused(UserError):
    """A combination that cannot work: both sides are named, and what would work."""


class RowError(RaydecodeError):
    """One row's fault. `stage` and `kind` become the row's `error` record."""

    def __init__(self, stage: str, kind: str, message: str) -> None:
        self.stage, self.kind, self.message = stage, kind, message
        super().__init__(f"{stage}: {kind}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.kind, self.message)


class JobError(RaydecodeError):
    """The job cannot go on. What was committed stays and a new run resumes from it."""


def _rebuild(
    cls: type[UserError], message: str, field: str | None, value: object, nearest: str | None, hint: str | None
) -> UserError:
    """Keyword-only arguments do not survive the default pickling, and Ray sends errors between processes."""
    return cls(message, field=field, value=value, nearest=nearest, hint=hint)


def nearest(value: object, valid: Iterable[str]) -> str | None:
    """The valid name closest to `value` by difflib's ratio, or None when nothing is similar."""
    found = difflib.get_close_matches(str(value), list(valid), n=1, cutoff=0.5)
    return found[0] if found else None
