"""The OpenAPI document tells the truth: what it allows is answered as it says, what it forbids is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serve_app.server import Server

schemathesis = pytest.importorskip("schemathesis")
SMALL = {"n": 2, "best_of": 2, "max_tokens": 4, "max_completion_tokens": 4, "max_output_tokens": 4}


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    """The document, with the model's name filled in and counts kept small, so that examples get far and cost little."""
    raw = server.http.get("/openapi.json").json()
    for model in raw["components"]["schemas"].values():
        fields = model.get("properties", {})
        if "model" in fields:
            fields["model"] = {"enum": ["toy"]}
        for name in SMALL.keys() & fields.keys():
            for one in fields[name].get("anyOf", ()):
                if one.get("type") == "integer":
                    one["maximum"] = SMALL[name]
    schema = schemathesis.openapi.from_dict(raw)
    schema.config.update(base_url=server.url)
    return schema


OPERATIONS = [
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/v1/models"), ("GET", "/v1/models/{model}"),
    ("GET", "/v1/methods"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"),
    ("POST", "/v1/embeddings"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*one, "positive") for one in OPERATIONS] + [(*one, "negative") for one in OPERATIONS if one[0] == "POST"],
)
def test_an_operation_is_as_documented(document: Any, method: str, path: str, mode: str) -> None:
    known, checks = document[path][method], schemathesis.checks
    kind = schemathesis.GenerationMode(mode)

    @settings(
        max_examples=8 if method == "POST" else 2, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=known.as_strategy(generation_mode=kind))
    def check(case: Any) -> None:
        case.call_and_validate(
            checks=[
                checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
                checks.response_schema_conformance, checks.negative_data_rejection,
            ]
        )  # fmt: skip

    check()


def test_the_document_knows_every_field(server: Server) -> None:
    raw = server.http.get("/openapi.json").json()
    chat = raw["components"]["schemas"]["ChatBody"]["properties"]
    assert {"messages", "tools", "response_format", "decoding", "noise_id", "trace"} <= chat.keys()
    assert chat["tools"]["description"].startswith("Not supported")
    assert chat["temperature"]["description"]
