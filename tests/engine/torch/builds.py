"""Tests of kernels that a compiler builds, where there is one."""

from __future__ import annotations

import shutil

import pytest

from raydecode.engine.torch.native import COMPILERS

builds = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason=f"none of {', '.join(COMPILERS)} is here")
COMPILED = [pytest.param(False, id="eager"), pytest.param(True, id="compiled", marks=builds)]
