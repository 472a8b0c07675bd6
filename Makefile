# Variables: PARAMS=params/full.yaml (make run), BUCKET=gs://NAME (make test-gcs), ARGS="..." (run, test, serve, lock, image, bench-training),
# PYTHON=python3.12 (the first time).

SHELL := bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-long test-gcs test-image image lab serve evaluate lock lint format clean
.PHONY: bench-training bench-ablation bench-serving bench-drift

VENV := .venv
PEERS := .peers
BIN := $(VENV)/bin
UV ?= $(BIN)/uv

# No start-up notes among the results; what goes wrong is still said.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export PYDEVD_DISABLE_FILE_VALIDATION ?= 1

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## run the four notebooks in order; results in runs/ (PARAMS=params/full.yaml, ARGS="--only train")
	@$(BIN)/python run_pipeline.py $(if $(PARAMS),--params $(PARAMS)) $(ARGS)

test: $(VENV)/test.stamp ## run all tests and the notebooks (ARGS="-k storage")
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	export SUITE_BUCKET="file://$$scratch/store" SUITE_RUNS="$$scratch/runs" && \
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=900 --timeout=900 tests notebooks $(ARGS) && \
	echo "all is well; 'make run' runs the suite, 'make help' lists what else there is"

test-long: $(VENV)/test.stamp ## full counts of odd requests, mutations, swaps, races, kills and restarts (hours)
	@$(BIN)/python -m pytest -q --long --timeout=3600 tests/test_endurance.py tests/test_openapi.py tests/delivery/test_garbage.py \
	  tests/delivery/test_signature.py tests/test_registry.py tests/serving/test_watcher.py $(ARGS)

test-gcs: $(VENV)/test.stamp ## the storage contract on BUCKET=gs://NAME, real or of the emulator in STORAGE_EMULATOR_HOST
	@SUITE_TEST_BUCKET="$(or $(BUCKET),$(error name the bucket: make test-gcs BUCKET=gs://NAME))" \
	$(BIN)/python -m pytest -q tests/delivery/test_storage.py -k endpoint $(ARGS)

lab: $(VENV)/run.stamp ## open the notebooks in JupyterLab
	@$(BIN)/python -m jupyterlab notebooks $(ARGS)

serve: $(VENV)/run.stamp ## serve the production version, or else the bundle in model/, on 127.0.0.1:8000
	@$(BIN)/python -m helpers.hosting $(ARGS)

evaluate: $(VENV)/run.stamp ## score a bundle on the test images; all figures in runs/evaluation.json (MODEL=model, ARGS=--quick)
	@$(BIN)/python -m helpers.scorecard --model "$(or $(MODEL),model)" $(ARGS)

lock: $(VENV)/test.stamp ## renew requirements/*.lock from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(call compile,run,pyproject.toml)
	@$(call compile,test,pyproject.toml --extra test --constraint requirements/run.lock)
	@$(call compile,gpu,pyproject.toml --extra gpu --constraint requirements/run.lock)
	@$(call compile,bench,pyproject.toml --extra bench --constraint requirements/run.lock)
	@$(call compile,ray,pyproject.toml --extra ray --constraint requirements/run.lock)
	@$(call compile,serve,--group serve --constraint requirements/run.lock)
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header $(ARGS) \
	  requirements/peers.in --output-file requirements/peers.lock
	@echo "requirements/run.lock, test.lock, gpu.lock, bench.lock, ray.lock, serve.lock and peers.lock are up to date"

compile = $(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--no-annotate --no-header $(2) $(ARGS) --output-file requirements/$(1).lock

image: ## build the server's image with docker, podman or buildah (IMAGE=NAME, BASE=IMAGE, FILE=deploy/lab.Dockerfile)
	@for builder in docker podman buildah; do \
	  if command -v $$builder > /dev/null && $$builder info > /dev/null 2>&1; then \
	    format=$$([ $$builder = docker ] || echo --format=docker) && \
	    exec $$builder build $$format --file $(or $(FILE),Dockerfile) --tag $(or $(IMAGE),cifar100-suite) \
	      $(if $(BASE),--build-arg BASE=$(BASE)) $(ARGS) .; \
	  fi; \
	done; \
	echo "none of docker, podman and buildah is installed and answers '... info'; install one, or start docker" >&2; \
	exit 1

test-image: $(VENV)/test.stamp ## build the server's image, start it, and ask it (BASE=IMAGE)
	@SUITE_IMAGE_BASE="$(BASE)" $(BIN)/python -m pytest -q --long --timeout=3600 tests/test_image.py $(ARGS)

lint: $(VENV)/test.stamp ## check style of code and notebooks
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

format: $(VENV)/test.stamp ## put code and notebooks into style
	@$(BIN)/python -m ruff check --fix . && $(BIN)/python -m ruff format .

bench-training: $(VENV)/run.stamp ## measure training beside stock Keras; benchmarks/results/ (ARGS=--no-accuracy)
	@$(BIN)/python -m benchmarks.training $(ARGS)

bench-ablation: $(VENV)/run.stamp ## measure what each part of training is worth (ARGS="--images 180000")
	@$(BIN)/python -m benchmarks.ablation $(ARGS)

bench-serving: $(VENV)/run.stamp ## measure serving beside the original's way and five peers (ARGS="--connections 1 32")
	@$(MAKE) $(PEERS)/peers.stamp || echo "the peers cannot be installed; the table names them as not measured"
	@$(BIN)/python -m benchmarks.serving $(ARGS)

bench-drift: $(VENV)/bench.stamp ## measure drift alarms, false and true, beside other tests (ARGS="--river ADWIN")
	@$(BIN)/python -m benchmarks.drift $(ARGS)

clean: ## remove the environments and caches (runs/ and store/ stay)
	@rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The test lock holds all of the run lock, so one environment serves both, in either order.
$(VENV)/run.stamp: requirements/run.lock | $(BIN)/python
	@$(call install,run)
	@touch $@

$(VENV)/test.stamp: requirements/test.lock | $(BIN)/python
	@$(call install,test)
	@touch $(VENV)/run.stamp $@

# Only what benchmarks compare with; it needs nothing that the run lock does not hold in the same version.
$(VENV)/bench.stamp: requirements/bench.lock $(VENV)/run.stamp
	@$(call install,bench)
	@touch $@

# The benchmark's peers want other versions than the suite does.
$(PEERS)/peers.stamp: requirements/peers.lock | $(BIN)/python
	@test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	@echo "installing the packages of requirements/peers.lock into $(PEERS), some minutes the first time ..."
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/peers.lock
	@touch $@

install = echo "installing the packages of requirements/$(1).lock into $(VENV), some minutes the first time ..." && \
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/$(1).lock

$(BIN)/python:
	@for python in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null; then \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo "needs Python 3.11, 3.12 or 3.13, and $${PYTHON:-python3} is $$($${PYTHON:-python3} -V 2>&1 | tail -1);" \
	  "name another: make PYTHON=python3.12 $(or $(MAKECMDGOALS),run)" >&2; \
	exit 1
