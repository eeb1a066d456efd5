# Everything a fresh machine needs besides python3 (with venv) and, for the native kernels, a C++ compiler
# and nvcc; see docs/installation.md. `make V=1 ...` prints the commands.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NATIVE = setup.py $(shell find csrc -type f)

# Setting up prints a line for each part, or the commands with V=1.
Q = $(if $(filter 1,$(V)),,@)
PIP = $(BIN)/pip install $(if $(filter 1,$(V)),,-qq) --disable-pip-version-check -c constraints.txt

.PHONY: venv demo test test-without-nvcc test-without-compiler exhaustive sanitize sanitize-contract \
	sanitize-scalar sanitize-avx2 sanitize-avx512 sanitize-amx sanitize-ragged tsan coverage nightly mutants \
	check format bench report docs clean

# The packages and the native modules side by side: pip leaves a core free most of the time.
venv:
	@$(MAKE) --no-print-directory -j2 $(VENV)/.installed $(VENV)/.built

# The tools that build the native modules.
$(VENV)/.made: constraints.txt
	@echo "setting up $(VENV): packages and native modules, side by side; takes a minute or two"
	$(Q)$(PYTHON) -m venv $(VENV)
	$(Q)$(PIP) 'setuptools>=77' wheel 'pybind11>=2.13'
	$(Q)touch $@

# The library and its models in editable mode, with everything that tests and benchmarks need. Pip has no
# compiler, since the native modules are the next rule's. The packages are compiled to bytecode by all
# cores rather than by pip's one, whatever PYTHONDONTWRITEBYTECODE says: else every command would compile
# what it imports. Tests of the packages are left out; files for a newer Python do not compile.
$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(Q)BITDANCE_BUILD_CUDA=0 CXX=/hidden/c++ \
		$(PIP) --no-compile --no-build-isolation -e '.[dev]' -e ./bitdance_models
	$(Q)$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' \
		$(VENV)/lib/python3*/site-packages bitdance bitdance_kernels || true
	@echo "installed the packages"
	$(Q)touch $@

# The native modules, again whenever their sources change.
$(VENV)/.built: $(VENV)/.made $(NATIVE)
	$(Q)$(BIN)/python setup.py -q build_ext --inplace
	$(Q)touch $@

demo: venv
	$(Q)$(BIN)/bitdance generate --class all --num-images 8 --seed 0 --batch-size 80 --zoom 2 --out out/demo.png
	$(Q)$(BIN)/bitdance generate --prompts recipes/emoji/prompts.txt --columns 4 --seed 0 --zoom 2 --out out/emoji.png

# Two workers, which take a file at a time in the order of tests/conftest.py.
SHARED = -n 2 --dist loadfile --no-loadscope-reorder
test: export BITDANCE_BUILD_STRICT = 1
test: venv
	$(BIN)/python -m pytest $(SHARED) tests

# On a machine without a tool, a copy of the checkout that is built with the tool hidden, the tests that
# can end otherwise there (tests/hidden_tools.py). Slow tests are left out, since their results do not
# depend on it. Objects for the CPU are those of the checkout, as sources and files keep their times.
HIDE_nvcc = NVCC=/hidden/nvcc
HIDE_compiler = NVCC=/hidden/nvcc CXX=/hidden/c++
test-without-nvcc test-without-compiler: test-without-%: venv
	rm -rf build/without-$* && mkdir -p build/without-$*
	git ls-files -z | xargs -0 cp -p --parents -t build/without-$*
	cp -a --parents -t build/without-$* build/temp.*/bitdance_kernels._cpu || true
	cd build/without-$* && $(HIDE_$*) $(abspath $(BIN))/python setup.py -q build_ext --inplace
	cd build/without-$* && $(HIDE_$*) PYTHONPATH=. $(abspath $(BIN))/python -m bitdance_kernels
	cd build/without-$* && $(HIDE_$*) PYTHONPATH=. $(abspath $(BIN))/python -m pytest \
		$(SHARED) -m 'not slow' --without $* tests

# Bit ops on all 2^32 patterns of float32, in about four minutes of one core.
exhaustive: venv
	$(BIN)/python -m tests.reliability.exhaustive

