# `make` alone lists what there is: a line is shown for each target that has words after two #.
PYTHON ?= python3
BIN := .venv/bin
CANARY := .venv-canary/bin
TORCH ?= torch

help: ## list what make can do here
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

course: .venv/.course ## set up, and run every lesson; the report is runs/course/report.html
	$(BIN)/python -m helpers run $(ARGS)

check: .venv/.test ## set up, and check in two minutes what needs no model: ruff, fast tests, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m fast tests $(ARGS)
	$(BIN)/mypy

test: .venv/.test ## set up, and test everything, every notebook too, in two processes
	$(BIN)/ruff check .
	@$(BIN)/python -m helpers model smollm2 || echo "the tests that ask a real chat model are skipped"
	$(BIN)/python -m pytest --nbval -n 2 --no-loadscope-reorder $(ARGS)

# Each lesson first in a fresh environment of Colab's packages, and of Kaggle's: on the Python at hand, then on the place's own.
places: .venv/.test ## run every lesson in doubles of Colab and Kaggle
	$(BIN)/python -m tests.places colab $(ARGS)
	$(BIN)/python -m tests.places colab --whole $(ARGS)
	$(BIN)/python -m tests.places kaggle $(ARGS)
	$(BIN)/python -m tests.places kaggle --whole $(ARGS)
	COURSE_PLACES=1 $(BIN)/python -m pytest tests/places

site: .venv/.site ## build the site from what is stored: runs/site/html/index.html
	$(BIN)/python site/build.py $(ARGS)

links: .venv/.site ## ask whether the site's links to elsewhere still answer: needs a network
	$(BIN)/python site/build.py --small --external $(ARGS)

notebooks: .venv/.course ## rebuild notebooks/ from lessons/ after an edit
	$(BIN)/python -m helpers build $(ARGS)

# What constraints.txt says already is kept. ARGS=--upgrade asks for what is new, ARGS="--upgrade-package NAME" for one package.
lock: $(BIN)/uv ## write constraints.txt anew from requirements.txt and pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command "make lock" $(ARGS) pyproject.toml --output-file constraints.txt

# In an environment of its own, made anew each time. TORCH="torch --index-url ..." chooses another build of torch.
canary: ## test on the newest releases: no upper bounds, no pins; says which workarounds can go
	$(PYTHON) -m venv --clear .venv-canary
	$(CANARY)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(CANARY)/python tests/upstream.py > .venv-canary/unbounded.txt
	$(CANARY)/python -m pip install --quiet --disable-pip-version-check -r .venv-canary/unbounded.txt
	$(CANARY)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	COURSE_CANARY=1 $(CANARY)/python -m pytest --nbval $(ARGS)

# The stamps make a second call install nothing.
.venv/.course: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); ok or sys.exit("this course needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e .
	# Kernels warn of unencrypted local connections, several times a lesson, in the middle of the progress bars.
	mkdir -p .venv/etc/ipython && echo '{"IPKernelApp": {"log_level": 40}}' > .venv/etc/ipython/ipython_kernel_config.json
	touch $@

# For `make lock` alone: once a bound has moved, requirements.txt contradicts the old constraints.txt, and nothing else installs.
$(BIN)/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

.venv/.test: .venv/.course
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.venv/.site: .venv/.course
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	touch $@

clean: ## remove the environments and the runs
	rm -rf .venv .venv-canary runs

.PHONY: help course check test places site links notebooks lock canary clean
