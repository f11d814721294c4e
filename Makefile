# Evenkeel.  `make demo` is the whole product on a virtual host; `make` alone lists the rest.
# Every target first brings what it needs (tools/setup): Debian packages, by apt, and a virtual environment in .venv.
# It says what it installs and why, and is done in an instant when nothing is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
# Where Python is told to write no bytecode (many container images tell it), every start would compile all of ours that
# it imports: to collect the tests took 35 s instead of 12, to start the lab's service a tenth more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## from nothing to a proven real-time guest, and a report (12 minutes the first time)
	@tools/setup virtual
	@exec $(BIN)/evenkeel demo

.PHONY: test
test: ## all tests but the long ones
	@tools/setup virtual test
	@exec $(BIN)/pytest -m 'not long' --numprocesses 2

.PHONY: test-long
test-long: ## the long tests
	@tools/setup virtual test long
	@exec $(BIN)/pytest -m long

.PHONY: bench
bench: ## the benchmarks, one after the other
	@tools/setup virtual bench
	@for bench in $(sort $(wildcard bench/*.py)); do echo "== $$bench"; $(BIN)/python "$$bench"; done

.PHONY: lint
lint: ## ruff, mypy --strict, and the syntax of the scripts
	@tools/setup
	@for script in tools/setup .ci/run; do bash -n "$$script"; done
	@$(BIN)/ruff check
	@$(BIN)/mypy src tests tools $(if $(wildcard bench/*.py),bench)

.PHONY: setup
setup: ## only install what is needed
	@tools/setup virtual

.PHONY: lock
lock: ## pin the Python packages anew (docs/explanation/dependencies.md)
	@tools/setup
	@$(BIN)/uv pip compile pyproject.toml --extra lab --extra dev --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --upgrade --quiet --output-file requirements.lock
	@tools/setup

.PHONY: reference
reference: ## write the generated pages of docs/reference anew: the help of the verbs, the rules
	@tools/setup
	@for page in cli rules doctor; do \
		$(BIN)/python -m tools.reference $$page >docs/reference/.$$page.md; \
		mv docs/reference/.$$page.md docs/reference/$$page.md; \
	done
	@$(BIN)/python -m tools.lab_openapi

.PHONY: injections
injections: ## write the counts of the last whole run of the injection suite into docs/explanation/spikes.md
	@tools/setup
	@$(BIN)/python -m tools.injection_table

.PHONY: clean
clean: ## remove what make made here (cached images of virtual hosts stay)
	@rm -rf .venv .venv-nova .venv-bmc .venv-labgrid .venv-procrastinate .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist \
		demo-report
	@find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