# The C++ kernels under AddressSanitizer and UBSan: samples and own tests of every op, on each instruction
# set of the machine (attention alone with AMX), without the tests of Triton kernels and of ops that only
# Triton has; and calls of ragged shapes in every dtype, in allocations of exact size, with foreign
# default dtypes.
# Without leak detection: the kernels allocate nothing, and Python does not free everything. libstdc++
# is preloaded too, since the sanitizer needs it to throw. Two processes at once, of a thread each where
# no test asks for more.
ISA = $(patsubst sanitize-%,%,$@)
COMPILER = $${CXX:-c++}
RUNTIME = $$($(COMPILER) -print-file-name=libasan.so) $$($(COMPILER) -print-file-name=libstdc++.so)
PRELOADED = cd build/sanitize && LD_PRELOAD="$(RUNTIME)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
	OMP_NUM_THREADS=1
SANITIZED = $(PRELOADED) TRITON_INTERPRET=0 BITDANCE_KERNELS_CPU_ISA=$(ISA) \
	$(abspath $(BIN))/python -m pytest -p no:xdist -p no:cacheprovider -m "not slow"
WITHOUT = not triton and not packed_linear
ON_CPU = --ignore-glob='*_kernels.py' --ignore-glob='*_cuda.py'
sanitize: venv
	rm -rf build/sanitize && mkdir -p build/sanitize
	git ls-files -z | xargs -0 cp --parents -t build/sanitize
	cd build/sanitize && BITDANCE_BUILD_CUDA=0 BITDANCE_BUILD_SANITIZE=1 \
		$(abspath $(BIN))/python setup.py -q build_ext --inplace
	@$(MAKE) --no-print-directory --output-sync=target -j2 sanitize-contract sanitize-ragged \
		$$($(BIN)/python -c 'from bitdance_kernels.testing import cpu_isas; print(*map("sanitize-{}".format, cpu_isas()))')

# All instruction sets that there are, one after the other, in each test.
sanitize-contract: ISA =
sanitize-contract:
	$(SANITIZED) tests/test_contract.py -k "matches and $(WITHOUT)"
sanitize-scalar sanitize-avx2 sanitize-avx512: sanitize-%:
	$(SANITIZED) tests/ops tests/test_numpy_front.py tests/test_native.py $(ON_CPU) -k "$(WITHOUT)"
sanitize-amx:
	$(SANITIZED) tests/ops $(ON_CPU) -k "attention and $(WITHOUT)"
sanitize-ragged:
	$(PRELOADED) $(abspath $(BIN))/python -m tests.reliability.guard_pages 0 700 --heap

# The C++ kernels under ThreadSanitizer, from several threads at a time with 1 to 8 threads of their own.
tsan: venv
	$(BIN)/python -m tests.reliability.thread_sanitizer

# The suite once more, with lines counted: of Python by coverage.py, of the C++ kernels by gcov. What
# no test runs is listed in build/coverage/uncovered.txt.
coverage: venv
	$(BIN)/python -m tests.reliability line_coverage

# Every suite of tests/reliability at full size, at most three hours on two cores; SUITES='properties
# files' takes some. The figures go to benchmarks/results/reliability.json; see docs/reliability.md.
SUITES ?=
nightly: venv
	$(BIN)/python -m tests.reliability $(SUITES)

# Faults planted one at a time, two side by side: each must fail the tests that are named for it. About
# an hour; MUTANTS='cpu sampling/*' takes a part.
MUTANTS ?=
mutants: venv
	$(BIN)/python -m tests.mutants --workers 2 $(MUTANTS)

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/codespell
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format -i

# This CPU against the packages of the extra "peers" that are installed, in about ten minutes;
# BENCH='--only ops --ops swiglu' takes a part.
BENCH ?=
bench: venv
	$(BIN)/python -m benchmarks cpu --out out/cpu.json $(BENCH)

# Tables and plots of the documents, from benchmarks/results; the promises are those of the suites.
report: venv
	$(BIN)/python -m benchmarks report --plots docs/plots \
		--into README.md docs/benchmarks.md docs/cards.md docs/generation.md docs/processes.md \
		benchmarks/results/README.md
	$(BIN)/python -m tests.reliability --table

# The drawings, and the site, in site/.
docs: venv
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/build_drawings.py
	$(BIN)/python docs/make_mask_plot.py
	$(BIN)/python docs/memory_plan.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf build out site *.egg-info bitdance_kernels/*.so
