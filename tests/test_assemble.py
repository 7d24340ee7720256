"""Which engine a job gets, and what is refused before any weights load."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from raydecode import registry
from raydecode.assemble import build_engine, choose, draft_models, notes
from raydecode.config import JobConfig
from raydecode.engine.toy import ToyEngine
from raydecode.engine.vllm import available
from raydecode.errors import Refused, UserError
from raydecode.events import OutcomeEvent
from raydecode.request import Request, Text


def job(model: str = "toy", **sections: Any) -> JobConfig:
    base = {"model": model, "input": {"path": "rows.jsonl"}, "output": {"path": "out"}}
    return JobConfig.model_validate({**base, **sections})


def test_the_toy_model_has_its_own_engine() -> None:
    choice = choose(job())
    assert (choice.name, choice.dtype) == ("toy", "float32")
    assert "toy" in choice.why


TEMPERATURE = {"sampler": [{"name": "temperature", "value": 0.8}]}


@pytest.fixture
def slow_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose compiler is missing, so that the torch engine has no kernels of its own."""
    monkeypatch.setattr("raydecode.engine.torch.native.find_compiler", lambda: None)


@pytest.mark.usefixtures("slow_torch")
def test_auto_takes_vllm_where_it_runs_and_says_why_not_elsewhere() -> None:
    choice = choose(job("some/model", decoding=TEMPERATURE))
    missing = available()
    assert choice.name == ("torch" if missing else "vllm")
    assert missing is None or missing in choice.why
    assert choice.dtype in ("float32", "bfloat16")


@pytest.mark.skipif(available() is not None, reason="no vLLM to choose from")
def test_auto_takes_torch_where_its_own_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("raydecode.engine.torch.native.find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def chosen(**engine: Any) -> str:
        return choose(job("some/model", engine={"dtype": "float32", **engine}, decoding=TEMPERATURE)).name

    assert chosen() == chosen(options={"chunk": 64}) == "torch"
    assert chosen(dtype="bfloat16") == "vllm", "the kernels compute in float32"
    assert chosen(options={"compile": False}) == "vllm"
    assert chosen(options={"enforce_eager": True}) == "vllm", "an option that only vLLM has"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert chosen() == "vllm", "whose nodes may have GPUs"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen() == "vllm"


SPECULATES = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}


@pytest.mark.parametrize("chain", [["mirostat2"], [{"name": "top_p", "p": 0.9}, {"name": "temperature", "value": 0.8}]])
@pytest.mark.parametrize("options", [{}, SPECULATES])
def test_a_chain_that_vllm_does_not_have_runs_in_our_processor(chain: list, options: dict) -> None:
    asked = job("some/model", engine={"name": "vllm", "options": options}, decoding={"sampler": chain})
    assert choose(asked).name == "vllm"


def test_vllm_hosts_drafters_that_read_ids_when_it_is_named_and_auto_does_not_take_it() -> None:
    for decoding in ({"drafter": "ngram"}, {"roster": {"drafters": ["suffix"]}}):
        assert choose(job("some/model", engine={"name": "vllm"}, decoding=decoding)).name == "vllm"
        assert choose(job("some/model", decoding=decoding)).name == "torch"
    with pytest.raises(Refused) as caught:
        choose(job("some/model", engine={"name": "vllm"}, decoding={"drafter": "token_recycling"}))
    assert "aded, ngram, suffix" in str(caught.value)
    with pytest.raises(Refused, match="cannot both draft"):
        choose(job("some/model", engine={"name": "vllm", "options": SPECULATES}, decoding={"drafter": "ngram"}))


def test_auto_takes_torch_for_what_vllm_cannot_give() -> None:
    choice = choose(job("some/model", decoding={"sampler": ["dola"]}))
    assert choice.name == "torch"
    assert "vLLM" in choice.why


def test_a_named_engine_that_cannot_host_the_job_is_refused_with_what_would() -> None:
    with pytest.raises(Refused) as caught:
        choose(job("some/model", engine={"name": "vllm"}, decoding={"sampler": ["dola"]}))
    assert "torch" in str(caught.value)


