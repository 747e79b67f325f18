# `make demo` and `make test` set up everything they need inside .venv, then run.

PYTHON ?= python3
DEMO_ARGS ?=
PYTEST_ARGS ?=
# How many processes run the tests: one for each core, at most eight. JOBS=0 runs them in one.
JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALLED := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
SITE := $(VENV)/.site
# Beside the newest, each in a folder of its own: the Tritons that torch 2.6 to 2.14 bring, one of each
# minor version, and the oldest timm that setup.py allows.
TRITONS := 3.2.0 3.3.1 3.4.0 3.5.1 3.6.0 3.7.1 3.8.0
TEST_TRITONS := $(TRITONS:%=test-triton-%)
OLD_TIMM := $(VENV)/timm-1.0.23
METADATA := setup.py pyproject.toml constraints.txt adcam/version.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-wheel test-kernels test-timm fuzz chaos lint format api docs clean
.PHONY: $(TEST_TRITONS)
MAKEFLAGS += --no-print-directory

help:
	@echo "adcam: pixel masks from image-level labels"
	@echo
	@echo "  make demo       generate pictures, train, compare the methods, train a network on the"
	@echo "                  masks, write a report (5 minutes)"
	@echo "  make test       check style and types, run the tests (10 minutes on two cores)"
	@echo "  make test-all   the same with the slow tests and all Tritons (5 GB more)"
	@echo "  make test-wheel build the wheel, install it away from here, run the tests from it"
	@echo "  make fuzz       try the readers on 10,000 damaged files"
	@echo "  make chaos      kill a run of 300 images 20 times and compare its bytes (15 minutes)"
	@echo "  make lint       check style and types only"
	@echo "  make format     rewrite the code in the project's style"
	@echo "  make docs       write the documentation as a site to site/ (Python 3.11 or later)"
	@echo "  make api        rewrite tests/api_surface.txt after a change of public names"
	@echo "  make install    set up .venv and nothing else"
	@echo "  make clean      delete .venv and every cache"
	@echo
	@echo "The first call installs into .venv, which needs the network, 8 GB and a few minutes; later"
	@echo "calls start at once. You need Python 3.10 to 3.13 and, for one optional package, a C"
	@echo "compiler. To use another Python: make demo PYTHON=python3.12"
	@echo "Options of the demo: make demo DEMO_ARGS='--quick --work-dir /somewhere'"
	@echo "Options of pytest:   make test PYTEST_ARGS='tests/ops -k sinkhorn'"

$(INSTALLED): $(METADATA)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "adcam needs Python 3.10 to 3.13, but $(PYTHON) is" \
	    "$$($(PYTHON) -V 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { \
	  echo "Creating .venv ..."; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing adcam and what it needs into .venv (about 3 minutes, 8 GB) ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Packages that only some tests and the demo's network use. If one cannot be installed, only those
# are skipped.
# mmsegmentation asks for opencv-python, which overwrites the headless build and cannot be imported
# on a server without display libraries; the last line puts the headless build back.
$(EXTRAS): $(INSTALLED)
	@echo "Installing mmsegmentation and building pydensecrf (about 1 minute) ..."
	@$(PIP) install -c constraints.txt -e '.[crf]' || \
	  echo "pydensecrf did not build: tests that compare with it are skipped."
	@{ $(PIP) install -c constraints.txt -e '.[seg]' && $(PIP) install -c constraints.txt \
	  --force-reinstall --no-deps opencv-python-headless; } || \
	  echo "mmsegmentation did not install: no network is trained, its tests are skipped."
	@$(PIP) install -c constraints.txt -e '.[coco]' || \
	  echo "pycocotools did not install: tests that draw COCO's masks are skipped."
	@$(PIP) install -c constraints.txt -e '.[ray]' || \
	  echo "Ray did not install: tests of clusters and of packed files are skipped."
	@{ $(PIP) install -c constraints.txt -e '.[peers]' && $(PIP) install -c constraints.txt \
	  --force-reinstall --no-deps opencv-python-headless; } || \
	  echo "Other projects' packages did not install: tests that exchange with them are skipped."
	@$(PIP) install -c constraints.txt -e '.[docs]' || \
	  echo "mkdocs did not install: the site is not built."
	@touch $@

