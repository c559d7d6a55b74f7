# Every target makes and uses the project's own .venv; nothing outside it is needed but Python and pip.
#
#   make demo             eight clients, one model, one device
#   make test             all checks and tests
#   make device-report    tests, checks and measures this device, into one file to send back;
#                         EXTRA=cuda on Linux with an NVIDIA GPU, as with every target
#   make train            makes the bundled pair anew: about an hour on two cores
#   make docs             the pages of docs/ as a site with a search, in build/docs
#   make wheel            wheel and sdist, in dist/
#   make simulate         random scenarios on the core; ARGS="--seeds 5000"
#   make soak             a daemon on a fake device under 64 clients; ARGS="--requests 20000"
#   make page-screenshots pictures of the live page, in docs/page; needs Chromium and Playwright
#   make demo ARGS=...    arguments are passed on, also by bench and train

SHELL := /bin/sh

# mlx's backends for Linux cannot be installed beside each other. So EXTRA=cuda, for a machine with an
# NVIDIA GPU, is another lock and another environment, for every target.
EXTRA ?= serve
ifeq ($(EXTRA),serve)
VENV := .venv
LOCK := requirements.lock
else ifeq ($(EXTRA),cuda)
VENV := .venv-cuda
LOCK := requirements-cuda.lock
else
$(error EXTRA is "$(EXTRA)", expected serve or cuda)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock

# The first Python that is new enough; macOS calls 3.9 python3.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Float32 matmul is some 30 times faster with OpenBLAS than with the reference BLAS. Only preloaded
# for our own Python, and only where Debian's package has put it.
OPENBLAS := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libopenblas.so.0))
WITH_BLAS := $(if $(OPENBLAS),LD_PRELOAD=$(OPENBLAS))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# On an M5 and on CUDA float32 products are TF32 by default, with 11 bits: tests judge float32. mlx
# reads it once, so it is set before Python starts. Who wants to see the difference sets it to 1.
FLOAT32 := MLX_ENABLE_TF32=$${MLX_ENABLE_TF32:-0}

# torch and transformers, which only training needs.
TRAIN_BIN := .venv-train/bin
TRAIN_STAMP := .venv-train/.made-from-requirements
TRAIN_WORK := build/train

# The site of docs/, which nothing else needs.
DOCS_BIN := .venv-docs/bin
DOCS_STAMP := .venv-docs/.made-from-requirements

# On Linux MLX compiles what a CPU fuses with g++, once each, in the first start that meets it; three
# quarters of that time goes into one header. Compiled here, by the options that MLX uses, it brings
# such a start from 38 s to 14 on two cores. Made anew with the lock, for g++ does not compare it with
# the header. Without g++ there is neither.
PREAMBLE := site-packages/mlx/include/mlx/backend/cpu/compiled_preamble.h
COMPILED_PREAMBLE = for header in $(VENV)/lib/python3.*/$(PREAMBLE); do \
	rm -f "$$header.gch"; test "$$(uname)" != Linux || ! command -v g++ >/dev/null || \
		g++ -std=c++17 -O3 -Wall -fPIC -shared -w -I "$${header%/mlx/backend/*}" -x c++-header \
			"$$header" -o "$$header.gch" || rm -f "$$header.gch"; done

.PHONY: .venv demo bench page-screenshots device-report train wheel test test-long simulate soak check breaking \
	coverage proto docs lock lock-docs lock-peers clean

.venv: $(STAMP)

# What pip says: each package on a terminal, where somebody waits, and nothing in a log.
PIP_SAYS := $(shell test -t 2 || echo --quiet)

# uv where it is there, else pip; the same lock, hashes required by both. An environment that runs is
# brought up to the lock, one that does not is made anew. The editable install needs no network: the
# build backend is in the lock.
$(STAMP): $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON" >&2; exit 1; }
	@echo "$(VENV) is made or brought up to $(LOCK), $$(grep -c '^[a-z].*==' $(LOCK)) packages at" \
		"most: minutes the first time, as they are downloaded" >&2
	@if command -v uv >/dev/null; then \
		{ $(BIN)/python -c pass 2>/dev/null || \
			uv venv --quiet --clear --python "$(PYTHON)" $(VENV); } && \
		uv pip install --python $(BIN)/python --require-hashes -r $(LOCK) && \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .; \
	else \
		{ $(BIN)/python -c "import pip" 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV); } && \
		$(BIN)/python -m pip install $(PIP_SAYS) --require-hashes -r $(LOCK) && \
		$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	fi
	@$(COMPILED_PREAMBLE)
	@touch $@

demo: $(STAMP)
	$(WITH_BLAS) $(BIN)/sapwood demo $(ARGS)

bench: $(STAMP)
	$(WITH_BLAS) $(BIN)/python -m bench $(ARGS)

