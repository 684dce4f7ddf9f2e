# Every target sets up what it needs: .venv is made on first use and reused afterwards.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Modules are compiled at their first import. An environment that forbids writing the compiled files would make every process
# of the tests compile them again, which takes seconds.
export PYTHONDONTWRITEBYTECODE :=

# On a CPU, large memory pages and a heap that keeps freed memory make a training step about a tenth faster (glibc only; the
# arrays of an accelerator are not allocated by glibc). benchmarks/allocator.py explains each setting.
HUGE_PAGES := glibc.malloc.hugetlb=1
ACCELERATORS := $(wildcard /dev/accel* /dev/vfio/[0-9]* /dev/nvidia[0-9]*)
KEEP_FREED := $(if $(ACCELERATORS),,glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776)
ifeq ($(origin GLIBC_TUNABLES),undefined)
quickstart quickstart-rlhf trap tiny-base tiny-judge: export GLIBC_TUNABLES := $(HUGE_PAGES)$(addprefix :,$(KEEP_FREED))
test test-all: export GLIBC_TUNABLES := $(HUGE_PAGES)
endif

.PHONY: setup test test-all lint quickstart quickstart-rlhf trap tiny-base tiny-judge clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Installs what the quickstarts and the server need. The tests' own dependencies (torch, the TPU compiler, linters) are installed by `test`.
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[quickstart,serve]"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) --editable ".[quickstart,serve,test]"
	touch $@

# Most programs of the tests run once, so compiling them without LLVM's optimization saves time. `test-all` compiles as users do.
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

# All of it takes hours; `make trap SEEDS=3 ARMS="rlvr joint ordinal"` three seeds of three arms.
SEEDS ?= 8
ARMS ?= rlvr joint ordinal sequential dpo online_dpo both
trap: setup
	$(BIN)/python -m examples.reward_trap --arms $(ARMS) --seeds $(SEEDS) --output docs/trap.md

tiny-base: setup
	$(BIN)/python -m examples.quickstart.tiny_base

tiny-judge: setup
	$(BIN)/python -m examples.reward_trap.tiny_judge

clean:
	rm -rf $(VENV) build *.egg-info
	find stepaudio_jax -name __pycache__ -prune -exec rm -rf {} +
	find stepaudio_jax -type d -empty -delete
