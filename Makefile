# Everything runs inside $(VENV), made here from constraints.txt; nothing is installed outside it.
VENV ?= .venv
# The first Python of a supported version; override with `make PYTHON=/path/to/python3.12 ...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEEDED_GB := 12
# Two test processes, each with services of its own; a file of tests runs in one of them. `make test PARALLEL=` runs one.
PARALLEL ?= -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo search sweep services test test-fast benchmark lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## make the virtual environment (3 to 8 minutes, 7.5 GB; skipped when up to date)
	@echo "setup: $(VENV) is ready"

demo: $(INSTALLED) ## run the main job end to end on this machine: data, extraction, training, report
	@$(BIN)/python jobs/demo.py

search: $(INSTALLED) ## speak, and see the images of `make demo`: a page on this machine, until Ctrl-C
	@$(BIN)/python jobs/search.py

sweep: $(INSTALLED) ## sweep over settings on the data of `make demo`, with one interruption: table, figures, best model
	@$(BIN)/python jobs/demo_sweep.py

services: $(INSTALLED) ## start the S3 server, Ray and MLflow over the data of `make demo`, until Ctrl-C
	@$(BIN)/python jobs/services.py

test: $(INSTALLED) ## run all tests
	@$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(INSTALLED) ## run the tests that start neither Ray nor an S3 server, MLflow or a browser, without the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) -m "not services and not slow"

benchmark: $(INSTALLED) ## measure all benchmarks (40 minutes on 2 quiet cores) and put their table into docs/benchmarks.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmark]'
	@$(BIN)/python jobs/benchmark.py all

lint: $(INSTALLED) ## check format, style and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean: ## remove the virtual environment, caches and the state of the local services
	rm -rf $(VENV) .state build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

# The stamp is written last, so an interrupted installation is continued by the next `make`.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "setup: no Python 3.11, 3.12 or 3.13 found; install one or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		f"setup: {sys.executable} is Python {v[0]}.{v[1]}; 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.11")'
	@if [ ! -e "$(VENV)" ]; then "$(PYTHON)" -c 'import shutil, sys; gb = shutil.disk_usage(".").free / 1e9; \
		sys.exit(0 if gb >= $(NEEDED_GB) else f"setup: {gb:.1f} GB free here; $(NEEDED_GB) GB are needed for the installation")'; fi
	@if [ ! -x "$(BIN)/pip" ]; then "$(PYTHON)" -m venv "$(VENV)" || { \
		echo "setup: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2; exit 2; }; fi
	@echo "setup: installing about 210 packages (7.5 GB) into $(VENV); 3 to 8 minutes the first time"
	@start=$$(date +%s); \
	"$(BIN)/python" -m pip install --disable-pip-version-check -c constraints.txt -e '.[all,test,dev]' || { \
		echo "setup: the installation stopped (reason above); 'make setup' continues it" >&2; exit 2; }; \
	touch "$@"; echo "setup: done in $$(( $$(date +%s) - start )) s"