def test_the_roster_counts_for_the_choice() -> None:
    elsewhere = {"samplers": ["dola"]}
    asked = job("some/model", decoding={"roster": elsewhere})
    assert choose(asked).name == "torch"
    with pytest.raises(Refused) as caught:
        choose(job("some/model", engine={"name": "vllm"}, decoding={"roster": elsewhere}))
    assert "dola" in str(caught.value)
    assert "torch" in str(caught.value)


def test_a_bare_name_on_the_roster_stands_for_any_options() -> None:
    named = job("some/model", engine={"name": "vllm"}, decoding={"roster": {"samplers": ["min_p", "top_k"]}})
    assert choose(named).name == "vllm", "min_p needs an option, which the rows give"
    with registry.guests():

        @registry.register("samplers", engines=("torch", "toy"))
        class Foreign:
            """A sampler that vLLM does not have."""

            class Options(registry.Options):
                size: int

        with pytest.raises(Refused) as caught:
            choose(job("some/model", engine={"name": "vllm"}, decoding={"roster": {"samplers": ["foreign"]}}))
    assert caught.value.field == "decoding.roster.samplers"
    assert "torch" in str(caught.value)


def test_a_choice_of_drafters_is_none_inside_vllm_and_said() -> None:
    assert "auto means none on vLLM" in notes(job("some/model", engine={"name": "vllm"}))[0]
    assert notes(job("some/model", engine={"name": "torch"})) == []
    assert notes(job("some/model", engine={"name": "vllm"}, decoding={"drafter": "none"})) == []


def test_models_that_a_choice_names_are_found_before_the_engine_is_built(tmp_path) -> None:
    among = ["ngram", {"name": "draft_model", "model": str(tmp_path / "nowhere")}]
    with pytest.raises(UserError) as caught:
        draft_models(job("some/model", decoding={"drafter": {"name": "auto", "among": among}}))
    assert caught.value.field == "decoding.drafter.among[1].model"
    assert draft_models(job("some/model")) == {}
    roster = {"drafter": "none", "roster": {"drafters": ["ngram", {"name": "auto", "among": among}]}}
    with pytest.raises(UserError) as caught:
        draft_models(job("some/model", decoding=roster))
    assert caught.value.field == "decoding.roster.drafters[1].among[1].model"


def test_a_built_engine_runs() -> None:
    engine = build_engine(job(engine={"slots": 2, "options": {"step_s": 0.0}}))
    assert isinstance(engine, ToyEngine)
    engine.submit(Request("r", "r", Text("ab"), job(decoding={"max_tokens": 5}).spec))
    events = []
    while engine.busy:
        events += engine.step()
    assert {event.reason for event in events if isinstance(event, OutcomeEvent)} <= {"eos", "length"}


@pytest.mark.usefixtures("slow_torch")
def test_an_encoder_decoder_goes_to_torch_also_where_vllm_runs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known as soon as the model's files are here; a model that is not here yet is asked again once it is."""
    monkeypatch.setattr("raydecode.engine.vllm.available", lambda: None)
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    choice = choose(job(str(tmp_path)))
    assert choice.name == "torch"
    assert "t5 is an encoder-decoder" in choice.why
    with pytest.raises(Refused, match="t5 is an encoder-decoder") as caught:
        choose(job(str(tmp_path), engine={"name": "vllm"}))
    assert "engine.name=torch" in str(caught.value)
    config.write_text('{"model_type": "llama"}')
    assert choose(job(str(tmp_path))).name == "vllm"
    assert choose(job("not/here")).name == "vllm"


def test_choosing_loads_neither_vllm_nor_ray_nor_transformers() -> None:
    code = (
        "import sys; from raydecode.assemble import choose; from raydecode.config import JobConfig;"
        "choose(JobConfig.model_validate({'model': 'some/model', 'input': {'path': 'x'}, 'output': {'path': 'y'}}));"
        "print([name for name in ('vllm', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_whether_a_models_code_is_run_is_said_with_the_model() -> None:
    with pytest.raises(UserError) as caught:
        choose(job(engine={"options": {"trust_remote_code": False}}))
    assert caught.value.field == "engine.options.trust_remote_code"
    assert "model: {source: ..., trust_remote_code: true}" in str(caught.value)
