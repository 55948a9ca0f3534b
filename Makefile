# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each makes .venv and installs the pinned dependencies first, if that has not been done.

PYTHON ?= python3
# How pip finds torch: set this to choose another build, for example one for CUDA.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2

.PHONY: demo test lint compiled format clean

demo: $(VENV)/.installed
	$(BIN)/sglc run examples/quick_start.py

test: lint compiled
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Loops that numba compiles on first use: once and ahead, so that no test waits for them while others take the cores.
compiled: $(VENV)/.installed-dev
	$(BIN)/python -m runtime.kernels.cpu.build uint16 32
	$(BIN)/python -m runtime.kernels.cpu.build float32 32
	$(BIN)/python -m grammar.warm

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than 3.11; name another one: make demo PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch goes first and by its exact version, so that no other package draws in another build of it.
$(VENV)/.installed: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) install --quiet $(TORCH)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
