# make course     set up, and run every lesson            make test       set up, and test
# make notebooks  rebuild notebooks/ after an edit        make places     every lesson in Colab's and Kaggle's doubles
# make clean      remove the environment and the runs
PYTHON ?= python3
BIN := .venv/bin

course: .venv/.course
	$(BIN)/python -m helpers run $(ARGS)

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --nbval $(ARGS)

# Each lesson first in a fresh environment of Colab's packages, and of Kaggle's: on the Python at hand, then on the place's own.
places: .venv/.test
	$(BIN)/python -m tests.places colab $(ARGS)
	$(BIN)/python -m tests.places colab --whole $(ARGS)
	$(BIN)/python -m tests.places kaggle $(ARGS)
	$(BIN)/python -m tests.places kaggle --whole $(ARGS)
	COURSE_PLACES=1 $(BIN)/python -m pytest tests/places

notebooks: .venv/.course
	$(BIN)/python -m helpers build $(ARGS)

# The stamps make a second call install nothing.
.venv/.course: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); ok or sys.exit("this course needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt -e .
	# Kernels warn of unencrypted local connections, several times a lesson, in the middle of the progress bars.
	mkdir -p .venv/etc/ipython && echo '{"IPKernelApp": {"log_level": 40}}' > .venv/etc/ipython/ipython_kernel_config.json
	touch $@

.venv/.test: .venv/.course
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv runs

.PHONY: course test places notebooks clean
