# `make book` and `make test` need Python 3.11 or newer and make; they set up the rest in .venv.

comma := ,

VENV    ?= .venv
PYTHON  ?=
PROFILE ?= $(or $(PFCORE_PROFILE),quick)
# How many notebooks, tests and browsers at a time.
JOBS    ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
# For `make reproduce`: stored; short, which recomputes those of two minutes; or recompute, which takes
# hours; and RESUME=1 to go on with what was interrupted.
RECORDS ?= stored
RESUME  ?=

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
BUILD := _build

# What the checks run: the processor only, so that results do not depend on the accelerator.
CHECK := JAX_PLATFORMS=cpu
# Unit tests compile thousands of small programs, and run each for a moment: XLA's optimisations cost
# them more than half their time. `make unit FAST_COMPILE=` compiles as users do; so do test-oldest
# and test-newest.
FAST_COMPILE ?= --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
# Where notebooks write when they are run to be compared, not to be kept.
SCRATCH := $(BUILD)/check

# JAX keeps what it compiled in this folder, from one command to the next: of this user, for this kind
# of processor, outside the checkout. PFCORE_NO_CACHE=1 does without; what is a month old goes.
ifeq ($(PFCORE_NO_CACHE),)
  ifneq ($(filter-out help clean distclean,$(MAKECMDGOALS)),)
    CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/pfcore
    PROCESSOR := $(shell { uname -m; grep -m 1 -E '^(flags|Features)' /proc/cpuinfo; } 2>/dev/null | cksum | cut -d ' ' -f 1)
    export JAX_COMPILATION_CACHE_DIR ?= $(CACHE)/compiled-$(PROCESSOR)
    export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
    export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1
    # Several processes write there at once; what one finds half written it compiles, without a remark.
    export PYTHONWARNINGS := $(if $(PYTHONWARNINGS),$(PYTHONWARNINGS)$(comma))ignore:Error reading persistent compilation cache entry,ignore:Error writing persistent compilation cache entry
    $(shell umask 077 && mkdir -p "$(JAX_COMPILATION_CACHE_DIR)" && find "$(JAX_COMPILATION_CACHE_DIR)" -type f -mtime +30 -delete)
  endif
endif

# Where Python is told to write no bytecode, as in many containers, each process would compile every
# module it imports: eight seconds, for each notebook. So it writes, but not beside the sources.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
  unexport PYTHONDONTWRITEBYTECODE
  export PYTHONPYCACHEPREFIX ?= $(abspath $(BUILD))/bytecode
endif

# Resolves and installs by what is on its command line alone: the pins in [tool.uv] are the lock's.
UV := "$(BIN)/uv" --no-config
# Of two --quiet the second hides remarks on how pip is configured, not errors.
PIP := "$(BIN)/python" -m pip install --quiet --quiet --disable-pip-version-check
# In an environment of its own: it wants an older jsonschema than the book does.
CFFCONVERT := $(UV) tool run --quiet --python "$(BIN)/python" cffconvert==2.0.0

# One thread in each process for linear algebra: JOBS processes with a pool each get in each other's way.
export OPENBLAS_NUM_THREADS ?= 1

# Programs without the lines of Python that they come from: less to lower, and to hash for the cache.
export JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS ?= 0
export JAX_TRACEBACK_IN_LOCATIONS_LIMIT ?= 0

MAKEFLAGS += --no-print-directory
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup book notebooks test quick lint types unit test-images nbval claims html pages \
  browser access pdf reproduce colab gpu-job registry address format citation test-oldest test-newest dist lock clean \
  distclean

help:  ## this list
	@echo "Gradient descent in continuous time: the book, and pfcore beneath it."
	@echo
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20
	@echo
	@echo "Settings: VENV=$(VENV)  PROFILE=$(PROFILE)  JOBS=$(JOBS)  PYTHON=(3.13, else 3.12, 3.11, 3.14)"

# ---- set-up

setup: $(STAMP)  ## .venv with everything pinned, once

