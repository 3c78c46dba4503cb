# Two commands to start with: `make demo` and `make test`. Each alone, on a fresh clone, sets up what it needs.

VENV := .venv
BIN := $(VENV)/bin
# the first Python here that the project supports
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test test-slow test-all campaign simulate soak check format bench clean

demo: $(VENV)/.plain  ## make motion, tokenize it, verify the tokens
	$(BIN)/motion-tokens demo out/demo

PROCESSES ?= 2
test: $(VENV)/.dev  ## everything but the slow tests, in PROCESSES processes
	$(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --durations=10

test-slow: $(VENV)/.dev  ## tests that take minutes, one after the other; SEED=word: the third of them that it chooses
	$(BIN)/python -m pytest -m slow --durations=0 --durations-min=1 $(if $(SEED),--slow-third $(SEED))

test-all: test test-slow  ## both

KILLS ?= 100
campaign: $(VENV)/.dev  ## kill the job KILLS times at random and compare every byte; about an hour
	$(BIN)/python tests/faults/campaign.py --kills $(KILLS) --json out/campaign.json

SEEDS ?= 10000
simulate: $(VENV)/.dev  ## play SEEDS histories of commands on one output in the simulator
	SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulator -n $(PROCESSES)

MINUTES ?= 30
soak: $(VENV)/.dev  ## one job of many small tasks for MINUTES: memory and open files may not grow; a plot stands beside
	$(BIN)/python tests/faults/soak.py --minutes $(MINUTES) --json out/soak.json

check: $(VENV)/.dev  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.plain  ## speed of the whole job against a plain script; about 15 minutes
	$(BIN)/motion-tokens bench pipeline --json out/bench.json

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed: install it, or run make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.plain: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (some minutes the first time)"
	$(PIP) -e '.[test,check]'
	@touch $@ $(VENV)/.plain

clean:
	rm -rf $(VENV) out build dist *.egg-info
