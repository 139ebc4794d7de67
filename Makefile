# Everything runs in .venv, which the first target that needs it makes. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2
# one arithmetic thread per test worker: more only fight over the cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
CORE := src/etude/checkpoint.py,src/etude/config.py,agents/replay.py,skills/library.py
CORE := $(CORE),skills/library_files.py,skills/library_data.py,envs/checks.py
SETTINGS := pyproject.toml setup.py constraints.txt

.PHONY: help train test test-slow soak coverage mutate bench bench-learning check layout typing format clean

help: ## list these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

train: .venv/.ready ## discover skills and use them: the demo, on the CPU, in a few minutes
	$(BIN)/python train.py demo

test: .venv/.ready-test ## the whole test suite but its slow part (at most ten minutes on two cores)
	$(PYTEST)

test-slow: .venv/.ready-test ## the slow part: training runs, a clean installation
	$(PYTEST) -m slow

soak: .venv/.ready-test ## prove every promise of docs/reliability.md (at most an hour on two cores)
	$(BIN)/python tests/soak.py

coverage: .venv/.ready-test ## the test suite with branch coverage: of the core files, then of all (15 minutes)
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='$(CORE)' --fail-under=95
	$(BIN)/coverage report --fail-under=90

mutate: .venv/.ready-test ## change 60 things in each core file and see whether tests notice (ten minutes)
	$(BIN)/python tests/mutate.py --core --sample 60 --jobs $(WORKERS)

bench: .venv/.ready ## measure throughput into docs/performance.md (at most 15 minutes on two cores)
	$(BIN)/python bench/run.py

bench-learning: .venv/.ready ## measure learning per minute (hours; goes on where it was stopped)
	$(BIN)/python bench/learning.py

check: .venv/.ready-test typing ## format, lint, types and layout: under a minute, before every commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/contract/test_layout.py

format: .venv/.ready-test ## rewrite the sources as `make check` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typing: ## link the packages below .typing/etude, where type checkers and editors find them
	@rm -rf .typing && mkdir -p .typing/etude
	@for source in src/etude/* agents skills worldmodels envs evaluate zoo; do \
		ln -s ../../$$source .typing/etude/; \
	done

clean: ## remove what the targets made: .venv, caches, builds (runs/ stays)
	rm -rf .venv .typing build dist *.egg-info src/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || { \
		echo "Étude needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo missing)." \
			"Name another one: make PYTHON=python3.11 ..." >&2; \
		exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment. Install its venv module" \
			"(Debian, Ubuntu: apt-get install python3-venv) and try again." >&2; \
		exit 1; }

.venv/.ready: $(SETTINGS) | .venv/bin/python
	@echo "Installing Étude into .venv; the first time takes some minutes."
	@$(PIP_INSTALL) -e .
	@touch $@

.venv/.ready-test: $(SETTINGS) | .venv/bin/python
	@echo "Installing Étude and its test tools into .venv; the first time takes some minutes."
	@$(PIP_INSTALL) -e '.[test]'
	@touch .venv/.ready $@
