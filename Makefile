# Each target does all its own set-up, in a virtual environment of the project's own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Half the tests wait for a broker. Each process starts servers of its own.
TEST_PROCESSES ?= 2
# A test that takes longer hangs; it is ended, and named.
TEST_S ?= 400
SEEDS ?= 1000
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
# Every app in handlers/: handlers/NAME/app.py is handlers.NAME.app:app.
APPS := $(patsubst handlers/%/app.py,handlers.%.app:app,$(wildcard handlers/*/app.py))

.PHONY: help demo test test-fast check audit schemas flows bench guarantees simulate simulate-flows mutants crash-table chaos outbox-chaos rolling-deploy rolling-restart deploy-check docs keep-stored clean

help:
	@echo "make demo       order fulfilment on the embedded broker: 2,000 orders, four services, one ledger"
	@echo "make test       every test; those on Kafka need Docker, or Java and Maven, and are skipped without"
	@echo "make test-fast  without the slow ones"
	@echo "make check      ruff, mypy, import-linter"
	@echo "make audit      bandit, and known vulnerabilities of what is installed (asks PyPI; not part of make check)"
	@echo "make docs       the pages as a site in build/site, to be read without a network"
	@echo "make schemas    write schemas/ from the events of handlers/"
	@echo "make guarantees kill every pair of broker and store at every point, and write docs/guarantees.md"
	@echo "make flows      draw the flows of handlers/ into docs/flows/"
	@echo "make simulate   10,000 bad days of the order flow, each from its seed (SIMULATE_ARGS)"
	@echo "make simulate-flows  every flow of handlers/, 1,000 bad days each (SEEDS): docs/simulated-flows.md"
	@echo "make mutants    take protections out one at a time, see the simulation notice, and write docs/mutants.md"
	@echo "make crash-table  crash the small flow at every call, and at every two: docs/crash-points.md"
	@echo "make chaos      a cluster of three brokers and seven services, ten minutes of faults (CHAOS_S), docs/chaos.md"
	@echo "make rolling-deploy  1,000 instances in flight from version 1 to 2, back, and to 2 again: docs/definitions.md"
	@echo "make rolling-restart  every process of the order flow restarted under load, some two minutes (RESTART_WAYS=all: more): docs/deploying.md"
	@echo "make outbox-chaos  applications and relays killed at random for two minutes (OUTBOX_CHAOS_S)"
	@echo "make deploy-check  build the image and run deploy/README.md line by line; needs Docker with Compose"
	@echo "make keep-stored  before a release: keep what it stores in tests/upgrade/stored, for later ones to read"
	@echo "make bench      cost and latency of an event beside loops by hand, 25 minutes: docs/performance.md (ONLY, ROUNDS, SEED, QUICK)"

demo: $(STAMP)
	$(BIN)/choreo demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --timeout $(TEST_S) -m "not chaos" $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest --timeout $(TEST_S) -m "not slow and not chaos" $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Its tools are not needed for anything else. `--strict`: a package that could not be looked up is no clean one.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group audit
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml choreo handlers deploy scripts
	$(BIN)/pip-audit --strict --skip-editable --path $(VENV)/lib/python*/site-packages

# Not `--quiet`, which keeps warnings from `--strict`. The variable silences an advertisement of the theme's.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/site/index.html; to search it, serve it: $(BIN)/python -m http.server --directory build/site"

schemas: $(STAMP)
	$(BIN)/choreo schemas export $(APPS) --out schemas

# FastStream, matplotlib and a profiler are not needed for anything else.
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	$(BIN)/python -m scripts.bench $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(QUICK),--quick) $(BENCH_ARGS)

guarantees: $(STAMP)
	$(BIN)/python scripts/guarantees.py $(GUARANTEES_ARGS)

flows: $(STAMP)
	@mkdir -p docs/flows
	$(foreach app,$(wildcard handlers/*/app.py),$(BIN)/choreo graph $(subst /,.,$(app:.py=)):app --format markdown \
	    -o docs/flows/$(notdir $(patsubst %/app.py,%,$(app))).md &&) true

simulate: $(STAMP)
	$(BIN)/choreo simulate handlers.order_fulfilment.simulation:simulation --seeds 10000 --minutes 30 $(SIMULATE_ARGS)

simulate-flows: $(STAMP)
	$(BIN)/python scripts/simulate_flows.py --seeds $(SEEDS) --write docs/simulated-flows.md $(SIMULATE_FLOWS_ARGS)

mutants: $(STAMP)
	$(BIN)/python scripts/mutants.py --write docs/mutants.md $(MUTANTS_ARGS)

crash-table: $(STAMP)
	$(BIN)/python scripts/crash_table.py $(CRASH_TABLE_ARGS)

chaos: $(STAMP)
	CHAOS_WRITE=$(or $(CHAOS_WRITE),1) CHAOS_S=$(or $(CHAOS_S),600) \
	    $(BIN)/python -m pytest -s -m chaos tests/integration/chaos $(PYTEST_ARGS)

rolling-deploy: $(STAMP)
	ROLLING_WRITE=1 ROLLING_INSTANCES=1000 ROLLING_PER_S=15 ROLLING_DAY_S=40 ROLLING_LOOK_S=5 ROLLING_HOLD_S=10 \
	    $(BIN)/python -m pytest -s tests/integration/test_rolling_deploy.py $(PYTEST_ARGS)

rolling-restart: $(STAMP)
	RESTART_WRITE=1 RESTART_PROCESSES=$(or $(RESTART_PROCESSES),2) RESTART_AT_ONCE=1 RESTART_CALM_S=5 \
	    RESTART_WAYS="$(or $(RESTART_WAYS),aiokafka kip-848)" \
	    $(BIN)/python -m pytest -s tests/integration/test_rolling_restart.py $(PYTEST_ARGS)

outbox-chaos: $(STAMP)
	OUTBOX_CHAOS_S=$(or $(OUTBOX_CHAOS_S),120) $(BIN)/python -m pytest -s tests/integration/test_outbox_chaos.py $(PYTEST_ARGS)

deploy-check: $(STAMP)
	CHOREO_DOCKER=1 $(BIN)/python -m pytest tests/integration/test_deploy_containers.py $(PYTEST_ARGS)

keep-stored: $(STAMP)
	$(BIN)/python scripts/keep_stored.py

# `pip install --group` came with pip 25.1.
$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "choreo needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group dev
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
