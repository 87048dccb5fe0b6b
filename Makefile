# make demo and make test need only Python >= 3.11; the other targets are for contributors.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
LINEAX ?=
BENCH ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests take between a millisecond and half a minute, so idle workers steal queued tests.
# Workers share the cores, so that BLAS, whose threads wait busily for each other, gets one: decompositions take a fifth of the
# time.
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal
# For lanes with another dtype or version: skips the tests that depend on neither, and the long ones, which `make slow` runs.
NOT_AGAIN := -m "not (slow or gpu or cutest or soak or once or long)"
LATER := -m "slow or (long and not once)"

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-long counts test-float64 test-float32 lint format types slow soak bench pictures docs \
	lineax-tests newer clean

help:
	@echo "make demo          the Hessian of JAX issue #787, 2483 particles, in half a minute"
	@echo "make test          the tests, in a few minutes"
	@echo "make test-all      the tests, the long tests, and the tests again with 64-bit types off"
	@echo "make counts        checks the numbers of Python calls and compilations in small cases"
	@echo "make lint          formatting and lint rules (make format applies them)"
	@echo "make types         the type checker"
	@echo "make slow          the slow tests, and the long tests in the other lanes;  make soak: the random search"
	@echo "make bench         the benchmarks, several hours; BENCH=--quick for a short run, BENCH=--help for options"
	@echo "make docs          the documentation, into site/; a warning is an error"
	@echo "make pictures      redraws the pictures of the README and the documentation"
	@echo "make newer         the tests on a newer Python, if this machine has one"
	@echo "make lineax-tests LINEAX=/path/to/checkout   lineax's own operator tests"
	@echo "make clean         removes everything that the other targets create"

# A stamp records that the packages listed in pyproject.toml are installed. make reinstalls them only
# when pyproject.toml changes.
$(VENV)/.package: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hessop needs Python 3.11 or newer; $(PYTHON) is" `$(PYTHON) --version 2>&1` >&2; \
	  echo "try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1"
	$(PIP) --editable .
	@touch $@

$(VENV)/.tests: $(VENV)/.package
	$(PIP) --group tests
	@touch $@

$(VENV)/.dev: $(VENV)/.tests
	$(PIP) --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.package
	$(PIP) --group bench
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	$(PIP) --group docs
	@touch $@

demo: $(VENV)/.package
	$(BIN)/python examples/issue_787.py

test: CHOSEN = -m "not (slow or gpu or cutest or soak or long)"
test: test-float64

# The tests, the long tests, and the tests again with 64-bit types off.
test-all: test test-long test-float32

# Not for the slow tests, the demo, and the fresh process that runs the README, which use XLA as users do.
FAST = XLA_FLAGS="$$XLA_FLAGS `$(BIN)/python .ci/xla-flags`"

test-float64: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) $(CHOSEN)

test-long: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) -m "long and not slow"

test-float32: $(VENV)/.tests
	$(FAST) HESSOP_TEST_X64=0 $(PYTEST) -n $(JOBS) $(NOT_AGAIN)

# The cost of a call in Python calls and compilations, counted rather than timed.
counts: $(VENV)/.tests
	$(BIN)/python benchmarks/first_call.py --quick

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

slow: $(VENV)/.tests
	$(PYTEST) -n $(JOBS) -m slow
	HESSOP_TEST_X64=0 $(PYTEST) -n $(JOBS) $(LATER)
	$(MAKE) newer CHOSEN='-m "long and not (slow or once)"'

# Random programs; HESSOP_SOAK_PROGRAMS sets their number and HESSOP_SOAK_SEED the seed.
soak: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) -m soak --hypothesis-profile=soak

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/dense.py $(BENCH)
	$(BIN)/python benchmarks/products.py $(BENCH)
	$(BIN)/python benchmarks/minimise.py $(BENCH)
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/first_call.py $(BENCH)
	$(BIN)/python benchmarks/entries.py

# Reads benchmarks/results/growth.json, which benchmarks/growth.py writes.
pictures: $(VENV)/.bench
	$(BIN)/python benchmarks/pictures.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# One process per file, as in lineax's own test runs: a single process runs out of memory.
lineax-tests: $(VENV)/.tests
	@test -f "$(LINEAX)/tests/helpers.py" || { \
	  echo "usage: make lineax-tests LINEAX=/path/to/a/checkout/of/lineax" >&2; exit 1; }
	$(BIN)/python tests/contract/lineax_plugin.py "$(LINEAX)"

# One lane is enough here: the lane with 64-bit types off tests hessop, not JAX versions.
newer: CHOSEN ?= $(NOT_AGAIN)
newer: $(VENV)/.package
	@newer=`.ci/newer-python $(BIN)/python`; \
	if [ -z "$$newer" ]; then echo "no newer Python found: the tests ran on one version only"; \
	else echo "running the tests again on $$newer"; \
	  $(MAKE) test-float64 VENV=.venv-newer PYTHON="$$newer" CHOSEN='$(CHOSEN)'; fi

clean:
	rm -rf .venv .venv-newer build dist site .pytest_cache .ruff_cache .hypothesis
	find hessop tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
