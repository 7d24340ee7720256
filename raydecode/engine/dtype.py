"""What `dtype: auto` means: the dtype that the device multiplies natively.

bfloat16 on a GPU and on processors with AVX-512 bfloat16 or AMX, float32 elsewhere: on an AVX2-only processor a
bfloat16 product of 32 rows took 7 times as long as a float32 one (3072 x 576: 7.5 against 1.1 ms, two threads).
The choice is made from flags and not from a timing, so that a restart makes the same one.
"""

from __future__ import annotations

import contextlib

import torch


def fast_dtype(dtype: str, *, gpu: bool) -> str:
    """`dtype`, or what "auto" means. gpu: the engine computes on a GPU (the torch engine does not yet)."""
    if dtype != "auto":
        return dtype
    native = gpu
    with contextlib.suppress(AttributeError):  # private names of torch: without them, the dtype that is never slow
        native = native or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"
