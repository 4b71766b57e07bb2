# The verbs a person types are the verbs CI types.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test lint type format bench setup clean

setup: $(INSTALLED)

# A plain virtual environment with pinned versions; rebuilt when the metadata or the pins change.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "segue needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $@

run: setup
	$(BIN)/segue run $(ARGS)

# Two processes share the files of tests; the quiet ones come last, in one of them (tests/conftest.py).
test: setup
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m segue.experiments.bench_run

clean:
	rm -rf .venv build *.egg-info
