"""Rows, ids, resume: the pure core of the batch pipeline (no Ray, no engine)."""