# What a device does with Sapwood, in one file to send back; ARGS=--soak adds an hour of clients.
device-report: $(STAMP)
	$(WITH_BLAS) $(BIN)/python -m bench.device_report $(ARGS)

page-screenshots: $(STAMP)
	$(BIN)/python -m tests.system.page_screenshots $(ARGS)

$(TRAIN_STAMP): model/demo/train/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv-train
	$(TRAIN_BIN)/python -m pip install --quiet -r $<
	@touch $@

# Goes on where it was interrupted; `make train ARGS=--smoke` is the whole way in little.
train: $(STAMP) $(TRAIN_STAMP)
	$(TRAIN_BIN)/python -m sapwood.model.demo.train --work $(TRAIN_WORK) $(ARGS)
ifeq ($(findstring --smoke,$(ARGS)),)
	$(WITH_BLAS) $(BIN)/python -m sapwood.model.demo.train.measure --pair $(TRAIN_WORK)/pair \
		--reference $(TRAIN_WORK)/reference.npz --out $(TRAIN_WORK)/pair/measured.json
	$(BIN)/python -m sapwood.model.demo.train.card $(TRAIN_WORK)/pair
	cp -R $(TRAIN_WORK)/pair/. model/demo/
endif

$(DOCS_STAMP): docs/_site/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON" >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv-docs
	$(DOCS_BIN)/python -m pip install --quiet --require-hashes -r $<
	@touch $@

# Into build/docs, to be read from there or put anywhere; a dead link or anchor fails. With --quiet
# none would: mkdocs counts the warnings that it shows.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict $(ARGS)

# The build backend itself, which is in the lock: no network is needed.
wheel: $(STAMP)
	$(BIN)/python -m hatchling build -d dist

# A process for each core, which then needs no BLAS of several threads; four are enough for memory.
TEST_PYTHON := $(FLOAT32) OPENBLAS_NUM_THREADS=1 $(WITH_BLAS) $(BIN)/python
PYTEST := $(TEST_PYTHON) -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# A few that failed among others run once more, alone, and are named (tests/once_more.py). What an
# earlier run left is no failure of this one.
test: check
	@rm -f .pytest_cache/v/cache/lastfailed
	$(PYTEST) $(ARGS) || { [ $$? = 1 ] && $(TEST_PYTHON) -m tests.once_more; }

# An empty marker expression selects the long ones too.
test-long: check
	$(PYTEST) -m "" $(ARGS)

simulate: $(STAMP)
	$(BIN)/python -m tests.sim run $(ARGS)

soak: $(STAMP)
	$(BIN)/python -m tests.sim.soak $(ARGS)

check: $(STAMP) breaking
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples
	$(BIN)/deptry sapwood cache daemon model scheduler
	$(BIN)/buf lint
	$(BIN)/python proto/generate.py --check
	$(BIN)/python -m pytest -q tests/test_rooms.py

# What clients of the newest release would notice of a changed contract.
breaking: $(STAMP)
	$(BIN)/python proto/breaking.py

# Writes docs/coverage.md; with ARGS, for pytest, it measures a part and writes nothing.
coverage: $(STAMP)
	$(FLOAT32) $(WITH_BLAS) $(BIN)/python -m tests.branch_coverage $(ARGS)

proto: $(STAMP)
	$(BIN)/python proto/generate.py

# For whoever changes a dependency; needs uv. One file serves pip and uv, on Linux and macOS. The
# second, for EXTRA=cuda, begins as a copy of the first, so that what both have is of one version.
COMPILE := uv pip compile pyproject.toml --group dev --group bench --universal --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" --python-version 3.11 --quiet
lock:
	$(COMPILE) --extra serve --extra gateway --extra otel --extra typed --output-file requirements.lock
	cp requirements.lock requirements-cuda.lock
	$(COMPILE) --extra cuda --extra gateway --extra otel --extra typed --output-file requirements-cuda.lock

# The same for each peer's environment in bench/peers.
lock-peers:
	cd bench/peers/requirements && for peer in *.in; do \
		uv pip compile $$peer --universal --generate-hashes --no-emit-index-url --no-annotate \
			--custom-compile-command "make lock-peers" --python-version 3.11 \
			--quiet --output-file "$${peer%.in}.txt" || exit 1; \
	done

# The same for what makes the site of docs/.
lock-docs:
	cd docs/_site && uv pip compile requirements.in --universal --generate-hashes --no-emit-index-url \
		--no-annotate --custom-compile-command "make lock-docs" --python-version 3.11 \
		--quiet --output-file requirements.txt

clean:
	rm -rf .venv .venv-cuda .venv-docs .venv-train .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find cache daemon model proto sapwood scheduler bench tests -name __pycache__ -prune -exec rm -rf {} +
