# demo: install into .venv and score the example pictures. test: the whole suite. lint: ruff and mypy. bench: speed.
PYTHON ?= python3
# As many tests at once as there are cores; those of a module one after another, since they share what is costly to make.
PARALLEL = -n auto --maxprocesses 8 --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-slow test-gpu bench lint clean

demo: .venv/installed
	.venv/bin/gender-batch classify examples/profiles --out preds.csv --max-error-rate 0.1
	@.venv/bin/python examples/show.py preds.csv

test: .venv-test/installed
	.venv-test/bin/python -m pytest $(PARALLEL) -m "not slow and not gpu"

test-slow: .venv-test/installed
	.venv-test/bin/python -m pytest $(PARALLEL) -m slow

test-gpu: .venv-test/installed
	.venv-test/bin/pip install --quiet --editable '.[cuda,train,test]'
	.venv-test/bin/python -m pytest -m gpu

bench: .venv-test/installed
	.venv-test/bin/python -m benchmarks

lint: .venv-test/installed
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy

# The demo installs a copy, as a user would; the tests see the working tree.
.venv/installed: setup.cfg pyproject.toml $(shell find gender_batch export -type f -not -name '*.pyc')
	$(PYTHON) -m venv .venv
	rm -rf build
	.venv/bin/pip install --quiet .
	touch $@

.venv-test/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/pip install --quiet --editable '.[train,test]'
	touch $@

clean:
	rm -rf .venv .venv-test build *.egg-info preds.csv
