# `make` alone lists the targets. Everything is installed into .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
# Extras of setup.py for `make quickstart`, e.g. EXTRAS=cuda13 on a machine with an NVIDIA GPU.
EXTRAS ?=
# Further arguments for pytest, e.g. PYTEST_ARGS="-k seam". Two processes, each with whole files of tests.
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN       := $(VENV)/bin
INSTALL   := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PACKAGING := setup.py pyproject.toml constraints.txt
# Empty files that say what has been installed; they are remade when the packaging changes.
INSTALLED := $(VENV)/.installed$(EXTRAS:%=-%)
TESTABLE  := $(VENV)/.installed-dev
PYTEST    := JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-t5x soak plan-matrix study wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## install, then adapt the bundled frozen model to a task it cannot do (runs/quickstart)
	$(BIN)/adalink quickstart

test: $(TESTABLE)  ## install what the tests need, then run all but the slow ones
	$(PYTEST) -m "not slow and not t5x"

test-slow: $(TESTABLE)  ## the slow tests only
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m "slow and not t5x"

# A Python in whose environment t5x is installed, beside what the tests need (docs/t5x.md).
T5X_PYTHON ?= $(BIN)/python

test-t5x:  ## the tests against t5x itself, with T5X_PYTHON=PATH, a Python that has it; skipped where there is none
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(T5X_PYTHON) -m pytest -m t5x tests/test_t5x.py

soak: $(INSTALLED)  ## kill one training run 50 times at random moments, and compare its end with an undisturbed one (8 minutes)
	$(BIN)/python benchmarks/soak.py

plan-matrix: $(VENV)/.installed-plan  ## plans of large models on TPU slices, compiled here (hours; it resumes; runs/plan_matrix)
	$(BIN)/python benchmarks/plan_matrix.py

# Where the data sets of the study lie, its folder, that of its results, and further arguments, e.g. STUDY_ARGS="--size 0.3M".
DATA      ?= ../shared/data
STUDY     ?= runs/miniature
KEPT      ?= docs/results/miniature
STUDY_ARGS ?=

study: $(INSTALLED)  ## the scaling study in miniature: what is not done yet (many hours; it resumes), and its report
	test -e $(STUDY)/vocabulary/spiece.model || $(BIN)/adalink vocabulary $(DATA)/corpus_openstax/train.jsonl.gz --pieces 1024 --out $(STUDY)/vocabulary
	$(BIN)/adalink study --gin_file=gin/studies/miniature.gin --gin.MODEL_DIR="'$(STUDY)'" --gin.DATA_DIR="'$(DATA)'" --gin.VOCABULARY="'$(STUDY)/vocabulary'" --gin.Study.kept="'$(KEPT)'" --run $(STUDY_ARGS)
	$(BIN)/adalink report $(KEPT) --out $(STUDY)/report.html --title "The gap to full fine-tuning against model size, in miniature"

wheel: $(BIN)/python  ## build the source distribution and the wheel into dist/
	$(INSTALL) build
	$(BIN)/python -m build

clean:  ## remove the virtual environment and what was built; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PACKAGING) | $(BIN)/python
	@echo "Installing adalink-jax into $(VENV): some minutes the first time (3.4 GB, half of it TensorFlow)."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing what the extra [$*] adds into $(VENV): some minutes the first time."
	$(INSTALL) -e '.[$*]'
	@touch $@
