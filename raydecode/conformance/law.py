"""A law that does not hold: of which method, which law, and the first counter-example."""

from __future__ import annotations

from torch import Tensor


class Violation(AssertionError):
    """Raised by the laws. An AssertionError, so that test runners show it as a failure and not as an error."""

    def __init__(self, subject: object, law: str, found: str) -> None:
        self.subject, self.law, self.found = str(subject), law, found
        super().__init__(f"{subject} breaks '{law}': {found}")


def require(holds: bool, subject: object, law: str, found: str) -> None:
    """Raise Violation unless `holds`."""
    if not holds:
        raise Violation(subject, law, found)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal shape, type and bits; NaN equals NaN, and 0.0 is not -0.0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    as_int = {4: "int32", 8: "int64"}[one.element_size()]
    import torch

    return torch.equal(one.contiguous().view(getattr(torch, as_int)), other.contiguous().view(getattr(torch, as_int)))
