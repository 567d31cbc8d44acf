# make course     set up, and run every lesson            make test       set up, and test
# make notebooks  rebuild notebooks/ after an edit        make clean      remove the environment and the runs
PYTHON ?= python3
BIN := .venv/bin

course: .venv/.course
	$(BIN)/python -m helpers run $(ARGS)

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --nbval $(ARGS)

notebooks: .venv/.course
	$(BIN)/python -m helpers build $(ARGS)

# The stamps make a second call install nothing.
.venv/.course: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 13); ok or sys.exit("this course needs Python 3.11 or 3.12, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
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

.PHONY: course test notebooks clean
