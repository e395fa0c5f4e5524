# make env | fit | test | test-fast | soak | lint | docs; another interpreter: make env PYTHON=python3.12
SHELL := bash

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP_NEWS := (Downloading|Using cached) .* MB\)|Installing collected packages|Successfully installed

.PHONY: env fit test test-fast soak lint docs

env: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@echo "installing into .venv with $(PYTHON); the first time this downloads PyTorch and takes minutes"
	@$(PYTHON) -m venv .venv
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]' \
		| { grep --line-buffered -oE '$(PIP_NEWS)' || true; }
	@touch $@

fit: env
	$(BIN)/python train.py fit -c lw_fedssl.yaml

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "not soak"

test-fast: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow"

soak: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m soak

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
