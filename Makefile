# Outrider. `make` alone lists what there is to do. Every target brings what it needs; nothing else has to be typed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

# The Python that makes the environment: 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN := PYTHONPATH=operator:tests $(BIN)/python
CRDS := crds charts/outrider/resources/crds

# Two checkouts on one machine test on clusters of their own.
E2E_CLUSTER := e2e-$(shell pwd | cksum | cut -d' ' -f1)
KIND := --kind-bin tests/localcluster/kind --kind-kubectl-bin tests/localcluster/kubectl --cluster-name $(E2E_CLUSTER)
QUICK_TESTS := tests/unit tests/simulation tests/adapters tests/chart

# Of `make cluster` and `make demo`.
NAME ?=
NODES ?=
KEEP ?=
REAL_NODES ?=
export NAME NODES KEEP REAL_NODES
# Further arguments for pytest: make e2e ARGS="-k canary"
ARGS ?=

##@ See it

.PHONY: demo
demo: venv ## The whole way, told and checked: KEEP=1 leaves it running, REAL_NODES=0 does without a real node
	@$(RUN) -m demo

.PHONY: demo-down
demo-down: venv ## Take down what KEEP=1 has left
	@$(RUN) -m demo down

.PHONY: cluster
cluster: venv ## Start a local cluster (NODES=30 fake ones, REAL_NODES=auto) and print the line to use it
	@$(RUN) -m localcluster up --name $(or $(NAME),outrider) --fake-nodes $(or $(NODES),30) --real-nodes $(or $(REAL_NODES),auto)

.PHONY: cluster-down
cluster-down: venv ## Take that cluster down
	@$(RUN) -m localcluster down --name $(or $(NAME),outrider)

##@ Test it

# Building the control plane takes some ten minutes the first time: here, where it shows its progress, and not inside a
# test, whose time is limited.
.PHONY: tools
tools: venv ## Build what the local cluster runs, if it is not built yet
	@$(RUN) -m localcluster build

.PHONY: test
test: tools ## Everything: lint, types, contracts, generated files, then all tests on a real control plane
	@started=$$SECONDS
	$(MAKE) lint
	echo "── tests"
	$(BIN)/pytest -q $(QUICK_TESTS) tests/e2e $(KIND) $(ARGS) || { code=$$?; echo "make test: failed after $$((SECONDS - started)) s"; exit $$code; }
	echo "make test: all passed in $$((SECONDS - started)) s"

.PHONY: lint
lint: tools ## ruff, mypy, import contracts, and whether generated files are in step
	@echo "── ruff"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	echo "── mypy"
	$(BIN)/mypy
	echo "── import contracts"
	$(BIN)/lint-imports
	echo "── generated files"
	$(RUN) -m outrider.api.schema --check $(CRDS)
	$(RUN) charts/render.py --check
	echo "CRDs and install.yaml are in step with the models and the chart"

.PHONY: unit
unit: tools ## The tests that need no cluster
	@$(BIN)/pytest -q $(QUICK_TESTS) $(ARGS)

.PHONY: e2e
e2e: tools ## The tests on a real control plane
	@$(BIN)/pytest -q tests/e2e $(KIND) $(ARGS)

.PHONY: bench
bench: tools ## Speed, writes and memory, each beside its yardstick (some 50 minutes)
	@$(RUN) tests/bench/ingest.py
	$(RUN) tests/bench/node.py
	$(RUN) -m bench.realnode
	$(RUN) -m bench.catalogue
	$(RUN) -m bench.planning
	$(RUN) -m bench.rollout
	$(RUN) -m bench.rollout --part window --nodes 5000 --rounds 1

.PHONY: soak
soak: tools ## 5,000 fake nodes, of which agents crash, nodes die and pods get lost at random (some 20 minutes)
	@OUTRIDER_SOAK_NODES=5000 $(BIN)/pytest -q tests/e2e/test_scale.py -k at_random $(KIND) $(ARGS)

.PHONY: chaos
chaos: tools ## A rollout among dying nodes, lost pods and a killed operator (ARGS="--nodes 5000 --seed 7 --seconds 600")
	@$(RUN) -m bench.chaos $(ARGS)

##@ Change it

.PHONY: format
format: venv ## Format the Python code
	@$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: generate
generate: venv ## CRDs from the models, their copies in the chart, install.yaml from the chart
	@$(RUN) -m outrider.api.schema --write $(CRDS)
	$(RUN) charts/render.py --write

# What is locked holds for every platform and for Python 3.11 and newer. UPGRADE=1 takes newer releases; without it only
# what pyproject.toml asks for anew changes. The index is pip's or uv's own setting and is not written down.
UPGRADE ?=
LOCK := uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: ## Lock the dependencies of pyproject.toml anew, with hashes (needs uv; UPGRADE=1 takes newer releases)
	@command -v uv > /dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv" >&2; exit 1; }
	$(LOCK) --output-file requirements.lock
	$(LOCK) --group dev --output-file requirements-dev.lock

.PHONY: venv
venv: $(INSTALLED) ## The Python environment in .venv, from the lock files

$(INSTALLED): requirements-dev.lock pyproject.toml
	@command -v go > /dev/null || [ -x /usr/local/go/bin/go ] \
	    || { echo "Outrider's local cluster is built from source and needs Go 1.26 or newer: https://go.dev/dl" >&2; exit 1; }
	if [ ! -x $(BIN)/python ]; then
	  command -v $(PYTHON) > /dev/null \
	    || { echo "There is no $(PYTHON) on PATH; name one: make PYTHON=python3.13" >&2; exit 1; }
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Outrider needs Python 3.11 or newer, and this is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.13" >&2; exit 1; }
	  echo "── making $(VENV) with $$($(PYTHON) --version)"
	  $(PYTHON) -m venv $(VENV) \
	    || { rm -rf $(VENV); echo "No environment could be made; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	fi
	echo "── installing what requirements-dev.lock names"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: clean
clean: ## Delete the environment, caches and build results of this checkout
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .pytest-kind .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name '*.egg-info' -prune -exec rm -rf {} +

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## "; printf "Outrider: versions of node agents, and fleets moved between them\n" } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.ONESHELL:
