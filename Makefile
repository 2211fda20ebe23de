# `make demo` and `make test` set up everything they need in .venv and then run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/cpu.txt
READY := $(VENV)/.ready

.PHONY: demo test fuzz sanitize emulate bench results lint clean

$(READY): pyproject.toml $(CONSTRAINTS) CMakeLists.txt $(wildcard src/sparsetime/native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "sparsetime needs Python 3.11 or newer; set PYTHON=... (found: $$($(PYTHON) -V))"; exit 1; }
	@for c in $$CXX c++ g++ clang++; do command -v $$c >/dev/null && exit; done; \
	  echo "sparsetime needs a C++17 compiler: on Debian, apt-get install g++; set CXX=... where it has another name"; exit 1
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "sparsetime needs Python's venv module: on Debian, apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.isfile(s.get_path("include") + "/Python.h"))' \
	  || { echo "sparsetime needs Python's header files: on Debian, apt-get install python3-dev"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@# torch first: once the pinned build is there, no range that it satisfies fetches another.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch numpy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/sparsetime demo --out runs/demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Damaged plan files: each must be an error or a valid plan, and cost no memory.
fuzz: $(READY)
	$(BIN)/python tests/helpers/mutations.py 10000

# Native code watched for bad memory accesses, undefined behaviour and data races.
sanitize: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cmake ninja 'nanobind>=2.9,<4'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/helpers/sanitize.py

# The kernels for AVX-512 where the machine has none.
emulate: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cmake ninja 'nanobind>=2.9,<4'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/helpers/emulate.py

# Streams against the fastest dense runtimes. An hour; on a machine that does nothing else.
bench: $(READY)
	$(BIN)/sparsetime bench layers --threads 1 --precision float32 --rounds 5 --json runs/bench-layers.json
	$(BIN)/sparsetime bench network --part controlled --precision float32 --no-compiled --rounds 5 --pattern pixels --pattern clustered \
	  --json runs/bench-network.json
	$(BIN)/sparsetime bench network --part controlled --precision int8 --density 0.05 --no-compiled --rounds 7 --pattern pixels \
	  --pattern clustered --codec pixel --json runs/bench-network-int8.json
	$(BIN)/sparsetime bench network --part growth --part still --part start --json runs/bench-rest.json

# The figures of docs/results.md. Hours; goes on where it stopped. DATA is the folder of the development videos.
DATA := ../shared/data
results: $(READY) bench
	$(BIN)/python examples/drift.py --seeds 0 1 2 3
	$(BIN)/python benchmarks/training_step.py --threads 1
	$(BIN)/python benchmarks/training_step.py --threads 2
	$(BIN)/python benchmarks/real_video.py run --data $(DATA) --out runs/real
	$(BIN)/python benchmarks/real_video.py table --out runs/real --json runs/real.json
	$(BIN)/python benchmarks/real_video.py run --data $(DATA) --out runs/cross --folds 7 --only uti-025 --methods dense set --seeds 0
	$(BIN)/python benchmarks/trained_stream.py runs/real/uti-mbv2-pixel-* --data $(DATA)/ut_interaction --flush 1 0.25 \
	  --json runs/stream.json
	$(BIN)/python benchmarks/trained_stream.py runs/real/uti-mbv2-pixel-* --data $(DATA)/ut_interaction --flush 0.25 \
	  --precision int8 --codec pixel --json runs/stream-int8.json
	$(BIN)/python benchmarks/long_run.py --data $(DATA) --json runs/long_run.json --svg runs/drift.svg
	$(BIN)/python benchmarks/real_streams.py quality --data $(DATA) --out runs/streams
	$(BIN)/python benchmarks/real_streams.py time --data $(DATA) --out runs/streams --wall
	$(BIN)/python benchmarks/real_streams.py table --out runs/streams --markdown runs/streams.md --svg runs/streams.svg
	$(BIN)/python benchmarks/hard_conditions.py moving --data $(DATA) --out runs/hard --wall
	$(BIN)/python benchmarks/hard_conditions.py cuts --data $(DATA) --out runs/hard --wall
	$(BIN)/python benchmarks/hard_conditions.py table --out runs/hard --markdown runs/hard.md
	$(BIN)/python benchmarks/global_motion.py --data $(DATA) --json runs/global_motion.json
	$(BIN)/python benchmarks/tuning.py tune --data $(DATA) --out runs/tuning --codec pixel
	$(BIN)/python benchmarks/tuning.py time --data $(DATA) --out runs/tuning --codec pixel
	$(BIN)/python benchmarks/tuning.py table --out runs/tuning

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs
