# Everything a fresh machine needs: `make demo` and `make test` set up .venv by themselves.

VENV := .venv
BIN := $(VENV)/bin

# The first Python on the path that Croupier runs on (vowpal-wabbit-next has no wheel for 3.13).
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	2>/dev/null && echo $$p && break; done)

# Without compiled modules every command that the tests start takes twice as long to be there.
export PYTHONDONTWRITEBYTECODE :=

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-slow test-faults soak bench-serving bench-eventlog bench-stream bench-training \
	bench-join check docs format lock clean

demo: $(VENV)/.runtime
	$(BIN)/croupier demo --data-dir demo-data

# TESTS narrows it down, JOBS runs files side by side: make test TESTS=tests/policy JOBS=2. Side by
# side, threads of numerical libraries would only wait for each other, and they do so busily.
test: $(VENV)/.dev
	$(if $(JOBS),OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1) $(BIN)/pytest -m "not slow and not faults" \
		$(if $(JOBS),--numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder) $(TESTS)

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow --timeout 7200

# Minutes of load on three scorers and sinks and a Kafka cluster, any of which dies; needs Java, Maven.
test-faults: $(VENV)/.dev
	$(BIN)/pytest tests/faults/test_faults.py -m faults --timeout 3600

# All that docker/compose.yaml runs, as processes, for ten minutes while its parts die; needs Java,
# Maven, PostgreSQL and HAProxy.
soak: $(VENV)/.dev
	$(BIN)/pytest tests/faults/test_topology.py -m faults --timeout 3600

# The HTTP scorer beside other servers, under load from wrk; some five minutes.
bench-serving: $(VENV)/.dev
	@command -v wrk >/dev/null || { test "$$(id -u)" = 0 \
		&& apt-get update -qq && apt-get install -y -qq --no-install-recommends wrk >/dev/null; } \
		|| { echo "error: expected wrk on the path: apt-get install wrk" >&2; exit 2; }
	$(BIN)/python -m benchmarks.serving

# The event logs side by side, with a Kafka of one node; some ten minutes. Needs Java and Maven.
bench-eventlog: $(VENV)/.dev
	$(BIN)/python -m benchmarks.eventlog

# Requests over Kafka beside the HTTP route; some three minutes. Needs Java and Maven.
bench-stream: $(VENV)/.dev
	$(BIN)/python -m benchmarks.stream

# Retraining beside Vowpal Wabbit's own command line, on 200,000 interactions.
bench-training: $(VENV)/.dev
	$(BIN)/python -m benchmarks.training

# Join, night and export with 1, 4 and 16 million decisions (ROWS=... for others), in 10 GB of disk;
# some ten minutes.
bench-join: $(VENV)/.dev
	$(BIN)/python -m benchmarks.join --rows $(or $(ROWS),1000000 4000000 16000000)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site in build/docs; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The runtime lock is part of the development lock, so installing one after the other changes nothing.
$(VENV)/.runtime: locks/runtime.txt pyproject.toml hatch_build.py croupier/policy/_kernel.c \
    croupier/offline/fairness/_partners.c | $(VENV)/bin/python
	@echo "Installing what Croupier runs on (once; some minutes) ..."
	$(PIP) install --require-hashes -r locks/runtime.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: locks/dev.txt $(VENV)/.runtime
	@echo "Installing what its checks need ..."
	$(PIP) install --require-hashes -r locks/dev.txt
	@touch $@

$(VENV)/.docs: locks/docs.txt $(VENV)/.dev
	@echo "Installing what builds the documentation ..."
	$(PIP) install --require-hashes -r locks/docs.txt
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { \
		echo "error: expected Python 3.11 or 3.12 on the path (set PYTHON=... to name one)" >&2; \
		exit 2; }
	$(PYTHON) -m venv $(VENV)

# Needs uv. Writes no index address into the locks.
lock:
	printf 'hatchling\neditables\n' > $(VENV)/build.in
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header pyproject.toml $(VENV)/build.in --output-file locks/runtime.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --extra postgres --constraint locks/runtime.txt pyproject.toml $(VENV)/build.in \
		--output-file locks/mlflow.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --extra dev --constraint locks/runtime.txt pyproject.toml $(VENV)/build.in \
		--output-file locks/dev.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--no-header --extra docs --constraint locks/dev.txt pyproject.toml $(VENV)/build.in \
		--output-file locks/docs.txt

clean:
	rm -rf $(VENV) demo-data build/docs .mypy_cache .pytest_cache .ruff_cache .hypothesis
