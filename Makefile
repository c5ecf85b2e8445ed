# `make` alone lists the targets. Everything is installed into a virtual environment, with the versions of constraints.txt.

PYTHON ?= python3
# .venv, or one folder per version: `make test PYTHON=python3.13` uses .venv-3.13.
ifndef VENV
VERSION := $(if $(filter-out python3,$(PYTHON)),-$(or $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])" \
	2> /dev/null),$(error $(PYTHON) does not run)))
VENV    := .venv$(VERSION)
endif
# One more extra of setup.py to install: EXTRAS=cuda13 on a machine with an NVIDIA GPU, or EXTRAS=parity (PyTorch) for the
# tests that compare with PyTorch, which are skipped without it.
EXTRAS ?=
# Arguments for pytest, e.g. PYTEST_ARGS="-k seam". By default two processes, which share the tests file by file.
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN       := $(VENV)/bin
INSTALL   := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PACKAGING := setup.py pyproject.toml constraints.txt
# Empty files that record what is installed; changed packaging makes them again.
INSTALLED := $(VENV)/.installed$(EXTRAS:%=-%)
DEV       := $(VENV)/.installed-dev
PYTEST    := JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m pytest $(PYTEST_ARGS)

.DEFAULT_GOAL := help
.PHONY: help quickstart lint test test-short test-attention test-slow test-t5x test-trackers fuzz soak speed plan-matrix study docs wheel clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED)  ## install, then adapt the bundled frozen model to a task that it cannot do (runs/quickstart)
	$(BIN)/adalink quickstart

lint: $(DEV)  ## check style, format, types and wording
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python tests/check_words.py

test: $(DEV) $(INSTALLED)  ## install what the tests need, then run all but the slow ones (EXTRAS=parity: also those against PyTorch)
	$(PYTEST) -m "not slow and not t5x"

# What computes, what is saved and loaded, and whole runs; on a new version of Python or JAX, these fail first.
SHORT := adalink bank checkpoints cli configuration contract data decoding folding infer mesh models own_files pack planning \
	run run_checkpoints step vocabularies without_tensorflow

test-short: $(DEV) $(INSTALLED)  ## a third of the tests: models, adapters, checkpoints, whole runs (10 minutes)
	$(PYTEST) -m "not slow and not t5x" $(SHORT:%=tests/test_%.py)

# Whatever runs a model; with pallas, in its interpreter, what takes minutes rather than hours.
ATTENTION       := bank behaviours contract decoding decoding_program families folding mesh methods models pack packed_examples saved \
	segments step t5_parity token_losses vision_parity
ATTENTION_SMALL := models segments

test-attention: $(DEV) $(INSTALLED)  ## the tests of models with each kind of attention that runs on a CPU in place of 'auto'
	$(PYTEST) -m "not slow and not t5x" --attention=reference $(ATTENTION:%=tests/test_%.py)
	$(PYTEST) -m "not slow and not t5x" --attention=blockwise $(ATTENTION:%=tests/test_%.py)
	$(PYTEST) -m "not slow and not t5x" --attention=pallas $(ATTENTION_SMALL:%=tests/test_%.py)

test-slow: $(DEV) $(INSTALLED)  ## the slow tests only
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m "slow and not t5x"

# A Python that has t5x and what the tests need (docs/t5x.md).
T5X_PYTHON ?= $(BIN)/python

test-t5x:  ## the tests against t5x itself, with T5X_PYTHON=PATH, a Python that has t5x; skipped otherwise
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(T5X_PYTHON) -m pytest -m t5x tests/test_t5x.py

# W&B, MLflow and trackio over the packages of $(VENV), with the versions of constraints-trackers.txt.
TRACKERS := $(VENV)-trackers
PURELIB  := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

test-trackers: $(TRACKERS)/.installed  ## the tests of trackers with the real W&B, MLflow and trackio, without a network
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(TRACKERS)/bin/python -m pytest tests/test_trackers.py

