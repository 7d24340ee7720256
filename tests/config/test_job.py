"""The job models fit the rooms that consume them."""

from __future__ import annotations

import dataclasses

import pytest

from raydecode.config import DecodingConfig, JobConfig, LimitsConfig
from raydecode.request import Card, DecodingSpec


def test_limits_are_those_of_the_ledger():
    from raydecode.corpus.messages import Limits

    ours = {name: field.default for name, field in LimitsConfig.model_fields.items()}
    theirs = {field.name: field.default for field in dataclasses.fields(Limits)}
    assert ours.items() <= theirs.items()


def test_the_section_has_every_field_of_a_spec_with_its_default():
    defaults = {field.name: field.default for field in dataclasses.fields(DecodingSpec)}
    fields = DecodingConfig.model_fields
    assert defaults | {"drafter": Card("auto", {"among": []})} == {
        name: fields[name].get_default(call_default_factory=True) for name in defaults
    }


def test_every_field_is_documented():
    bare = [
        f"{name}.{key}"
        for name, field in JobConfig.model_fields.items()
        for model in [
            next((a for a in getattr(field.annotation, "__args__", ()) if hasattr(a, "model_fields")), field.annotation)
        ]
        for key, part in model.model_fields.items()
        if not part.description
    ]
    assert not bare


def test_jobs_are_frozen():
    job = JobConfig.model_validate({"model": "toy", "input": {"path": "p"}, "output": {"path": "o"}})
    with pytest.raises(Exception, match="frozen"):
        job.output.path = "other"
