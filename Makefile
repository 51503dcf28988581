# Every target sets up what it needs: Python 3.10+ and a C compiler are enough on a fresh machine.
#
# The install is editable. A checkout holds a folder named fastce, so a copy in site-packages would compete with an
# uncompiled one in the working directory; editable, the compiled module lands in that folder, and whatever way
# Python is started there is only one fastce to import.

PYTHON ?= python3
CC ?= cc
CROSS_CC ?= aarch64-linux-gnu-gcc
QEMU ?= qemu-aarch64
SYSROOT ?= /usr/aarch64-linux-gnu
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

BIN := .venv/bin
PIP := PYTHONWARNINGS="ignore:Editable" $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := $(sort $(wildcard fastce/_core.pyx fastce/*.pxd fastce/include/*.h) $(shell find src_c -name '*.[ch]'))
# cython-lint calls pycodestyle by name.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

CYTHON_FILES := $(wildcard fastce/*.pyx fastce/*.pxd)
C_FILES := $(sort $(shell find src_c fastce/include tests/c tests/fuzz accuracy -name '*.[ch]' 2>/dev/null))

.DEFAULT_GOAL := help
.PHONY: help demo test test-all build lint format types test-c test-c-native test-c-neon sanitize mutants breakage fuzz pytest bench bench-pytest accuracy dist clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

# --- set-up -----------------------------------------------------------------------------------------------------------

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastce needs Python 3.10 or newer")'
	@echo "creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --upgrade pip

.venv/user: .venv/pyvenv.cfg pyproject.toml setup.py $(SOURCES)
	@echo "installing fastce (compiles the C core)"
	@$(PIP) install --editable ".[cli,numba]"
	@touch $@

# Warnings of the core are errors for those who build it, and stay warnings where it is only installed.
.venv/developer .venv/compiled: export FASTCE_WERROR ?= 1

.venv/developer: .venv/pyvenv.cfg pyproject.toml setup.py
	@echo "installing fastce and what its tests and linters need"
	@$(PIP) install --editable ".[dev]"
	@touch $@

# After an edit of the C core: only what changed is compiled. Right after an install there is nothing to do.
.venv/compiled: .venv/developer $(SOURCES)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

build: .venv/compiled ## compile the C core in place

# --- for users --------------------------------------------------------------------------------------------------------

demo: .venv/user ## install into .venv and run `fastce demo`
	@$(BIN)/fastce demo

# --- tests ------------------------------------------------------------------------------------------------------------

# pytest last, so that the output closes with its summary.
test: .venv/compiled ## linters, types, C tests and pytest
	@$(MAKE) --no-print-directory lint types
	@$(MAKE) --no-print-directory -j$(JOBS) test-c
	@$(MAKE) --no-print-directory breakage
	@$(MAKE) --no-print-directory pytest

test-all: export PYTEST_ARGS = -m "slow or not slow"
test-all: dist test ## the same with the slow tests, and the sdist and wheel

# The benchmarks' smallest case runs once, untimed: what is measured, and how it is checked, must not rot.
# A worker for each core, since most of the time goes into compiling Numba's kernels, which takes one. Each has a half of
# the tests in their order, since neighbours want the same kernels, and takes of the other's last ones when it is done;
# compiled kernels are on disk for both. A test that takes memory wants no more than a few beside it.
pytest: .venv/compiled
	@$(BIN)/pytest --quiet --benchmark-disable -k "32x10 and fastce and not thread" bench
	@$(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal $(PYTEST_ARGS)

lint: .venv/developer ## ruff, cython-lint, clang-format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/cython-lint $(CYTHON_FILES)
	@$(BIN)/clang-format --dry-run -Werror $(C_FILES)

types: .venv/developer ## mypy --strict
	@$(BIN)/mypy

format: .venv/developer ## rewrite the sources as the linters want them
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/clang-format -i $(C_FILES)

# The C tests link the core, no Python: the library as it is shipped, and one for NEON under an emulator.
C_FLAGS := -O3 -std=c11 -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Werror -MMD -MP -Ifastce/include -Isrc_c
CORE := $(sort $(shell find src_c -name '*.c'))
LIBRARY := fastce/libfastce.so
C_TESTS := $(patsubst tests/c/%.c,%,$(sort $(wildcard tests/c/test_*.c)))
HAVE_NEON := $(shell command -v $(CROSS_CC) >/dev/null && command -v $(QEMU) >/dev/null && echo yes)

build/c/native/%.o: %.c Makefile
	@mkdir -p $(@D)
	@$(CC) $(C_FLAGS) -fopenmp -c $< -o $@

build/c/neon/%.o: %.c Makefile
	@mkdir -p $(@D)
	@$(CROSS_CC) $(C_FLAGS) -fopenmp -c $< -o $@

build/c/native/%: build/c/native/tests/c/%.o $(LIBRARY)
	@$(CC) -fopenmp $< -Lfastce -lfastce -Wl,-rpath,$(CURDIR)/fastce -lm -o $@

# Whoever runs the C tests alone learns what is older than what.
$(LIBRARY): $(CORE) $(wildcard fastce/include/*.h src_c/*.h src_c/kernels/*.h)
	@echo "$@ is older than $(firstword $?): run make build, or setup.py build_ext --inplace"; exit 1

build/c/neon/%: build/c/neon/tests/c/%.o $(CORE:%.c=build/c/neon/%.o)
	@$(CROSS_CC) -fopenmp $^ -lm -o $@

# The sweep of accuracy/ has the functions of each ISA over arrays, in place of its kernels.
SWEPT := $(patsubst src_c/isa/%.c,accuracy/isa/%.o,$(wildcard src_c/isa/*.c))
SWEEP := accuracy/sweep.o $(patsubst %.c,%.o,$(filter-out src_c/isa/%,$(CORE))) $(SWEPT)
SWEPT_FLAGS = $(C_FLAGS) -I. -Wno-unused -DBESIDE_KERNELS='"accuracy/sweep_functions.h"' -DSWEPT=swept_$*

build/c/native/accuracy/isa/%.o: src_c/isa/%.c Makefile
	@mkdir -p $(@D)
	@$(CC) $(SWEPT_FLAGS) -c $< -o $@

build/c/neon/accuracy/isa/%.o: src_c/isa/%.c Makefile
	@mkdir -p $(@D)
	@$(CROSS_CC) $(SWEPT_FLAGS) -c $< -o $@

build/c/native/sweep: $(SWEEP:%=build/c/native/%)
	@$(CC) -fopenmp $^ -lm -o $@

build/c/neon/sweep: $(SWEEP:%=build/c/neon/%)
	@$(CROSS_CC) -fopenmp $^ -lm -o $@

.SECONDARY:
-include $(shell find build/c -name '*.d' 2>/dev/null)

test-c: test-c-native test-c-neon ## the C tests, natively and for NEON under qemu

test-c-native: $(C_TESTS:%=build/c/native/%)
	@for program in $^; do echo "$$program"; $$program || exit 1; done

ifeq ($(HAVE_NEON),yes)
test-c-neon: $(C_TESTS:%=build/c/neon/%)
	@for program in $^; do echo "$$program ($(QEMU))"; $(QEMU) -L $(SYSROOT) $$program || exit 1; done
else
test-c-neon:
	@echo "NEON was not run: it needs $(CROSS_CC) and $(QEMU) (Debian: gcc-aarch64-linux-gnu qemu-user)"
endif

# --- what breaks things on purpose -------------------------------------------------------------------------------------

COMMIT = $(shell git rev-parse HEAD 2>/dev/null || echo none)

sanitize: .venv/compiled ## C tests and contract suite under address, undefined-behaviour and thread sanitizers
	@$(BIN)/python tests/sanitize.py

mutants: .venv/developer ## break the kernels in fourteen ways: the C tests must notice each
	@$(BIN)/python tests/mutants.py

# The part of both that fits into every run: plain C, and three mutants drawn by the commit.
breakage: .venv/developer
	@$(BIN)/python tests/sanitize.py --quick
	@$(BIN)/python tests/mutants.py --draw $(COMMIT)

fuzz: .venv/compiled ## a minute of fuzzing for the C functions (needs clang), and one for the readers of files
	@$(BIN)/python tests/fuzz/run.py $(FUZZ_ARGS)

# --- benchmarks and releases ------------------------------------------------------------------------------------------

.venv/peers: .venv/compiled
	@echo "installing the systems to compare with"
	@$(BIN)/python -c 'from importlib.metadata import requires; \
	    print(*[r.split(";")[0] for r in requires("fastce") if "\"peers\"" in r], sep="\n")' | \
	while read -r peer; do $(PIP) install "$$peer" </dev/null || echo "$$peer could not be installed"; done
	@touch $@

bench: .venv/peers ## compare with the other systems, in under five minutes
	@$(BIN)/python -m bench $(BENCH_ARGS)

bench-pytest: .venv/peers ## every case under pytest-benchmark, into build/bench.json
	@mkdir -p build
	@$(BIN)/pytest bench --benchmark-json=build/bench.json $(PYTEST_ARGS)

accuracy: .venv/peers ## measure the largest errors, write them into the documents; fails above a limit
	@$(BIN)/python -m accuracy $(ACCURACY_ARGS)

dist: .venv/developer ## sdist and the wheel built from it, their contents checked
	@rm -rf dist && mkdir -p build
	@$(BIN)/python -m build --no-isolation --outdir dist . >build/dist.log 2>&1 || { cat build/dist.log; exit 1; }
	@rm -rf fastce.egg-info  # left by the build: Python would take it for the installed metadata
	@$(BIN)/python tools/check_dist.py dist

clean: ## remove all that was built, the virtual environment too
	@rm -rf .venv build dist *.egg-info fastce/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