# By uv, which takes a third of pip's time; by pip where uv finds no index, as pip may know of its own.
$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if [ ! -x "$(BIN)/python" ] || [ ! -x "$(BIN)/pip" ]; then \
	  for p in $(or $(PYTHON),python3.13 python3.12 python3.11 python3.14 python3 python); do \
	    if "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	    then found="$$p"; break; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    $(if $(PYTHON),echo "PYTHON=$(PYTHON) is not Python 3.11 or newer with the venv module."; exit 1;) \
	    echo "No Python 3.11 or newer with the venv module was found. Install one (on Debian and"; \
	    echo "Ubuntu: apt install python3 python3-venv), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python"; \
	    exit 1; \
	  fi; \
	  echo "== set-up: $(VENV), with $$("$$found" --version)"; \
	  "$$found" -m venv "$(VENV)"; \
	else \
	  echo "== set-up: $(VENV)"; \
	fi; \
	echo "   installing the pinned packages (a minute or two the first time)"; \
	sed -n '/^uv==/,/[^\]$$/p' requirements.lock >"$(VENV)/uv.txt"; \
	$(PIP) --require-hashes -r "$(VENV)/uv.txt"; \
	$(UV) pip install --quiet --python "$(BIN)/python" --require-hashes -r requirements.lock \
	  2>"$(VENV)/uv.log" || $(PIP) --require-hashes -r requirements.lock \
	  || { cat "$(VENV)/uv.log"; exit 1; }; \
	echo "   installing pfcore"; \
	$(PIP) --no-deps --no-build-isolation -e .; \
	touch "$@"

# ---- the book

# From the folder $(1) to $(BUILD)/html, every warning an error; from nothing, unless INCREMENTAL=1
# and the table of contents, which every page shows, is as it was.
# Drawings of figures that have not changed are kept, in $(BUILD)/drawings.
INCREMENTAL ?=
define build_html
	$(if $(INCREMENTAL),@find "$(1)/_toc.yml" -newer "$(BUILD)/html/index.html" \
	  -exec rm -rf "$(BUILD)/html" "$(BUILD)/.doctrees" \; 2>/dev/null || true,@rm -rf "$(BUILD)/html" "$(BUILD)/.doctrees")
	@"$(BIN)/jupyter-book" build "$(1)" --path-output . -W -n --keep-going --quiet >/dev/null
	@"$(BIN)/python" -c 'import pathlib; print("   open", pathlib.Path("$(BUILD)/html/index.html").resolve().as_uri())'
endef

book: $(STAMP)  ## recompute every notebook, build the book, say where to open it
	@echo "== book: recomputing the notebooks ($(PROFILE) profile)"
	@"$(BIN)/python" tools/notebooks.py execute --into "$(BUILD)/source" --profile $(PROFILE) --jobs $(JOBS) \
	  --report "$(BUILD)/not-recomputed.txt"
	@echo "== book: building the pages"
	$(call build_html,$(BUILD)/source)
	@if [ -s "$(BUILD)/not-recomputed.txt" ]; then \
	  echo "== book: built, but not recomputed whole; these pages show stored outputs, under a notice:"; \
	  cat "$(BUILD)/not-recomputed.txt"; exit 1; \
	fi

notebooks: $(STAMP)  ## recompute the notebooks in place, normalised, ready to commit
	@echo "== notebooks: recomputing in place ($(PROFILE) profile)"
	@"$(BIN)/python" tools/notebooks.py execute --in-place --profile $(PROFILE) --jobs $(JOBS)

# What tests/long.txt lists, tests and notebooks, is for the workflows, and for EVERY=1.
EVERY ?=
# With the programs of the environment whose folder of programs is $(1).
UNIT ?= pfcore tests --ignore tests/browser --ignore tests/pages
unit_tests = $(CHECK) MPLBACKEND=agg "$(1)/python" -m pytest -q -rs -n $(JOBS) --dist loadgroup --doctest-modules $(if $(EVERY),,-m "not browser and not pages and not long") $(UNIT)

# Unit tests in $(BUILD)/$(1) with what the resolution $(2) gives for the Python $(3).
define test_versions
	@echo "== test-$(1): the $(1) dependencies that pyproject.toml allows"
	@mkdir -p "$(BUILD)" && rm -f "$(BUILD)/$(1).txt"
	@$(UV) venv --quiet --clear --python "$(3)" "$(BUILD)/$(1)"
	@$(UV) pip compile pyproject.toml --quiet --all-extras --resolution $(2) \
	  --python "$(BUILD)/$(1)" --no-annotate --no-header -o "$(BUILD)/$(1).txt"
	@$(UV) pip install --quiet --python "$(BUILD)/$(1)" -r "$(BUILD)/$(1).txt"
	@$(UV) pip install --quiet --python "$(BUILD)/$(1)" --no-deps --no-build-isolation -e .
	@"$(BUILD)/$(1)/bin/python" --version | sed 's/^/   /'
	@paste -sd ' ' "$(BUILD)/$(1).txt" | fold -s -w 96 | sed 's/^/   /'
	@$(call unit_tests,$(BUILD)/$(1)/bin)
endef

# ---- the checks, in the order of `make test`

# Says what is checked next, and notes when it began; `passed` tells how long each check took.
TIMES := $(BUILD)/times.txt
define check
	@mkdir -p "$(BUILD)" && echo "$$(date +%s) $(1)" >>"$(TIMES)"
	@echo "== $(1): $(2)"
