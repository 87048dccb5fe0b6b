# make demo and make test need Python >= 3.11 and nothing else; the rest is for contributors.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
LINEAX ?=
BENCH ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Tests take from a millisecond to half a minute: who is done takes over what waits at another.
PYTEST := $(BIN)/python -m pytest --dist worksteal
# For what looks at another dtype or version, and not at the rest once more.
NOT_AGAIN := -m "not (slow or gpu or cutest or soak or once)"

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-long counts test-float64 test-float32 lint format types slow soak bench docs lineax-tests newer clean

help:
	@echo "make demo          the energy of JAX issue #787 with 2483 particles, start to end"
	@echo "make test          the tests, in minutes"
	@echo "make test-all      and those that take long; and with float64 off"
	@echo "make counts        Python calls and compilations of small cases, against what was promised"
	@echo "make lint          formatting and lint rules (make format applies them)"
	@echo "make types         the type checker"
	@echo "make slow          the slow tests;  make soak: the random search"
	@echo "make bench         the benchmarks, some hours; BENCH=--quick is short, BENCH=--help lists parts"
	@echo "make docs          the documentation, into site/; a warning is an error"
	@echo "make newer         the tests with float64 on a newer Python, where this machine has one"
	@echo "make lineax-tests LINEAX=/path/to/checkout   lineax's own operator tests"
	@echo "make clean         remove what the above made"

# A stamp says that the environment holds what pyproject.toml asks for; a later change of
# pyproject.toml installs again, a second call of make does not.
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

# The rest: what takes long, and once more with 64-bit types off.
test-all: test test-long test-float32

# The slow tests, the demo and the code of the README in a process of its own run as users do.
FAST = XLA_FLAGS="$$XLA_FLAGS `$(BIN)/python .ci/xla-flags`"

test-float64: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) $(CHOSEN)

test-long: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) -m "long and not slow"

test-float32: $(VENV)/.tests
	$(FAST) HESSOP_TEST_X64=0 $(PYTEST) -n $(JOBS) $(NOT_AGAIN)

# What a call costs, counted and not timed: Python calls, compilations.
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
	HESSOP_TEST_X64=0 $(PYTEST) -n $(JOBS) -m slow

# Programs of tests/soak: HESSOP_SOAK_PROGRAMS and HESSOP_SOAK_SEED say how many and which.
soak: $(VENV)/.tests
	$(FAST) $(PYTEST) -n $(JOBS) -m soak --hypothesis-profile=soak

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/dense.py $(BENCH)
	$(BIN)/python benchmarks/products.py $(BENCH)
	$(BIN)/python benchmarks/minimise.py $(BENCH)
	$(BIN)/python benchmarks/trust.py
	$(BIN)/python benchmarks/first_call.py $(BENCH)
	$(BIN)/python benchmarks/entries.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# One process per file, as lineax runs its own tests: together they run out of memory.
lineax-tests: $(VENV)/.tests
	@test -f "$(LINEAX)/tests/helpers.py" || { \
	  echo "usage: make lineax-tests LINEAX=/path/to/a/checkout/of/lineax" >&2; exit 1; }
	$(BIN)/python tests/contract/lineax_plugin.py "$(LINEAX)"

# Once is enough there: the lane with 64-bit types off is about hessop and not about versions.
newer: $(VENV)/.package
	@newer=`.ci/newer-python $(BIN)/python`; \
	if [ -z "$$newer" ]; then echo "no newer Python found: the tests ran on one version only"; \
	else echo "the tests once more, on $$newer"; \
	  $(MAKE) test-float64 VENV=.venv-newer PYTHON="$$newer" CHOSEN='$(NOT_AGAIN)'; fi

clean:
	rm -rf .venv .venv-newer build dist site .pytest_cache .ruff_cache .hypothesis
	find hessop tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
