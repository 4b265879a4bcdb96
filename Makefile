PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo lint types test test-slow bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## make .venv and install upop with its development tools

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "upop needs Python 3.11 or newer; make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(READY) ## search, cut and retrain a small model on drawn shapes, on any CPU
	$(BIN)/upop fit --config configs/demo.yaml

lint: $(READY) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy on upop/
	$(BIN)/mypy

test: $(READY) ## tests and doctests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY) ## tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

bench: $(READY) ## the benchmarks in tools/ one after another, but for bench_policies.py, which takes hours
	@set -e; for tool in $(filter-out tools/bench_policies.py,$(wildcard tools/bench_*.py)); do echo "== $$tool"; $(BIN)/python "$$tool"; done

clean: ## remove .venv, caches and build files; run directories stay
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis lightning_logs
	find upop tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
