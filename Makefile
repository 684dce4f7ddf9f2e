# Every target sets up what it needs: .venv is made on first use and reused afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# `setup` leaves it to the first import to compile a module. Where the environment forbids to keep what was compiled, every
# process that the tests start would do that again, for seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup test test-all lint quickstart quickstart-rlhf trap tiny-base tiny-judge clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# What the quickstarts need, and no more. What the tests need beside it (torch, the TPU compiler, every tool) is installed by them.
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[quickstart]"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) --editable ".[quickstart,test]"
	touch $@

# Most programs of the tests run once: compiled without LLVM's optimisation they are ready sooner. `test-all` has them as users do.
test: lint
	XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS" $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quickstart: setup
	$(BIN)/python -m examples.quickstart

quickstart-rlhf: setup
	$(BIN)/python -m examples.reward_trap

trap: setup
	$(BIN)/python -m examples.reward_trap --arms rlvr joint sequential --seeds 3 --output docs/trap.md

tiny-base: setup
	$(BIN)/python -m examples.quickstart.tiny_base

tiny-judge: setup
	$(BIN)/python -m examples.reward_trap.tiny_judge

clean:
	rm -rf $(VENV) build *.egg-info
