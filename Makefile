# Everything needs python3 (3.11 or newer), pip and make, nothing else.
#   make run      four operators through their stage plans, from recordings; then the leaderboard
#   make test     the tests; those marked gpu run where a CUDA device answers
#   make soak     500 candidates in a row through the judge of a CUDA device, hanging and crashing ones among them
#   make check    what must hold before a commit: lint, format, types, stage plans, tests, coverage of the pure core, and
#                 that every counter of a metric exists on three chips (left out, and said, where CUPTI cannot be had)
# On a GPU machine whose torch brings another triton: make setup CONSTRAINTS=/dev/null

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests of the modules that decide and do no I/O (pyproject.toml names them): these alone run under coverage, which slows
# what runs in the interpreter by half.
CORE_TESTS := tests/golden $(patsubst %,tests/unit/test_%.py,category_plans ceilings classify config confirm cuda_backend \
  cuda_floors decode display extract floor_table floors journal ladder metrics_listing ranges report rules sanity \
  stageplan vocabulary)

.PHONY: setup run test check format gpu soak clean

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' --constraint $(CONSTRAINTS)
	touch $@

run: setup
	$(BIN)/python -m engine
	$(BIN)/python -m engine.results sql "select * from leaderboard"

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report= $(CORE_TESTS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(addprefix --ignore=,$(CORE_TESTS))

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m engine.stageplan lint
	$(MAKE) test
	$(BIN)/coverage report --fail-under=95 --show-missing
	$(BIN)/python -m engine.metrics check --if-possible --chip GA100 --chip GH100 --chip GB100

gpu: setup
	$(BIN)/python -m pytest -m gpu

soak: setup
	$(BIN)/python -m benchmarks.judge_soak --out results/soak

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
