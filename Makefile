# mixtura: two commands from a fresh clone. Only Python >= 3.11, make and a network for pip are needed.
#   make train   trains the default recipe on real text, ends with runs/latest/report.html
#   make test    linters, types and the whole test suite
.DEFAULT_GOAL := help
PYTHON ?= python3
RUN := .venv/bin/python
# Relative paths only, so that the folder's own name may hold spaces.
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: help train test lint format clean
help:
	@sed -n 's/^#   //p' Makefile

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "mixtura: expected Python >= 3.11, got %d.%d; set PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv .venv

# torch goes first and alone, so that the pinned build is taken before anything else can ask for another one.
.venv/torch: constraints.txt | .venv/bin/python
	$(PIP) torch
	@touch $@

.venv/train: pyproject.toml .venv/torch
	$(PIP) -e '.[train,plots]'
	@touch $@

.venv/dev: pyproject.toml .venv/torch
	$(PIP) -e '.[dev]'
	@touch $@

# Compiled on installation too; here again when its sources change. Without a compiler the plain torch kernel runs.
.venv/native: $(wildcard mixtura/kernels/csrc/*) mixtura/kernels/build.py | .venv/bin/python
	@$(RUN) mixtura/kernels/build.py || true
	@touch $@

train: .venv/train .venv/native
	$(RUN) -m mixtura train

lint: .venv/dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib mixtura tests docs benchmarks examples README.md CONTRIBUTING.md CHANGELOG.md
	$(RUN) -m mypy

test: lint .venv/native
	$(RUN) -m pytest -n auto

format: .venv/dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
