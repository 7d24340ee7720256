"""Opening a GGUF file once, and quickly.

Left to itself a conversion of SmolLM2-135M spends nine tenths of its time on the header: `gguf.GGUFReader` slices a
numpy memory map a million times (a plain array over the same pages takes a third of the time), transformers opens the
file three more times, and asks `gguf` for its table of tensor names once per module (397 times). None of that changes a
value, so `opened_once` hands transformers the reader we have and a memo of that table for as long as it converts.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader


def open_reader(file: Path) -> GGUFReader:
    """A `gguf.GGUFReader` of `file`; its errors are ValueError, IndexError, KeyError and OSError."""
    import gguf
    import numpy as np

    class PlainReader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._pages

        @data.setter
        def data(self, mapped: Any) -> None:
            self._pages = mapped.view(np.ndarray)

    return PlainReader(file)


@contextmanager
def opened_once(file: Path, reader: GGUFReader) -> Iterator[None]:
    """Within the block, `gguf.GGUFReader(file)` is `reader`; other files open as ever."""
    import gguf

    open_other, name_map = gguf.GGUFReader, gguf.get_tensor_name_map

    def open_same(path: str | os.PathLike[str], *arguments: Any) -> GGUFReader:
        return reader if Path(path).resolve() == file.resolve() else open_other(path, *arguments)

    gguf.GGUFReader, gguf.get_tensor_name_map = open_same, functools.cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = open_other, name_map


def field(reader: GGUFReader, name: str, default: Any) -> Any:
    """The value of a metadata key."""
    found = reader.get_field(name)
    return default if found is None else found.contents()
