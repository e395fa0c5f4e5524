# Another interpreter: make env PYTHON=python3.12; fewer test processes: make test JOBS=1
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
JOBS ?= $(if $(TEST),0,3)
BIN := .venv/bin
PRODUCT := .venv/.product
TOOLS := .venv/.tools
PIP_NEWS := (Downloading|Using cached) .* MB\)|Installing collected packages|Successfully installed
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST) -n $(JOBS) --dist worksteal

.PHONY: help env fit check format lint docs test test-fast soak

help:  ## show these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */make \1\t/' | expand -t 16

fit: $(PRODUCT)  ## install the product, then train LW-FedSSL on handwritten digits (about a minute)
	$(BIN)/python train.py fit -c lw_fedssl.yaml

env: $(TOOLS)  ## install the product and all that developers need into .venv

check:  ## all that a change must pass: lint, docs, test
	$(MAKE) lint
	$(MAKE) docs
	$(MAKE) test

format: $(TOOLS)  ## format the code, and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(TOOLS)  ## style, formatting, YAML and large files (the hooks of pre-commit), and types
	$(BIN)/pre-commit run --all-files
	$(BIN)/mypy

docs: $(TOOLS)  ## build the documents into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

test: $(TOOLS)  ## run the tests, or some of them: make test TEST=tests/layerwise
	$(PYTEST) -m "not soak"

test-fast: $(TOOLS)  ## run the tests that take less than a few seconds each
	$(PYTEST) -m "not slow"

soak: $(TOOLS)  ## run the tests that kill real processes, for half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST) -n 2 --dist worksteal -m soak

define install
@echo "installing $(1) into .venv with $(PYTHON); the first time this downloads PyTorch and takes minutes"
@$(PYTHON) -m venv .venv
@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '$(1)' \
	| { grep --line-buffered -oE '$(PIP_NEWS)' || true; }
endef

$(PRODUCT): pyproject.toml
	$(call install,.)
	@touch $@

$(TOOLS): pyproject.toml
	$(call install,.[dev])
	@touch $(PRODUCT) $@
