# Every habit of the project. `make help` lists them.
PYTHON ?= python3
PYTEST := .venv/bin/python -m pytest
# Processes that share out the tests' files.
WORKERS ?= 3
# uv reads no pip configuration; where a machine offers local wheels to pip, offer them to uv too.
UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_FIND_LINKS
# The environment of `make newest`.
NEWEST ?= .venv-newest
export PYTHONHASHSEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test run-tests test-long test-fast coverage faults ops feast-suite feast-matrix newest lint style types docs audit soak bench dist try-dist clean constraints

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready .venv-triton/.ready ## both environments: the package with feast-delta, and the serving one

.venv/.ready: pyproject.toml scalr_prod/version.py packages/feast-delta/pyproject.toml packages/feast-delta/src/feast_delta/version.py constraints/package.txt
	$(PYTHON) scripts/setup_env.py package
	@touch $@

.venv-triton/.ready: pyproject.toml scalr_prod/version.py constraints/serving.in constraints/serving.txt
	$(PYTHON) scripts/setup_env.py serving
	@touch $@

browser: ## headless Chromium for the tests of the report's pages, where Debian's packages can be installed
	@command -v chromium >/dev/null || scripts/install_chromium.sh

demo: setup ## the whole pipeline on a year of grocery transactions
	.venv/bin/python scripts/demo.py

# Tests start processes by the dozen. Where the machine says that none keeps bytecode, each of them compiles torch, Feast and the rest
# anew, which takes longer than most tests.
test test-long test-fast coverage faults ops feast-matrix try-dist: export PYTHONDONTWRITEBYTECODE :=

test: setup browser style ## representative cases of every behaviour, on real components; files are shared out among three processes (WORKERS=2 with less than 16 GiB of memory), the dearest first
	@$(MAKE) --no-print-directory --jobs 2 types run-tests

run-tests:
	$(PYTEST) -m "not nightly and not long" -n $(WORKERS) --dist loadfile

# Triton servers did not all come up, or were lost, while three processes each started several of them on two cores.
test-long: WORKERS = 2
test-long: setup ## further cases, rarer operations, properties of the whole, and more examples of hypothesis; CI runs it after make test
	$(PYTEST) -m "long and not nightly" -n $(WORKERS) --dist loadfile
	SCALR_TEST_EXAMPLES=3 $(PYTEST) -m "not nightly and not long" -n $(WORKERS) --dist loadfile tests/property

test-fast: setup ## the tests that take seconds
	$(PYTEST) -m "not slow and not long and not nightly" -n $(WORKERS) --dist loadfile

coverage: export COVERAGE_FILE := $(CURDIR)/build/coverage/data
coverage: setup ## branches that `make test` runs, in every process but Triton's and killed ones; TESTS="tests/unit/lake/test_lake.py" for some
	@mkdir -p build/coverage && rm -f build/coverage/data*
	.venv/bin/coverage run -m pytest -n $(WORKERS) --dist loadfile -m "not nightly and not long" $(TESTS)
	.venv/bin/coverage combine --quiet
	.venv/bin/coverage json --quiet
	.venv/bin/coverage report --format=total

faults: setup ## the nightly fault suite: a hundred kills, and what else takes minutes
	SCALR_FAULTS_REPORT=benchmarks/results/faults.json $(PYTEST) -m "nightly or not nightly" tests/faults && $(PYTEST) -m nightly --ignore tests/faults --ignore tests/ops && SCALR_TEST_EXAMPLES=12 $(PYTEST) tests/property

ops: setup ## a real Airflow scheduler for two projects, every part a server's, a restore: ten minutes on one core; CI runs it after make test-long
	$(PYTEST) -m "nightly or not nightly" tests/ops

feast-suite: setup ## Feast's universal tests of offline stores, run on feast-delta; FEAST_SOURCES=DIR names a checkout of the installed Feast's version
	.venv/bin/python scripts/feast_suite.py

feast-matrix: setup ## feast-delta's own tests on the newest release of Feast and the two before, each in an environment of its own; RELEASES="0.67.0" for some
	.venv/bin/python scripts/feast_matrix.py $(RELEASES)

newest: setup ## the newest releases of the dependencies, without constraint files, in an environment of their own (NEWEST=DIR), and a short set of tests on them; TESTS="tests/unit/lake/test_lake.py" for some
	.venv/bin/python scripts/newest.py $(NEWEST) $(TESTS)

lint: style types ## ruff, mypy --strict, import contracts

style: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-logo

# Without its cache, as in a fresh clone, mypy takes 17 seconds of one core; `make test` has it run beside the first tests.
types: setup
	.venv/bin/mypy

docs: setup ## the site of this version, in build/site beside those of other versions; first the pages and charts that are made from code and figures
	.venv/bin/python scripts/reference.py
	.venv/bin/python scripts/results.py
	.venv/bin/python scripts/charts.py
	.venv/bin/python scripts/docs_site.py

bench: setup ## each stage beside its limit
	.venv/bin/python -m benchmarks

audit: setup ## known weaknesses of the pinned packages, where the advisory database can be reached
	.venv/bin/python scripts/audit.py

soak: setup ## ten minutes of generation against Triton: memory of every process, sixteen clients, back-pressure
	.venv/bin/python -m benchmarks soak

constraints: setup ## renew the pinned constraint files
	.venv/bin/python scripts/constraints.py

dist: setup ## wheels, source archives and SBOMs of both distributions in dist/, the same to the byte from the same commit
	.venv/bin/python scripts/dist.py

try-dist: dist ## the distributions in empty environments of Python 3.11, 3.12 and 3.13, and each extra by itself; PYTHONS="3.12" for some
	.venv/bin/python scripts/try_dist.py $(PYTHONS)

clean: ## remove both environments and all that the demo made
	rm -rf .venv .venv-triton .scalr