$(TRACKERS)/.installed: $(PACKAGING) constraints-trackers.txt | $(DEV) $(INSTALLED)
	@echo "Installing W&B, MLflow and trackio into $(TRACKERS) (200 MB)."
	$(BIN)/python -m venv $(TRACKERS)
	$(BIN)/python $(PURELIB) > $$($(TRACKERS)/bin/python $(PURELIB))/base.pth
	$(TRACKERS)/bin/python -m pip install -q --disable-pip-version-check -c constraints-trackers.txt -e '.[wandb,mlflow,trackio]'
	@touch $@

# How many inputs, of which seed and kinds, e.g. FUZZ_ARGS='--seed 1 --kinds "tables,gin values"'.
FUZZ_ARGS ?= --page docs/results/fuzz.md

fuzz: $(DEV) $(INSTALLED)  ## run commands on thousands of bad inputs, and count what comes of them (10 minutes)
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ_ARGS)

# More for the soak: SOAK_ARGS="--kills 20 --commands train,infer --seed 1".
SOAK_ARGS ?=

soak: $(INSTALLED)  ## kill every command that writes, 110 times in all, and compare with undisturbed runs (30 minutes; resumes; runs/soak)
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

# More for the benchmark: SPEED_ARGS="--parts table --rows step-128".
SPEED_ARGS ?=

speed: $(VENV)/.installed-parity $(VENV)/.installed-plan  ## time steps and decoding beside PyTorch and PEFT (an hour; a quiet machine; resumes; runs/speed)
	$(BIN)/python -m benchmarks.speed --page docs/results/speed.md $(SPEED_ARGS)

plan-matrix: $(VENV)/.installed-plan  ## compile plans of large models for TPU slices on this machine (hours; resumes; runs/plan_matrix)
	$(BIN)/python benchmarks/plan_matrix.py

# The study: folder of its data sets, its own folder, the folder of its results, further arguments, e.g. STUDY_ARGS="--size 0.3M".
DATA      ?= ../shared/data
STUDY     ?= runs/miniature
KEPT      ?= docs/results/miniature
STUDY_ARGS ?=

study: $(INSTALLED)  ## run what is missing of the scaling study in miniature (many hours; resumes), then write its report; DATA=FOLDER of its data sets (docs/studies.md)
	@test -e $(STUDY)/vocabulary/spiece.model || test -e $(DATA)/corpus_openstax/train.jsonl.gz || { echo "The study needs its data sets: there is no $(DATA)/corpus_openstax/train.jsonl.gz; docs/studies.md says how to get them. Then: make study DATA=FOLDER" >&2; exit 1; }
	test -e $(STUDY)/vocabulary/spiece.model || $(BIN)/adalink vocabulary $(DATA)/corpus_openstax/train.jsonl.gz --pieces 1024 --out $(STUDY)/vocabulary
	$(BIN)/adalink study --gin_file=gin/studies/miniature.gin --gin.MODEL_DIR="'$(STUDY)'" --gin.DATA_DIR="'$(DATA)'" --gin.VOCABULARY="'$(STUDY)/vocabulary'" --gin.Study.kept="'$(KEPT)'" --run $(STUDY_ARGS)
	$(BIN)/adalink report $(KEPT) --out $(STUDY)/report.html --tables $(STUDY)/tables --title "The gap to full fine-tuning against model size, in miniature"

docs: $(VENV)/.installed-docs  ## build the documentation site into docs/_build/html; a warning is an error
	JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

wheel: $(BIN)/python  ## build the source distribution and the wheel into dist/
	$(INSTALL) build
	$(BIN)/python -m build

clean:  ## remove the virtual environments and all build outputs; keeps runs/
	rm -rf .venv .venv-* $(VENV) build dist docs/_build docs/_generated *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PACKAGING) | $(BIN)/python
	@echo "Installing adalink-jax into $(VENV): a few minutes the first time (3.4 GB, half of it TensorFlow)."
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing the extra [$*] into $(VENV): a few minutes the first time."
	$(INSTALL) -e '.[$*]'
	@touch $@
