# On a machine with python3 and nothing else, each of these makes .venv and installs what is missing, once.
VENV ?= .venv
PYTHON = $(VENV)/bin/python
DATA_DIR ?= ./data

.PHONY: demo train gallery test tables lint
.DELETE_ON_ERROR:

# Train on the bundled digits, test, animate: no download, about a minute.
demo: $(VENV)/installed
	$(PYTHON) main.py --task=digits --overwrite=True
	$(PYTHON) main.py --task=digits --is_train=False
	$(PYTHON) plot_glimpses.py --plot_dir=./plots/digits_ram_6_8x8_1

# Train on MNIST, downloaded into DATA_DIR where it is missing.
train: $(VENV)/installed
	$(PYTHON) main.py --data_dir=$(DATA_DIR)

# Draw the README's pictures, from models/TASK.pt or, where there is none, from the run that was trained of the task.
gallery: $(VENV)/installed
	$(PYTHON) gallery.py --data_dir=$(DATA_DIR)

test: $(VENV)/installed
	$(PYTHON) -m pytest

# Write the tables of README.md and results/README.md from the recorded runs.
tables: $(VENV)/installed
	$(PYTHON) tables.py

lint: $(VENV)/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

$(VENV)/installed: requirements.txt tests/requirements.txt
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
	touch $@
