"""Logits to one token per row: a chain of shapers, then one draw by the engine.

A sampler is one file with one class: `shape` returns new logits of the same shape, -inf for what it drops. The engine
runs stage i of all rows' chains grouped by method, masks before the chain, and draws after it with the row's noise.
Write `Options`, `needs`, `columns` (state, usually none) and `shape`; the laws in `conformance/samplers.py` run on it.
"""
