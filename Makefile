# Preble. `make help` lists the verbs.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTOS := $(wildcard proto/preble/v1/*.proto)
WORKERS ?= 2
MODEL ?= demo
FUZZ_OPERATIONS ?= 1000000

export OMP_NUM_THREADS ?= 1
export GRPC_VERBOSITY ?= NONE

.DEFAULT_GOAL := help
.PHONY: help setup serve test check demo proto bench fuzz vopr vopr-mutants tournament scheduling-study clean \
	show-chat show-trace show-worker-killed show-router-restart show-ray show-policy-order show-local-policies

help:  ## List these verbs.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

setup: $(READY)  ## Make the virtual environment and install everything into it.

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

serve: $(READY)  ## Bring up WORKERS=2 workers and the router on MODEL=demo; Ctrl-C ends all.
	@$(BIN)/preble serve $(MODEL) --workers $(WORKERS)

demo: $(READY)  ## Three routing policies on 4 live simulated workers, compared in two minutes.
	$(BIN)/preble demo

test: $(READY)  ## Run all tests.
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)  ## Lint, format, types, import rules, and whether the stubs match the protos.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@stubs=$$(mktemp -d) && $(call generate,$$stubs) && \
		diff -r --exclude __pycache__ --exclude __init__.py $$stubs/preble/v1 preble/v1 \
		&& rm -r $$stubs && echo "stubs match the protos"

generate = $(BIN)/python -m grpc_tools.protoc -Iproto \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

proto: $(READY)  ## Regenerate preble/v1 from proto/.
	$(call generate,.)

bench: $(READY)  ## Print the figures of every part beside their targets or baselines.
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

fuzz: $(READY)  ## Hold the prefix tree against brute force for FUZZ_OPERATIONS=1000000.
	PYTHONPATH=tests $(BIN)/python tests/fuzz/fuzz_prefix_tree.py --operations $(FUZZ_OPERATIONS)

FAULTS ?= --peer .faults-peer

faults: $(READY)  ## Do every fault to a live cluster, and to sglang-router; FAULTS=options.
	PYTHONPATH=tests $(BIN)/python -m faults $(FAULTS)

SEEDS ?= 10000
JOBS ?= 2
vopr = PYTHONPATH=tests $(BIN)/python -m vopr --jobs $(JOBS) $(if $(MUTANT),--mutant $(MUTANT))

vopr: $(READY)  ## Simulate SEEDS=10000 lives of a cluster with faults; SEED=n replays one.
	$(vopr) $(if $(SEED),--seed $(SEED),$(if $(REGRESSION),--regression $(REGRESSION),--seeds $(SEEDS) --first $(or $(FIRST),0)))

vopr-mutants: $(READY)  ## Plant bugs, and show that simulated lives find each of them.
	$(vopr) --mutants --seeds 400

TOURNAMENT ?= --traces ../shared/traces

tournament: $(READY)  ## Hold all policies against each other in simulation; TOURNAMENT=options.
	$(BIN)/preble tournament $(TOURNAMENT)

SCHEDULING ?= --traces ../shared/traces --cells scheduling --html scheduling.html --markdown scheduling.md

scheduling-study: $(READY)  ## The same for local policies and cache tiers; SCHEDULING=options.
	$(BIN)/preble tournament --part scheduling --part scheduling-behind $(SCHEDULING)

show-chat: $(READY)  ## Show 1: a streaming chat of the openai client through a fresh cluster.
	PYTHONPATH=tests $(BIN)/python tests/shows/chat.py

show-trace: $(READY)  ## Show 2: 300 requests of a real trace on 4 torch workers, two policies.
	PYTHONPATH=tests $(BIN)/python tests/shows/trace.py

show-worker-killed: $(READY)  ## Show 3: kill -9 of one of 4 workers with 48 streams in flight.
	PYTHONPATH=tests $(BIN)/python tests/shows/worker_killed.py

show-router-restart: $(READY)  ## Show 4: kill -9 of the router; the next one comes back warm.
	PYTHONPATH=tests $(BIN)/python tests/shows/router_restart.py

show-ray: $(READY)  ## Show 5: the same cluster and replay on Ray.
	PYTHONPATH=tests $(BIN)/python tests/shows/ray_cluster.py

show-policy-order: $(READY)  ## Show 6: five policies live and simulated, on a machine left alone.
	PYTHONPATH=tests $(BIN)/python tests/shows/policy_order.py

show-local-policies: $(READY)  ## Show 8: local policies on a live CPU worker and simulated, left alone.
	PYTHONPATH=tests $(BIN)/python tests/shows/local_policies.py

clean:  ## Remove the virtual environment and everything that was built.
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
