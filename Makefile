# The two commands of the README are `make demo` and `make test`. Both create .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python3
PYTEST_ARGS ?= -n 2

.PHONY: demo test lint types format

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

# A stamp per extra: installed again only when the dependencies change.
$(VENV)/.extra-%: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --editable ".[$*]"
	touch $@
