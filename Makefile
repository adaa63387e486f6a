# Every target runs in .venv, which is built from pyproject.toml and constraints.txt when it is missing or older.
.DEFAULT_GOAL := help
.PHONY: help demo test slow check bench evidence searches clean

PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip install --quiet --no-input --disable-pip-version-check --constraint constraints.txt
INSTALLED := .venv/.installed
FRAMEWORKS := .venv/.frameworks
# Asked only where the configured indexes have no CPU build of torch.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PYTEST_ARGS ?= -q
# One thread a process: small models, and two test workers, are slower with two.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 $(PYTEST_ARGS)

help: ## list the targets (default)
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

demo: $(INSTALLED) ## set up, tune a convolutional net without a test set, then judge the pick by one
	OMP_NUM_THREADS=1 .venv/bin/ww-opt run studies/mnist1d_cnn.py
	OMP_NUM_THREADS=1 .venv/bin/ww-opt judge studies/mnist1d_cnn.py

test: $(FRAMEWORKS) ## set up, then run the tests, without the slow ones
	$(PYTEST)

slow: $(FRAMEWORKS) ## run the slow tests
	$(PYTEST) -m slow

check: $(INSTALLED) ## format, lint and types; changes nothing
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	$(PYTHON) -m mypy

bench: $(INSTALLED) ## measure speed, side by side with peers and with the limit
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks

evidence: $(INSTALLED) ## train what the judge of the score lacks, then judge it against its rivals; hours at first
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.evidence

searches: $(INSTALLED) ## run the searches that are missing side by side, then compare their picks; hours at first
	$(PIP) --editable '.[searches]'
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.searches run
	OMP_NUM_THREADS=1 $(PYTHON) -m benchmarks.searches judge

clean: ## remove the environment, caches and builds; studies and runs stay
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@for python in python3.11 python3; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "[1/3] .venv with $$($$python --version)"; \
	    $$python -m venv .venv && exit 0; \
	    echo "make: $$python cannot create .venv; on Debian and Ubuntu its venv package is missing." >&2; exit 1; \
	done; echo "make: ww_opt needs Python 3.11 or newer, as python3.11 or python3 on the PATH." >&2; exit 1
	@echo "[2/3] torch, CPU build (0.2 GB to download, half a minute)"
	@$(PIP) torch 2>/dev/null || $(PIP) --extra-index-url $(TORCH_INDEX) torch || { \
	    echo "make: no index has the torch of constraints.txt; name one: make TORCH_INDEX=URL" >&2; exit 1; }
	@echo "[3/3] everything else (0.2 GB to download, a minute or two)"
	@$(PIP) --editable '.[demo,dev,safetensors]'
	@touch $@

$(FRAMEWORKS): $(INSTALLED)
	@echo "what integrations are tested with: transformers, lightning, optunahub (60 MB to download)"
	@$(PIP) --editable '.[transformers,lightning,optunahub]'
	@touch $@
