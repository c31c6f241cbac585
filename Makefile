# SPDX-License-Identifier: MIT
# The only commands; CI runs the same words. `make help` lists them.
# Everything lives in .venv; nothing is installed elsewhere. ARGS passes options on: make serve ARGS="--port 9000".

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11 python,\
  $(shell $(p) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13); print("$(p)")' 2>/dev/null)))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# torch comes first and by its own range, so that a CPU build found locally is taken.
TORCH := torch>=2.11,<=2.13.0
BUILD_REQUIRES := "scikit-build-core>=0.11,<2" "nanobind>=2.9,<4" "cmake>=3.24,<5" "ninja>=1.11"
CXX_SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cc' -o -name CMakeLists.txt 2>/dev/null) CMakeLists.txt

.PHONY: help setup serve test check fix build sim bench clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/.base: pyproject.toml
	@test -n "$(PYTHON)" || { echo "TokenSpeed needs Python 3.11 or 3.12; set PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade "pip>=24"
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q $(BUILD_REQUIRES)
	touch $@

$(VENV)/.installed: $(VENV)/.base $(CXX_SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) install -q --no-build-isolation -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install -q $$($(BIN)/python tools/extras.py test check)
	touch $@

setup: $(VENV)/.installed ## create .venv, install the engine and build its extensions

serve: $(VENV)/.installed ## set up, then serve the bundled model (ARGS="--port 9000", ARGS="path/to/model")
	$(BIN)/tokenspeed serve $(ARGS)

test: $(VENV)/.test ## set up, then run every test
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.test ## lint, types, import contracts, stubs, fast tests: under a minute warm
	$(BIN)/python tools/check.py $(ARGS)

fix: $(VENV)/.test ## format and apply safe lint fixes
	$(BIN)/ruff check --fix .

build: $(VENV)/.installed ## build the C++ extensions in place

sim: $(VENV)/.installed ## run the real control plane over seeded simulations (ARGS="--seeds 20000")
	$(BIN)/tokenspeed sim $(ARGS)

bench: $(VENV)/.installed ## measure this machine in under five minutes: C2, C1, C0, control plane, engine
	$(BIN)/tokenspeed bench all --out benchmarks/results --document docs/benchmarks.md $(ARGS)

clean: ## remove what was built (not .venv)
	rm -rf build dist .cmake .ninja_deps .ninja_log .skbuild-info.json CMakeCache.txt CMakeInit.txt build.ninja compile_commands.json
	find . -path ./.venv -prune -o \( -name CMakeFiles -o -name cmake_install.cmake \) -prune -exec rm -rf {} +
	rm -f csrc/*.a
	find tokenspeed -name '*.so' -delete
