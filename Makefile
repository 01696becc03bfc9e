# On a machine with python3 and nothing else, each of these makes .venv and installs what is missing, once.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
DATA_DIR ?= ./data
LOWEST = .venv-lowest
PAGE = .venv-page

.PHONY: demo train test test-all test-lowest test-page figures tables lint audit
.DELETE_ON_ERROR:

# Train on the bundled digits, test, animate: no download, about a minute.
demo: $(VENV)/installed
	$(PYTHON) main.py --task=digits --run_name=demo --overwrite=True
	$(PYTHON) main.py --task=digits --run_name=demo --is_train=False
	$(PYTHON) plot_glimpses.py --plot_dir=./plots/demo

# Train on MNIST, downloaded into DATA_DIR if it is missing.
train: $(VENV)/installed
	$(PYTHON) main.py --data_dir=$(DATA_DIR)

# All tests but those marked slow, on all cores.
test: $(VENV)/installed
	$(PYTHON) -m pytest -n auto -m "not slow"

# The slow ones, too: fifty kills, workers that die, long fuzzing.
test-all: $(VENV)/installed
	$(PYTHON) -m pytest -n auto

# All tests with the lowest versions that requirements.txt allows.
test-lowest:
	test -x $(LOWEST)/bin/python || python3 -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/python -m uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		-r requirements.txt -r tests/requirements.txt
	$(LOWEST)/bin/python -m pytest -n auto -m "not slow"

# The tests of the page, in an environment of its own that adds Gradio, and the older pillow that it wants, to .venv's packages.
test-page: $(PAGE)/installed
	$(PAGE)/bin/python -m pytest tests/test_page.py tests/test_page_catch.py

$(PAGE)/installed: $(VENV)/installed requirements-page.txt
	test -x $(PAGE)/bin/python || $(PYTHON) -m venv $(PAGE)
	$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(PAGE)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	$(PAGE)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-page.txt "playwright>=1.50"
	touch $@

# Draw the pictures of README and docs, from models/TASK.pt or, if there is none, from the run that was trained.
figures: $(VENV)/installed
	$(PYTHON) -m tools.readme_figures --data_dir=$(DATA_DIR)

# Write the tables of README, docs and results, and the recipes, from the recorded runs.
tables: $(VENV)/installed
	$(PYTHON) -m tools.results_tables

lint: $(VENV)/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

# Known security holes of the lowest versions that requirements.txt allows; needs the network.
audit: $(VENV)/installed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check pip-audit
	sed 's/ *#.*//; s/>=/==/; /^$$/d' requirements.txt > $(VENV)/lowest.txt
	$(PYTHON) -m pip_audit --disable-pip --no-deps -r $(VENV)/lowest.txt

$(VENV)/installed: requirements.txt tests/requirements.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@
