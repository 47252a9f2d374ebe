# Every target works on a fresh clone: the environment is made when it is missing or constraints change.
PYTHON ?= python3
BIN := .venv/bin
# Tests start hundreds of processes, each of which would compile the package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-gpu lint format bench docs sbom audit clean

demo: .venv/run
	$(BIN)/gtvray demo $(ARGS)

# Tests that start Ray or take long begin first; the division among processes is in tests/conftest.py.
DIVIDED := --dist loadgroup --no-loadscope-reorder
test: .venv/dev
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 $(DIVIDED) $(ARGS)

# All tests, with new random examples.
test-all: .venv/dev
	$(BIN)/python -m pytest -m "not gpu" -n 2 $(DIVIDED) --hypothesis-profile=random $(ARGS)

test-gpu: .venv/dev
	$(BIN)/python -m pytest -m gpu tests/*/test_gpu.py $(ARGS)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/run
	for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file --json || exit 1; done

docs: .venv/docs
	$(BIN)/python docs/build.py
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

# The packages of .venv, as CycloneDX JSON.
sbom: .venv/run
	rm -rf build/sbom && $(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python
	@echo "build/sbom.json"

# Known vulnerabilities of the pinned versions; needs access to an advisory service.
audit:
	rm -rf build/audit && $(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache gtvray-runs

.venv/run: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is missing: install the package python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv is missing: install the package python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/docs: .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

.venv/dev: .venv/run
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
