"""The kernels of `engine.options.compile`: native.cpp, built by the machine's own compiler, once per machine.

Why: a step of one row is bound by reading the weights, and torch reads them as float32 where most checkpoints are
bfloat16. Upper halves of floats are floats, so such weights are stored in 16 bits and computed in float32: the same
numbers, half the bytes (`panels`). And a layer is one call instead of forty operators (`fused`), so that nothing is
paid per operator. Sums have one order whatever the batch, so the promise is the same as without (see native.cpp).

What is built lies in the cache under a name made of the source, the flags, the compiler and the processor's flags, so
machines that share a cache never load each other's. Cost: seconds, once.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
from ctypes import POINTER, byref, c_float, c_int64, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydecode.engine.torch.cache import PAGE
from raydecode.errors import Refused
from raydecode.models.cache import build_once

SOURCE = Path(__file__).with_name("native.cpp")
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-shared", "-fPIC", f"-DRAYDECODE_PAGE={PAGE}",
)  # fmt: skip
COMPILERS = "g++", "c++"
FIELD = "engine.options.compile"


class Weight(ctypes.Structure):
    """As in native.cpp; `panels.PanelLinear` fills it."""

    _fields_ = (
        ("data", c_void_p), ("scale", c_void_p), ("bias", c_void_p), ("inputs", c_int64), ("outputs", c_int64),
        ("kind", c_int64),
    )  # fmt: skip


class Paths(ctypes.Structure):
    _fields_ = (
        ("nodes", c_int64), ("page_M", c_void_p), ("offset_M", c_void_p), ("tables", c_void_p),
        ("others", c_void_p), ("table_M", c_void_p), ("base_M", c_void_p), ("other_M", c_void_p), ("more_M", c_void_p),
    )  # fmt: skip


class Pool(ctypes.Structure):
    _fields_ = (
        ("keys", c_void_p), ("values", c_void_p), ("heads", c_int64), ("size", c_int64), ("value_size", c_int64),
    )  # fmt: skip


class Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Weight), ("out", Weight), ("gate_up", Weight), ("down", Weight), ("before", c_void_p),
        ("after", c_void_p), ("query", c_void_p), ("key", c_void_p), ("heads", c_int64), ("window", c_int64),
        ("eps", c_float), ("scale", c_float),
    )  # fmt: skip


@cache
def native() -> Any:
    """The library; building it where this machine has not. Raises Refused where that cannot be done."""
    compiler = find_compiler()
    if compiler is None:
        raise _refusal(f"it needs a C++ compiler, and none of {', '.join(COMPILERS)} is on this machine's PATH")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    about = (SOURCE.read_text(encoding="utf-8"), *FLAGS, version, platform.machine(), _processor())
    name = hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]
    folder = build_once(name, lambda empty: _build(compiler, empty / "native.so"), shelf="kernels")
    library = ctypes.CDLL(str(folder / "native.so"))
    library.raydecode_dense.argtypes = [POINTER(Weight), c_void_p, c_int64, c_void_p, c_int64]
    library.raydecode_attend.argtypes = [
        POINTER(Paths), POINTER(Pool), c_int64, c_void_p, c_int64, c_int64, c_void_p, c_float, c_float, c_int64,
        c_int64,
    ]  # fmt: skip
    library.raydecode_layer.argtypes = [
        POINTER(Layer), POINTER(Paths), POINTER(Pool), c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64,
    ]  # fmt: skip
    library.raydecode_contend.argtypes = [
        c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_uint32, c_void_p, c_void_p, c_void_p, c_int64,
    ]  # fmt: skip
    library.raydecode_scratch.argtypes, library.raydecode_scratch.restype = [POINTER(Layer)], c_int64
    return library


def find_compiler() -> str | None:
    """Where this machine's C++ compiler is."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def check_native(dtype: str, encoder_decoder: bool, device: str = "cpu") -> None:
    """Raise Refused where `compile: true` cannot serve; builds the kernels."""
    if device != "cpu":
        raise _refusal(f"its kernels are for the CPU, not for {device}")
    if encoder_decoder:
        raise _refusal("it is for decoder-only models")
    if dtype != "float32":
        raise _refusal(f"it computes in float32, not in {dtype}; bfloat16 weights keep their 16 bits all the same")
    native()


def pointer(tensor: Tensor | None) -> int | None:
    """For a tensor that the caller keeps alive."""
    return None if tensor is None else tensor.data_ptr()


def dense(weight: Weight, x_MD: Tensor, y_MO: Tensor) -> None:
    """y = x W^T (+ b); both contiguous float32."""
    native().raydecode_dense(byref(weight), x_MD.data_ptr(), x_MD.shape[0], y_MO.data_ptr(), torch.get_num_threads())


def contend(x_RV: Any, low_R: Any, table_V: Any, both_R: Any, loud: int) -> list[tuple[Any, Any]]:
    """`randomness.contenders`, for rows that lie together."""
    rows, size = x_RV.shape
    ids_RV, words_RV = np.empty((rows, size), dtype=np.int32), np.empty((rows, size), dtype=np.uint32)
    found_R = np.empty(rows, dtype=np.int32)
    native().raydecode_contend(
        x_RV.ctypes.data, rows, size, low_R.ctypes.data, table_V.ctypes.data, both_R.ctypes.data, loud,
        ids_RV.ctypes.data, words_RV.ctypes.data, found_R.ctypes.data, torch.get_num_threads(),
    )  # fmt: skip
    return [(ids_RV[r, :count], words_RV[r, :count]) for r, count in enumerate(found_R.tolist())]


def _build(compiler: str, target: Path) -> None:
    done = subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise _refusal(f"{compiler} could not build its kernels: {done.stderr.strip()[-400:]}")


def _processor() -> str:
    """What `-march=native` looks at."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    wanted = ("flags", "features", "model", "cpu family", "vendor_id")
    return "\n".join(sorted({line for line in text.lower().splitlines() if line.startswith(wanted)}))


def _refusal(why: str) -> Refused:
    return Refused(f"compile: true cannot be had: {why}", field=FIELD, value=True, nearest="false")
