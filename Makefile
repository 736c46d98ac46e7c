# Everything a developer does here. `make` alone lists it.
# A fresh machine needs Python 3.11 or newer and make; nothing else.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# What the demonstration needs, and no more.
TRIED  := $(VENV)/.tried
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e
PORT   ?= 8000
# Several test files at a time, in the order of testpaths.
TOGETHER ?= -n 3 --dist loadfile --no-loadscope-reorder
# What runs by itself comes first: it leaves the compiled tests to the processes that come after it.
ALONE = $$(grep -rl 'mark[.]alone' tests --include='test_*.py')

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-system unit check fix bench bench-rag bench-router docs site bundle constraints clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv and install the gateway with everything for development

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); HX Gateway needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; rm -rf $(VENV); exit 1; }

$(STAMP): pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(INSTALL) '.[learn,local,otel,postgres,qdrant,rag,redis,dev]'
	@touch $(STAMP) $(TRIED)

$(TRIED): pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(INSTALL) '.[local]'
	@touch $(TRIED)

demo: $(TRIED) ## the gateway with three small local models on port PORT (8000), and the curl lines to try
	@$(BIN)/hx-gateway demo --port $(PORT)

test: $(STAMP) ## every test that needs this machine only: unit, architecture, integration, e2e, faults
	@status=0; \
	$(BIN)/python -m pytest -m alone $(ALONE) || status=1; \
	$(BIN)/python -m pytest $(TOGETHER) -m "not alone" || status=1; \
	exit $$status

# Thousands of short processes: each would compile everything anew.
test test-system: export PYTHONDONTWRITEBYTECODE =

test-system: $(STAMP) ## what needs root, Chromium, Prometheus or systemd-nspawn
	@$(BIN)/python -m pytest tests/system tests/browser

unit: $(STAMP) ## unit tests alone: seconds
	@$(BIN)/python -m pytest tests/unit

check: $(STAMP) ## style, format, types, import floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: make fix"; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fix: $(STAMP) ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP) ## measure what the gateway costs per request on this machine
	@$(BIN)/python -m bench

bench-rag: $(STAMP) ## measure how well documents are found, on the Cranfield collection
	@$(BIN)/python -m bench.rag

bench-router: $(STAMP) ## measure how well the learned router knows which prompt needs which model
	@$(BIN)/python -m bench.router

docs: $(STAMP) ## write the generated reference pages again
	@$(BIN)/hx-gateway docs --write

site: $(STAMP) ## the documentation as web pages, in build/site
	@$(BIN)/mkdocs build --quiet --strict

bundle: $(TRIED) ## one tar to install the gateway from without a network, in dist/ (EXTRAS=local,postgres,…)
	@$(BIN)/python tools/bundle.py $(if $(EXTRAS),--extras $(EXTRAS))

constraints: $(STAMP) ## pin the versions installed in .venv
	@$(BIN)/python tools/constraints.py

clean: ## remove what was made here, .venv included
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .hx
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
