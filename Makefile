# The two commands: make demo, make test. Needed: Python 3.11 or later, pip.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 \
	python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $$p && break; done)
VENV := .venv
VENV21 := .venv-sqlalchemy21
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
TESTS := anyblok_multi_engines/tests
FOR_TESTS := -e '.[testing,demo,psycopg,metrics]' -r requirements/test.txt

# Processes for the tests on servers; each has a cluster of its own.
WORKERS ?= 2
# How long make soak goes on.
SECONDS ?= 600
SERVERS := $(TESTS) --ignore=$(TESTS)/unit -n $(WORKERS)
# These take minutes: test-servers alone runs them.
LONG := chaos soak balancing
AGAIN := $(SERVERS) --ignore=$(TESTS)/cluster \
	$(LONG:%=--ignore=$(TESTS)/test_%.py)

.PHONY: help demo test test-unit test-servers test-psycopg \
	test-sqlalchemy21 test-anyblok test-published \
	soak soak-broken chaos bench bench-quick \
	bench-write-guard \
	lint types doc format clean

help:
	@echo "make demo               see it at work on a real cluster"
	@echo "make test               every test, on real servers"
	@echo "make test-unit          the tests without a server, in seconds"
	@echo "make test-servers       the tests on real servers, psycopg2"
	@echo "make test-psycopg       the same with psycopg 3, but for the longest"
	@echo "make test-sqlalchemy21  the same with SQLAlchemy 2.1"
	@echo "make test-anyblok       AnyBlok's own suite, without and with us"
	@echo "make test-published     suites of published bloks, on replicas too"
	@echo "make soak               sessions on replicas that lag, and a checker"
	@echo "make soak-broken        the same with routers broken on purpose"
	@echo "make chaos              the servers fail, one by one: a report"
	@echo "make bench              what it costs and gains: a report"
	@echo "make bench-quick        the same in a minute: no bar far missed"
	@echo "make bench-write-guard  what --db-ro-write-guard costs"
	@echo "make lint types doc     ruff, mypy --strict, Sphinx"

$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/made setup.py
	@echo "Installing into $(VENV), about a minute the first time"
	$(BIN)/python $(PIP_INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/test: $(VENV)/made setup.py $(wildcard requirements/*.txt)
	$(BIN)/python $(PIP_INSTALL) $(FOR_TESTS) -r requirements/doc.txt
	@touch $@ $(VENV)/demo

$(VENV)/bench: $(VENV)/test requirements/bench.txt
	$(BIN)/python $(PIP_INSTALL) -r requirements/bench.txt
	@touch $@

$(VENV21)/test: setup.py $(wildcard requirements/*.txt)
	$(PYTHON) -m venv $(VENV21)
	$(VENV21)/bin/python $(PIP_INSTALL) $(FOR_TESTS)
	$(VENV21)/bin/python $(PIP_INSTALL) 'SQLAlchemy>=2.1,<2.2'
	@# Its pkg_resources refuses a version that setup.py doesn't ask for.
	$(VENV21)/bin/python -m pip uninstall --quiet --yes setuptools
	@touch $@

demo: $(VENV)/demo
	@$(BIN)/python -m anyblok_multi_engines.demo

test: test-unit test-servers test-psycopg test-sqlalchemy21 test-anyblok

test-unit: $(VENV)/test
	$(BIN)/python -m pytest -q $(TESTS)/unit

test-servers: $(VENV)/test
	$(BIN)/python -m pytest -q $(SERVERS)

test-psycopg: $(VENV)/test
	ANYBLOK_TEST_DRIVER=postgresql+psycopg $(BIN)/python -m pytest -q $(AGAIN)

test-sqlalchemy21: $(VENV21)/test
	$(VENV21)/bin/python -m pytest -q $(TESTS)/unit
	$(VENV21)/bin/python -m pytest -q $(AGAIN)

test-anyblok: $(VENV)/test
	$(BIN)/python -m anyblok_multi_engines.tests.anyblok_suite

test-published: $(VENV)/test
	$(BIN)/python -m anyblok_multi_engines.tests.published_bloks

soak: $(VENV)/test
	$(BIN)/python -m anyblok_multi_engines.tests.soak \
		--seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

soak-broken: $(VENV)/test
	$(BIN)/python -m anyblok_multi_engines.tests.soak --broken \
		--seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

chaos: SECONDS = 120
chaos: $(VENV)/test
	$(BIN)/python -m anyblok_multi_engines.tests.chaos \
		--seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) \
		$(if $(REPORT),--report $(REPORT))

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

bench-quick: $(VENV)/test
	$(BIN)/python -m benchmarks --quick

bench-write-guard: $(VENV)/test
	$(BIN)/python benchmarks/write_guard.py

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/test
	$(BIN)/mypy

doc: $(VENV)/test
	$(BIN)/sphinx-build -W --keep-going -q -b html doc doc/_build/html

clean:
	rm -rf .venv .venv-* build dist doc/_build *.egg-info
