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
PYTEST ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SPACE := $(subst ,, )
COMMA := ,
# Modules that decide and do no I/O; their branches are covered to 95 %.
CORE := engine/canonical.py engine/codec.py engine/settings.py engine/records.py engine/decode.py engine/crossref.py \
  engine/vocabulary.py engine/rules.py engine/extract.py engine/classify.py engine/kernel.py \
  engine/backends/ceilings.py engine/backends/floors.py engine/backends/sanity.py engine/stageplan/ranges.py \
  engine/stageplan/domains.py engine/stageplan/lint.py engine/stageplan/recorded.py engine/stageplan/explain.py \
  engine/report/rows.py engine/report/figure.py engine/report/files.py engine/display/lines.py engine/display/table.py

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
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m engine.stageplan lint
	$(MAKE) test PYTEST="--cov=engine --cov-report="
	$(BIN)/coverage report --include=$(subst $(SPACE),$(COMMA),$(strip $(CORE))) --fail-under=95 --show-missing
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