endef
define passed
	@echo "$$(date +%s) end" >>"$(TIMES)"
	@awk -v all="$(1)" 'NR > 1 { printf "%s %d s, ", name, $$1 - last } NR == 1 { first = $$1 } \
	  { last = $$1; name = $$2 } END { printf "%d s in all\n== %s: passed\n", last - first, all }' "$(TIMES)"
endef
.PHONY: timed
timed:
	@mkdir -p "$(BUILD)" && rm -f "$(TIMES)"

test: timed lint citation types unit nbval claims html pages browser  ## every check
	$(call passed,test)

SCIENCE := $(addprefix tests/library/test_,curvature flows descent.py imports.py integrate.py \
  learning_rates.py losses.py networks.py objectives.py stability.py)
# What is worked on daily: the science, and the pages as far as they can be read without a browser.
quick: INCREMENTAL := 1
quick: UNIT := -m "not slow and not long" pfcore $(SCIENCE)
quick: timed lint types unit html pages  ## the checks that take a few minutes
	$(call passed,quick)

lint: $(STAMP)  ## style of code, scripts and notebooks
	$(call check,lint,ruff)
	@"$(BIN)/ruff" check --quiet .
	@"$(BIN)/ruff" format --quiet --check --diff .
	@mkdir -p "$(BUILD)"
	@echo "== lint: the pages' scripts and styles"
	@if [ -x "$(BIN)/biome" ]; then \
	  "$(BIN)/biome" lint --error-on-warnings >"$(BUILD)/biome.log" 2>&1 || { cat "$(BUILD)/biome.log"; exit 1; }; \
	else \
	  echo "   not checked: there is no biome for this kind of machine"; \
	fi
	@echo "== lint: who imports whom"
	@"$(BIN)/lint-imports" --no-cache >"$(BUILD)/imports.log" 2>&1 || { cat "$(BUILD)/imports.log"; exit 1; }
	@echo "== lint: notebooks run in order, stored normalised"
	@"$(BIN)/python" tools/notebooks.py check

types: $(STAMP)  ## types of pfcore, of the tools and of the book's extensions
	$(call check,types,mypy)
	@"$(BIN)/mypy"

unit: $(STAMP)  ## unit tests and the examples in docstrings
	$(call check,unit,tests$(comma) and the examples in docstrings)
	@XLA_FLAGS="$(FAST_COMPILE) $${XLA_FLAGS:-}" $(call unit_tests,$(BIN))

test-images: $(STAMP)  ## tests that need the real MNIST and CIFAR-10, in the folder PFCORE_DATA
	@echo "== test-images: real images in $${PFCORE_DATA:?names no folder with MNIST and CIFAR-10 files}"
	@XLA_FLAGS="$(FAST_COMPILE) $${XLA_FLAGS:-}" $(CHECK) "$(BIN)/python" -m pytest -q -rs \
	  -n $(JOBS) tests/library/test_real_images.py

nbval: $(STAMP)  ## rerun the notebooks (all with EVERY=1) and compare with the stored outputs
	$(call check,nbval,every notebook against its stored outputs)
	@rm -rf "$(SCRATCH)"
	@$(CHECK) "$(BIN)/python" tools/notebooks.py compare --scratch "$(SCRATCH)" --jobs $(JOBS) \
	  $(if $(EVERY),--every)

claims: nbval  ## the claims' verdicts and numbers against the stored ones
	$(call check,claims,fresh against stored)
	@"$(BIN)/python" tools/check_claims.py "$(SCRATCH)/claims"

html: $(STAMP)  ## build the pages from the stored outputs
	$(call check,html,building the pages$(comma) warnings fatal)
	$(call build_html,.)

pages: html  ## read every page of the built book without a browser
	$(call check,pages,links$(comma) anchors$(comma) figures and formulas of every page)
	@"$(BIN)/python" -m pytest -q -rs --tb=short --confcutdir tests/pages -m pages tests/pages

# Prints where Chromium is; installs it where there is none.
define chromium
	@"$(BIN)/python" tools/chromium.py || "$(BIN)/python" -m playwright install chromium \
	  || echo "   no Chromium here, and none could be installed"
endef

browser: html  ## read every page of the built book in a browser
	$(call check,browser,every page$(comma) desktop and phone)
	$(call chromium)
	@XLA_FLAGS="$(FAST_COMPILE) $${XLA_FLAGS:-}" "$(BIN)/python" -m pytest -q -rs --tb=short -n $(JOBS) --dist loadgroup --confcutdir tests/browser -m browser tests/browser \
	  --ignore tests/browser/test_pdf.py

access: html  ## the accessibility of every page, and pictures of all of them
	@echo "== access: axe-core on every page"
	$(call chromium)
	@PFCORE_EVERY_PAGE=1 PFCORE_SCREENSHOTS=1 "$(BIN)/python" -m pytest -q -rs --tb=short -n $(JOBS) \
	  --dist loadgroup --confcutdir tests/browser -m browser tests/browser/test_access.py

