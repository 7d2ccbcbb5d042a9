# Every command of this repository. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup fmt lint type test test-long soak test-fast test-live-s3 simulate chaos demo check docs docs-check bench bench-quick bench-peers pins hooks clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv with drayman in it (at once when nothing changed)

# The stamp comes last, so that an install that was cut short is repeated.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@echo "installing into $(VENV), which takes a minute or two" >&2
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

fmt: setup ## format the code and mend what can be mended by itself
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: setup ## check format, style and the import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports

type: setup ## check types
	$(BIN)/mypy

test: setup ## run every test but the longest, those that start Ray included (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not long and not soak'

test-long: setup ## run the tests that kill and start whole clusters (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'long and not soak'

soak: setup ## run the tests that watch rates, estimates and streams for minutes, one at a time
	$(BIN)/python -m pytest -m soak

test-fast: setup ## run the tests that start no Ray
	$(BIN)/python -m pytest -n 2 -m 'not live'

test-live-s3: setup ## run the tests that start Ray with their stores in S3 (SeaweedFS)
	DRAYMAN_TEST_STORE=s3 $(BIN)/python -m pytest -n 2 --dist loadgroup -m live

SEEDS ?= 5000

simulate: setup ## run SEEDS=5000 schedules of crashes and faults; a failing seed replays exactly
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

chaos: setup ## kill everything in turn under load, and print what was lost (minutes)
	$(BIN)/python -m tests.chaos

demo: setup ## run the main job on real data: an airline's annual report as a PDF
	$(BIN)/drayman demo

docs: setup ## write the pages that are made from code
	$(BIN)/python -m tools.state_machine

docs-check: setup ## check links, run the examples in the docs, compare what is generated
	$(BIN)/python -m pytest -q tests/unit/test_house.py tests/unit/test_docs_examples.py \
		tests/unit/test_state_machine_page.py

check: lint type docs-check test ## all that CI runs

# One minute of idling is enough to compare; five, the default of the command, are for quoting.
bench: setup ## measure Drayman and print a table (minutes; raw results in benchmarks/results)
	$(BIN)/python -m benchmarks --idle-minutes 1

bench-quick: setup ## ask every question of the benchmarks in tiny sizes: do they all work?
	$(BIN)/python -m benchmarks --quick --repeats 1

bench-peers: setup ## measure Drayman and other systems side by side (an hour or so)
	$(BIN)/python -m benchmarks --peers

pins: setup ## write constraints.txt from what is installed in .venv
	$(BIN)/python tools/pins.py

hooks: setup ## install the git hooks: format, style and types before each commit
	$(BIN)/pre-commit install

clean: ## remove .venv and everything else that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
