# The two commands of the README are `make demo` and `make test`. Both create .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python3
PYTEST_ARGS ?= -n 2
# Files of benchmarks/claims that are commands: one per paper.
CLAIM ?= $(basename $(notdir $(shell grep -l __main__ benchmarks/claims/*.py)))

.PHONY: demo test lint types format claims

demo: $(VENV)/.extra-demo
	$(PY) -m lightning_gen demo

test: $(VENV)/.extra-dev
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.extra-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.extra-dev
	$(PY) -m mypy

format: $(VENV)/.extra-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# CLAIM=vitok_v2 one paper, SEED=0 one seed, CLAIM_ARGS=--quick further options; an interrupted run goes on.
claims: $(VENV)/.extra-dev
	set -e; for claim in $(CLAIM); do \
	  $(PY) benchmarks/claims/$$claim.py $(if $(SEED),--seed $(SEED)) $(CLAIM_ARGS); \
	done

# A stamp per extra: installed again only when the dependencies change.
$(VENV)/.extra-%: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --editable ".[$*]"
	touch $@
