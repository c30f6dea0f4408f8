# Everything a fresh clone needs; each target sets up what it uses.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The environment of the oldest versions, with the oldest CPU build of torch. Where its index cannot be reached,
# OLDEST_TORCH=torch==2.11.0 TORCH_INDEX=https://pypi.org/simple takes the CUDA build from PyPI.
OLDEST := $(VENV)/oldest
OLDEST_TORCH ?= torch==2.11.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Each process has half of the files, so that what a file shares is made once, and helps the other at the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: docs help demo test test-all test-oldest fuzz mutate audit lint format clean

help:  ## say what there is to make
	@sed -nE 's/^([a-z-]+):.*  ## (.*)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf 'make %-11s %s\n' "$$name" "$$what"; done

demo: $(VENV)/installed  ## install, then the main job on the bundled sample
	$(BIN)/mobileone-q calibrate --arch s0
	$(BIN)/mobileone-q build-engine --int8

test: $(VENV)/installed-dev  ## install what the tests need, then run all but those marked long
	$(PYTEST) -m "not long"

test-all: $(VENV)/installed-dev  ## every test, also those marked long
	MOBILEONE_Q_TESTS=all $(PYTEST)

fuzz: $(VENV)/installed-dev  ## five minutes of damaged files for every reader; prints the seed, keeps what goes wrong
	$(BIN)/python -m tests.fuzz.campaign --minutes 5
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
		$(BIN)/python -m tests.fuzz.guided --seconds 60; \
	else \
		echo "pip install atheris to have a minute of coverage-guided fuzzing besides"; \
	fi

test-oldest: $(OLDEST)/installed  ## the tests on the oldest versions that setup.cfg allows
	$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not long" $(TESTS)

mutate: $(VENV)/installed-dev  ## change the arithmetic of seven modules, and see whether their tests notice
	$(BIN)/python benchmarks/mutate.py

audit: $(VENV)/installed-dev $(VENV)/oldest.txt  ## known holes of what is installed and of the oldest versions; licences
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install -q pip-audit pip-licenses
	$(VENV)/audit/bin/pip-licenses --python $(BIN)/python --order=license
	$(PYTHON) tests/helpers/audit.py $(VENV)/audit/bin/pip-audit --skip-editable \
		--path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
	$(PYTHON) tests/helpers/audit.py $(VENV)/audit/bin/pip-audit --no-deps --disable-pip -r $(VENV)/oldest.txt

lint: $(VENV)/installed-dev  ## check style, types, and that no import runs up the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo $(BIN)/lint-imports; $(BIN)/lint-imports; \
	else \
		echo "import-linter needs Python 3.11 or later: the floors are not checked"; \
	fi

format: $(VENV)/installed-dev  ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev  ## build the pages of docs/ into build/docs
	$(BIN)/pip install -q -e ".[docs]"
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

clean:  ## remove the environment, builds and caches
	rm -rf $(VENV) build dist *.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(OLDEST)/bin/uv: | $(BIN)/python
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install -q uv

$(VENV)/oldest.txt: setup.cfg pyproject.toml | $(OLDEST)/bin/uv
	echo "$(firstword $(subst +, ,$(OLDEST_TORCH)))" > $(OLDEST)/torch.txt
	$(OLDEST)/bin/uv pip compile -q --python $(OLDEST)/bin/python --resolution lowest-direct \
		--override $(OLDEST)/torch.txt --no-emit-package torch setup.cfg --extra train -o $@
	cat $(OLDEST)/torch.txt >> $@

$(OLDEST)/installed: setup.cfg pyproject.toml | $(OLDEST)/bin/uv
	echo "$(OLDEST_TORCH)" > $(OLDEST)/torch.txt
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct --override $(OLDEST)/torch.txt \
		--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match -e ".[dev]"
	touch $@

$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install -q -e ".[dev,rtx]"
	touch $@ $(VENV)/installed
