PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test bench lint clean

demo: .venv/installed
	$(BIN)/jaxpurify demo --out runs/demo

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -n auto

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

bench: .venv/installed-bench
	$(BIN)/python -m experiments.bench.main

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[pinned]'
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[pinned,dev]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[pinned,bench]'
	touch $@

clean:
	rm -rf .venv runs
