"""Where a text ends by its bytes: the stop-string rule, the same on every engine. Pure.

A stop string is bytes and is searched in the bytes of the whole output, so it may begin in one token and end in
another, and a token that completes it may go on behind it. The text is cut before the first occurrence; of several
that one token completes, before the one that begins first.
"""

from __future__ import annotations

from collections.abc import Sequence


def first_stop(text: bytes, new: int, stops: Sequence[bytes]) -> int:
    """Where the first stop string begins that the last `new` bytes complete, or -1.

    Cost: a search over `new` + the longest stop string, however long the text is.
    """
    start = max(0, len(text) - new - max(map(len, stops), default=0) + 1)
    return min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=-1)


def named(text: bytes, cut: int, stops: Sequence[bytes]) -> str:
    """The stop string that begins at `cut`, as text; of several the one given first."""
    return next(stop for stop in stops if text.startswith(stop, cut)).decode("utf-8", "replace")


def settled(text: bytes, stops: Sequence[bytes]) -> int:
    """How many leading bytes of a running text may be shown: nothing that follows can take them back.

    Held back are an ending that may become a stop string, and an unfinished UTF-8 character (a caller who decodes
    shown pieces one by one then never meets half a character; bytes that are no UTF-8 at all are not held).
    """
    keep = len(text)
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:size]):
                keep = min(keep, len(text) - size)
                break
    return keep - _unfinished(text[max(keep - 4, 0) : keep])


def _unfinished(text: bytes) -> int:
    """Length of the incomplete UTF-8 sequence at the end, 0 to 3."""
    for back in range(1, min(3, len(text)) + 1):
        byte = text[-back]
        if byte >= 0xC0:  # a leading byte: 110xxxxx 2, 1110xxxx 3, 11110xxx 4 bytes long
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0
