# Everything a fresh clone needs; each target sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(VENV)/installed  ## install, then the main job on the bundled sample
	$(BIN)/mobileone-q calibrate --arch s0
	$(BIN)/mobileone-q build-engine --int8

test: $(VENV)/installed-dev  ## install what the tests need, then run them
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e ".[dev,rtx]"
	touch $@ $(VENV)/installed
