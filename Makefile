# Each target does its own set-up: on a fresh machine with Python 3.11+ `make demo` and `make test` just run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What the command line needs, and no more: a third of what tests and documents need.
USE := $(VENV)/.installed-cli
# Each test runs on one thread, so the tests share the cores: make test WORKERS=1 runs them one after another.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-fast check docs format bench-peers clean

demo: $(USE)
	$(BIN)/epsball demo --out runs/demo

test: $(STAMP)
	$(PYTEST) --slow

test-fast: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

# The pages, strictly: a name or link that leads nowhere fails. Open build/docs/index.html.
docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -n -q -b html -d build/doctrees docs build/docs

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $(STAMP)

$(USE): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cli]"
	touch $(USE)

# Beside other libraries, in an environment of its own.
bench-peers: .venv-peers/.installed
	.venv-peers/bin/python -m benchmarks.peers quick

.venv-peers/.installed: benchmarks/peers/requirements.txt benchmarks/peers/dependencies.txt constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[cli,cvxpy]" \
		--requirement benchmarks/peers/dependencies.txt
	.venv-peers/bin/python -m pip install --quiet --no-deps --requirement benchmarks/peers/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-peers build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
