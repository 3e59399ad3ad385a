# Everything needs python3 (3.11 or newer), pip and make, nothing else.
#   make run      four operators through their stage plans, from recordings; then the leaderboard
#   make test     the tests; those marked gpu run where a CUDA device answers
#   make soak     the benchmarks at full size, figures in results/soak: a sweep of 64 jobs, 50 kills, a million rows, the
#                 report of 100 operators; 500 candidates in a row through the judge of a CUDA device, hanging and
#                 crashing ones among them (left out, and said, where none answers)
#   make check    what must hold before a commit: lint, format, types, stage plans, tests, coverage of the pure core, and
#                 that every counter of a metric exists on three chips (left out, and said, where CUPTI cannot be had)
# On a GPU machine whose torch brings another triton: make setup CONSTRAINTS=/dev/null

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 3

BIN := $(VENV)/bin
SOAK := results/soak
READY := $(VENV)/.ready
# Tests of the modules that decide and do no I/O (pyproject.toml names them): these alone run under coverage, which slows
# what runs in the interpreter by half.
CORE_TESTS := tests/golden $(patsubst %,tests/unit/test_%.py,category_plans ceilings classify config confirm cuda_backend \
  cuda_floors decode display extract floor_table floors journal ladder metrics_listing ranges report rules sanity \
  stageplan vocabulary)

.PHONY: setup run test check format gpu clean soak soak-sweep soak-kills soak-database soak-report soak-judge

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

# Each also alone: make soak-kills
soak: setup
	$(MAKE) --keep-going soak-sweep soak-kills soak-database soak-report soak-judge

soak-sweep: setup
	mkdir -p $(SOAK)
	$(BIN)/python -m benchmarks.threshold_sweep --out $(SOAK)/threshold_sweep.json

soak-kills: setup
	$(BIN)/python -m benchmarks.kill_and_resume --out $(SOAK)

soak-database: setup
	mkdir -p $(SOAK)
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(BIN)/python -m benchmarks.database --folder "$$folder" --json $(SOAK)/database.json

soak-report: setup
	$(BIN)/python -m benchmarks.report

soak-judge: setup
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	  then $(BIN)/python -m benchmarks.judge_soak --out $(SOAK); \
	  else echo "left out: benchmarks.judge_soak, for no CUDA device answers"; fi

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
