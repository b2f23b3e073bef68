# Two commands for everybody: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := CMakeLists.txt setup.py pyproject.toml constraints.txt $(shell find kernels cmake -type f -not -path 'kernels/test/*' -not -path 'kernels/fuzz/*' -not -path 'kernels/bench/*' -not -name '*.md')

.PHONY: demo test lint fuzz sanitize clean

demo: $(STAMP)
	$(BIN)/grd-edge demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# 100,000 mutated bundles through each reader; the tests take every tenth for Python's.
fuzz: $(STAMP)
	GRD_FUZZ_FULL=1 $(BIN)/python -m pytest -q tests/native/test_fuzz.py

# The C tests under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer, pools under ThreadSanitizer.
sanitize: $(STAMP)
	$(BIN)/python -m pytest -q tests/native -k sanitizer

# Rebuilt when the native sources change; Python sources are installed in place.
$(STAMP): $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build artifacts grd_edge/_lib *.egg-info