pdf: html  ## print the whole book to one PDF, and check it
	@echo "== pdf: the whole book"
	$(call chromium)
	@"$(BIN)/python" tools/pdf.py --html "$(BUILD)/html" --to "$(BUILD)/pdf/pfcore-book.pdf"
	@"$(BIN)/python" -m pytest -q -rs --tb=short --confcutdir tests/browser -m browser tests/browser/test_pdf.py

# ---- rerunning

reproduce: $(STAMP)  ## recompute the book, compare every claim with the stored one, as a table
	@echo "== reproduce: recomputing every notebook ($(PROFILE) profile, records: $(RECORDS))"
	@"$(BIN)/python" tools/reproduce.py --profile $(PROFILE) --jobs $(JOBS) --records $(RECORDS) \
	  $(if $(RESUME),--resume)

colab: $(STAMP)  ## run every notebook with nothing but what Colab would give it
	@echo "== colab: every notebook alone, in a fresh environment with the wheel of this tree"
	@"$(BIN)/python" tools/colab.py --profile $(PROFILE)

citation: $(STAMP)  ## CITATION.cff against its schema
	$(call check,citation,CITATION.cff against its schema)
	@mkdir -p "$(BUILD)"
	@if $(CFFCONVERT) --version >/dev/null 2>&1; then \
	  $(CFFCONVERT) --validate --infile CITATION.cff >"$(BUILD)/citation.log" 2>&1 \
	    || { cat "$(BUILD)/citation.log"; exit 1; }; \
	else \
	  echo "   not checked: cffconvert is not here and could not be installed"; \
	fi

# For a machine with a GPU and no network: on it, `python run.py --out results` in that folder; then
# here `.venv/bin/python tools/gpu/take.py results` and `make registry`.
gpu-job: $(STAMP)  ## one folder that computes the full profiles on a GPU machine without a network
	@echo "== gpu-job: tree, data and wheels in $(BUILD)/gpu-job"
	@"$(BIN)/python" tools/gpu/pack.py --to "$(BUILD)/gpu-job" $(if $(DATA),--data $(DATA))

# ---- both ends of the ranges of versions in pyproject.toml

test-oldest: $(STAMP)  ## unit tests with the oldest dependencies allowed, on the oldest Python
	$(call test_versions,oldest,lowest-direct,$(or $(PYTHON),3.11))

# Newer Pythons get newer packages: the newest JAX needs more than the oldest Python allowed.
newest_python = for v in 3.14 3.13 3.12; do \
  for p in "python$$v" "$$HOME"/.pyenv/versions/$$v.*/bin/python; do \
    if "$$p" -c "" >/dev/null 2>&1; then echo "$$p"; exit; fi; \
  done; done; echo "$(BIN)/python"

test-newest: $(STAMP)  ## unit tests with the newest dependencies allowed, on the newest Python
	$(call test_versions,newest,highest,$(or $(PYTHON),$$($(newest_python))))

# ---- publishing

dist: $(STAMP)  ## wheel and source distribution, checked
	@echo "== dist: wheel and source distribution in $(BUILD)/dist"
	@rm -rf "$(BUILD)/dist"
	@$(UV) build --quiet --python "$(BIN)/python" --out-dir "$(BUILD)/dist"
	@"$(BIN)/python" tools/check_dist.py "$(BUILD)/dist"
	@$(UV) venv --quiet --clear --python "$(BIN)/python" "$(BUILD)/dist-env"
	@$(UV) pip install --quiet --python "$(BUILD)/dist-env" "$$(echo "$(BUILD)"/dist/*.whl)[all]"
	@cd "$(BUILD)/dist" && ../dist-env/bin/python -c 'import pfcore; print("   imported:", pfcore.__file__)' \
	  && ../dist-env/bin/pfcore list >/dev/null

# ---- upkeep

registry: $(STAMP)  ## list the stored records and their hashes for the package
	@"$(BIN)/python" tools/registry.py

address: $(STAMP)  ## set the repository's address everywhere: REPO=owner/name
	@"$(BIN)/python" tools/address.py $(REPO)

format: $(STAMP)  ## rewrite code and notebooks in the house style
	@"$(BIN)/ruff" check --quiet --fix .
	@"$(BIN)/ruff" format .

lock: $(STAMP)  ## resolve requirements.lock again from pyproject.toml
	@"$(BIN)/uv" pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make lock" -o requirements.lock

clean:  ## remove what was built
	rm -rf $(BUILD) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pfcore tests tools book benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## and the virtual environment
	rm -rf "$(VENV)"