$(SITE): $(INSTALLED)
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

$(TRITONS:%=$(VENV)/triton-%/triton) $(OLD_TIMM)/timm: | $(INSTALLED)
	@echo "Installing $(notdir $(@D)) beside the newest (1 minute) ..."
	@$(PIP) install --no-deps --target $(@D) $(subst -,==,$(notdir $(@D))) || \
	  echo "$(notdir $(@D)) did not install."

install: $(INSTALLED)

demo: $(EXTRAS)
	@$(BIN)/adcam demo $(DEMO_ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

# One thread a process: the tensors of the tests are small, and on a busy machine threads that wait
# for one another take five times as long.
test: export OMP_NUM_THREADS ?= 1
test-all: export OMP_NUM_THREADS ?= 1

SHARE_TESTS := -n $(JOBS) --maxprocesses 8 --dist loadgroup

MARKS := not slow and not gpu
test-all: MARKS := not gpu

test: $(EXTRAS) lint test-kernels test-timm
	@$(BIN)/python -m pytest $(SHARE_TESTS) -m '$(MARKS)' $(PYTEST_ARGS)

# Kernels are compiled by the oldest Triton; the other tests compile them with the newest.
test-kernels: $(firstword $(TEST_TRITONS))

$(TEST_TRITONS): export OMP_NUM_THREADS ?= 1
$(TEST_TRITONS): test-triton-%: $(EXTRAS) $(VENV)/triton-%/triton
	@if [ -d $(VENV)/triton-$*/triton ]; then \
	  PYTHONPATH=$(CURDIR)/$(VENV)/triton-$* $(BIN)/python -m pytest $(SHARE_TESTS) \
	    -m '$(MARKS)' -k compile tests/ops; \
	else \
	  echo "Triton $* is missing: it compiles no kernel."; [ "$$CI" != true ]; \
	fi

# Also those marked slow and those of a GPU. Between the oldest and the newest Triton, what is not slow.
$(filter-out $(firstword $(TEST_TRITONS)),$(TEST_TRITONS)): MARKS := not slow and not gpu
test-all: $(EXTRAS) lint $(TEST_TRITONS)
	@$(BIN)/python -m pytest $(SHARE_TESTS) $(PYTEST_ARGS)

# What reads a network's attention, with the oldest timm, which uses what the newest torch deprecates.
test-timm: export OMP_NUM_THREADS ?= 1
test-timm: $(EXTRAS) $(OLD_TIMM)/timm
	@if [ -d $(OLD_TIMM)/timm ]; then \
	  PYTHONPATH=$(CURDIR)/$(OLD_TIMM) $(BIN)/python -m pytest $(SHARE_TESTS) -m '$(MARKS)' \
	    -W 'ignore:`torch.jit:FutureWarning' \
	    tests/models/test_attention_recorder.py tests/models/test_models_attention_capture.py \
	    tests/models/test_packed_pass.py tests/ops/test_capture_kernels.py; \
	else \
	  echo "The oldest timm is missing: nothing is tested with it."; [ "$$CI" != true ]; \
	fi

# Of PYTHON, in a clean environment: make test-wheel PYTHON=python3.13
test-wheel: export OMP_NUM_THREADS ?= 1
test-wheel:
	@tools/test_wheel.sh $(PYTHON) $(SHARE_TESTS) -m 'not slow and not gpu' $(PYTEST_ARGS)

# Twenty kills at random moments; a second call with SEED=1 tries other moments.
chaos: export OMP_NUM_THREADS ?= 1
chaos: $(EXTRAS)
	@folder=$$(mktemp -d) && $(BIN)/python tests/labeling/test_chaos.py $$folder $(SEED)

fuzz: export ADCAM_FUZZ_EXAMPLES ?= 530
fuzz: $(EXTRAS)
	@$(BIN)/python -m pytest $(SHARE_TESTS) tests/data/test_readers_fuzz.py $(PYTEST_ARGS)

format: $(INSTALLED)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

api: $(INSTALLED)
	@$(BIN)/python tests/test_api_surface.py > tests/api_surface.txt

# Strict: a link that leads nowhere fails.
docs: $(SITE)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html, or, to search: $(BIN)/python -m http.server -d site"

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find adcam tests tools configs -name __pycache__ -prune -exec rm -rf {} +
