# Two commands for everybody: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := CMakeLists.txt setup.py pyproject.toml constraints.txt $(shell find kernels cmake -type f -not -path 'kernels/test/*' -not -path 'kernels/fuzz/*' -not -path 'kernels/bench/*' -not -name '*.md')

.PHONY: demo test lint results bench bench-gate bench-compare fuzz sanitize soak gpu test-gpu bench-gpu clean

demo: $(STAMP)
	$(BIN)/grd-edge demo

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# docs/results.md from its template and the records below bench/results/.
results: $(STAMP)
	$(BIN)/python -m grd_edge.bench.page

# Every part beside its baselines and the machine's limits, interleaved; the rows as JSON. On an idle machine.
bench: $(STAMP)
	mkdir -p build
	$(BIN)/python -m pytest -q bench --benchmark-json=build/bench.json

# 100,000 mutated bundles through each reader; the tests take every tenth for Python's.
fuzz: $(STAMP)
	GRD_FUZZ_FULL=1 $(BIN)/python -m pytest -q tests/native/test_fuzz.py

# The C tests under AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer, pools and streams under ThreadSanitizer.
sanitize: $(STAMP)
	$(BIN)/python -m pytest -q tests/native -k sanitizer

# Streams: 200,000 frames through an engine, and 100,000 in each overload policy while everything goes wrong, under
# ThreadSanitizer, too; the tests take a part of them.
soak: $(STAMP)
	GRD_SOAK_FULL=1 $(BIN)/python -m pytest -q tests/native/test_stream_proofs.py -k soak -rP

# The benchmarks, held to bench/budgets.yaml: in under 10 minutes on 2 cores. Two commits: make bench-compare BASE=v0.1
bench-gate: $(STAMP)
	$(BIN)/python -m grd_edge.bench.gate

HEAD := HEAD
bench-compare: $(STAMP)
	@test -n "$(BASE)" || { echo "BASE is not set; write: make bench-compare BASE=<commit>" >&2; exit 1; }
	$(BIN)/python -m grd_edge.bench.compare $(BASE) $(HEAD)

# The CUDA kernels, on a machine with an NVIDIA GPU: one sentence and no build elsewhere.
GPU := build/gpu
GPU_TESTS := test_score test_score_types test_patchify
gpu: $(STAMP)
	@command -v nvcc >/dev/null || { echo "nvcc is not on the PATH; install the CUDA toolkit, 13.0 or later" >&2; exit 1; }
	@$(BIN)/cmake -S . -B $(GPU) -G Ninja -DGRD_WITH_CUDA=ON -DGRD_WITH_OPENVINO=OFF -DGRD_BUILD_TESTS=ON \
		-DGRD_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	@$(BIN)/cmake --build $(GPU) --target cuda_device_name >/dev/null
	@$(GPU)/kernels/test/cuda_device_name
	$(BIN)/cmake --build $(GPU)

# The C tests of the kernels on the device: guarded memory, each call once more from a CUDA graph; compute-sanitizer.
test-gpu: gpu
	$(BIN)/ctest --test-dir $(GPU) -L gpu --output-on-failure --no-tests=error
	@command -v compute-sanitizer >/dev/null || echo "compute-sanitizer is not on the PATH: memcheck and racecheck did not run"
	@! command -v compute-sanitizer >/dev/null || for tool in memcheck racecheck; do for test in $(GPU_TESTS); do \
		GRD_TEST_CALLS=200 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(GPU)/kernels/test/$${test}_cuda_device || exit 1; done; done

# Against PyTorch and the device's limits, into bench/results/<device>/. Needs a PyTorch that sees the device.
bench-gpu: gpu
	$(BIN)/python -m grd_edge.bench.gpu

# Rebuilt when the native sources change; Python sources are installed in place.
$(STAMP): $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build artifacts grd_edge/_lib *.egg-info
