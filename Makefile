# make setup   an environment with everything in .venv, the hot modules compiled (VERSOLOG_PURE=1: as they are)
# make demo    the main job on real flights (DAYS=365 for the whole year)
# make up      Kafka, a worker and the HTTP API, until Ctrl-C
# make test    all tests, on a real Kafka (JOBS=2 at once)
# make check   format, lint, types, import rules
# make bench   benchmarks beside raw librdkafka, Faust, Quix Streams and PostgreSQL

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PEERS ?= .venv-peers
DAYS ?= 3
PYTEST_ARGS ?=
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-pure test-crash test-git test-simulator test-live test-full check format bench bench-full clean

help:
	@sed -n 's/^# //p' Makefile

# Made anew when pyproject.toml changes, so every target can depend on it.
$(VENV)/.installed: pyproject.toml
	@echo "· setting up $(VENV): about half a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[server,broker,demo,dev]'
	@touch $@

setup: $(VENV)/.installed
	@$(BIN)/python hatch_build.py

demo: setup
	@$(BIN)/python -m versolog.demo --days $(DAYS)

up: setup
	@$(BIN)/versolog up

test: setup
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --durations 20 --durations-min 10 $(PYTEST_ARGS)

# The tests that need no Kafka, from the sources although compiled modules are there.
test-pure: setup
	VERSOLOG_PURE=1 $(BIN)/python -m pytest tests/unit tests/contract tests/property $(PYTEST_ARGS)

# Crashes at every named point, many times over.
test-crash: setup
	$(BIN)/python -m pytest tests/crash -m "slow or not slow" $(PYTEST_ARGS)

# Ten thousand random histories of branches and merges, held against Git.
test-git: setup
	$(BIN)/python -m pytest tests/property/test_git_oracle.py -m "slow or not slow" $(PYTEST_ARGS)

# A hundred thousand schedules of transactions over partitions, full of faults.
test-simulator: setup
	$(BIN)/python -m tests.simulator --runs $(or $(RUNS),100000)

# A bank and a history of lists for minutes, while workers and the broker are killed.
test-live: setup
	$(BIN)/python -m pytest tests/crash/test_live.py -m "slow or not slow" $(PYTEST_ARGS)

# Everything, the slow suites and the full number of random histories included.
test-full: setup
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=full $(PYTEST_ARGS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Quix Streams wants another confluent-kafka than versolog does.
$(PEERS)/.installed: benchmarks/peers/requirements.txt
	@echo "· setting up $(PEERS) for Quix Streams and PostgreSQL, which are measured beside versolog"
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench: setup $(PEERS)/.installed
	VERSOLOG_PEERS_PYTHON=$(PEERS)/bin/python $(BIN)/python -m benchmarks $(BENCH_ARGS)

# All of it at its whole size: some three hours.
bench-full: setup $(PEERS)/.installed
	VERSOLOG_PEERS_PYTHON=$(PEERS)/bin/python $(BIN)/python -m benchmarks --full $(BENCH_ARGS)

# What was built and installed here. The data in versolog-data stays.
clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f versolog__mypyc*.so versolog/*/*.so
