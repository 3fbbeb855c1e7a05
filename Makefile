PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup test test-all lint docs demo bench gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

test: setup  ## the tests, without full-size models and long trainings
	DQDET_DEVICE=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-all: setup  ## all tests
	DQDET_DEVICE=cpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m ''

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup  ## the site, in build/site; broken links and anchors are errors
	$(BIN)/python docs/options.py > docs/options.md
	$(BIN)/typer dqdet.cli utils docs --name dqdet --title 'Every command' --output docs/commands.md > /dev/null
	$(BIN)/zensical build --clean --strict

demo: setup  ## train a static and a modulated model on generated scenes, compare them, draw pictures
	$(BIN)/python examples/demo.py --out runs/demo

bench: setup  ## speed against transformers on this machine
	$(BIN)/python benchmarks/deformable_detr.py --json runs/deformable_detr.json
	$(BIN)/python benchmarks/mask2former.py --json runs/mask2former.json
	$(BIN)/python benchmarks/families.py --json runs/families.json
	$(BIN)/python benchmarks/recompute.py --json runs/recompute.json

# Without a virtual environment: machines with a card come with a PyTorch of their own.
gpu:  ## tests and speed on an NVIDIA card, in pieces of minutes; run again to go on
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --table docs/gpu.md

study-%: setup  ## a study of `dqdet study`, for example `make study-detectors`
	$(BIN)/dqdet study $* --out runs/study-$*

clean:
	rm -rf $(VENV) runs build docs/commands.md docs/options.md .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
