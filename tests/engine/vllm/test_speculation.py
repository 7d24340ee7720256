"""What a job may say of vLLM's own speculation: pure, no vLLM needed."""

from __future__ import annotations

import importlib.util

import pytest

from raydecode.engine.vllm.params import refuse
from raydecode.engine.vllm.speculation import METHODS, drafts_for, refuse_speculation, speculation
from raydecode.request import Card, DecodingSpec

FIELD = "engine.options.speculative_config"


def asked(given: object, **more: object) -> dict:
    return {"speculative_config": given, **more}


@pytest.mark.parametrize(
    ("given", "full"),
    [
        (None, None),
        ("ngram", {"method": "ngram", **METHODS["ngram"]}),
        ({"method": "ngram", "prompt_lookup_max": 3}, {"method": "ngram", **METHODS["ngram"], "prompt_lookup_max": 3}),
        ({"model": "some/model"}, {"method": "draft_model", "model": "some/model", **METHODS["draft_model"]}),
        ({"method": "suffix", "num_speculative_tokens": 5}, {"method": "suffix", "num_speculative_tokens": 5}),
    ],
)
def test_a_name_or_some_words_become_all_of_them(given: object, full: dict | None) -> None:
    assert speculation(asked(given)) == full
    assert speculation({}) is None


@pytest.mark.parametrize("given", ["ngram", {"method": "ngram"}, {"model": "some/model", "num_speculative_tokens": 2}])
def test_what_runs_is_not_refused(given: object) -> None:
    assert refuse_speculation(asked(given)) is None
    assert refuse_speculation({}, drafts=16) is None


@pytest.mark.parametrize(
    ("options", "drafts", "field", "nearest", "says"),
    [
        (asked("ngram_gpu"), 0, ".method", "ngram", "those that do: draft_model, ngram, suffix"),
        (asked({"method": "eagle3", "model": "x"}), 0, ".method", None, "'eagle3' does not run here"),
        (asked({"num_speculative_tokens": 3}), 0, ".method", None, "no method"),
        (asked({"method": "custom_class", "model": "x.Y"}), 0, ".method", None, "decoding.drafter"),
        (asked("draft_model"), 0, ".model", None, "a draft model has to be named"),
        (asked({"method": "ngram", "num_speculative_tokens": 500}), 0, ".num_speculative_tokens", "128", "1 to 128"),
        (asked({"method": "ngram", "num_speculative_tokens": "8"}), 0, ".num_speculative_tokens", "8", "1 to 128"),
        (
            asked({"method": "ngram", "rejection_sample_method": "synthetic"}), 0, ".rejection_sample_method",
            "standard", "the row's own chain",
        ),
        (asked(["ngram"]), 0, "", "ngram", "a method's name"),
        (asked("ngram"), 8, "", None, "leave one out"),
    ],
)  # fmt: skip
def test_the_rest_is_refused_with_field_and_value(
    options: dict, drafts: int, field: str, nearest: str | None, says: str
) -> None:
    refusal = refuse_speculation(options, drafts)
    assert refusal
    assert (refusal.field, refusal.nearest) == (FIELD + field, nearest)
    assert says in str(refusal)
    assert drafts or str(refuse(DecodingSpec(), options)) == str(refusal), "explain says it too"


@pytest.mark.parametrize("name", ["async_scheduling", "logits_processors"])
def test_what_cannot_stand_beside_drafts(name: str) -> None:
    for options, drafts in ((asked("ngram", **{name: ["x"]}), 0), ({name: ["x"]}, 8)):
        refusal = refuse_speculation(options, drafts)
        assert refusal
        assert (refusal.field, refusal.hint) == (f"engine.options.{name}", "leave it out")
    assert refuse_speculation({name: ["x"]}) is None
    assert refuse(DecodingSpec(drafter=Card("ngram")), {name: ["x"]})


def test_vllm_s_own_suffix_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refusal = refuse_speculation(asked("suffix"))
    assert refusal
    assert (refusal.field, refusal.value, refusal.nearest) == (f"{FIELD}.method", "suffix", "ngram")
    assert "arctic-inference" in refusal.message
    assert "decoding.drafter: suffix" in str(refusal)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert refuse_speculation(asked("suffix")) is None


def test_who_drafts_for_a_row() -> None:
    assert drafts_for(DecodingSpec(), {}) is None
    assert drafts_for(DecodingSpec(drafter=Card("suffix")), {}) == "suffix"
    assert drafts_for(DecodingSpec(), asked("ngram")) == "vllm ngram"
