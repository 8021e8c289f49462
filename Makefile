# Every target works on a fresh machine: it needs python3 >= 3.11 (or uv) and a package registry, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format bench soak clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY)  ## make .venv with the locked packages; done once, and again when requirements.lock changes

$(READY): requirements.lock
	@if uv --version >/dev/null 2>&1; then \
	  { [ -x $(BIN)/python ] || uv venv --quiet --python '>=3.11' $(VENV); } \
	  && uv pip sync --require-hashes --python $(BIN)/python requirements.lock; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; set PYTHON=")' \
	  && { [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); } \
	  && $(BIN)/python -m pip install --require-hashes -r requirements.lock; \
	fi
	@touch $@

demo: $(READY)  ## train the colorizer for a few minutes, colour grey photos, write outputs/demo/index.html
	$(BIN)/python -m doors.demo

test: $(READY)  ## the test suite: CPU, no network, at most 5 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## the tests that take longer, and those for a GPU where there is one
	$(BIN)/python -m pytest -m "(slow or gpu) and not net"

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## rewrite the files as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## compare the speed of training with a bare loop
	$(BIN)/python -m benchmarks.step_time

soak: $(READY)  ## kill trainings at 32 random moments and compare their ends; 2000 steps for leaks (at most 15 minutes)
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.endurance

clean:  ## remove caches; the environment, outputs/ and pretrained/ stay
	rm -rf .pytest_cache .ruff_cache .mypy_cache .cache build dist
	find . -path ./$(VENV) -prune -o -path ./outputs -prune -o -name __pycache__ -type d -exec rm -rf {} +
