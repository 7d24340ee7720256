"""Row to request, outcome to columns."""

import json

import pyarrow as pa
import pytest

from actors.prepare import Prepare
from actors.rows import VALUES, Requests, output_columns, samples_of
from raydecode.columns import CHOICES, COLUMNS
from raydecode.corpus.rows import BLOCK_ERROR, TYPES, OutputSchema, RowFault, block_errors
from raydecode.events import Fault, OutcomeEvent, RowStats
from raydecode.request import Card, DecodingSpec, Messages, Request, RowId, Text
from tests.actors.local import job_of, prompts


def block(**columns):
    n = len(next(iter(columns.values())))
    return pa.table(
        {
            "_input": pa.array([0] * n, pa.int32()),
            "_key": pa.array(range(n), pa.int64()),
            "_end": pa.array(range(1, n + 1), pa.int64()),
            "_id": [f"id{i}" for i in range(n)],
            "_error": pa.array([None] * n, BLOCK_ERROR),
            **columns,
        }
    )


def test_the_id_is_the_noise_and_the_position_is_the_request(tmp_path):
    made = Requests(job_of(tmp_path, prompts(1))).of(Prepare({"template": "say {{ x }}"}, ["x"])(block(x=["a", "b"])))
    spec = DecodingSpec(max_tokens=12, seed=3, drafter=Card("auto", {"among": []}))
    assert [request for _, request in made] == [
        Request("0:0", "id0", Text("say a"), spec),
        Request("0:1", "id1", Text("say b"), spec),
    ]


def test_messages_go_through_as_messages(tmp_path):
    chat = [[{"role": "user", "content": "hi"}]]
    prepared = Prepare({"messages": "chat"}, ["chat"])(block(chat=chat))
    ((_, request),) = Requests(job_of(tmp_path, prompts(1))).of(prepared)
    assert isinstance(request.prompt, Messages)
    assert dict(request.prompt.messages[0]) == {"role": "user", "content": "hi"}


def test_a_failing_template_is_that_rows_fault():
    out = Prepare({"template": "{{ 1 // x }}"}, ["x"])(block(x=[1, 0, 2]))
    assert [fault and fault.stage for fault in block_errors(out)] == [None, "template", None]
    assert out["_text"].to_pylist() == ["1", None, "0"]


def test_struct_cells_leave_out_nulls_and_keep_the_jobs_keys(tmp_path):
    cells = pa.array([{"max_tokens": 5, "seed": None}, None])
    prepared = Prepare({"template": "x"}, ["decoding"])(block(decoding=cells))
    specs = [request.decoding for _, request in Requests(job_of(tmp_path, prompts(1))).of(prepared)]
    assert [(spec.max_tokens, spec.seed) for spec in specs] == [(5, 3), (12, 3)]


def test_a_card_outside_the_roster_is_an_error_row(tmp_path):
    job = job_of(tmp_path, prompts(1), decoding={"roster": {"samplers": ["top_k"]}})
    cells = ['{"sampler": "greedy"}', '{"sampler": {"name": "top_k", "k": 3}}']
    made = [made for _, made in Requests(job).of(Prepare({"template": "x"}, ["decoding"])(block(decoding=cells)))]
    assert isinstance(made[0], RowFault)
    assert "roster" in made[0].message
    assert made[1].decoding.sampler == (Card("top_k", {"k": 3}),)


def test_row_timeouts_are_the_smaller_of_both(tmp_path):
    job = job_of(tmp_path, prompts(1), actors={"row_timeout_s": 9.0})
    cells = [None, '{"deadline_s": 2.0}', '{"deadline_s": 20.0}']
    made = Requests(job).of(Prepare({"template": "x"}, ["decoding"])(block(decoding=cells)))
    assert [request.decoding.deadline_s for _, request in made] == [9.0, 2.0, 9.0]


@pytest.mark.parametrize("reason", ["eos", "error"])
def test_every_column_of_the_config_can_be_written(reason):
    request = Request("0:0", "id", Text("ask"), DecodingSpec(max_tokens=2))
    fault = Fault("engine", "Deadline", "too late") if reason == "error" else None
    top = ((-0.5, ((1, -0.5), (2, -1.5))),)
    outcome = OutcomeEvent(RowId("0:0"), reason, (1,), b"b\xff", fault, top, stats=RowStats(prompt_tokens=3))
    (sample,) = samples_of(request, [outcome], "w", tuple(CHOICES))
    assert set(sample.columns) == set(CHOICES)
    assert sample.columns["text"] == "b\ufffd"
    assert sample.columns["logprobs"] == [-0.5]
    assert json.loads(sample.columns["decoding"])["max_tokens"] == 2
    assert (sample.error is None) == (reason == "eos")


def test_every_column_has_a_type_and_a_value_that_fits_it(tmp_path):
    assert VALUES.keys() == COLUMNS.keys()
    assert {one.kind for one in COLUMNS.values()} == TYPES.keys()
    request = Request("0:0", "id", Text("ask"), DecodingSpec(max_tokens=2))
    top = ((-0.5, ((1, -0.5), (2, -1.5))),)  # halves are the same in float32
    outcome = OutcomeEvent(RowId("0:0"), "eos", (1,), b"b", None, top, reports=({"a": 1},))
    schema = OutputSchema(pa.schema([]), tuple(COLUMNS)).types
    for name, value in VALUES.items():
        cell = value(request, outcome, "w")
        assert pa.array([cell], schema[name]).to_pylist() == [cell], name
    job = job_of(tmp_path, prompts(1), output={"columns": ["logprobs"]}, decoding={"logprobs": 2})
    assert output_columns(job) == ("text", "finish_reason", "logprobs", "top_logprobs")
