# Everything a fresh machine needs besides python3 (with venv) and, for the native kernels, a C++ compiler
# and nvcc; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NATIVE = setup.py $(shell find csrc -type f)

.PHONY: venv demo test test-without-nvcc test-without-compiler check format bench docs clean

venv: $(VENV)/.built

# The library in editable mode, with everything that tests and benchmarks need.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt 'setuptools>=77' wheel 'pybind11>=2.13'
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# The native modules, again whenever their sources change.
$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

demo: venv
	$(BIN)/bitdance generate --class all --n 8 --seed 0 --batch-size 80 --zoom 2 --out out/demo.png

test: venv
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

# The suite on a machine that lacks a tool: a copy of the checkout, built with the tool hidden. The slow
# tests give the same there as in `make test`.
HIDE_nvcc = NVCC=/hidden/nvcc
HIDE_compiler = NVCC=/hidden/nvcc CXX=/hidden/c++
test-without-nvcc test-without-compiler: test-without-%: venv
	rm -rf build/without-$* && mkdir -p build/without-$*
	git ls-files -z | xargs -0 cp --parents -t build/without-$*
	cd build/without-$* && $(HIDE_$*) $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/without-$* && $(HIDE_$*) PYTHONPATH=. $(abspath $(BIN))/python -m bitdance_kernels
	cd build/without-$* && $(HIDE_$*) PYTHONPATH=. $(abspath $(BIN))/python -m pytest \
		-n 2 --dist loadfile -m 'not slow' tests

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format -i

bench: venv
	$(BIN)/python -m benchmarks run pack_signs
	$(BIN)/python -m benchmarks run unpack_signs

# docs/api.md from the docstrings.
docs: venv
	$(BIN)/python docs/build_api.py

clean:
	rm -rf build out *.egg-info bitdance_kernels/*.so
