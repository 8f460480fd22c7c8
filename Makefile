# make demo   environment + the translation recipe on built-in data: scores, samples, pictures
# make test   environment + the tests
# make results  train every recipe (hours) and rewrite the tables of scores: ARGS="--data FOLDER --seeds 1 2 3 --only sanity"
# make bench  speed beside plain PyTorch and, after make bench-peers, beside other toolkits: ARGS="w1 --data FOLDER"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Modules are compiled once, also where the environment says not to: a process then starts in half the time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types test-slow test-gpu results bench bench-peers clean

demo: $(READY)
	$(BIN)/python recipes/translation.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

results: $(READY)
	$(BIN)/python recipes/results.py --record $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(READY)
	PYTHON=$(PYTHON) bash benchmarks/peers/install.sh

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# Plain pip with the tested versions pinned; on Linux this takes the build of torch that pip finds for them.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
